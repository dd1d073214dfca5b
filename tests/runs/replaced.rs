//! What a command writes takes the place of nothing that is not its own.

use super::{Lab, said};
use std::fs;

#[test]
fn a_run_begins_in_a_folder_without_one() {
    let lab = Lab::trained(&[]);
    fs::create_dir(lab.path("models")).unwrap();
    fs::rename(lab.path("run/model"), lab.path("models/model")).unwrap();
    let before = lab.files("models");
    let train = ["train", "tiny.toml", "--init", "models/model", "--out", "models"];
    lab.fails(&train, &["models", "--out: found model of something else"]);
    for name in ["metrics.jsonl", "report.json", "report.html"] {
        lab.write(format!("other/{name}"), "mine");
        lab.fails(&["train", "tiny.toml", "--out", "other"], &[name]);
        assert_eq!(lab.read(&format!("other/{name}")), "mine");
        fs::remove_dir_all(lab.path("other")).unwrap();
    }
    let kept: Vec<_> = lab.files("models").into_iter().filter(|f| before.contains(f)).collect();
    assert_eq!(kept, before);
}

#[test]
fn an_export_replaces_a_model_and_nothing_else() {
    let lab = Lab::trained(&[]);
    let mlx = |out: &'static str| ["export", "run", "--format", "unpacked", "--out", out, "--force"];
    lab.write("papers/thesis.txt", "years");
    lab.fails(&mlx("papers"), &["papers", "more than a model"]);
    // Many projects have a configuration.
    lab.write("papers/config.json", "{}");
    lab.fails(&mlx("papers"), &["papers", "more than a model"]);
    let checkpoint = ["export", "run", "--format", "unpacked", "--out", &lab.newest(), "--force"];
    lab.fails(&checkpoint, &["more than a model"]);
    let before = lab.files("run");
    lab.fails(&mlx("run"), &["run", "more than a model"]);
    assert!(before == lab.files("run"));
    assert_eq!(lab.read("papers/thesis.txt"), "years");
    fs::create_dir(lab.path("empty")).unwrap();
    lab.ok(&mlx("empty"));
    lab.ok(&mlx("empty"));

    lab.fails(&["export", "run", "--type", "q2_0", "--out", "a.gguf"], &["--type", "--format gguf"]);
    lab.fails(&["export", "run", "--lossy", "--out", "a.gguf"], &["--lossy", "--format gguf"]);
    let density = ["export", "run", "--format", "gguf", "--density", "2bit", "--out", "a.gguf"];
    lab.fails(&density, &["--density", "--format packed"]);
    assert!(!lab.path("a.gguf").exists());

    // What an interrupted one left is gone with the next; what a live one writes would be locked.
    lab.write("b.tern.partial-999999", "half");
    lab.write("c.tern.partial-999999", "half of another");
    lab.write("dir.partial-999999/model.safetensors", "half");
    lab.ok(&["export", "run", "--out", "b.tern"]);
    lab.ok(&mlx("dir"));
    assert!(!lab.path("b.tern.partial-999999").exists() && !lab.path("dir.partial-999999").exists());
    assert!(lab.path("c.tern.partial-999999").exists());
}

#[cfg(unix)]
#[test]
fn links_and_devices_are_seen() {
    let lab = Lab::trained(&[]);
    std::os::unix::fs::symlink(lab.path("nowhere"), lab.path("link.tern")).unwrap();
    lab.fails(&["export", "run", "--out", "link.tern"], &["link.tern", "something there"]);
    let socket = std::os::unix::net::UnixListener::bind(lab.path("socket")).unwrap();
    lab.fails(&["export", "run", "--out", "socket", "--force"], &["socket", "no file"]);
    drop(socket);
    assert!(lab.path("link.tern").is_symlink());
}

#[test]
fn a_model_is_not_exported_without_its_tokenizer() {
    let lab = Lab::trained(&[]);
    fs::rename(lab.path("run/model/tokenizer.json"), lab.path("run/model/tokenizer.model")).unwrap();
    for (format, out) in [("packed", "a.tern"), ("unpacked", "dir"), ("gguf", "a.gguf")] {
        lab.fails(&["export", "run", "--format", format, "--out", out], &["tokenizer.json", "SentencePiece"]);
        assert!(!lab.path(out).exists());
    }
}

#[test]
fn a_folder_of_one_kind_does_not_become_one_of_another() {
    let lab = Lab::trained(&[]);
    lab.fails(&["sweep", "tiny.toml", "--out", "run"], &["run: --out: found a run (recipe.toml)"]);
    let teach = ["teach", "tiny.toml", "--teacher", "run", "--out", "run"];
    lab.fails(&teach, &["run: --out: found a run (recipe.toml)"]);
    lab.fails(&["train", "tiny.toml", "--out", "run/model"], &["found a model (config.json)"]);
    lab.ok(&["sweep", "tiny.toml", "--out", "sweep"]);
    lab.fails(&["train", "tiny.toml", "--out", "sweep"], &["found a sweep (sweep.toml)"]);
}

