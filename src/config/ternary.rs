//! What is ternary in a training, from which step on, and how it becomes that.

use serde::{Deserialize, Serialize};

use super::is_default;
use crate::ternary::Grouping;

/// Which matrices are ternary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Nothing: the full-precision twin, for comparison.
    None,
    /// Attention and feed-forward projections only.
    Blocks,
    /// Embedding and output head too.
    #[default]
    All,
}

/// What the inputs of a product with a ternary matrix are rounded to in the forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// Nothing: they are as they come.
    #[default]
    F32,
    /// 8 bits, one scale a row (token), as in BitNet b1.58 (arXiv 2402.17764).
    Int8,
}

/// What the scale of a group is in a training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// The absolute mean of its latents, wherever their steps bring it.
    #[default]
    Absmean,
    /// A number of its own, with a gradient of its own; the steps of the latents change their directions alone.
    Learned,
}

/// What is ternary, and how it becomes that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TernaryConfig {
    pub scope: Scope,
    /// 128, or `"tensor"` for one scale a matrix.
    pub group: Grouping,
    /// `"absmean"` or `"learned"`.
    #[serde(skip_serializing_if = "is_default")]
    pub scale: Scale,
    /// Standard deviation of a random matrix: `fan_in^-1/2` unless a number is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_std: Option<f32>,
    /// `"f32"` or `"int8"`.
    #[serde(skip_serializing_if = "is_default")]
    pub activations: Inputs,
    /// Share of the steps over which weights go from their latents to trits: products are with `(1 - ε) ŵ + ε w`, and `ε`
    /// falls from 1 to 0 on half a cosine. 0: trits from the start.
    #[serde(skip_serializing_if = "is_default")]
    pub anneal: f32,
    /// Rotate the model of `init` before it becomes ternary: the same function, whose weights lose less. Its head becomes
    /// one of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rotate: bool,
    /// Sequences of the training text on which the model of `init` is to keep its outputs as it becomes ternary, before the
    /// first step; 0: each group is projected for itself.
    #[serde(skip_serializing_if = "is_default")]
    pub calibrate: usize,
    #[serde(skip_serializing_if = "is_default")]
    pub start: StartConfig,
}

impl TernaryConfig {
    /// Whether there are scales with steps of their own.
    pub fn learns_scales(&self) -> bool {
        self.scale == Scale::Learned && self.scope != Scope::None
    }
}

/// Shares of the steps before which a kind of ternary weight is its latents, in full precision. Then it anneals over
/// [`TernaryConfig::anneal`], or is ternary at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StartConfig {
    pub feed_forward: f32,
    pub attention: f32,
    /// Embedding and output head.
    pub ends: f32,
}

impl StartConfig {
    /// Whether all weights begin with the first step.
    pub fn is_at_once(&self) -> bool {
        *self == Self::default()
    }
}
