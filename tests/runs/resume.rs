//! A change at a resume is refused by name, or takes effect and is recorded.

use super::{Lab, text};
use std::fs;

#[test]
fn what_the_checkpoint_fixes_is_refused_by_name() {
    let lab = Lab::trained(&[]);
    for (change, found, wanted) in [
        ("name=other", "other", "tiny"),
        ("task=copy", "copy", "lm"),
        ("seed=4", "4", "3"),
        ("needs_init=true", "true", "false"),
        ("init=other", "other", "nothing"),
        ("model.vocab_size=300", "300", "256"),
        ("model.hidden_size=48", "48", "32"),
        ("model.layers=1", "1", "2"),
        ("model.heads=4", "4", "2"),
        ("model.kv_heads=2", "2", "1"),
        ("model.head_dim=8", "8", "16"),
        ("model.intermediate_size=64", "64", "48"),
        ("model.activation=gelu", "gelu", "swiglu"),
        ("model.qk_norm=false", "false", "true"),
        ("model.qkv_bias=true", "true", "false"),
        ("model.causal=false", "false", "true"),
        ("model.tie_embeddings=false", "false", "true"),
        ("model.rope_theta=500.5", "500.5", "10000.0"),
        ("model.rms_norm_eps=1e-5", "0.00001", "1e-6"),
        ("model.max_positions=128", "128", "64"),
        ("ternary.scope=blocks", "blocks", "all"),
        ("ternary.group=16", "16", "128"),
        ("ternary.group=tensor", "tensor", "128"),
        ("ternary.activations=int8", "int8", "f32"),
        ("ternary.init_std=0.5", "0.5", "nothing"),
        ("data.tokenizer=gpt2", "gpt2", "bytes"),
        ("data.order=epoch", "epoch", "random"),
        ("data.sequence=8", "8", "16"),
        ("train.optimizer=muon", "muon", "adamw"),
        ("train.optimizer=sgd", "sgd", "adamw"),
        ("train.moments=int8", "int8", "f32"),
        ("train.steps=5", "5", "at least the 6"),
        // They would say something of a training that they do not touch.
        ("train.momentum=0.5", "0.5", "0.95: adamw does not use it"),
        ("train.muon_lr=0.5", "0.5", "0.02: only muon uses it"),
        ("train.decay_fraction=0.5", "0.5", "0.3: only a linear schedule uses it"),
    ] {
        let key = change.split('=').next().unwrap();
        let found = if key == "init" { "found /" } else { &format!("found {found}") };
        // A number may be written in more than one way.
        let found = if key == "model.rms_norm_eps" { "found " } else { found };
        lab.refuses(&["--set", change], &[&format!("{key}: {found}"), &format!("wanted {wanted}")]);
    }
    lab.refuses(&["--seed", "9"], &["seed: found 9, wanted 3"]);
    lab.refuses(&["--init", "run/model"], &["init: found /", "run/model, wanted nothing"]);
    let two = ["--set", "model.layers=1", "--set", "train.lr=1e-4", "--set", "train.optimizer=sgd"];
    lab.refuses(&two, &["model.layers: found 1, wanted 2", "train.optimizer: found sgd, wanted adamw"]);
    lab.fails(&["train", "copy", "--out", "run", "--resume"], &["name: found tiny", "copy"]);
    lab.fails(
        &["train", "tiny.toml", "--out", "run", "--other-data", "--resume", "--set", "model.layers=1"],
        &["model.layers"],
    );

    // What is the same is no change.
    let init = fs::read(lab.path("run/recipe.toml")).unwrap();
    lab.resumes(&[
        "--seed",
        "3",
        "--set",
        "model.layers=2",
        "--data",
        "text.txt",
        "--set",
        "train.moments=f32",
    ]);
    assert_eq!(fs::read(lab.path("run/recipe.toml")).unwrap(), init);
}

