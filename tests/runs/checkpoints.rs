//! Checkpoints whose files do not belong together, and those of earlier versions.

use super::Lab;
use std::fs;

/// The newest checkpoint of a copy of `run` under the same name, changed, then resumed from.
#[track_caller]
fn refused(lab: &Lab, change: impl FnOnce(&str), parts: &[&str]) {
    let copy = |from: &str, to: &str| {
        let _ = fs::remove_dir_all(lab.path(to));
        for (file, bytes) in lab.files(from) {
            lab.write(lab.path(to).join(file.strip_prefix(lab.path(from)).unwrap()), bytes);
        }
    };
    copy("run", "kept");
    change(&lab.newest());
    lab.refuses(&["--set", "train.steps=8"], parts);
    copy("kept", "run");
}

#[test]
fn files_that_disagree_are_named() {
    let lab = Lab::trained(&["--set", "train.keep=9"]);
    lab.ok(&["train", "tiny.toml", "--out", "twin", "--seed", "5"]);
    let take = |from: &str, file: &str, to: &str| {
        fs::copy(lab.path(from).join(file), lab.path(to).join(file)).unwrap();
    };
    let config = |key: &'static str, value: serde_json::Value| {
        move |lab: &Lab, dir: &str| lab.edit_json(&format!("{dir}/config.json"), |c| c[key] = value)
    };
    let layers = config("num_hidden_layers", 1.into());
    refused(
        &lab,
        |dir| layers(&lab, dir),
        &["config.json: model.layers: found 1, wanted 2, as in trainer.json"],
    );
    let theta = config("rope_theta", 5e5.into());
    refused(&lab, |dir| theta(&lab, dir), &["config.json: model.rope_theta: found 500000"]);
    let note = |key: &'static str, value: &'static str| {
        let lab = &lab;
        move |dir: &str| lab.edit_json(&format!("{dir}/config.json"), |c| c["ternlm"][key] = value.into())
    };
    refused(&lab, note("scope", "blocks"), &["config.json: ternary.scope: found blocks, wanted all"]);
    refused(&lab, note("activations", "int8"), &["config.json: ternary.activations: found int8"]);

    // Of another step, and of another run at the same step.
    for from in ["run/checkpoints/step-00000004", "twin/checkpoints/step-00000006"] {
        for (file, part) in [
            ("optimizer.safetensors", "optimizer.safetensors: losses"),
            ("model.safetensors", "model.safetensors: model."),
            ("ternary.json", "ternary.json: SHA-256"),
        ] {
            refused(&lab, |dir| take(from, file, dir), &[part]);
        }
    }
    refused(
        &lab,
        |dir| take("run/checkpoints/step-00000004", "trainer.json", dir),
        &["trainer.json: progress.step: found 4, wanted 6"],
    );
    let twin = "twin/checkpoints/step-00000006";
    refused(&lab, |dir| take(twin, "trainer.json", dir), &["seed: found 3, wanted 5"]);
    let step =
        |dir: &str| lab.edit_json(&format!("{dir}/trainer.json"), |t| t["progress"]["step"] = 5.into());
    refused(&lab, step, &["trainer.json: progress.step: found 5, wanted 6"]);
    let optimizer = |dir: &str| {
        lab.edit_json(&format!("{dir}/trainer.json"), |t| t["recipe"]["train"]["optimizer"] = "sgd".into());
        let recipe = lab.read("run/recipe.toml").replace("\"adamw\"", "\"sgd\"");
        lab.write("run/recipe.toml", recipe);
    };
    let before = lab.read("run/recipe.toml");
    refused(&lab, optimizer, &["train.optimizer: found sgd, wanted adamw"]);
    assert_eq!(lab.read("run/recipe.toml"), before);
    lab.resumes(&["--set", "train.steps=8"]);
}

/// What `trainer.json` lacks in the checkpoints of 0.1.0's first days.
#[test]
fn earlier_checkpoints_go_on_bit_for_bit() {
    for more in [
        &[][..],
        &["--set", "train.optimizer=muon"],
        &["--set", "train.moments=int8", "--set", "train.optimizer=sgd"],
    ] {
        let lab = Lab::trained(more);
        let last = lab.newest();
        let kept = lab.path("kept");
        fs::rename(lab.path(&last), &kept).unwrap();
        let trainer = format!("{}/trainer.json", lab.newest());
        lab.edit_json(&trainer, |t| {
            let fields = t.as_object_mut().unwrap();
            for key in ["recipe", "corpus", "manifest", "losses"] {
                assert!(fields.remove(key).is_some(), "{key}");
            }
        });
        // What its other files say is still the truth.
        let kind =
            if more.is_empty() { "adamw" } else { more[more.len() - 1].split('=').next_back().unwrap() };
        let other = if kind == "sgd" { "adamw" } else { "sgd" };
        lab.refuses(&["--set", "model.layers=1"], &["model.layers: found 1, wanted 2"]);
        lab.refuses(&["--set", "ternary.scope=none"], &["ternary.scope: found none, wanted all"]);
        lab.refuses(&["--set", &format!("train.optimizer={other}")], &["train.optimizer", kind]);
        let recorded = lab.read("run/recipe.toml");
        lab.write("run/recipe.toml", recorded.replace(&format!("\"{kind}\""), &format!("\"{other}\"")));
        let refused = super::said(&lab.run(&["train", "tiny.toml", "--out", "run", "--resume"]));
        let wanted = format!("error: train.optimizer: found {other}, wanted {kind}");
        assert!(refused.contains(&wanted), "{refused}");
        lab.write("run/recipe.toml", recorded);

        let said = lab.resumes(&[]);
        assert!(said.contains("does not say on which text it was trained"), "{said}");
        for file in ["model.safetensors", "optimizer.safetensors", "config.json"] {
            assert!(
                fs::read(kept.join(file)).unwrap() == fs::read(lab.path(&last).join(file)).unwrap(),
                "{file}"
            );
        }
        assert!(!lab.resumes(&[]).contains("does not say"), "from here on it is known");
        lab.refuses(&["--data", "other.txt"], &["--other-data"]);
    }
}
