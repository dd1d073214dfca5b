//! Training as its users run it: interrupted and resumed, proved and tampered with, gone wrong.

mod common;

use common::lab::{Lab, TINY, step, success, text};
use common::{Rng, edit_json};
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use ternlm::config::Recipe;
use ternlm::measure::Perplexity;
use ternlm::train::{self, Observer, Outcome, StepReport};
use ternlm::{finish, report};

/// Of `[train]`.
const KEYS: &str = "weight_decay = 0.1\nweight_decay_until = 8\nwarmup = 3\nlog_every = 5\nkeep = 2";

/// Same latents, same optimizer state.
#[track_caller]
fn same_bits(a: &Path, b: &Path) {
    for file in ["model.safetensors", "optimizer.safetensors", "ternary.json", "config.json"] {
        let (x, y) = (fs::read(a.join(file)).unwrap(), fs::read(b.join(file)).unwrap());
        assert!(x == y, "{file} of {} and {} differ", a.display(), b.display());
    }
}

/// The metrics without what depends on the clock.
fn losses(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let object = value.as_object_mut().unwrap();
        object.retain(|key, _| !["tok_per_s", "elapsed_s"].contains(&key.as_str()));
        value.to_string()
    };
    text.lines().map(timeless).collect()
}

#[test]
fn killed_at_any_moment_and_resumed_is_uninterrupted() {
    let lab = Lab::new(KEYS);
    success(lab.train("whole", &[]));
    let whole = lab.path("whole");
    assert!(!step(&whole, 10).exists() && step(&whole, 11).exists(), "the newest two are kept");

    let run = lab.path("killed");
    let mut rng = Rng::new(std::process::id() as u64);
    let (mut starts, mut kills, mut kills_in_a_save) = (0, 0, 0);
    while !run.join("report.json").exists() {
        assert_eq!(starts, kills, "a start that nobody killed made no report");
        starts += 1;
        let mut args = vec!["train", "tiny.toml", "--data", "text.txt", "--out", "killed"];
        if run.join("recipe.toml").exists() {
            args.push("--resume");
        }
        let mut child = lab.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Every other time in the middle of a save, otherwise after a random while; at last it may finish.
        let in_a_save = kills % 2 == 0;
        let deadline = Instant::now() + Duration::from_millis(30 + rng.next() % 100);
        while child.try_wait().unwrap().is_none() {
            let saving = || {
                let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
                entries.into_iter().any(|e| e.file_name().to_string_lossy().contains(".partial-"))
            };
            if kills < 8 && (if in_a_save { saving() } else { Instant::now() > deadline }) {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                kills_in_a_save += in_a_save as usize;
                break;
            }
        }
    }
    println!("killed {kills} times, {kills_in_a_save} of them in a save");
    assert!(kills_in_a_save > 0, "no kill hit a save, which tests nothing");
    same_bits(&step(&run, 12), &step(&whole, 12));
    let (a, b) = (losses(&run), losses(&whole));
    let differs =
        a.iter().zip(&b).find(|(a, b)| a != b).map(|(a, b)| (a[..90].to_string(), b[..90].to_string()));
    assert!(differs.is_none() && a.len() == b.len(), "{} and {} records: {differs:?}", a.len(), b.len());
    let left: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "leftovers of killed saves are swept: {left:?}");
}

#[test]
fn a_kill_between_save_and_tidying_is_made_good_by_the_next_start() {
    let lab = Lab::new(KEYS);
    success(lab.train("run", &[]));
    let run = lab.path("run");
    // The newest is saved, an older one not yet removed, another in the middle of it.
    for name in ["step-00000010", "step-00000009.partial-1"] {
        let folder = run.join("checkpoints").join(name);
        fs::create_dir(&folder).unwrap();
        fs::copy(step(&run, 11).join("trainer.json"), folder.join("trainer.json")).unwrap();
    }
    fs::remove_file(run.join("report.json")).unwrap();
    success(lab.train("run", &["--resume"]));
    let mut left: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().flatten().map(|e| e.path()).collect();
    left.sort();
    assert_eq!(left, [step(&run, 11), step(&run, 12)]);
}

