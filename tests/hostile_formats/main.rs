//! Damaged and hostile files: each gives one error that names the file and the field. Nothing panics, hangs or
//! allocates what the file's size does not justify.

mod binary;
#[path = "../common/mod.rs"]
mod common;
mod gguf;
mod json_files;

use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use ternlm::files::Bundle;
use ternlm::formats::manifest::Manifest;
use ternlm::formats::tensors::{INDEX_NAME, TensorFiles};
use ternlm::formats::{hf, npy};

/// Every kind of file that is read: its name, a good one, and the reader, which also reads what was accepted.
struct Kind {
    name: &'static str,
    good: Vec<u8>,
    read: fn(&Path) -> ternlm::Result<()>,
}

fn kinds() -> Vec<Kind> {
    vec![
        Kind { name: "model.safetensors", good: safetensors(GOOD, 16), read: read_tensors },
        Kind {
            name: INDEX_NAME,
            good: br#"{"weight_map":{"a":"s.safetensors"}}"#.to_vec(),
            read: read_tensors,
        },
        Kind {
            name: "config.json",
            good: config().to_string().into_bytes(),
            read: |dir| hf::read_config(&Bundle::folder(dir)).map(drop),
        },
        Kind {
            name: "generation_config.json",
            good: br#"{"eos_token_id":[1,2],"bos_token_id":3}"#.to_vec(),
            read: |dir| hf::read_config(&Bundle::folder(dir)).map(drop),
        },
        Kind {
            name: "ternary.json",
            good: manifest().to_string().into_bytes(),
            read: |dir| Manifest::read(&Bundle::folder(dir)).map(drop),
        },
        Kind { name: gguf::NAME, good: gguf::good().bytes(), read: gguf::read },
        Kind { name: "x.npy", good: npy_file(NPY), read: |dir| npy::read(dir.join("x.npy")).map(drop) },
    ]
}

const GOOD: &str = concat!(
    r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"#,
    r#""b":{"dtype":"F16","shape":[4],"data_offsets":[8,16]}}"#
);
const NPY: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }";

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn npy_file(header: &str) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend([0; 8]);
    bytes
}

fn config() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 128,
        "rope_theta": 5e5, "rms_norm_eps": 1e-6, "eos_token_id": 2,
        "ternlm": {"format": 1, "form": "latent", "scope": "all", "group": 128, "tensors": ["a"]},
    })
}

fn manifest() -> Value {
    let digest = "0123456789abcdef".repeat(4);
    json!({"format": 1, "form": "unpacked", "group": 128, "tensors": {
        "a": {"shape": [2, 3], "stored_sha256": digest, "ternary": {
            "group_size": 3, "groups": 2, "minus": 1, "zero": 2, "plus": 3, "dead_groups": 0, "digest": digest}},
        "b": {"shape": [3], "stored_sha256": digest},
    }})
}

fn read_tensors(dir: &Path) -> ternlm::Result<()> {
    let file = TensorFiles::open(dir)?;
    for name in file.names() {
        let tensor = file.tensor(name)?;
        let mut out = vec![0.0; tensor.bytes.len() / 2];
        let elements = tensor.shape.iter().product::<usize>();
        if elements <= out.len() {
            let _ = tensor.read_f32_into(tensor.shape, &mut out[..elements]);
        }
    }
    Ok(())
}

/// The reader's error for `bytes` in place of the good file; `None` when it accepts them.
fn outcome(kind: &Kind, bytes: &[u8]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    if kind.name == INDEX_NAME {
        fs::write(dir.path().join("s.safetensors"), safetensors(GOOD, 16)).unwrap();
    } else if kind.name == "generation_config.json" {
        fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
    }
    fs::write(dir.path().join(kind.name), bytes).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| (kind.read)(dir.path())));
    let result =
        result.unwrap_or_else(|_| panic!("{} panicked on {:?}", kind.name, String::from_utf8_lossy(bytes)));
    result.err().map(|error| error.to_string())
}

