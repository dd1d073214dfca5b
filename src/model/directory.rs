//! What a model directory holds against what its configuration describes.

use std::path::Path;

use super::Decoder;
use crate::config::{ModelConfig, Scope};
use crate::error::{Error, Result};
use crate::formats::hf::{self, HfConfig};
use crate::formats::quoted;
use crate::formats::tensors::Checkpoint;
use crate::ternary::Grouping;

const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";
const FIRST_LAYER: &str = "model.layers.0.";

/// Reads the configuration in `dir` and opens its weights. Where the configuration ties the output head to the embedding
/// but the files hold a head of other values, that head counts and the model is untied, as in Hugging Face's own loader.
pub fn open(dir: &Path) -> Result<(HfConfig, Checkpoint)> {
    let mut hf = hf::read_config(dir)?;
    let stored = Checkpoint::open(dir)?;
    if hf.model.tie_embeddings && stored.contains(HEAD) && stored.contains(EMBEDDING) {
        let (head, embedding) = (stored.tensor(HEAD)?, stored.tensor(EMBEDDING)?);
        hf.model.tie_embeddings = head.same_values(&embedding)?;
    }
    Ok((hf, stored))
}

/// The names of the tensors that `stored` has and a model of this shape does not use, but for those that say nothing new.
///
/// # Errors
/// A tensor that the model needs and that is not there.
pub fn unused<'a>(config: &ModelConfig, stored: &'a Checkpoint) -> Result<Vec<&'a str>> {
    if let Some(name) = tensor_names(config).find(|name| !stored.contains(name)) {
        return Err(missing(&name, stored));
    }
    let mut unused = stored.unused(tensor_names(config));
    let again = |name: &str| config.tie_embeddings && name == HEAD;
    unused.retain(|name| !again(name) && !says_nothing_new(name, stored));
    Ok(unused)
}

/// The names of a decoder's tensors, whatever its size: those of a decoder of one layer, again for every layer.
fn tensor_names(config: &ModelConfig) -> impl Iterator<Item = String> {
    let sizes = ModelConfig {
        vocab_size: 1,
        hidden_size: 1,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        intermediate_size: 1,
        max_positions: 1,
        ..config.clone()
    };
    let small = Decoder::new(&sizes, Scope::None, Grouping::default());
    let (layer, ends): (Vec<String>, Vec<String>) =
        small.weights().map(|p| p.name.clone()).partition(|name| name.starts_with(FIRST_LAYER));
    let of_layer = move |i: usize| {
        let named = |name: &String| format!("model.layers.{i}.{}", &name[FIRST_LAYER.len()..]);
        layer.iter().map(named).collect::<Vec<_>>()
    };
    ends.into_iter().chain((0..config.layers).flat_map(of_layer))
}

/// Tables that follow from the configuration, which older programs stored: rotary angles, causal masks.
fn says_nothing_new(name: &str, stored: &Checkpoint) -> bool {
    let rotary = ["inv_freq", "original_inv_freq", "cos_cached", "sin_cached"];
    let rotary = rotary.iter().any(|table| name.ends_with(&format!("rotary_emb.{table}")));
    let mask = ["attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"];
    // A bias that is added has one dimension.
    let shape = || stored.shape(name).unwrap_or_default();
    rotary || (mask.iter().any(|table| name.ends_with(table)) && matches!(shape(), [] | [1, 1, _, _]))
}

fn missing(name: &str, stored: &Checkpoint) -> Error {
    let rest = name.strip_prefix("model.").unwrap_or(name);
    let place = name.trim_end_matches("weight").trim_end_matches("bias");
    // Under another prefix, or in another tool's packing.
    let like = stored.names().find(|other| other.ends_with(rest) || other.starts_with(place));
    let found = like.map_or("nothing".into(), |other| format!("only {}", quoted(other)));
    let wanted = match name {
        HEAD => "this tensor, or tie_word_embeddings true in config.json",
        _ => "this tensor",
    };
    Error::input(stored.source(), format!("tensor {}", quoted(name)), found, wanted)
}
