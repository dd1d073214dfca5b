//! Train, prove and run language models whose every weight is −1, 0 or +1.
//!
//! A matrix holds *trits* (−1, 0, +1) and one f16 scale for each group of 128 inputs of a row. Training keeps
//! full-precision *latent* weights beside them: every step projects the latents to trits, computes with the trits alone,
//! and hands the gradient back to the latents (the straight-through estimator). [`model::Linear`] explains why
//! that works.
//!
//! # Modules, in the order in which data meets them
//!
//! - [`error`]: one enum for all that untrusted input can cause; it names the file, the field, found and wanted.
//! - [`config`]: what a model is and what a training does, as plain structs that judge themselves.
//! - `files`: files that are read with a limit, and files and folders that appear whole or not at all.
//! - [`ternary`]: the number system: trits, scales, the projection, statistics.
//! - [`kernels`]: all arithmetic, behind one safe door; the only place that names an instruction set.
//! - [`text`]: tokenizers, training of a vocabulary, tokenised corpora, batches.
//! - [`formats`]: bytes on disk: safetensors, GGUF, Hugging Face and MLX directories, packed files, `ternary.json`.
//! - [`model`]: layers with hand-written gradients, the decoder made of them, loading and saving.
//! - [`measure`]: the proof that a stored model is ternary; perplexity.
//! - [`train`]: optimizers, schedules, data sources, checkpoints, the loop, metrics.
//! - [`generate`]: sampling, the decode loop.
//! - [`chat`]: chat templates, rendered as Hugging Face does, within limits.
//! - [`report`]: `report.json` and a self-contained `report.html`.
//! - [`finish`]: what follows the last step: the exported model, its proof, its figures, the report.
//! - [`sweep`]: many runs of one recipe, and which differences are larger than the noise.
//! - [`serve`]: an HTTP server that speaks OpenAI's API.
//! - [`cli`]: the command line, one file a subcommand.
//!
//! # Shapes
//!
//! Tensors are row-major slices of f32, the last dimension contiguous. Sizes are checked by assertions at the door of
//! [`kernels`].
//!
//! | letter | meaning | field of [`config::ModelConfig`] |
//! |---|---|---|
//! | `B` | sequences of a batch | |
//! | `T` | tokens of a sequence | at most `max_positions` |
//! | `N` | rows, `B * T` | |
//! | `C` | width of the residual stream | `hidden_size` |
//! | `V` | vocabulary | `vocab_size` |
//! | `H`, `KV` | query heads, key/value heads | `heads`, `kv_heads` |
//! | `D` | width of a head | `head_dim` |
//! | `F` | width of the feed-forward network | `intermediate_size` |
//! | `G` | inputs that share a scale, 128 | [`ternary::Grouping`] |
//!
//! A weight is `[out, in]`, as in PyTorch. Gradients are called `dx`, `dw`, `dy`; those of weights are added to.
//!
//! # From the outside
//!
//! `examples/train_layer.rs` trains one layer by hand; [`model::Decoder`] shows a training step of a whole model, and
//! `examples/run_model.rs` loads, proves and runs a stored one.

pub mod chat;
pub mod cli;
pub mod config;
pub mod error;
pub mod files;
pub mod finish;
pub mod formats;
pub mod generate;
pub mod kernels;
mod machine;
pub mod measure;
pub mod model;
mod number;
mod random;
pub mod report;
pub mod serve;
pub mod sweep;
pub mod ternary;
pub mod text;
pub mod train;

pub use error::{Error, Result};