#[test]
fn a_hand_in_the_recorded_recipe_is_noticed() {
    let lab = Lab::trained(&[]);
    let recorded = lab.read("run/recipe.toml");
    for (line, other, key) in [
        ("layers = 2", "layers = 1", "model.layers: found 1, wanted 2"),
        ("optimizer = \"adamw\"", "optimizer = \"sgd\"", "train.optimizer: found sgd, wanted adamw"),
        ("seed = 3", "seed = 7", "seed: found 7, wanted 3"),
        ("scope = \"all\"", "scope = \"none\"", "ternary.scope: found none, wanted all"),
    ] {
        assert!(recorded.contains(line), "{recorded}");
        lab.write("run/recipe.toml", recorded.replace(line, other));
        lab.refuses(&[], &[key]);
    }
}

#[test]
fn what_can_change_takes_effect_and_is_recorded() {
    let lab = Lab::trained(&[]);
    let set = |changes: &[&str]| {
        let args: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
        lab.resumes(&args);
        lab.recorded()
    };
    let recipe = set(&[
        "train.steps=9",
        "train.lr=1e-4",
        "train.schedule=constant",
        "train.warmup=0",
        "train.batch=2",
    ]);
    assert_eq!((&recipe["train"]["steps"], &recipe["train"]["batch"]), (&9.into(), &2.into()));
    let train = lab.records("train");
    assert_eq!(train.len(), 9);
    // Six steps of 3 sequences of 16 tokens, then 2.
    assert_eq!((&train[5]["tokens"], &train[6]["tokens"]), (&288.into(), &320.into()));
    assert_eq!(train[6]["lr"].as_f64().unwrap() as f32, 1e-4);
    assert!(train[5]["lr"].as_f64().unwrap() as f32 != 1e-4);

    let recipe = set(&[
        "train.steps=12",
        "train.precision=bf16",
        "train.accumulate=2",
        "train.seq=20",
        "train.log_every=3",
    ]);
    assert_eq!((&recipe["train"]["accumulate"], &recipe["train"]["seq"]), (&2.into(), &20.into()));
    assert_eq!(recipe["train"]["precision"], "bf16");
    let steps =
        |kind| -> Vec<u64> { lab.records(kind).iter().map(|r| r["step"].as_u64().unwrap()).collect() };
    assert_eq!(steps("train")[9..], [10, 12]);
    assert_eq!(lab.records("train")[9]["tokens"], 384 + 80);
    assert_eq!(lab.read_json(&format!("{}/trainer.json", lab.newest()))["progress"]["cursor"], 18 + 6 + 12);

    set(&[
        "train.steps=16",
        "train.eval_every=2",
        "train.eval_sequences=3",
        "train.save_every=1",
        "train.keep=4",
    ]);
    assert_eq!(steps("val"), [6, 9, 12, 14, 16]);
    assert_eq!(lab.records("val")[3]["tokens"], 3 * 20);
    assert_eq!(fs::read_dir(lab.path("run/checkpoints")).unwrap().count(), 4);

    // A step without a learning rate moves nothing.
    let weights = || fs::read(lab.path(format!("{}/model.safetensors", lab.newest()))).unwrap();
    let before = weights();
    set(&["train.steps=17", "train.lr=0"]);
    assert!(weights() == before);
    set(&[
        "train.steps=18",
        "train.lr=0.01",
        "train.beta1=0.5",
        "train.beta2=0.5",
        "train.eps=1e-3",
        "train.clip=0.1",
    ]);
    assert!(weights() != before);
    let decayed = |changes: &[&str]| {
        let _ = fs::remove_dir_all(lab.path("decay"));
        lab.ok(&["train", "tiny.toml", "--out", "decay"]);
        let resume = ["train", "tiny.toml", "--out", "decay", "--resume", "--set", "train.steps=7"];
        let sets = changes.iter().flat_map(|change| ["--set", change]);
        lab.ok(&resume.into_iter().chain(sets).collect::<Vec<_>>());
        fs::read(lab.path("decay/checkpoints/step-00000007/model.safetensors")).unwrap()
    };
    let plain = decayed(&[]);
    assert!(decayed(&["train.weight_decay=50"]) != plain);
    assert!(decayed(&["train.weight_decay=50", "train.weight_decay_until=6"]) == plain);

    // The report is made again without a step, and so without a new checkpoint.
    let report = |changes: &[&str]| {
        let args: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
        lab.resumes(&args);
        let recorded: toml::Table = lab.read("run/recipe.toml").parse().unwrap();
        let report = lab.read_json("run/report.json");
        assert_eq!(report["recipe"]["report"], serde_json::to_value(&recorded["report"]).unwrap());
        report
    };
    let made = report(&[
        "report.prompts=[\"one\", \"two\"]",
        "report.sample_tokens=2",
        "report.temperature=0.5",
        "report.top_p=0.9",
        "report.test=other.txt",
    ]);
    assert_eq!(made["samples"][1]["prompt"], "two");
    assert!(made["test"]["file"].as_str().unwrap().ends_with("/other.txt"));
    let out =
        lab.run(&["train", "tiny.toml", "--out", "run", "--resume", "--set", "report.max_train_loss=0"]);
    assert!(out.status.code() == Some(1) && super::said(&out).contains("a check failed"));
    assert_eq!(lab.read_json("run/report.json")["recipe"]["report"]["max_train_loss"], 0.0);
}

