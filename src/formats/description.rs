//! What a model is, in our own words, whatever file said it.

use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

use super::Form;
use crate::config::{Inputs, ModelConfig, Scope, is_default};
use crate::ternary::Grouping;

/// The only version of [`TernaryNote`] so far.
pub const NOTE_FORMAT: u32 = 1;

/// A model without its tensors and its tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Judged by [`ModelConfig::validate`].
    pub model: ModelConfig,
    /// Present in a model that ternlm wrote.
    pub ternary: Option<TernaryNote>,
    /// How another tool's layout holds the matrices; absent: as numbers.
    pub packing: Option<Packing>,
    /// Token ids that end a text: those of `config.json`, then further ones of `generation_config.json`.
    pub eos: Vec<u32>,
    /// The token id that begins a text, from `config.json` or else `generation_config.json`.
    pub bos: Option<u32>,
    /// What the files call the architecture; empty for a new model.
    pub architecture: &'static str,
    /// Whether the files say that the output head is the embedding. Where they hold a head of its own all the same,
    /// `model.tie_embeddings` is false.
    pub said_tied: bool,
    pub(super) kept: Kept,
}

/// What the files say besides, to be written again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Kept {
    /// `config.json` as it was read.
    pub config: Map<String, Value>,
    /// `generation_config.json` as it was read; empty without one.
    pub generation: Map<String, Value>,
}

impl Description {
    /// A new model, which no file has said anything of.
    pub fn new(model: ModelConfig) -> Self {
        Self {
            said_tied: model.tie_embeddings,
            model,
            ternary: None,
            packing: None,
            eos: Vec::new(),
            bos: None,
            architecture: "",
            kept: Kept::default(),
        }
    }
}

/// How other tools pack ternary matrices in a Hugging Face directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Packing {
    /// MLX: two bits a weight, a scale and a bias for `group` inputs, or for as many as `groups` says of a matrix by its name
    /// (without `.weight`).
    Mlx { group: usize, groups: BTreeMap<String, usize> },
    /// BitNet in Hugging Face's library: two bits a weight, one number for each matrix, which divides (`bitlinear`) or
    /// multiplies (`autobitlinear`).
    BitNet { divides: bool },
    /// BitNet's master weights: numbers that are projected in every product, one scale for each matrix of the blocks, by
    /// inputs in 8 bits.
    BitNetLatent,
}

/// Which matrices are ternary, and how: the key `ternlm` of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TernaryNote {
    /// [`NOTE_FORMAT`].
    pub format: u32,
    /// What the ternary tensors hold.
    pub form: Form,
    /// Which matrices were trained as ternary ones.
    pub scope: Scope,
    /// Inputs that share a scale.
    pub group: Grouping,
    /// What the inputs of their products are; absent: f32.
    #[serde(skip_serializing_if = "is_default")]
    pub activations: Inputs,
    /// Names of the ternary tensors.
    pub tensors: Vec<String>,
}