#[test]
fn moments_of_8_bits_resume_and_share_out_bit_for_bit() {
    let lab = Lab::new(KEYS);
    for (optimizer, more) in [("adamw", "train.lr=1e-2"), ("sgd", "train.lr=0.3"), ("muon", "train.lr=1e-2")]
    {
        let kind = format!("train.optimizer={optimizer}");
        let sets = ["--set", "train.moments=int8", "--set", &kind, "--set", more];
        success(lab.train(optimizer, &[&sets[..], &["--threads", "1"]].concat()));
        let run = lab.path(optimizer);
        let (last, kept) = (step(&run, 12), lab.path("kept"));
        fs::rename(&last, &kept).unwrap();
        // Another format is refused, whatever the recipe says.
        let refused = lab.train(optimizer, &["--resume", "--set", "train.moments=f32"]);
        let said = text(&refused);
        assert!(
            !refused.status.success() && said.contains("train.moments: found f32, wanted int8"),
            "{said}"
        );
        success(lab.train(optimizer, &["--resume", "--threads", "3"]));
        same_bits(&last, &kept);
        let bytes = |name: &str| fs::metadata(kept.join(name)).unwrap().len() as f64;
        let share = bytes("optimizer.safetensors") / bytes("model.safetensors");
        assert!(share < 0.8, "{optimizer}: moments take {share:.2} of the latents");
        fs::remove_dir_all(kept).unwrap();
    }
    success(lab.train("f32", &[]));
    fs::remove_dir_all(step(&lab.path("f32"), 12)).unwrap();
    let refused = lab.train("f32", &["--resume", "--set", "train.moments=int8"]);
    assert!(text(&refused).contains("train.moments: found int8, wanted f32"), "{}", text(&refused));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let lab = Lab::new(KEYS);
    // The larger batch is taken in two parts, on one thread, on a thread each, and on more than there are parts.
    let larger = ["--set", "train.batch=12", "--set", "train.seq=48"];
    let bf16_muon = ["--set", "train.precision=bf16", "--set", "train.optimizer=muon"];
    for batch in [&[][..], &["--set", "train.optimizer=muon"], &larger, &[larger, bf16_muon].concat()] {
        let name = |threads: &str| format!("{}-{threads}", batch.len());
        for threads in ["1", "2", "3"] {
            success(lab.train(&name(threads), &[batch, &["--threads", threads]].concat()));
        }
        for threads in ["2", "3"] {
            same_bits(&step(&lab.path(&name("1")), 12), &step(&lab.path(&name(threads)), 12));
        }
    }
}

#[test]
fn every_optimizer_and_scope_learns() {
    let lab = Lab::new(KEYS);
    for (name, more) in [
        ("adamw", &["train.optimizer=adamw", "train.lr=1e-2"][..]),
        ("sgd", &["train.optimizer=sgd", "train.lr=0.3", "train.momentum=0.9"]),
        ("muon", &["train.optimizer=muon", "train.lr=1e-2", "train.muon_lr=0.02"]),
        ("cautious", &["train.optimizer=muon", "train.lr=1e-2", "train.cautious=true"]),
        ("adamw-int8", &["train.moments=int8", "train.lr=1e-2"]),
        ("sgd-int8", &["train.moments=int8", "train.optimizer=sgd", "train.lr=0.3", "train.momentum=0.9"]),
        ("muon-int8", &["train.moments=int8", "train.optimizer=muon", "train.lr=1e-2"]),
        ("bf16", &["train.precision=bf16", "train.lr=1e-2"]),
        (
            "bf16-muon",
            &["train.precision=bf16", "train.optimizer=muon", "train.lr=1e-2", "ternary.scope=blocks"],
        ),
        ("bf16-int8", &["train.precision=bf16", "ternary.activations=int8", "train.lr=1e-2"]),
        ("none", &["train.lr=1e-2", "ternary.scope=none"]),
        ("blocks", &["train.lr=1e-2", "ternary.scope=blocks"]),
        ("tensor", &["train.lr=1e-2", "ternary.group=tensor"]),
        ("learned-scales", &["train.optimizer=muon", "train.lr=1e-2", "ternary.scale=learned"]),
        ("small-groups", &["train.lr=1e-2", "ternary.group=20"]),
    ] {
        let sets: Vec<&str> = more.iter().flat_map(|kv| ["--set", kv]).collect();
        let steps = ["--set", "train.steps=40", "--set", "train.save_every=0", "--set", "train.accumulate=1"];
        success(lab.train(name, &[&steps[..], &sets].concat()));
        let report: serde_json::Value =
            serde_json::from_slice(&fs::read(lab.path(name).join("report.json")).unwrap()).unwrap();
        let (first, last) =
            (report["first5_loss"].as_f64().unwrap(), report["last20_loss"].as_f64().unwrap());
        assert!(last < 0.75 * first, "{name}: loss {first} to {last}");
        if name != "none" {
            let said = lab.ok(&["verify", name]);
            assert!(said.lines().last().unwrap().starts_with("PASS"), "{said}");
        }
    }
}

