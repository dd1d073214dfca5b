//! `ternlm sweep` as people run it: every combination with every seed, what has ended stays, and a sweep may grow.

mod common;

use common::lab::text as said;
use common::program;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::SystemTime;

fn sweep(dir: &Path, args: &[&str]) -> Output {
    let cache = dir.join(".cache");
    program::command(&["sweep"]).args(args).current_dir(dir).env("TERNLM_CACHE", cache).output().unwrap()
}

fn lines(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("sweeps/copy/results.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const SMALL: [&str; 6] =
    ["--set", "train.steps=30", "--set", "model.hidden_size=64", "--set", "model.intermediate_size=64"];

#[test]
fn a_grid_is_trained_goes_on_and_grows() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let grid = ["--grid", "train.lr=1e-7,3e-3", "--jobs", "2"];
    let first = sweep(dir, &[&["copy", "--seeds", "0,1"], &grid[..], &SMALL].concat());
    assert!(first.status.success(), "{}", said(&first));
    let runs = lines(dir);
    assert_eq!(runs.len(), 4);
    assert!(runs.iter().all(|run| run["figure"].is_f64() && run["tokens"] == 30 * 512), "{runs:?}");
    // A learning rate of nothing learns nothing: that is no noise.
    let shown = said(&first);
    let at = |what: &str| shown.find(what).unwrap_or_else(|| panic!("no {what} in {shown}"));
    assert!(at("train.lr=0.003") < at("best mean") && at("best mean") < at("train.lr=1e-7"), "{shown}");
    assert!(at("train.lr=1e-7") < at("worse"), "{shown}");

    // Another seed: what has ended is not trained again.
    let report = dir.join("sweeps/copy").join(runs[0]["folder"].as_str().unwrap()).join("report.json");
    let made = |path: &Path| -> SystemTime { fs::metadata(path).unwrap().modified().unwrap() };
    let before = made(&report);
    let grown = sweep(dir, &[&["copy", "--seeds", "0,1,2"], &grid[..], &SMALL].concat());
    assert!(
        grown.status.success() && said(&grown).contains("6 runs of which 4 have ended"),
        "{}",
        said(&grown)
    );
    assert_eq!((lines(dir).len(), made(&report)), (6, before));

    // Another sweep is refused in this folder.
    let other =
        sweep(dir, &["copy", "--seeds", "0", "--grid", "train.lr=1e-7,3e-3", "--set", "train.steps=31"]);
    assert!(!other.status.success() && said(&other).contains("train.steps\" = 31"), "{}", said(&other));

    // Looking at a part of it leaves the tables as they are.
    let before = lines(dir);
    let part =
        sweep(dir, &[&["copy", "--seeds", "0", "--grid", "train.lr=1e-2", "--table"], &SMALL[..]].concat());
    assert!(part.status.success() && said(&part).contains("train.lr=0.003"), "{}", said(&part));
    assert_eq!(lines(dir), before);

    // The plan that was kept is a plan, and the page says what it is.
    fs::rename(dir.join("sweeps/copy"), dir.join("moved")).unwrap();
    let plan = sweep(dir, &["moved/sweep.toml", "--out", "moved", "--table"]);
    assert!(plan.status.success() && said(&plan).contains("4 degrees of freedom"), "{}", said(&plan));
    let page = fs::read_to_string(dir.join("moved/sweep.html")).unwrap();
    assert!(page.contains("train.lr=0.003") && page.contains("<svg"), "{page}");
    assert!(!page.contains("src=") && !page.contains("<script"), "nothing is loaded or run");
    let table = fs::read_to_string(dir.join("moved/results.csv")).unwrap();
    assert!(table.starts_with("train.lr,seed,figure,") && table.lines().count() == 7, "{table}");
}

#[test]
fn a_recipe_that_was_edited_is_another_sweep() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let recipe = include_str!("../recipes/copy.toml");
    fs::write(dir.join("my.toml"), recipe).unwrap();
    let args = |seeds| {
        [&["my.toml", "--out", "sweeps/copy", "--grid", "train.lr=1e-3", "--seeds", seeds], &SMALL[..]]
            .concat()
    };
    assert!(sweep(dir, &args("0")).status.success());
    // A bar is none of the training.
    let bar = recipe.lines().find(|line| line.starts_with("max_train_loss")).expect("a bar in the recipe");
    fs::write(dir.join("my.toml"), recipe.replace(bar, "max_train_loss = 9.0")).unwrap();
    assert!(sweep(dir, &args("0,1")).status.success());
    fs::write(
        dir.join("my.toml"),
        recipe.replace("[train]\n", "[train]\nclip = 0.25\n").replace("\nclip = 1.0", ""),
    )
    .unwrap();
    let out = sweep(dir, &args("0,1,2"));
    let shown = said(&out);
    assert!(
        !out.status.success() && shown.contains("train.clip: found 0.25 in the recipe, wanted 1.0"),
        "{shown}"
    );
    assert_eq!(lines(dir).len(), 2);
}

#[test]
fn runs_on_a_text_that_was_changed_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let text = "the cat sat on the mat. ".repeat(400);
    fs::write(dir.path().join("text.txt"), &text).unwrap();
    let small = [
        "--set",
        "train.steps=2",
        "--set",
        "model.layers=1",
        "--set",
        "train.batch=2",
        "--set",
        "train.seq=16",
    ];
    let args =
        |seeds| [&["shakespeare", "--data", "text.txt", "--out", "s", "--seeds", seeds], &small[..]].concat();
    assert!(sweep(dir.path(), &args("0")).status.success());
    // The same text in another file of the same name is the same.
    fs::remove_file(dir.path().join("text.txt")).unwrap();
    fs::write(dir.path().join("text.txt"), &text).unwrap();
    assert!(sweep(dir.path(), &args("0,1")).status.success());
    fs::write(dir.path().join("text.txt"), text.replacen("mat", "hat", 300)).unwrap();
    let out = sweep(dir.path(), &args("0,1,2"));
    let shown = said(&out);
    assert!(
        !out.status.success() && shown.contains("seed-2: texts: found other tokens trained on"),
        "{shown}"
    );
}

