//! What `report.json` holds.

use serde::{Deserialize, Serialize};

use super::versions::Versions;
use crate::train::nan_as_null;

/// The outcome of a run. Numbers that are not finite are `null` in the file and NaN here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub name: String,
    /// `lm`, `copy` or `recall`.
    pub task: String,
    pub steps: u64,
    pub seed: u64,
    /// All weights of the model, tied embeddings counted once.
    pub parameters: u64,
    /// Those that are −1, 0 or +1 times a scale.
    pub ternary_weights: u64,
    #[serde(with = "nan_as_null")]
    pub wall_seconds: f64,
    /// Tokens trained on.
    pub tokens: u64,
    #[serde(with = "nan_as_null")]
    pub tok_per_s: f64,
    /// Mean training loss of the first 5 steps, nats per token.
    #[serde(with = "nan_as_null")]
    pub first5_loss: f64,
    /// Mean training loss of the last 20 steps, nats per token.
    #[serde(with = "nan_as_null")]
    pub last20_loss: f64,
    /// Step and training loss, at most 2000 points.
    #[serde(default)]
    pub loss_curve: Vec<(u64, f64)>,
    #[serde(default)]
    pub val: Option<Evaluation>,
    #[serde(default)]
    pub test: Option<TestEvaluation>,
    /// Fraction of right tokens, for the synthetic tasks.
    #[serde(default)]
    pub accuracy: Option<f64>,
    /// The check that every ternary weight is one; absent for a full-precision run.
    #[serde(default)]
    pub ternary: Option<TernarySummary>,
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// The bars of the recipe.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The text trained and judged on; absent for the synthetic tasks.
    #[serde(default)]
    pub texts: Option<Texts>,
    /// The recipe with every default filled in.
    #[serde(default)]
    pub recipe: serde_json::Value,
    pub versions: Versions,
}

/// SHA-256 (hexadecimal) of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Texts {
    pub train: String,
    pub val: String,
}

/// The finished model on a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Nats per token.
    #[serde(with = "nan_as_null")]
    pub nll: f64,
    #[serde(with = "nan_as_null")]
    pub ppl: f64,
    #[serde(default)]
    pub bits_per_byte: Option<f64>,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Longest context in tokens.
    pub context: u64,
    /// Tokens between the starts of two windows.
    pub stride: u64,
}

/// [`Evaluation`] on a file of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestEvaluation {
    pub file: String,
    #[serde(flatten)]
    pub result: Evaluation,
}

/// What the exported ternary matrices were found to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TernarySummary {
    pub pass: bool,
    pub tensors: u64,
    /// Weights in them; how many are −1, 0 and +1.
    pub weights: u64,
    pub minus: u64,
    pub zero: u64,
    pub plus: u64,
    /// Groups with a scale of their own; those whose weights are all zero.
    pub groups: u64,
    pub dead_groups: u64,
    /// Greatest `|w / s − t|` found.
    #[serde(with = "nan_as_null")]
    pub max_error: f64,
}

/// A text of the finished model. It is untrusted: the model may have learned to write anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub prompt: String,
    /// What follows the prompt.
    pub text: String,
}

/// What a bar is set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// To be at most the bar.
    #[serde(rename = "train loss")]
    TrainLoss,
    /// To be at least.
    #[serde(rename = "min accuracy")]
    Accuracy,
}

impl Goal {
    /// Whether the bar is the least that will do, and not the most.
    pub fn is_least(self) -> bool {
        self == Goal::Accuracy
    }
}

/// A bar the run had to reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    #[serde(rename = "name")]
    pub goal: Goal,
    #[serde(with = "nan_as_null")]
    pub value: f64,
    #[serde(with = "nan_as_null")]
    pub bar: f64,
    pub pass: bool,
}

impl Check {
    /// A figure that is no number reaches nothing.
    pub fn new(goal: Goal, value: f64, bar: f64) -> Self {
        let pass = if goal.is_least() { value >= bar } else { value <= bar };
        Self { goal, value, bar, pass }
    }
}
