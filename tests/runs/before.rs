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
