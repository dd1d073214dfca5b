//! What a training does.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

use super::{ModelConfig, TernaryConfig, is_default, name};
use crate::files::path_text;

/// What the operands of a training's products are rounded to; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Nothing: they are as they come.
    #[default]
    F32,
    /// The nearest bf16 ([`reference::bf16`](crate::kernels::reference::bf16)).
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(self))
    }
}

/// `data.tokenizer` of a vocabulary that is made of the training text.
pub const OF_THE_TEXT: &str = "bpe";

/// Keys that say what a token is: losses of a token are compared between runs that agree in them.
pub const TOKEN_KEYS: [&str; 2] = ["data.tokenizer", "model.vocab_size"];

/// What the model is asked to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Predict the next token of a text.
    Lm,
    /// Reproduce each input token in its own place (not causal): the classic smoke test.
    Copy,
    /// Read random tokens and a separator, then reproduce the tokens in order, causally.
    Recall,
}

/// Everything a training does: the TOML file with every default filled in. Unknown keys are errors.
///
/// ```
/// use ternlm::config::{Recipe, Scope};
/// let text = r#"
///     name = "tiny"
///     task = "lm"
///     [model]
///     vocab_size = 256
///     hidden_size = 64
///     layers = 2
///     heads = 4
///     kv_heads = 2
///     head_dim = 16
///     intermediate_size = 128
///     max_positions = 128
///     [data]
///     train = ["input.txt"]
///     tokenizer = "bytes"
///     [train]
///     steps = 100
///     lr = 1e-3
/// "#;
/// let mut recipe: Recipe = toml::from_str(text).unwrap();
/// recipe.validate("tiny.toml".as_ref())?;
/// assert_eq!((recipe.ternary.scope, recipe.train.batch, recipe.train.seq), (Scope::All, 16, 128));
///
/// recipe.train.lr = f32::NAN;
/// let error = recipe.validate("tiny.toml".as_ref()).unwrap_err();
/// assert_eq!(error.to_string(), "tiny.toml: train.lr: found NaN, wanted 0 to 1000");
/// # Ok::<(), ternlm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub name: String,
    pub task: Task,
    #[serde(default)]
    pub seed: u64,
    /// The recipe is a conversion: training it without `init` is an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_init: bool,
    /// Start from this stored model instead of random weights; `model` is then read from it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "path_text::option")]
    pub init: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelConfig>,
    #[serde(default)]
    pub ternary: TernaryConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillConfig>,
    #[serde(default)]
    pub data: DataConfig,
    pub train: TrainConfig,
    #[serde(default)]
    pub report: ReportConfig,
}

/// Which divergence a student is held to, between its distribution `q` and the teacher's `p`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// `KL(p | q)`: the student is to cover all that the teacher holds likely.
    #[default]
    Forward,
    /// `KL(q | p)`: the student is to say nothing that the teacher holds unlikely.
    Reverse,
}

/// A model to learn from. The loss is `(1 - weight) CE + weight T² KL + relations R`, soft-max of both models at the temperature `T`;
/// `R` is how far the relations of positions in one layer are from the teacher's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// A stored model of the same tokenizer.
    #[serde(skip_serializing_if = "Option::is_none", with = "path_text::option")]
    pub teacher: Option<PathBuf>,
    /// In place of a teacher: the folder of what `ternlm teach` stored of one, at the temperature 1, for the forward divergence.
    #[serde(skip_serializing_if = "Option::is_none", with = "path_text::option")]
    pub lessons: Option<PathBuf>,
    /// 0 to 1. At 0, without relations, the teacher is not even loaded.
    pub weight: f32,
    pub temperature: f32,
    /// `"forward"` or `"reverse"`.
    pub direction: Direction,
    /// How much the relations of queries, of keys and of values count; 0: not at all.
    pub relations: f32,
    /// In which layer, counted from 0; absent: [`DistillConfig::related_layer`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation_layer: Option<usize>,
}

impl DistillConfig {
    /// Whether relations are learnt.
    pub fn relates(&self) -> bool {
        self.relations > 0.0
    }

    /// The layer of a model of `layers` whose relations are learnt. If the recipe does not say it, the one at three quarters of
    /// them: late, where what is told apart has a meaning, and with layers behind it that still turn it into words. MiniLMv2
    /// (arXiv 2012.15828) found such layers best in large teachers, BitDistill (arXiv 2510.13998) takes a late one.
    pub fn related_layer(&self, layers: usize) -> usize {
        self.relation_layer.unwrap_or(3 * layers / 4)
    }
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self {
            teacher: None,
            lessons: None,
            weight: 0.5,
            temperature: 1.0,
            direction: Direction::Forward,
            relations: 0.0,
            relation_layer: None,
        }
    }
}

/// How the windows of a corpus are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Windows at uniformly random offsets.
    Random,
    /// Disjoint windows, each once an epoch, reshuffled every epoch.
    Epoch,
}

/// What stands between two documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Join {
    /// Text files: a blank line. Records (.jsonl, .parquet): the end-of-text token, or a blank line without one.
    Auto,
    /// A blank line.
    Newline,
    /// The tokenizer's end-of-text token.
    Eos,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Files or folders: .txt, .jsonl, .parquet. In TOML and JSON, paths are as [`path_text`] says.
    #[serde(with = "path_text::list")]
    pub train: Vec<PathBuf>,
    /// Separate validation files; without them the last `val_fraction` of the tokens is held out.
    #[serde(with = "path_text::list")]
    pub val: Vec<PathBuf>,
    pub val_fraction: f64,
    /// The text field of .jsonl and .parquet records.
    pub field: String,
    /// `bytes`, `gpt2`, `bpe` (a byte-level BPE of `model.vocab_size` entries, made of the training text), the path
    /// ([`path_text`]) of a `tokenizer.json` or of a folder that holds one; empty: the one of `init`.
    pub tokenizer: String,
    pub order: Order,
    pub join: Join,
    /// Tokens of one synthetic sequence (`copy`, `recall`).
    pub sequence: usize,
}

