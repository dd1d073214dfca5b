//! What a training starts from, and what it may not do to it.

use std::fs;

use super::Lab;

fn train<'a>(init: &'a str, out: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    ["train", "tiny.toml", "--init", init, "--out", out].into_iter().chain(sets).collect()
}

/// Latents of trits are made up: to start from them as from full precision would undo the model.
#[test]
fn what_is_ternary_already_is_not_made_ternary_again() {
    let lab = Lab::trained(&[]);
    lab.ok(&["export", "run", "--out", "packed.tern"]);
    for init in ["run/model", "packed.tern"] {
        for (key, value) in [
            ("anneal", "0.5"),
            ("start.feed_forward", "0.5"),
            ("start.attention", "0.5"),
            ("start.ends", "0.5"),
            ("calibrate", "2"),
            ("rotate", "true"),
        ] {
            let wanted = if value == "true" { "false" } else { "0" };
            let refused =
                format!("init: ternary.{key}: found {value}, wanted {wanted} for weights that are ternary");
            lab.fails(&train(init, "again", &[&format!("ternary.{key}={value}")]), &[&refused]);
        }
    }
    assert!(!lab.path("again").exists());
    // A checkpoint has latents that were trained.
    lab.ok(&train(&lab.newest(), "latents", &["ternary.anneal=0.5"]));

    // What was left in full precision may become ternary in any way.
    lab.ok(&train("run/model", "plain", &["train.steps=1"]));
    let blocks = ["ternary.scope=\"blocks\"", "train.steps=1"];
    lab.ok(&["train", "tiny.toml", "--out", "blocks", "--set", blocks[0], "--set", blocks[1]]);
    lab.ok(&train("blocks/model", "ends", &["ternary.start.ends=0.5"]));
    lab.fails(
        &train("blocks/model", "again", &["ternary.start.attention=0.5"]),
        &["ternary.start.attention"],
    );
    lab.fails(&train("blocks/model", "again", &["ternary.rotate=true"]), &["ternary.rotate"]);
}

/// Its recipe says what the rotation has made, the file that it starts from what it was.
#[test]
fn a_rotated_model_starts_anew_where_no_checkpoint_was_saved() {
    let lab = Lab::trained(&["--set", "ternary.scope=\"none\""]);
    lab.ok(&train("run/model", "turned", &["ternary.rotate=true"]));
    let model = fs::read(lab.path("turned/model/model.safetensors")).unwrap();
    assert_eq!(lab.read_json("turned/model/config.json")["tie_word_embeddings"], false);
    lab.killed("turned");
    lab.ok(&["train", "tiny.toml", "--out", "turned", "--resume"]);
    assert!(fs::read(lab.path("turned/model/model.safetensors")).unwrap() == model);
    lab.ok(&["train", "turned/recipe.toml", "--out", "twice"]);
    assert!(fs::read(lab.path("twice/model/model.safetensors")).unwrap() == model);
    // The shape is that of whatever it starts from.
    lab.ok(&[
        "train",
        "tiny.toml",
        "--out",
        "larger",
        "--set",
        "ternary.scope=\"none\"",
        "--set",
        "model.layers=3",
    ]);
    lab.killed("turned");
    lab.ok(&["train", "tiny.toml", "--out", "turned", "--resume", "--init", "larger/model"]);
    assert_eq!(lab.read_json("turned/model/config.json")["num_hidden_layers"], 3);
}

#[test]
fn a_training_does_not_end_before_it_was_of_trits() {
    let lab = Lab::new();
    let start = ["train", "tiny.toml", "--out", "run", "--set", "ternary.anneal=0.9"];
    lab.ok(&[&start[..], &["--set", "train.steps=20", "--set", "train.keep=20"]].concat());
    // The loss that is held to a bar is that of the two steps of trits.
    let losses: Vec<f64> = lab.records("train").iter().map(|r| r["loss"].as_f64().unwrap()).collect();
    let (found, wanted) = (&lab.read_json("run/report.json")["last20_loss"], (losses[18] + losses[19]) / 2.0);
    assert!((found.as_f64().unwrap() - wanted).abs() < 1e-5, "{found}, wanted {wanted}");
    for step in (12..=20).step_by(2) {
        fs::remove_dir_all(lab.path(format!("run/checkpoints/step-{step:08}"))).unwrap();
    }
    let refused = ["train.steps: found 10, wanted at least 11: no step yet was of trits alone"];
    lab.refuses(&["--set", "train.steps=10"], &refused);
    lab.resumes(&["--set", "train.steps=11"]);
    let left = lab.records("train").last().unwrap()["residual"].as_f64();
    assert_eq!(left, Some(0.0), "the last step");
}

