//! What a training cannot end with is refused before it begins.

use super::{Lab, text};
use std::fs;

#[test]
fn what_its_report_needs_is_looked_at_first() {
    let lab = Lab::new();
    lab.write("empty.txt", "");
    lab.write("one.txt", "a");
    lab.write("latin1.txt", b"caf\xe9 and more");
    let long = format!("report.prompts=['{}']", "a".repeat(64));
    for (set, parts) in [
        ("report.prompts=['']", &["report.prompts: found \"\"", "no token"][..]),
        (&long, &["report.prompts", "64 tokens of prompt"]),
        ("report.test=empty.txt", &["empty.txt", "0 tokens", "2 or more"]),
        ("report.test=one.txt", &["one.txt", "1 tokens", "2 or more"]),
        ("report.test=latin1.txt", &["latin1.txt", "UTF-8"]),
        ("train.eps=0", &["train.eps: found 0"]),
        ("train.accumulate=4000000000", &["memory", "in a step"]),
        ("name=other", &["--set name: found other", "--out"]),
    ] {
        lab.fails(&["train", "tiny.toml", "--out", "run", "--set", set], parts);
        assert!(!lab.path("run/checkpoints").exists() && !lab.path("run/model").exists(), "{set}");
        fs::remove_dir_all(lab.path("run")).ok();
    }
    let accents = ["--set", "report.prompts=['\u{e9}']", "--set", "model.vocab_size=128"];
    lab.write("ascii.txt", text(0).replace(|c: char| !c.is_ascii(), ""));
    let train = ["train", "tiny.toml", "--out", "run", "--data", "ascii.txt"];
    lab.fails(&[&train[..], &accents].concat(), &["report.prompts", "tokens below 128"]);
}

#[test]
fn a_tokenizer_may_end_texts_with_a_token_that_the_model_has_no_row_for() {
    let lab = Lab::new();
    let small = ["--set", "data.tokenizer=gpt2", "--set", "model.vocab_size=50256", "--set", "train.steps=2"];
    lab.ok(&[&["train", "tiny.toml", "--out", "run"], &small[..]].concat());
    lab.ok(&["generate", "run", "--prompt", "The", "-n", "2"]);
    lab.ok(&["verify", "run"]);
    lab.resumes(&["--set", "train.steps=3"]);
}

#[test]
fn a_change_without_effect_is_told() {
    let lab = Lab::new();
    let train = |name, sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        lab.ok(&["train", "tiny.toml", "--out", name].into_iter().chain(sets).collect::<Vec<_>>())
    };
    let said = train("run", &["train.cautious=true", "train.lr=1e-3", "train.weight_decay_until=3"]);
    assert!(said.contains("--set train.cautious changes nothing: only muon uses it"), "{said}");
    assert!(
        said.contains("--set train.weight_decay_until changes nothing: train.weight_decay is 0"),
        "{said}"
    );
    assert_eq!(said.matches("changes nothing").count(), 2, "{said}");
    let said = train("muon", &["train.cautious=true", "train.optimizer=muon", "train.muon_lr=0.01"]);
    assert!(!said.contains("changes nothing"), "{said}");
}

#[test]
fn a_text_that_stands_in_two_places_is_told() {
    let lab = Lab::new();
    let said = |name, more: &[&str]| lab.ok(&[&["train", "tiny.toml", "--out", name], more].concat());
    assert!(!said("one", &["--set", "data.val=['other.txt']"]).contains("more than once"));
    assert!(
        said("two", &["--data", "text.txt", "./text.txt"]).contains("text.txt is trained on more than once")
    );
    let held_out = said("three", &["--set", "data.val=['text.txt']"]);
    assert!(held_out.contains("or held out as well as trained on"), "{held_out}");
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let lab = Lab::new();
    for name in ["../x", "", ".", "a/b", "red\\u001b[31m"] {
        lab.write("named.toml", lab.read("tiny.toml").replace("\"tiny\"", &format!("\"{name}\"")));
        lab.fails(&["train", "named.toml"], &["named.toml: name: found", "1 to 100 characters"]);
        assert!(!lab.path("runs").exists() && !lab.path("x").exists(), "{name}");
    }
}

#[test]
fn the_folder_of_a_run_is_a_model_to_start_and_to_learn_from() {
    let lab = Lab::trained(&[]);
    let lines = lab.read("tiny.toml").replace("\"tiny\"", "\"again\"").replace("tokenizer = \"bytes\"", "");
    lab.write("again.toml", lines);
    let again = ["train", "again.toml", "--init", "run", "--teacher", "run", "--out", "again"];
    lab.ok(&again);
    assert!(lab.read("again/recipe.toml").contains("run/model\""));
    lab.fails(&["train", "again.toml", "--init", "nowhere"], &["nowhere: model: found nothing there"]);
    lab.fails(&["info", "text.txt"], &["kind: found neither", "packed model"]);
    lab.fails(&["generate", "run", "--prompt", "x", "--temperature", "-1"], &["temperature: found -1"]);
    let long = "word ".repeat(40);
    lab.fails(&["generate", "run", "--prompt", &long], &["tokens of prompt"]);
}
