//! Files as bytes: safetensors, Hugging Face configurations, the ternary manifest, .npy. Nothing here knows a layer.
//!
//! Everything read is untrusted: a damaged or hostile file gives one [`Error`] that names the file and the field, and
//! nothing is allocated that the file's own size does not justify. Everything written appears whole or not at all
//! ([`atomic`]).

pub mod atomic;
pub mod hf;
mod json;
pub mod manifest;
pub mod npy;
pub mod tensors;

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, Result};

/// What the matrices of a directory hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Full-precision latent weights, projected before every use.
    Latent,
    /// Exactly −s, 0 or +s: any Hugging Face tool reads them.
    Unpacked,
}

/// Opens a regular file for reading and gives its size in bytes. A pipe or a device is refused: it could block forever
/// or never end.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let kind = fs::metadata(path).map_err(Error::io("read", path))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a pipe or device" };
        return Err(Error::input(path, "file type", found, "a regular file"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    Ok((file, size))
}

/// A name out of an untrusted file, quoted, escaped and cut for an error message.
fn quoted(name: &str) -> String {
    const SHOWN: usize = 120;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}
