//! The tensors that a stored model holds against those that its configuration describes.

use std::collections::HashSet;

use super::Decoder;
use crate::config::{ModelConfig, Scope};
use crate::error::{Error, Result};
use crate::formats::hf::HEAD;
use crate::formats::{ModelFiles, quoted};
use crate::ternary::Grouping;

const FIRST_LAYER: &str = "model.layers.0.";

/// The names of the tensors that `stored` has and its model does not use, but for those that say nothing new.
///
/// # Errors
/// A tensor that the model needs and that is not there.
pub fn unused(stored: &ModelFiles) -> Result<Vec<&str>> {
    let config = &stored.description.model;
    let needed = || names(config, Scope::None).map(|(name, _)| name);
    if let Some(name) = needed().find(|name| !stored.contains(name)) {
        return Err(missing(&name, stored));
    }
    let used: HashSet<String> = needed().collect();
    let again = |name: &str| config.tie_embeddings && name == HEAD;
    let unused = |name: &&str| !used.contains(*name) && !again(name) && !says_nothing_new(name, stored);
    Ok(stored.names().filter(unused).collect())
}

/// The names of the matrices that `scope` makes ternary in a model like `stored`.
pub fn promised(stored: &ModelFiles, scope: Scope) -> HashSet<String> {
    // A model of more layers than there are tensors lacks some, which `unused` says.
    let config = &stored.description.model;
    let config = ModelConfig { layers: config.layers.min(stored.names().count()), ..config.clone() };
    names(&config, scope).filter(|(_, ternary)| *ternary).map(|(name, _)| name).collect()
}

/// The names of a decoder's tensors, whatever its size, and which are ternary: those of a decoder of one layer, again for
/// every layer.
fn names(config: &ModelConfig, scope: Scope) -> impl Iterator<Item = (String, bool)> {
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
    let small = Decoder::new(&sizes, scope, Grouping::default());
    let (layer, ends): (Vec<_>, Vec<_>) = small
        .weights()
        .map(|p| (p.name.clone(), p.ternary().is_some()))
        .partition(|(name, _)| name.starts_with(FIRST_LAYER));
    let of_layer = move |i: usize| {
        let named = |(name, ternary): &(String, bool)| {
            (format!("model.layers.{i}.{}", &name[FIRST_LAYER.len()..]), *ternary)
        };
        layer.iter().map(named).collect::<Vec<_>>()
    };
    ends.into_iter().chain((0..config.layers).flat_map(of_layer))
}

/// Tables that follow from the configuration, which older programs stored: rotary angles, causal masks.
fn says_nothing_new(name: &str, stored: &ModelFiles) -> bool {
    let rotary = ["inv_freq", "original_inv_freq", "cos_cached", "sin_cached"];
    let rotary = rotary.iter().any(|table| name.ends_with(&format!("rotary_emb.{table}")));
    let mask = ["attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"];
    // A bias that is added has one dimension.
    let no_bias = || stored.tensor(name).is_ok_and(|t| matches!(t.shape(), [] | [1, 1, _, _]));
    rotary || (mask.iter().any(|table| name.ends_with(table)) && no_bias())
}

fn missing(name: &str, stored: &ModelFiles) -> Error {
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