#[test]
fn one_seed_is_not_ranked_and_what_fails_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("text.txt"), "the cat sat on the mat. ".repeat(400)).unwrap();
    // The model has 1,024 positions.
    let args = ["shakespeare", "--data", "text.txt", "--grid", "train.seq=16,2000", "--out", "sweeps/copy"];
    let small = ["--set", "train.steps=5", "--set", "model.layers=1", "--set", "train.batch=2"];
    let out = sweep(dir.path(), &[&args[..], &small].concat());
    let shown = said(&out);
    assert!(!out.status.success() && shown.contains("Not ranked"), "{shown}");
    assert!(shown.contains("1 runs came to no figure") && shown.contains("train.seq: found 2000"), "{shown}");
    assert!(shown.contains("0 of 1 runs  not ranked: a run failed"), "{shown}");
    assert_eq!(lines(dir.path()).iter().filter(|run| run["figure"].is_null()).count(), 1);
}

#[test]
fn a_plan_that_cannot_be_run_is_named_before_anything_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("plan.toml"),
        "recipe = 'copy'\nseeds = [0]\n[grid]\n'train.lr' = [1e-3]\nlr = 3",
    )
    .unwrap();
    fs::write(dir.path().join("slip.toml"), "recipe = 'copy'\nseed = [0]").unwrap();
    for (args, wanted) in [
        (&["copy", "--grid", "train.lr"][..], "wanted KEY=VALUE"),
        (&["copy", "--grid", "train.lr=1e-3,1e-3"], "each once"),
        (&["copy", "--grid", "train.lr=1,'1'"], "train.lr\": found 1 and \"1\", which name one folder"),
        (&["copy", "--grid", "train.speed=1,2"], "unknown field `speed`"),
        (&["copy", "--grid", "train.lr=-1,1"], "train.lr: found -1"),
        (&["copy", "--seeds", "1,1"], "each once"),
        (&["copy", "--grid", "train.lr=1e-3", "--grid", "train.lr=2e-3"], "--grid train.lr: found twice"),
        (&["copy", "--grid", "data.val_fraction=0.1,0.2"], "the same one for all"),
        (&["copy", "--grid", "train.muon_lr=0.1,0.2"], "change nothing (only muon uses it)"),
        (&["shakespeare", "--grid", "data.train=['a.txt'],['b.txt']"], "with data.val"),
        (
            &["shakespeare", "--data", "a.txt", "--grid", "data.train=['b.txt']"],
            "data.train: found texts beside",
        ),
        (&["copy", "--jobs", "0"], "--jobs 0"),
        (&["nothing.toml"], "no such file"),
        (&["plan.toml"], "sweep: found"),
        (&["slip.toml"], "unknown field `seed`, expected one of `recipe`"),
        (&["copy", "--seeds", "18446744073709551615"], "at most 9223372036854775807"),
        (&["copy", "--table", "--out", "nothere"], "no sweep.toml"),
    ] {
        let out = sweep(dir.path(), args);
        assert!(!out.status.success() && said(&out).contains(wanted), "{args:?}: {}", said(&out));
        assert!(!dir.path().join("sweeps").exists(), "{args:?}");
    }
}

#[test]
fn vocabularies_are_compared_by_bytes_and_a_name_may_hold_a_full_stop() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("text.txt"), "the cat sat on the mat. ".repeat(400)).unwrap();
    let args =
        ["shakespeare", "--data", "text.txt", "--grid", "model.vocab_size=258,264", "--out", "sweeps/copy"];
    let small = ["--set", "train.steps=2", "--set", "model.layers=1", "--set", "train.seq=16"];
    let out = sweep(dir.path(), &[&args[..], &small].concat());
    assert!(out.status.success() && said(&out).contains("bits per byte"), "{}", said(&out));
    for run in lines(dir.path()) {
        assert!(run["figure"] == run["bits_per_byte"] && run["figure"] != run["val_nll"], "{run}");
    }
    let out = sweep(dir.path(), &["qwen3-0.6b-all", "--data", "text.txt", "--set", "init=model", "--table"]);
    assert!(said(&out).contains("sweeps/qwen3-0.6b-all"), "{}", said(&out));
}

/// As a queue of a cluster ends a job: the signal reaches the sweep alone.
#[cfg(target_os = "linux")]
#[test]
fn a_sweep_that_is_told_to_stop_stops_its_trainings() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// Ended with the test, however that ends.
    struct Child(std::process::Child);

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let long = ["--set", "train.steps=3000", "--set", "train.log_every=1"];
    let mut command = program::command(&["sweep", "copy", "--seeds", "0,1"]);
    command.args(long).current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut sweep = Child(command.spawn().unwrap());
    let log = || fs::read_to_string(dir.path().join("sweeps/copy/runs/all/seed-0.log")).unwrap_or_default();
    let start = Instant::now();
    let wait = || {
        assert!(start.elapsed() < Duration::from_secs(120), "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    };
    while !log().contains("Step 3:") {
        wait();
    }
    assert!(Command::new("kill").arg(sweep.0.id().to_string()).status().unwrap().success());
    while sweep.0.try_wait().unwrap().is_none() {
        wait();
    }
    let said = log();
    assert!(said.contains("a checkpoint will be saved") && said.contains("--resume"), "{said}");
    assert!(!dir.path().join("sweeps/copy/runs/all/seed-0/report.json").exists());
}
