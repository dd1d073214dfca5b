//! Runs and what is recorded of them: resumes that say what they do, one process a run, paths and output that fail.

mod before;
mod checkpoints;
#[path = "../common/mod.rs"]
mod common;
mod locks;
mod output;
mod paths;
mod replaced;
mod resume;
mod starts;
#[cfg(unix)]
mod stops;

use common::lab::{WORDS, text as said};
use common::program::Place;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::ops::Deref;
use std::path::PathBuf;

/// A language model of a few thousand weights on the bytes of `text.txt`.
const RECIPE: &str = r#"
name = "tiny"
task = "lm"
seed = 3
[model]
vocab_size = 256
hidden_size = 32
layers = 2
heads = 2
kv_heads = 1
head_dim = 16
intermediate_size = 48
qk_norm = true
tie_embeddings = true
max_positions = 64
[data]
train = ["text.txt"]
tokenizer = "bytes"
val_fraction = 0.2
[train]
steps = 6
batch = 3
seq = 16
lr = 3e-3
warmup = 2
log_every = 1
save_every = 2
[report]
prompts = ["The"]
sample_tokens = 4
"#;

struct Lab(Place);

impl Deref for Lab {
    type Target = Place;
    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Lab {
    fn new() -> Self {
        let lab = Self(Place::new());
        lab.write("tiny.toml", RECIPE);
        lab.write("text.txt", text(0));
        lab.write("other.txt", text(1));
        lab
    }

    /// With a finished run of `tiny.toml` in `run`, started with `more`.
    fn trained(more: &[&str]) -> Self {
        let lab = Self::new();
        lab.ok(&[&["train", "tiny.toml", "--out", "run"], more].concat());
        lab
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn read_json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    fn edit_json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        common::edit_json(&self.path(name), change);
    }

    /// What a run that must succeed says, on either stream.
    #[track_caller]
    fn ok(&self, args: &[impl AsRef<OsStr> + std::fmt::Debug]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", said(&out));
        said(&out)
    }

    /// `train tiny.toml --out run --resume` and more.
    #[track_caller]
    fn resumes(&self, more: &[&str]) -> String {
        self.ok(&[&["train", "tiny.toml", "--out", "run", "--resume"], more].concat())
    }

    /// The same, refused with `parts` and without a trace.
    #[track_caller]
    fn refuses(&self, more: &[&str], parts: &[&str]) {
        let before = self.files("run");
        self.fails(&[&["train", "tiny.toml", "--out", "run", "--resume"], more].concat(), parts);
        assert!(before == self.files("run"), "{more:?}: something was written");
    }

    /// Leaves of a run what one has that was killed before its first checkpoint.
    fn killed(&self, run: &str) {
        for folder in ["checkpoints", "model"] {
            fs::remove_dir_all(self.path(run).join(folder)).unwrap();
        }
        fs::remove_file(self.path(run).join("report.json")).unwrap();
    }

    /// Every file under `dir` and what it holds.
    fn files(&self, dir: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut open, mut files) = (vec![self.path(dir)], Vec::new());
        while let Some(dir) = open.pop() {
            for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
                match path.is_dir() {
                    true => open.push(path),
                    false => files.push((path.clone(), fs::read(path).unwrap())),
                }
            }
        }
        files.sort();
        files
    }

    /// The run's recipe as it is recorded: in its folder, in its newest checkpoint, in its report. They must agree.
    #[track_caller]
    fn recorded(&self) -> Value {
        let toml: toml::Table = self.read("run/recipe.toml").parse().unwrap();
        let trainer = self.read_json(&format!("{}/trainer.json", self.newest()));
        let recipe = |value: Value| -> ternlm::config::Recipe { serde_json::from_value(value).unwrap() };
        let kept = recipe(trainer["recipe"].clone());
        assert_eq!(kept, toml.try_into().unwrap());
        assert_eq!(kept, recipe(self.read_json("run/report.json")["recipe"].clone()));
        trainer["recipe"].clone()
    }

    /// The newest checkpoint of the run.
    fn newest(&self) -> String {
        let mut names: Vec<String> = fs::read_dir(self.path("run/checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.contains(".partial"))
            .collect();
        names.sort();
        format!("run/checkpoints/{}", names.pop().unwrap())
    }

    /// Records of a kind in `metrics.jsonl`.
    fn records(&self, kind: &str) -> Vec<Value> {
        let lines = self.read("run/metrics.jsonl");
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|record| record["kind"] == kind).collect()
    }
}

/// Some kilobytes of text, other ones for each number.
fn text(number: usize) -> String {
    let word = |i: usize| WORDS[(i * i + i / 7 + number) % WORDS.len()];
    (0..40).map(|p| (0..20).map(|w| word(p * 20 + w)).collect::<Vec<_>>().join(" ") + "\n\n").collect()
}
