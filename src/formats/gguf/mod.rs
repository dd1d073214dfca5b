//! GGUF, the format of llama.cpp: one file of metadata (shape, tokenizer, template) and tensors in blocks.

mod blocks;
pub mod encode;
pub mod file;
mod keys;
mod model;
pub mod names;
pub mod rope;
mod tokenizer;
pub mod tokens;
mod trits;
pub mod types;
pub mod value;
mod view;
pub mod write;

pub use file::{GgufFile, TensorInfo};
pub use model::{GgufModel, INPUTS, inputs_note};
pub use types::{BlockType, Coding};
pub use value::{Array, Kind, Value};
pub use view::View;

use crate::error::Result;
use crate::files::Bundle;

/// The tokenizer's files that the metadata of `file` stand for, whatever model it holds; none of a file without a
/// vocabulary.
///
/// # Errors
/// A vocabulary of a kind that is not read, or lists that do not fit together.
pub fn vocabulary(file: &GgufFile) -> Result<Bundle> {
    let held = tokenizer::files(file, &mut serde_json::Map::new())?;
    Ok(Bundle::within(file.path(), held))
}
