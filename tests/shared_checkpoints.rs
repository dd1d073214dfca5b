//! Checkpoints that other tools wrote. They are not part of the project (`common::data`).

mod common;

use std::fs;
use std::path::PathBuf;
use ternlm::config::ModelConfig;
use ternlm::files::Bundle;
use ternlm::formats::tensors::{Data, Dtype, Tensor, TensorFiles, write_safetensors};
use ternlm::formats::{hf, npy};

fn checkpoints() -> Option<PathBuf> {
    common::data("ckpt")
}

const TINY: [&str; 5] = [
    "qwen3-tiny-tied-f32",
    "qwen3-tiny-tied-bf16",
    "qwen3-tiny-tied-bf16-sharded",
    "qwen3-tiny-untied-f32",
    "qwen3-tiny-untied-bf16",
];

fn values(file: &TensorFiles, name: &str) -> Vec<f32> {
    let shape = file.shape(name).unwrap().to_vec();
    let mut out = vec![f32::NAN; shape.iter().product()];
    file.read_f32_into(name, &shape, &mut out).unwrap();
    out
}

#[test]
fn both_spellings_of_a_config_are_one_model() {
    let Some(folder) = checkpoints() else { return };
    for name in TINY.into_iter().chain(["stories260K-hf"]) {
        let nested = hf::read_config(&Bundle::folder(folder.join(name))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::copy(folder.join(name).join("config.v4style.json"), dir.path().join("config.json")).unwrap();
        let released = hf::read_config(&Bundle::folder(dir.path())).unwrap();
        assert_eq!(nested.model, released.model, "{name}");
        assert_eq!((&nested.eos[..], nested.bos, nested.ternary), (&[2][..], Some(1), None));
        let m = nested.model;
        let [tied, llama] = [name.contains("-tied") || name.contains("stories"), name.contains("stories")];
        assert_eq!((m.tie_embeddings, m.qk_norm, m.vocab_size), (tied, !llama, 512), "{name}");
        let wanted = if llama { (1e4, 1e-5, 8, 172) } else { (1e6, 1e-6, 32, 256) };
        assert_eq!((m.rope_theta, m.rms_norm_eps, m.head_dim, m.intermediate_size), wanted, "{name}");
    }
}

#[test]
fn every_tensor_is_read_and_the_parameters_add_up() {
    let Some(folder) = checkpoints() else { return };
    for name in TINY.into_iter().chain(["stories260K-hf"]) {
        let file = TensorFiles::open(folder.join(name)).unwrap();
        let model: ModelConfig = hf::read_config(&Bundle::folder(folder.join(name))).unwrap().model;
        let counts = file.names().map(|name| {
            let x = values(&file, name);
            assert!(x.iter().all(|x| x.is_finite()) && x.iter().any(|x| *x != 0.0), "{name}");
            x.len() as u128
        });
        assert_eq!(counts.sum::<u128>(), model.parameters(), "{name}");
        let dtype = if name.contains("bf16") { Dtype::BF16 } else { Dtype::F32 };
        assert!(file.names().all(|name| file.dtype(name).unwrap() == dtype));
    }
}

#[test]
fn shards_hold_what_the_single_file_holds() {
    let Some(folder) = checkpoints() else { return };
    let single = TensorFiles::open(folder.join("qwen3-tiny-tied-bf16")).unwrap();
    let sharded = TensorFiles::open(folder.join("qwen3-tiny-tied-bf16-sharded")).unwrap();
    assert!(single.names().eq(sharded.names()));
    for name in single.names() {
        let [a, b] = [&single, &sharded].map(|file| file.tensor(name).unwrap());
        assert_eq!((a.dtype, a.shape), (b.dtype, b.shape), "{name}");
        assert!(a.bytes == b.bytes, "{name}");
    }
}

/// The hidden state before the first layer is the embedding of the input ids: safetensors and .npy tell the same story.
#[test]
fn embeddings_are_the_first_hidden_state() {
    let Some(folder) = checkpoints() else { return };
    for name in
        ["qwen3-tiny-tied-f32", "qwen3-tiny-tied-bf16", "qwen3-tiny-untied-f32", "qwen3-tiny-untied-bf16"]
    {
        let folder = folder.join(name);
        let reference: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("ref.json")).unwrap()).unwrap();
        let ids: Vec<usize> = serde_json::from_value(reference["input_ids"][0].clone()).unwrap();
        let embedding = values(&TensorFiles::open(&folder).unwrap(), "model.embed_tokens.weight");
        let (shape, hidden) = npy::read(folder.join("ref_hidden_0.npy")).unwrap();
        assert_eq!(shape, [48, 128]);
        for (id, row) in ids.iter().zip(hidden.chunks(128)) {
            assert!(embedding[id * 128..][..128] == *row, "{name}: token {id}");
        }
        assert_eq!(npy::read(folder.join("ref_logits.npy")).unwrap().0, [2, 48, 512]);
    }
}

#[test]
fn a_rewritten_checkpoint_has_the_same_tensors() {
    let Some(folder) = checkpoints() else { return };
    let file = TensorFiles::open(folder.join("qwen3-tiny-untied-bf16")).unwrap();
    let all: Vec<_> = file.names().map(|name| (file.tensor(name).unwrap(), values(&file, name))).collect();
    let tensors: Vec<_> = all
        .iter()
        .map(|(t, x)| Tensor { name: t.name.into(), shape: t.shape.into(), data: Data::F32AsBf16(x) })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    write_safetensors(dir.path().join("model.safetensors"), &tensors, &Default::default()).unwrap();
    let again = TensorFiles::open(dir.path()).unwrap();
    assert!(file.names().eq(again.names()));
    for (t, _) in &all {
        assert!(
            again.bytes(t.name).unwrap() == t.bytes && again.shape(t.name).unwrap() == t.shape,
            "{}",
            t.name
        );
    }
}