/// Which steps were of trits is a matter of the plans that they were taken by, not of the last one.
#[test]
fn the_bar_of_a_training_whose_plan_has_changed_is_of_its_steps_of_trits() {
    let lab = Lab::new();
    let start = ["train", "tiny.toml", "--out", "run", "--set", "ternary.anneal=0.5"];
    lab.ok(&[&start[..], &["--set", "train.steps=20", "--set", "train.keep=20"]].concat());
    let cut = |kept: u64| {
        for step in (kept + 2..=20).step_by(2) {
            let _ = fs::remove_dir_all(lab.path(format!("run/checkpoints/step-{step:08}")));
        }
    };
    // Half of 20 steps are annealed: of those after the eighth none is, in a plan of 12 or 14.
    let of_steps_after = |soft: usize, steps: usize| {
        let losses: Vec<f64> = lab.records("train").iter().map(|r| r["loss"].as_f64().unwrap()).collect();
        assert_eq!(losses.len(), steps);
        let mean = |from: usize| losses[from..].iter().sum::<f64>() / (steps - from) as f64;
        let found = lab.read_json("run/report.json")["last20_loss"].as_f64().unwrap();
        assert!((found - mean(soft)).abs() < 1e-5, "{found}, wanted {}", mean(soft));
        // By the last plan alone they would begin in its middle.
        assert!((mean(steps / 2) - mean(soft)).abs() > 1e-4, "{losses:?}: this tests nothing");
    };
    let forget = |key: &str| {
        let file = format!("{}/trainer.json", lab.newest());
        lab.edit_json(&file, |trainer| drop(trainer.as_object_mut().unwrap().remove(key).unwrap()));
    };
    cut(8);
    lab.resumes(&["--set", "train.steps=12"]);
    of_steps_after(8, 12);
    // The checkpoint knows, not its recipe.
    lab.resumes(&["--set", "train.steps=14"]);
    of_steps_after(8, 14);
    // One from before this was kept was trained by the plan in it.
    cut(8);
    forget("last_soft");
    lab.resumes(&["--set", "train.steps=12"]);
    of_steps_after(8, 12);
    let file = format!("{}/trainer.json", lab.newest());
    lab.edit_json(&file, |trainer| trainer["last_soft"] = 13.into());
    let refused = ["trainer.json: last_soft: found 13, wanted at most the 12 steps that are done"];
    lab.refuses(&["--set", "train.steps=14"], &refused);
}

#[test]
fn a_key_that_changes_nothing_is_told() {
    let lab = Lab::new();
    let told = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let all = ["train", "tiny.toml", "--out", "run"].into_iter().chain(sets).collect::<Vec<_>>();
        let _ = fs::remove_dir_all(lab.path("run"));
        lab.ok(&all)
    };
    let said = told(&["ternary.scope=\"blocks\"", "ternary.start.ends=0.4", "train.warmup=6"]);
    assert!(
        said.contains("ternary.start.ends changes nothing: embedding and head are not ternary"),
        "{said}"
    );
    assert!(said.contains("train.warmup is 6 of train.steps = 6: the learning rate never reaches"), "{said}");
    let said = told(&["train.eval_every=0", "train.eval_sequences=2"]);
    assert!(said.contains("train.eval_sequences changes nothing"), "{said}");
    let refused = ["report.min_accuracy: found 1", "a text has no accuracy"];
    lab.fails(&["train", "tiny.toml", "--out", "bar", "--set", "report.min_accuracy=1"], &refused);
    let both = ["--set", "ternary.calibrate=1", "--set", "ternary.anneal=0.5", "--init", "run/model"];
    let refused = ["ternary.calibrate: found 1, wanted 0 with ternary.anneal"];
    lab.fails(&[&["train", "tiny.toml", "--out", "both"], &both[..]].concat(), &refused);
}

/// The ids of the tokens that end a text are those of the tokenizer that the model is trained with.
#[test]
fn another_tokenizer_brings_its_own_ends() {
    let lab = Lab::trained(&["--set", "model.vocab_size=264", "--set", "train.steps=1"]);
    lab.edit_json("run/model/config.json", |config| config["eos_token_id"] = 10.into());
    lab.ok(&[
        "tokenizer",
        "train",
        "text.txt",
        "--vocab-size",
        "260",
        "--special",
        "<|end|>",
        "--out",
        "tok",
    ]);
    for (tokenizer, end) in [("bytes", 10), ("tok/tokenizer.json", 0)] {
        let set = format!("data.tokenizer=\"{tokenizer}\"");
        let out = format!("to-{end}");
        lab.ok(&train("run/model", &out, &[&set, "model.vocab_size=264", "train.steps=1"]));
        let config = lab.read_json(&format!("{out}/model/config.json"));
        assert_eq!(config["eos_token_id"], end, "{tokenizer}");
    }
}