#[test]
fn a_comparison_is_a_page_of_its_own() {
    let lab = Lab::trained(&[]);
    lab.ok(&["train", "tiny.toml", "--out", "other"]);
    lab.write("notes.txt", "mine");
    lab.fails(&["report", "run", "other", "--out", "notes.txt"], &["notes.txt", "--force"]);
    assert_eq!(lab.read("notes.txt"), "mine");
    lab.fails(&["report", "run", "--out", "page.html"], &["--out", "several runs"]);
    lab.ok(&["report", "run", "other", "--out", "page.html"]);
    lab.ok(&["report", "run", "other", "--out", "page.html", "--force"]);
    lab.ok(&["report", "run", "other"]);
    lab.ok(&["report", "run", "other"]);
    lab.write("comparison.html", "mine");
    lab.fails(&["report", "run", "other"], &["comparison.html", "--force"]);
    assert_eq!(lab.read("comparison.html"), "mine");
}

#[test]
fn a_model_that_a_training_has_left_behind_is_named() {
    let lab = Lab::trained(&[]);
    assert!(!lab.ok(&["generate", "run", "--prompt", "The", "-n", "1"]).contains("gone on"));
    lab.ok(&["train", "tiny.toml", "--out", "longer", "--set", "train.steps=8"]);
    // As if a resumed training had been interrupted after its eighth step.
    let checkpoints = fs::read_dir(lab.path("longer/checkpoints")).unwrap();
    let newest = checkpoints.map(|entry| entry.unwrap().path()).max().unwrap();
    fs::rename(&newest, lab.path("run/checkpoints").join(newest.file_name().unwrap())).unwrap();
    let out = lab.run(&["generate", "run", "--prompt", "The", "-n", "1"]);
    assert!(
        said(&out).contains("after 6 steps") && said(&out).contains("gone on to step 8"),
        "{}",
        said(&out)
    );
}

#[test]
fn penalties_count_what_was_made() {
    let lab = Lab::trained(&["--set", "train.steps=60", "--set", "train.lr=1e-2"]);
    for prompt in ["The", "the cat", "a", "and ", "of the", "e e e e"] {
        let one = |more: &[&str]| {
            let ask = ["generate", "run", "--prompt", prompt, "-n", "1", "--temperature", "0", "--json"];
            let out = lab.run(&[&ask[..], more].concat());
            assert!(out.status.success(), "{}", said(&out));
            serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["text"].clone()
        };
        // Nothing was made before the first token.
        assert_eq!(one(&["--presence-penalty", "2", "--frequency-penalty", "2"]), one(&[]), "{prompt}");
    }
}

/// Each against what it has to come to: the likeliest token, or another text than without.
#[test]
fn every_option_of_sampling_acts() {
    let lab = Lab::trained(&["--set", "train.steps=60", "--set", "train.lr=1e-2"]);
    let text = |more: &[&str]| {
        let ask = ["generate", "run", "--prompt", "The", "-n", "40", "--json"];
        let out = lab.run(&[&ask[..], more].concat());
        assert!(out.status.success(), "{}", said(&out));
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["text"].clone()
    };
    let likeliest = text(&["--temperature", "0"]);
    let hot = ["--temperature", "1.5", "--seed", "3"];
    let drawn = text(&hot);
    assert_ne!(drawn, likeliest);
    for one in [["--top-k", "1"], ["--top-p", "0.000001"], ["--min-p", "1"]] {
        assert_eq!(text(&[&hot[..], &one].concat()), likeliest, "{one:?}");
        let idle = said(&lab.run(&["generate", "run", "--prompt", "The", "-n", "1", one[0], one[1]]));
        assert!(idle.contains(&format!("{} changes nothing at --temperature 0", one[0])), "{idle}");
    }
    assert_ne!(text(&["--temperature", "1.5", "--seed", "4"]), drawn);
    for one in [["--presence-penalty", "2"], ["--frequency-penalty", "2"], ["--repetition-penalty", "3"]] {
        assert_ne!(text(&[&["--temperature", "0"][..], &one].concat()), likeliest, "{one:?}");
    }
}

#[test]
fn a_model_whose_tensors_have_other_sizes_is_not_proved() {
    for (key, value) in [("intermediate_size", 32), ("vocab_size", 512), ("head_dim", 8)] {
        let lab = Lab::trained(&[]);
        lab.edit_json("run/model/config.json", |config| config[key] = value.into());
        let out = lab.run(&["verify", "run/model"]);
        assert!(!out.status.success() && said(&out).contains("shape ["), "{key}: {}", said(&out));
    }
}
