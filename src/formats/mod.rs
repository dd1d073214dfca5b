//! Files as bytes: safetensors, Hugging Face configurations, other tools' packings, the ternary manifest, .npy. Nothing here
//! knows a layer.
//!
//! A stored model has one door, [`ModelFiles::open`], whatever kind of file it is.
//!
//! Everything read is untrusted: a damaged or hostile file gives one [`Error`](crate::Error) that names the file and the
//! field, and nothing is allocated that the file's own size does not justify. Everything written appears whole or not at
//! all ([`files`](crate::files)).

mod bitnet;
mod coded;
mod description;
pub mod gguf;
pub mod hf;
mod json;
pub mod lessons;
pub mod manifest;
pub mod mlx;
mod model_files;
pub mod npy;
pub mod packed;
mod recognise;
pub mod tensors;

pub use description::{Description, NOTE_FORMAT, Packing, TernaryNote};
pub use model_files::{ModelFiles, Stored, Trits, files_of, is_model};

use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt::Display;
use std::path::Path;

use crate::error::Error;

/// What the matrices of a directory hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Full-precision latent weights, projected before every use.
    Latent,
    /// Exactly −s, 0 or +s: any Hugging Face tool reads them.
    Unpacked,
    /// Trits and scales in the order in which products read them, in a packed file.
    Packed,
    /// Codes, scales and biases as MLX lays them out.
    Mlx,
    /// Codes and one scale a matrix as Hugging Face's library lays out BitNet.
    BitNet,
    /// Blocks of a ternary type, in a GGUF file.
    Gguf,
}

impl Form {
    const ALL: [Form; 6] = {
        use Form::*;
        [Latent, Unpacked, Packed, Mlx, BitNet, Gguf]
    };
}

/// A name out of an untrusted file, quoted, escaped and cut for an error message.
pub(crate) fn quoted(name: &str) -> String {
    const SHOWN: usize = 120;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// The error for `part` of the tensor `name`, or for all of it where that is empty.
pub(crate) fn bad_tensor(
    file: impl AsRef<Path>,
    name: &str,
    part: &str,
    found: impl Display,
    wanted: impl Display,
) -> Error {
    let field = format!("tensor {} {part}", quoted(name));
    Error::input(file, field.trim_end(), found, wanted)
}

/// Names, or what is written as a name, as an error message offers them: `"a", "b" or "c"`.
fn any_of(names: impl IntoIterator<Item: Serialize>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| json!(name).to_string()).collect();
    match &names[..] {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
