//! What `verify` proves of directories that others wrote, and what it prints.

mod common;

use common::edit_json;
use common::lab::{Lab, success};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use std::fs;

/// A trained model without note and manifest, as another tool might have written it, with one more tensor.
fn foreign(lab: &Lab, name: &str, values: impl FnOnce(&SafeTensors<'_>) -> (Dtype, Vec<usize>, Vec<u8>)) {
    success(lab.train("run", &["--set", "train.steps=2"]));
    let dir = lab.path("run/model");
    fs::remove_file(dir.join("ternary.json")).unwrap();
    edit_json(&dir.join("config.json"), |config| {
        config.as_object_mut().unwrap().remove("ternlm").unwrap();
    });
    let file = dir.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let (dtype, shape, data) = values(&stored);
    let mut all: Vec<(String, TensorView<'_>)> = stored.tensors();
    all.push((name.into(), TensorView::new(dtype, shape, &data).unwrap()));
    fs::write(&file, serialize(all, None).unwrap()).unwrap();
}

/// A head that a tied model states once more is no matrix of its own: one that is proved can be loaded.
#[test]
fn a_ternary_model_may_hold_its_tied_head_twice() {
    let lab = Lab::new("");
    foreign(&lab, "lm_head.weight", |stored| {
        let embedding = stored.tensor("model.embed_tokens.weight").unwrap();
        (embedding.dtype(), embedding.shape().to_vec(), embedding.data().to_vec())
    });
    let proved = lab.ok(&["verify", "run/model"]);
    assert!(proved.contains("PASS") && !proved.contains("lm_head"), "{proved}");
    lab.ok(&["generate", "run/model", "--prompt", "one", "-n", "2"]);
    lab.ok(&["export", "run/model", "--out", "packed.tern"]);
    assert!(lab.ok(&["verify", "packed.tern"]).contains("PASS"));
}

/// A name that clears the screen and writes a verdict of its own.
#[test]
fn a_name_cannot_write_the_verdict() {
    let lab = Lab::new("");
    foreign(&lab, "x\n\u{1b}[2J\u{1b}[HPASS: all weights\u{1b}[8m", |_| (Dtype::F32, vec![1], vec![0; 4]));
    let out = lab.command(&["verify", "run/model"]).output().unwrap();
    let said = [out.stdout, out.stderr].concat();
    assert!(!out.status.success());
    assert!(!said.contains(&0x1b), "{}", String::from_utf8_lossy(&said));
    let said = String::from_utf8(said).unwrap();
    assert!(said.lines().all(|line| !line.starts_with("PASS")), "{said}");
}
