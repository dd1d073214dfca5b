//! Nothing in a model directory is ignored: what would change the function is used or refused by name, and what does
//! nothing is let through. Every directory that is let through must give the logits that Hugging Face's implementation
//! gives (`fixtures/make_qwen3_tiny.py`).

mod beside;
#[path = "../common/mod.rs"]
mod common;
mod settings;
mod tensors;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use ternlm::formats::npy;
use ternlm::formats::tensors::{Data, Dtype, FILE_NAME, Tensor, TensorFiles, write_safetensors};
use ternlm::model::{self, Sequences, State};

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

struct Named {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    dtype: Dtype,
}

fn named(name: &str, shape: &[usize], value: f32) -> Named {
    let values = vec![value; shape.iter().product()];
    Named { name: name.into(), shape: shape.into(), values, dtype: Dtype::F32 }
}

/// The fixture's tensors.
fn fixture_tensors() -> Vec<Named> {
    let stored = TensorFiles::open(common::fixture("qwen3-tiny")).unwrap();
    let read = |name: &str| {
        let mut tensor = named(name, stored.shape(name).unwrap(), 0.0);
        stored.read_f32_into(name, &tensor.shape, &mut tensor.values).unwrap();
        tensor.dtype = Dtype::BF16;
        tensor
    };
    stored.names().map(read).collect()
}

fn write(path: PathBuf, tensors: &[Named]) {
    let stored = tensors.iter().map(|t| {
        let data = match t.dtype {
            Dtype::F32 => Data::F32(&t.values),
            _ => Data::F32AsBf16(&t.values),
        };
        Tensor { name: t.name.clone(), shape: t.shape.clone(), data }
    });
    write_safetensors(path, &stored.collect::<Vec<_>>(), &Default::default()).unwrap();
}

/// A copy of the fixture, its configuration with `changes` (`"absent"` removes a key).
fn copy(changes: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture = common::fixture("qwen3-tiny");
    fs::copy(fixture.join(FILE_NAME), dir.path().join(FILE_NAME)).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(fixture.join("config.json")).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value == "absent" {
            true => drop(config.as_object_mut().unwrap().shift_remove(key)),
            false => config[key] = value.clone(),
        }
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// [`copy`] with other tensors.
fn with(changes: Value, edit: impl FnOnce(&mut Vec<Named>)) -> tempfile::TempDir {
    let dir = copy(changes);
    let mut list = fixture_tensors();
    edit(&mut list);
    write(dir.path().join(FILE_NAME), &list);
    dir
}

fn remove(list: &mut Vec<Named>, name: &str) -> Named {
    let at = list.iter().position(|t| t.name == name).unwrap();
    list.remove(at)
}

fn error(dir: &Path) -> String {
    match model::load(dir, None) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

/// The model computes what the reference implementation did.
#[track_caller]
fn computes(dir: &Path, logits: &str, what: &dyn std::fmt::Debug) {
    let fixture = common::fixture("qwen3-tiny");
    let reference: Value = serde_json::from_slice(&fs::read(fixture.join("ref.json")).unwrap()).unwrap();
    let rows: Vec<Vec<u32>> = serde_json::from_value(reference["input_ids"].clone()).unwrap();
    let decoder = match model::load(dir, None) {
        Ok(model) => model.decoder,
        Err(error) => panic!("{what:?}: {error}"),
    };
    let seqs = Sequences::new(rows.len(), rows[0].len());
    let got = decoder.logits(&rows.concat(), seqs, &mut State::default());
    let want = npy::read(fixture.join(logits)).unwrap().1;
    let error = common::apart(&got, &want);
    assert!(error < 1e-4, "{what:?}: logits differ by {error}");
}

const UNTIED: &str = "ref_logits.npy";
const TIED: &str = "ref_logits_tied.npy";