#[test]
fn a_change_that_another_key_forbids() {
    let lab = Lab::trained(&[
        "--set",
        "data.order=epoch",
        "--set",
        "train.optimizer=sgd",
        "--set",
        "train.schedule=constant",
    ]);
    for change in ["train.seq=20", "train.beta1=0.5", "train.beta2=0.5", "train.eps=0.5", "train.floor=0.5"] {
        lab.refuses(&["--set", change], &[change.split('=').next().unwrap()]);
    }
    // What would change no step is not recorded as if it had.
    let refused = ["train.momentum: found 0.5, wanted 0.95: no step is left"];
    lab.refuses(&["--set", "train.momentum=0.5", "--set", "train.keep=5"], &refused);
    lab.resumes(&[
        "--set",
        "train.steps=8",
        "--set",
        "train.momentum=0.5",
        "--set",
        "train.schedule=linear",
        "--set",
        "train.decay_fraction=0.9",
    ]);
    lab.ok(&[
        "train",
        "copy",
        "--out",
        "copy",
        "--set",
        "train.steps=2",
        "--set",
        "report.max_train_loss=100",
        "--set",
        "report.min_accuracy=0",
    ]);
    let copy = ["train", "copy", "--out", "copy", "--resume"];
    for change in ["train.seq=20", "data.sequence=4", "data.val_fraction=0.5", "task=recall", "task=lm"] {
        lab.fails(&[&copy[..], &["--set", change]].concat(), &[change.split('=').next().unwrap(), "found"]);
    }
    lab.fails(&[&copy[..], &["--data", "text.txt"]].concat(), &["data.train", "its own sequences"]);
    lab.fails(&["train", "copy", "--out", "other", "--data", "text.txt"], &["--data", "its own sequences"]);
    assert!(!lab.path("other").exists());
}

/// The recipe named on the command line is not followed; where it differs, that is said.
#[test]
fn a_recipe_that_was_edited_is_not_followed_in_silence() {
    let lab = Lab::trained(&["--set", "train.lr=1e-3"]);
    assert!(lab.resumes(&[]).contains("train.lr (0.003 there, 0.001 in the run)"));
    lab.write(
        "tiny.toml",
        super::RECIPE.replace("layers = 2", "layers = 1").replace("lr = 3e-3", "lr = 1e-3"),
    );
    let said = lab.resumes(&[]);
    assert!(said.contains("model.layers (1 there, 2 in the run)") && !said.contains("train.lr"), "{said}");
    lab.write("tiny.toml", super::RECIPE.replace("lr = 3e-3", "lr = 1e-3").replace("steps = 6", "steps = 8"));
    assert!(lab.resumes(&[]).contains("train.steps (8 there, 6 in the run)"));
    let said = lab.resumes(&["--set", "train.steps=8"]);
    assert!(!said.contains("there"), "{said}");
    assert_eq!(lab.recorded()["train"]["steps"], 8);
    // A recipe that is built in is edited by nobody.
    lab.ok(&["train", "copy", "--out", "copy", "--set", "train.steps=150"]);
    let said = lab.ok(&["train", "copy", "--out", "copy", "--resume"]);
    assert!(!said.contains("there"), "{said}");
}