#[test]
fn the_copy_task_is_learned_in_bf16() {
    let lab = Lab::new(KEYS);
    let sets = ["train.precision=bf16", "train.steps=300", "report.min_accuracy=1"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    lab.ok(&[&["train", "copy", "--out", "copy"], &sets[..]].concat());
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(lab.path("copy/report.json")).unwrap()).unwrap();
    assert_eq!(report["recipe"]["train"]["precision"], "bf16");
    assert_eq!(report["accuracy"], 1.0);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let lab = Lab::new(KEYS);
    let out = lab.train(
        "run",
        &[
            "--set",
            "train.lr=1e3",
            "--set",
            "train.clip=0",
            "--set",
            "train.optimizer=sgd",
            "--set",
            "train.momentum=0.9",
        ],
    );
    let said = String::from_utf8_lossy(&out.stderr).to_string();
    assert!(!out.status.success(), "{}", text(&out));
    assert!(said.contains("is not finite") && said.contains("model."), "which tensor? {said}");
    assert!(said.contains("checkpoint"), "where to go on from? {said}");
    assert!(!lab.path("run/report.json").exists());
}

#[test]
fn an_existing_run_is_never_overwritten() {
    let lab = Lab::new(KEYS);
    success(lab.train("run", &[]));
    let before = fs::read(step(&lab.path("run"), 12).join("model.safetensors")).unwrap();
    let out = lab.train("run", &[]);
    assert!(!out.status.success() && text(&out).contains("--resume"), "{}", text(&out));
    assert_eq!(fs::read(step(&lab.path("run"), 12).join("model.safetensors")).unwrap(), before);
    // Resuming a finished run repeats its end and changes nothing.
    success(lab.train("run", &["--resume"]));
    assert_eq!(fs::read(step(&lab.path("run"), 12).join("model.safetensors")).unwrap(), before);
}