impl DataConfig {
    /// Of the training text, from its beginning on, what is hardly held out: a document may be, whose end lies within a
    /// tenth of the held-out part before it.
    pub fn trained_share(&self) -> f64 {
        if self.val.is_empty() { (1.0 - 1.1 * self.val_fraction).max(0.0) } else { 1.0 }
    }

    /// Whether `tokenizer` is the path of a file or folder.
    pub fn tokenizer_is_path(&self) -> bool {
        !["", "bytes", "gpt2", OF_THE_TEXT].contains(&self.tokenizer.as_str())
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            val: Vec::new(),
            val_fraction: 0.1,
            field: "text".into(),
            tokenizer: String::new(),
            order: Order::Random,
            join: Join::Auto,
            sequence: 16,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    AdamW,
    /// SGD with momentum.
    Sgd,
    /// Muon for the matrices inside the blocks, AdamW for everything else.
    Muon,
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(self))
    }
}

/// How the optimizer's moments of matrices are kept; those of norms and biases are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentFormat {
    #[default]
    F32,
    /// Codes of 8 bits and one scale for each 128 values of a row.
    Int8,
}

impl fmt::Display for MomentFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(self))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Constant,
    /// Half a cosine from `lr` to `floor * lr`.
    Cosine,
    /// Constant, then a straight line to `floor * lr` over the last `decay_fraction` of the steps.
    Linear,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    pub steps: u64,
    /// Sequences of one micro-batch (`B`).
    pub batch: usize,
    /// Tokens of one sequence (`T`); synthetic tasks set their own.
    pub seq: usize,
    /// Micro-batches per optimizer step.
    pub accumulate: usize,
    /// `"f32"` or `"bf16"`, which is faster where the processor multiplies bf16.
    #[serde(skip_serializing_if = "is_default")]
    pub precision: Precision,
    pub optimizer: OptimizerKind,
    /// `"f32"` or `"int8"`, which takes a quarter of the memory.
    #[serde(skip_serializing_if = "is_default")]
    pub moments: MomentFormat,
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// SGD and Muon.
    pub momentum: f32,
    /// Learning rate of the matrices under Muon (its updates have unit RMS per row).
    pub muon_lr: f32,
    /// Learning rate of the logarithms of scales, where these are learned; under Adam, by the schedule of `lr`.
    pub scale_lr: f32,
    /// Muon keeps of each update only what has the sign of the gradient, and makes up for the rest (Liang et al.,
    /// "Cautious Optimizers", arXiv 2411.16085).
    pub cautious: bool,
    /// Newton–Schulz steps of Muon: fewer cost less, and leave small singular values smaller.
    pub muon_steps: u32,
    /// On matrices only; norms and biases are never decayed.
    pub weight_decay: f32,
    /// First step without weight decay; absent: never switched off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay_until: Option<u64>,
    /// Global gradient norm; 0 switches clipping off.
    pub clip: f32,
    /// `z_loss (ln Z)²` is added to what is minimised at each position, `Z` the sum that the soft-max divides by (PaLM, arXiv
    /// 2204.02311). Losses that are told are without it.
    pub z_loss: f32,
    /// Share of the values that become zero in a training step: of the embedding, and of what attention and feed-forward
    /// network add to the residual stream.
    pub dropout: f32,
    /// The backward pass makes the projections of a block again, to the bit, and none are kept: less memory, more time.
    pub recompute: bool,
    pub schedule: ScheduleKind,
    pub warmup: u64,
    pub floor: f32,
    pub decay_fraction: f32,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two validations; 0: only at the end.
    pub eval_every: u64,
    /// Sequences of `seq` tokens a validation reads; 0: all of them.
    pub eval_sequences: usize,
    /// Steps between two checkpoints; 0: only at the end.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 16,
            seq: 128,
            accumulate: 1,
            precision: Precision::F32,
            optimizer: OptimizerKind::AdamW,
            moments: MomentFormat::F32,
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            momentum: 0.95,
            muon_lr: 0.02,
            scale_lr: 3e-3,
            cautious: false,
            muon_steps: 5,
            weight_decay: 0.0,
            weight_decay_until: None,
            clip: 1.0,
            z_loss: 0.0,
            recompute: false,
            dropout: 0.0,
            schedule: ScheduleKind::Cosine,
            warmup: 0,
            floor: 0.0,
            decay_fraction: 0.3,
            log_every: 10,
            eval_every: 0,
            eval_sequences: 64,
            save_every: 0,
            keep: 2,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportConfig {
    /// A sample of each is written into the report.
    pub prompts: Vec<String>,
    pub sample_tokens: usize,
    /// 0: greedy.
    pub temperature: f32,
    pub top_p: f32,
    /// A text that the finished model is measured on, beside the validation part.
    #[serde(skip_serializing_if = "Option::is_none", with = "path_text::option")]
    pub test: Option<PathBuf>,
    /// Bars that the run must reach; missing one fails the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_train_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_accuracy: Option<f64>,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            sample_tokens: 64,
            temperature: 0.0,
            top_p: 1.0,
            test: None,
            max_train_loss: None,
            min_accuracy: None,
        }
    }
}

impl Recipe {
    /// How the training learns from a teacher, if it does.
    pub fn taught(&self) -> Option<&DistillConfig> {
        self.distill.as_ref().filter(|distill| distill.weight > 0.0 || distill.relates())
    }
}