fn kind(name: &str) -> Kind {
    kinds().into_iter().find(|kind| kind.name == name).unwrap()
}

/// The bytes are refused with a message that names the file and then the field.
fn refused(name: &str, bytes: &[u8], field: &str) {
    let text = String::from_utf8_lossy(bytes);
    let message = outcome(&kind(name), bytes).unwrap_or_else(|| panic!("{name} accepted {text:.300}"));
    let wanted = format!("{name}: {field}");
    assert!(message.contains(&wanted), "wanted {wanted:?} in {message:?} for {text:.300}");
    assert!(message.len() < 800, "an error of {} characters", message.len());
}

#[test]
fn good_files_are_accepted_and_every_shorter_one_is_not() {
    for kind in kinds() {
        assert_eq!(outcome(&kind, &kind.good), None, "{}", kind.name);
        // Of a longer file some: each is written to the disk.
        let step = 1 + kind.good.len() / 500;
        for length in (0..kind.good.len()).step_by(step) {
            let message = outcome(&kind, &kind.good[..length]);
            let message = message.unwrap_or_else(|| panic!("{} accepted at {length} bytes", kind.name));
            let file = if kind.name == INDEX_NAME { "model.safetensors" } else { kind.name };
            assert!(message.contains(file), "{message}");
        }
    }
}

#[test]
fn one_byte_too_many() {
    for name in ["model.safetensors", "x.npy"] {
        let mut longer = kind(name).good;
        longer.push(0);
        refused(name, &longer, "data: found");
    }
    for name in ["config.json", "ternary.json", INDEX_NAME] {
        let mut longer = kind(name).good;
        longer.push(b'}');
        refused(name, &longer, "JSON: found");
    }
}

/// A pipe without a writer would block an open for ever.
#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused() {
    for kind in kinds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
        let path = dir.path().join(kind.name);
        let _ = fs::remove_file(&path);
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        if !made.is_ok_and(|status| status.success()) {
            println!("skipped: no mkfifo here");
            return;
        }
        let message = (kind.read)(dir.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("{}: file type: found a pipe", kind.name)), "{message}");
        fs::rename(&path, dir.path().join("x.partial-1")).unwrap();
        assert_eq!(ternlm::files::sweep(dir.path()).unwrap(), 0, "a pipe is not one of our leftovers");
        fs::create_dir(&path).unwrap();
        let message = (kind.read)(dir.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("{}: file type: found a folder", kind.name)), "{message}");
    }
}

#[derive(Clone, Debug)]
enum Edit {
    Set(u8),
    Insert(u8),
    Remove,
    Repeat,
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, Edit)>> {
    // Bytes with a meaning in JSON, Python literals and lengths, besides any byte.
    let byte =
        || prop_oneof![any::<u8>(), prop::sample::select(b"{}[]():,'\"\\-.0123456789eE \0\xff".to_vec())];
    let edit = prop_oneof![
        byte().prop_map(Edit::Set),
        byte().prop_map(Edit::Insert),
        Just(Edit::Remove),
        Just(Edit::Repeat),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), edit), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn mutations_never_panic(which in 0..7_usize, edits in edits()) {
        let kind = kinds().swap_remove(which);
        let mut bytes = kind.good.clone();
        for (at, edit) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match edit {
                Edit::Insert(b) => bytes.insert(at, b),
                Edit::Set(b) if at < bytes.len() => bytes[at] = b,
                Edit::Remove if at < bytes.len() => drop(bytes.remove(at)),
                // A run of what is there, for example a deeper nesting or a longer number.
                Edit::Repeat if at < bytes.len() => drop(bytes.splice(at..at, vec![bytes[at]; 300]).collect::<Vec<_>>()),
                _ => {}
            }
        }
        if let Some(message) = outcome(&kind, &bytes) {
            prop_assert!(message.len() < 1500, "an error of {} characters", message.len());
        }
    }
}