#[test]
fn another_text_is_refused_unless_it_is_meant() {
    let lab = Lab::trained(&[]);
    let fingerprint = || lab.read_json(&format!("{}/trainer.json", lab.newest()))["corpus"].clone();
    let first = fingerprint();
    assert_eq!(first.as_str().unwrap().len(), 64);
    let parts = ["data.train: found a text of other tokens", "--other-data"];
    lab.refuses(&["--data", "other.txt"], &[parts[0], parts[1], "changed: data.train)"]);
    lab.refuses(&["--data", "text.txt", "other.txt"], &parts);
    lab.refuses(&["--set", "data.val_fraction=0.5"], &[parts[0], parts[1], "changed: data.val_fraction)"]);
    lab.refuses(&["--set", "data.val=[\"other.txt\"]"], &[parts[0], "changed: data.val)"]);
    lab.write(
        "records.jsonl",
        "{\"text\": \"one two three four five six\", \"body\": \"six five four three two one\"}\n".repeat(9),
    );
    lab.refuses(
        &["--data", "records.jsonl", "--set", "data.field=body"],
        &[parts[0], "data.field, data.train"],
    );
    // The text under the old name.
    lab.write("text.txt", text(2));
    lab.refuses(&[], &[parts[0], parts[1], "the files have changed"]);
    fs::remove_file(lab.path("text.txt")).unwrap();
    lab.refuses(&[], &["text.txt: data: found no such file", "--data"]);
    // The old text under another name.
    lab.write("moved/text.txt", text(0));
    lab.resumes(&["--data", "moved", "--set", "train.steps=8"]);
    assert!(lab.recorded()["data"]["train"][0].as_str().unwrap().ends_with("/moved"));
    assert_eq!(fingerprint(), first);
    // Another text, on purpose.
    lab.resumes(&["--data", "other.txt", "--other-data", "--set", "train.steps=10"]);
    assert!(lab.recorded()["data"]["train"][0].as_str().unwrap().ends_with("/other.txt"));
    assert_ne!(fingerprint(), first);
    lab.resumes(&["--set", "train.steps=12"]);
    lab.refuses(&["--data", "moved"], &parts);
    let out = lab.run(&["train", "tiny.toml", "--out", "fresh", "--other-data"]);
    assert_eq!(out.status.code(), Some(2), "a flag for resumes only");
}

#[test]
fn the_model_of_init_is_the_one_recorded() {
    let lab = Lab::trained(&[]);
    lab.write(
        "plain.toml",
        super::RECIPE.split("[model]").next().unwrap().to_string()
            + &super::RECIPE[super::RECIPE.find("[data]").unwrap()..],
    );
    let contradicting =
        super::RECIPE.replace("layers = 2", "layers = 3").replace("tie_embeddings = true", "");
    lab.write("other.toml", &contradicting);
    lab.write("usual.toml", contradicting.replace("seed = 3", "needs_init = true"));
    lab.write("std.toml", super::RECIPE.to_string() + "[ternary]\ninit_std = 0.5\n");
    let checkpoint = lab.newest();
    let train = |recipe, out, more: &[&str]| {
        [&["train", recipe, "--init", &checkpoint, "--out", out][..], more]
            .concat()
            .iter()
            .map(|s| s.to_string())
            .collect::<Vec<_>>()
    };
    let refused = ["init: model.layers: found 3, wanted 2", &checkpoint];
    lab.fails(&train("other.toml", "a", &[]), &refused);
    lab.fails(
        &train("other.toml", "a", &["--set", "model.heads=1"]),
        &["model.layers: found 3", "model.heads: found 1, wanted 2"],
    );
    for recipe in ["plain.toml", "usual.toml", "tiny.toml"] {
        lab.fails(&train(recipe, "a", &["--set", "model.layers=3"]), &refused);
    }
    lab.fails(&train("std.toml", "a", &[]), &["ternary.init_std: found 0.5, wanted nothing"]);
    assert!(!lab.path("a").exists());
    for recipe in ["plain.toml", "usual.toml", "tiny.toml"] {
        let _ = fs::remove_dir_all(lab.path("run2"));
        lab.ok(&train(recipe, "run2", &[]));
        let recorded: toml::Table = lab.read("run2/recipe.toml").parse().unwrap();
        let config = lab.read_json("run2/model/config.json");
        assert_eq!(
            recorded["model"]["layers"].as_integer(),
            config["num_hidden_layers"].as_i64(),
            "{recipe}"
        );
        assert_eq!(lab.read_json("run2/report.json")["recipe"]["model"]["layers"], 2);
        assert_eq!(recorded["model"]["tie_embeddings"].as_bool(), Some(true));
    }
    // What it started from need not be there any more, and cannot become another.
    fs::rename(lab.path("run"), lab.path("gone")).unwrap();
    lab.ok(&["train", "tiny.toml", "--out", "run2", "--resume", "--set", "train.steps=8"]);
    let resume = ["train", "tiny.toml", "--out", "run2", "--resume"];
    lab.fails(
        &[&resume[..], &["--init", "elsewhere"]].concat(),
        &["init: found ", "elsewhere, wanted ", &checkpoint],
    );
}