/// Changes a copy of a model directory, then verifies it.
fn tampered(lab: &Lab, model: &str, change: impl FnOnce(&Path)) -> Output {
    let copy = lab.path("copy");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(lab.path(model)).unwrap().flatten().filter(|e| e.path().is_file()) {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    change(&copy);
    lab.command(&["verify", "copy"]).output().unwrap()
}

/// Offset of the first byte of a tensor's data in a safetensors file, and its bytes' number.
fn place(file: &[u8], tensor: &str) -> (usize, usize) {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let at = |i: usize| json[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    (8 + header + at(0), at(1) - at(0))
}

fn edit(dir: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let path = dir.join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let (start, len) = place(&file, tensor);
    change(&mut file[start..start + len]);
    fs::write(path, file).unwrap();
}

#[test]
fn verify_fails_on_every_kind_of_tampering() {
    let lab = Lab::new(KEYS);
    success(lab.train("run", &[]));
    let q = "model.layers.0.self_attn.q_proj.weight";
    let norm = "model.norm.weight";
    for model in ["run/model", "run/checkpoints/step-00000012"] {
        let out = tampered(&lab, model, |_| {});
        assert!(out.status.success() && text(&out).contains("PASS"), "{model}: {}", text(&out));
        // One bit of a ternary tensor (in f16 weights as in f32 latents), and of one that is not.
        for (tensor, byte) in [(q, 0), (q, 1), (norm, 2)] {
            let out = tampered(&lab, model, |dir| edit(dir, tensor, |data| data[byte] ^= 1));
            assert!(
                !out.status.success() && text(&out).contains(tensor),
                "{model} {tensor} byte {byte}: {}",
                text(&out)
            );
        }
        // A claim that is dropped, and a manifest that is.
        let out = tampered(&lab, model, |dir| {
            edit_json(&dir.join("config.json"), |c| {
                c["ternlm"]["tensors"].as_array_mut().unwrap().retain(|t| t != q);
            });
        });
        assert!(!out.status.success() && text(&out).contains("promises"), "{}", text(&out));
        let out = tampered(&lab, model, |dir| fs::remove_file(dir.join("ternary.json")).unwrap());
        assert!(!out.status.success() && text(&out).contains("ternary.json"), "{}", text(&out));
    }
    // A whole group with another scale is still ternary; only the digest knows that it is not what was trained.
    let out = tampered(&lab, "run/model", |dir| {
        edit(dir, q, |data| {
            data.chunks_exact_mut(2).take(48).for_each(|w| {
                if w != [0, 0] && w != [0, 0x80] {
                    w[1] ^= 4
                }
            })
        });
    });
    assert!(!out.status.success() && text(&out).contains("not those that were trained"), "{}", text(&out));
    // A tensor that claims to be ternary and is not: the latents under an unpacked model's claim.
    let out = tampered(&lab, "run/checkpoints/step-00000012", |dir| {
        edit_json(&dir.join("config.json"), |c| c["ternlm"]["form"] = "unpacked".into());
        edit_json(&dir.join("ternary.json"), |m| m["form"] = "unpacked".into());
    });
    let said = text(&out);
    assert!(!out.status.success() && said.contains("FAIL") && said.contains("row 0, column 0"), "{said}");
}

/// As a program does that shows nothing.
struct Silent;

impl Observer for Silent {
    fn stepped(&mut self, _: &StepReport, _: f64, _: bool) {}
    fn validated(&mut self, _: u64, _: &Perplexity) {}
    fn saved(&mut self, _: &Path) {}
}

#[test]
fn a_run_from_start_to_report_needs_no_command_line() {
    let lab = Lab::new(KEYS);
    let mut recipe: Recipe = toml::from_str(TINY).unwrap();
    recipe.train.steps = 2;
    recipe.data.train = vec![lab.path("text.txt")];
    recipe.report.test = Some(lab.path("text.txt"));
    recipe.report.prompts = vec!["one ".into()];
    recipe.report.max_train_loss = Some(1e-6);
    recipe.validate(&lab.path("tiny.toml")).unwrap();
    let run = lab.path("run");
    fs::create_dir(&run).unwrap();
    let mut trainer = train::setup(recipe, None, &lab.path("cache"), train::Share::WHOLE, &|_| {}).unwrap();
    let outcome = train::run(&mut trainer, &run, &AtomicBool::new(false), &mut Silent).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let mut read = Vec::new();
    let finished = finish::finish(&mut trainer, &run, &mut |done, all| read.push((done, all))).unwrap();
    assert!(finished.proof.pass && !finished.passed(), "proved, and short of its bar");
    assert!(finished.model.join("ternary.json").is_file() && run.join(report::HTML).is_file());
    let summary = report::read(&run).unwrap();
    assert_eq!((summary.checks.len(), summary.samples.len(), summary.steps), (1, 1, 2));
    let bytes = fs::metadata(lab.path("text.txt")).unwrap().len();
    assert_eq!((read[0], read[read.len() - 1]), ((0, bytes), (bytes, bytes)), "tokens are bytes here");
    assert!(read.is_sorted() && read.len() > 2, "{read:?}");
}

#[test]
fn a_bar_that_is_missed_fails_the_process() {
    let lab = Lab::new(KEYS);
    let train = |out: &str, steps: &str| {
        lab.command(&["train", "copy", "--out", out, "--set", steps, "--set", "train.log_every=10"])
            .output()
            .unwrap()
    };
    let short = train("short", "train.steps=12");
    let said = text(&short);
    assert_eq!(short.status.code(), Some(1), "{said}");
    for line in ["Step 0: loss=", "Step 10: loss=", "Train loss: ", ": FAIL", "Copy accuracy: "] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    assert!(said.contains("Ternary check: all weights in {-1, 0, +1}: PASS"), "{said}");
    let enough = train("enough", "train.steps=150");
    assert!(enough.status.success() && !text(&enough).contains("FAIL"), "{}", text(&enough));
}
