//! Weights that lie in a model directory beside those that are read.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::{FILE_NAME, INDEX_NAME};
use crate::error::{Error, Result};
use crate::formats::quoted;

/// What lies in `folder`, sorted; nothing where it cannot be listed.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// PEFT writes an adapter under these names, and Hugging Face's loader adds one that it finds beside the model.
pub(super) fn refuse_adapters(folder: &Path, names: &[String]) -> Result<()> {
    let adapter = |name: &&String| {
        matches!(name.as_str(), "adapter_config.json" | "adapter_model.safetensors" | "adapter_model.bin")
    };
    match names.iter().find(adapter) {
        Some(name) => Err(Error::input(
            folder.join(name),
            "file",
            "an adapter beside the model",
            "a model with the adapter merged into its weights (PEFT: merge_and_unload)",
        )),
        None => Ok(()),
    }
}

/// A shard that nothing lists belongs to another model or to a copy that is not complete.
pub(super) fn refuse_unlisted(folder: &Path, names: &[String], listed: &HashSet<&str>) -> Result<()> {
    match names.iter().find(|name| is_shard(name) && !listed.contains(name.as_str())) {
        Some(name) => Err(Error::input(
            folder.join(name),
            "file",
            "a shard that no index lists",
            format!("only the weights of {FILE_NAME} or {INDEX_NAME}"),
        )),
        None => Ok(()),
    }
}

/// `model-00001-of-00002.safetensors`
fn is_shard(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors")?.split_once("-of-"))
        .is_some_and(|(i, n)| number(i) && number(n))
}

/// The error for a folder without weights, by what it holds in their place.
pub(super) fn no_weights(folder: &Path, names: &[String]) -> Error {
    let ours = format!("{FILE_NAME} or {INDEX_NAME}");
    let pickle = |name: &&String| {
        name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json"))
    };
    let other = |name: &&String| {
        let ends = [".safetensors", ".gguf", ".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".npz"];
        ends.iter().any(|end| name.ends_with(end))
    };
    match (names.iter().find(pickle), names.iter().find(other)) {
        (Some(name), _) => {
            let how = "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)";
            let wanted = format!("{ours}, which Python's transformers writes: {how}");
            Error::input(folder, "weights", quoted(name), wanted)
        }
        (None, Some(name)) => Error::input(folder, "weights", quoted(name), ours),
        _ => Error::input(folder, "weights", "neither file", ours),
    }
}