/// Killed before its first checkpoint, a run starts anew: everything may change and is what it says.
#[test]
fn without_a_checkpoint_every_change_takes_effect() {
    let lab = Lab::trained(&["--set", "train.steps=4"]);
    fs::remove_dir_all(lab.path("run/checkpoints")).unwrap();
    // What has ended is not thrown away.
    for name in ["model", "report.json"] {
        let nothing = format!("run holds {name} and no checkpoint: there is nothing to resume there");
        lab.refuses(&["--set", "train.steps=9"], &[&nothing, "ternlm train tiny.toml --out DIR"]);
        fs::rename(lab.path("run").join(name), lab.path(name)).unwrap();
    }
    // Nor what cannot be read taken for nothing.
    fs::write(lab.path("run/checkpoints"), "").unwrap();
    lab.refuses(&[], &["list", "checkpoints"]);
    fs::remove_file(lab.path("run/checkpoints")).unwrap();
    let said = lab.resumes(&[
        "--set",
        "model.layers=1",
        "--set",
        "train.optimizer=sgd",
        "--data",
        "other.txt",
        "--seed",
        "8",
    ]);
    assert!(said.contains("holds no checkpoint: the run begins anew"), "{said}");
    let recipe = lab.recorded();
    assert_eq!((&recipe["model"]["layers"], &recipe["seed"]), (&1.into(), &8.into()));
    assert_eq!(lab.read_json("run/model/config.json")["num_hidden_layers"], 1);
    assert_eq!(lab.records("train").len(), 4);
}

#[test]
fn a_text_to_test_on_is_missed_at_the_start() {
    let lab = Lab::new();
    lab.fails(&["train", "tiny.toml", "--set", "report.test=none.txt"], &["none.txt"]);
    assert!(!lab.path("runs").exists(), "a refused run leaves nothing behind");
}

#[test]
fn a_vocabulary_made_of_the_text_stays_the_one_of_the_run() {
    let lab = Lab::new();
    let made = ["--set", "data.tokenizer=bpe", "--set", "model.vocab_size=270"];
    let train = |out: &'static str, more: &[&'static str]| {
        [&["train", "tiny.toml", "--out", out][..], &made, more].concat()
    };
    lab.ok(&train("whole", &[]));
    lab.ok(&train("run", &["--set", "train.steps=4"]));
    let tokenizer = lab.read("whole/model/tokenizer.json");
    assert_eq!(lab.read("run/model/tokenizer.json"), tokenizer);
    let json: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    assert_eq!(json["model"]["merges"].as_array().unwrap().len(), 270 - 257);

    // Other text is read in the run's tokens, not in those that would be made of it.
    let resume = ["train", "tiny.toml", "--out", "run", "--resume", "--set", "train.steps=6"];
    lab.ok(&[&resume[..], &["--data", "other.txt", "--other-data"]].concat());
    assert_eq!(lab.read("run/model/tokenizer.json"), tokenizer);
    lab.fails(&[&resume[..], &["--set", "data.tokenizer=bytes"]].concat(), &["found bytes, wanted bpe"]);

    lab.fails(&["train", "tiny.toml", "--out", "a", made[0], made[1]], &["model.vocab_size", "256", "257"]);
    let with_init = train("b", &["--init", "whole/model"]);
    lab.fails(&with_init, &["data.tokenizer", "beside init"]);
    let taught = train("c", &["--teacher", "whole/model"]);
    lab.fails(&taught, &["data.tokenizer", "beside distill"]);
}
