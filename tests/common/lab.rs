//! Trainings of a language model of a few thousand weights, as a user runs them, in a folder of their own.

use super::Rng;
use super::program::Place;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Twelve steps; more keys of `[train]` may follow.
pub const TINY: &str = r#"
name = "tiny"
task = "lm"
seed = 3
[model]
vocab_size = 256
hidden_size = 48
layers = 2
heads = 4
kv_heads = 2
head_dim = 12
intermediate_size = 80
qk_norm = true
tie_embeddings = true
max_positions = 64
[data]
tokenizer = "bytes"
val_fraction = 0.2
[train]
steps = 12
batch = 3
seq = 24
accumulate = 2
lr = 3e-3
eval_every = 4
save_every = 1
"#;

/// What texts are made of.
pub const WORDS: [&str; 10] =
    ["ternary", "weights", "are", "minus", "one", "zero", "or", "plus", "scale", "group"];

/// The recipe `tiny.toml`, a text `text.txt`, and what trainings make of them.
pub struct Lab(Place);

impl Deref for Lab {
    type Target = Place;
    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Lab {
    /// `keys` are more lines of the recipe's `[train]`.
    pub fn new(keys: &str) -> Self {
        let place = Place::new();
        place.write("tiny.toml", format!("{TINY}{keys}\n"));
        let mut rng = Rng::new(5);
        let text: Vec<String> = (0..60)
            .map(|_| (0..20).map(|_| WORDS[rng.below(WORDS.len())]).collect::<Vec<_>>().join(" "))
            .collect();
        place.write("text.txt", text.join("\n\n"));
        Self(place)
    }

    /// With a teacher, `teacher`: the same shape in full precision, trained a little.
    pub fn taught(steps: usize) -> Self {
        let (lab, steps) = (Self::new("log_every = 3"), format!("train.steps={steps}"));
        success(lab.train("teacher", &["--set", "ternary.scope=none", "--set", &steps]));
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// `train tiny.toml --data text.txt --out OUT`, and more.
    pub fn train(&self, out: &str, more: &[&str]) -> Output {
        self.run(&[&["train", "tiny.toml", "--data", "text.txt", "--out", out], more].concat())
    }

    /// A training that learns from the teacher, starting at its weights.
    pub fn learn(&self, out: &str, more: &[&str]) -> Output {
        let from = ["--init", "teacher/model", "--teacher", "teacher/model"];
        self.train(out, &[&from, more].concat())
    }
}

pub fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[track_caller]
pub fn success(out: Output) -> String {
    assert!(out.status.success(), "{}", text(&out));
    text(&out)
}

#[track_caller]
pub fn refused(out: Output, wanted: &str) {
    assert!(!out.status.success() && text(&out).contains(wanted), "wanted {wanted:?}: {}", text(&out));
}

/// The checkpoint of a run after step `n`.
pub fn step(run: &Path, n: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{n:08}"))
}

/// What a run has written down of a kind.
pub fn records(run: &Path, kind: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    all.filter(|record| record["kind"] == kind).collect()
}
