//! The shape of a model.

use super::rope::{RopeScaling, Rotation};
use serde::{Deserialize, Serialize};
use std::path::Path;

use crate::error::{Error, Result};

/// The feed-forward network between two residual additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `down(silu(gate(x)) * up(x))`, three matrices.
    SwiGlu,
    /// `down(max(0, gate(x))^2 * up(x))`, three matrices (BitNet b1.58).
    Relu2Glu,
    /// `down(gelu(up(x)))`, two matrices, the tanh form of GELU.
    Gelu,
    /// `down(max(0, up(x))^2)`, two matrices.
    Relu2,
}

impl Activation {
    /// Whether there is a gate: a third matrix.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::SwiGlu | Self::Relu2Glu)
    }
}

/// How the keys and values of positions that a model has read are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// As they were computed.
    F32,
    /// Half precision.
    F16,
    /// 8 bits, one f32 scale for each head of each position.
    Int8,
}

/// The shape of a decoder. The field names are ours; `formats::hf` knows the Hugging Face ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// `V`: rows of the embedding.
    pub vocab_size: usize,
    /// `C`: width of the residual stream.
    pub hidden_size: usize,
    pub layers: usize,
    /// `H`: query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// `D`: width of a head, even.
    pub head_dim: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    #[serde(default = "default_activation")]
    pub activation: Activation,
    /// RMSNorm on every query and key head before the rotation (Qwen3).
    #[serde(default)]
    pub qk_norm: bool,
    /// Biases on the query, key and value projections (Qwen2).
    #[serde(default)]
    pub qkv_bias: bool,
    /// A bias on attention's output projection (`attention_bias` of LLaMA, with `qkv_bias`).
    #[serde(default)]
    pub o_bias: bool,
    /// Biases on the projections of the feed-forward network.
    #[serde(default)]
    pub mlp_bias: bool,
    /// RMSNorm before the output projection and before the down projection (BitNet b1.58).
    #[serde(default)]
    pub sub_norm: bool,
    #[serde(default = "yes")]
    pub causal: bool,
    /// The output head is the embedding.
    #[serde(default)]
    pub tie_embeddings: bool,
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f32,
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f32,
    /// Longest sequence the model is meant for.
    pub max_positions: usize,
    /// A rotation stretched over more positions than it was first trained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
}

fn default_activation() -> Activation {
    Activation::SwiGlu
}
fn yes() -> bool {
    true
}
fn default_rope_theta() -> f32 {
    10_000.0
}
fn default_eps() -> f32 {
    1e-6
}

/// The flags of a LLaMA; of the sizes, which are none yet, [`ModelConfig::validate`] wants more.
impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            vocab_size: 0,
            hidden_size: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            intermediate_size: 0,
            activation: default_activation(),
            qk_norm: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            sub_norm: false,
            causal: yes(),
            tie_embeddings: false,
            rope_theta: default_rope_theta(),
            rms_norm_eps: default_eps(),
            max_positions: 0,
            rope_scaling: None,
        }
    }
}

/// Larger than any published decoder; above it a size is a damaged or hostile file.
const MAX_DIM: usize = 1 << 24;

impl ModelConfig {
    /// Judges the shape. `file` is named in the error.
    pub fn validate(&self, file: &Path) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("max_positions", self.max_positions),
        ];
        for (field, size) in sizes {
            if size == 0 || size > MAX_DIM {
                return Err(Error::input(file, field, size, format!("1 to {MAX_DIM}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::input(
                file,
                "kv_heads",
                self.kv_heads,
                format!("a divisor of heads ({})", self.heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::input(file, "head_dim", self.head_dim, "an even number"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(Error::input(file, "rope_theta", self.rope_theta, "a positive number"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(Error::input(file, "rms_norm_eps", self.rms_norm_eps, "0 or more"));
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.validate(self.rope_theta, file)?;
        }
        let params = self.parameters();
        if params > 1 << 40 {
            return Err(Error::input(file, "sizes", format!("{params} parameters"), "at most 2^40"));
        }
        Ok(())
    }

    /// The rotation of queries and keys, of a configuration that has been validated.
    pub fn rotation(&self) -> Rotation {
        Rotation::new(self.rope_theta, self.head_dim, self.rope_scaling)
    }

    /// Number of weights, tied embeddings counted once.
    pub fn parameters(&self) -> u128 {
        let [v, c, f] = [self.vocab_size, self.hidden_size, self.intermediate_size].map(|n| n as u128);
        let [h, kv, d] = [self.heads, self.kv_heads, self.head_dim].map(|n| n as u128);
        let ffn = if self.activation.is_gated() { 3 } else { 2 };
        let some = |there: bool, n: u128| if there { n } else { 0 };
        let norms = 2 * c + some(self.qk_norm, 2 * d) + some(self.sub_norm, h * d + f);
        let biases = some(self.qkv_bias, (h + 2 * kv) * d)
            + some(self.o_bias, c)
            + some(self.mlp_bias, (ffn - 1) * f + c);
        let layer = c * d * (2 * h + 2 * kv) + ffn * c * f + norms + biases;
        let head = if self.tie_embeddings { 1 } else { 2 };
        head * v * c + self.layers as u128 * layer + c
    }
}
