//! The tensors that a stored model holds against those that its configuration describes.

use std::collections::{HashMap, HashSet};

use super::Decoder;
use crate::config::{ModelConfig, Scope};
use crate::error::{Error, Result};
use crate::formats::hf::HEAD;
use crate::formats::{ModelFiles, bad_tensor, quoted};
use crate::ternary::Grouping;

const FIRST_LAYER: &str = "model.layers.0.";

/// The names of the tensors that `stored` has and its model does not use, but for those that say nothing new.
///
/// # Errors
/// A tensor that the model needs and that is not there, or has another shape.
pub fn unused(stored: &ModelFiles) -> Result<Vec<&str>> {
    let config = &stored.description.model;
    let mut used = HashSet::new();
    for Needed { name, shape, .. } in needed(config, Scope::None) {
        if !stored.contains(&name) {
            return Err(missing(&name, stored));
        }
        let tensor = stored.tensor(&name)?;
        if tensor.shape() != shape {
            let found = format!("shape {:?}", tensor.shape());
            let wanted = format!("{shape:?}, as config.json has it");
            return Err(bad_tensor(stored.source(), &name, "", found, wanted));
        }
        used.insert(name);
    }
    let again = |name: &str| config.tie_embeddings && name == HEAD;
    let unused = |name: &&str| !used.contains(*name) && !again(name) && !says_nothing_new(name, stored);
    Ok(stored.names().filter(unused).collect())
}

/// The names of the matrices that `scope` makes ternary in a model like `stored`.
pub fn promised(stored: &ModelFiles, scope: Scope) -> HashSet<String> {
    // A model of more layers than there are tensors lacks some, which `unused` says.
    let config = &stored.description.model;
    let config = ModelConfig { layers: config.layers.min(stored.names().count()), ..config.clone() };
    needed(&config, scope).filter(|tensor| tensor.ternary).map(|tensor| tensor.name).collect()
}

/// A tensor of a decoder.
#[derive(Clone)]
struct Needed {
    name: String,
    ternary: bool,
    shape: Vec<usize>,
}

/// The tensors of a decoder, whatever its size: those of a decoder of one layer, again for every layer, whose sizes are small
/// and tell each other apart.
fn needed(config: &ModelConfig, scope: Scope) -> impl Iterator<Item = Needed> {
    let sizes = ModelConfig {
        vocab_size: 3,
        hidden_size: 5,
        layers: 1,
        heads: 22,
        kv_heads: 11,
        head_dim: 2,
        intermediate_size: 7,
        max_positions: 1,
        ..config.clone()
    };
    let each = |c: &ModelConfig| {
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        [c.vocab_size, c.hidden_size, queries, keys, c.head_dim, c.intermediate_size]
    };
    let real: HashMap<usize, usize> = each(&sizes).into_iter().zip(each(config)).collect();
    let small = Decoder::new(&sizes, scope, Grouping::default());
    let tensors = small.weights().map(|weight| Needed {
        name: weight.name.clone(),
        ternary: weight.ternary().is_some(),
        shape: weight.shape.iter().map(|size| real[size]).collect(),
    });
    let (layer, ends): (Vec<_>, Vec<_>) = tensors.partition(|tensor| tensor.name.starts_with(FIRST_LAYER));
    let of_layer = move |i: usize| {
        let named = |tensor: &Needed| Needed {
            name: format!("model.layers.{i}.{}", &tensor.name[FIRST_LAYER.len()..]),
            ..tensor.clone()
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
    bad_tensor(stored.source(), name, "", found, wanted)
}
