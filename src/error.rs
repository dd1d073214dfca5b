//! What can go wrong with input that we did not make ourselves: files, recipes, command lines.
//!
//! A message names the file, the field, what was found and what was wanted. A caller's bug is an `assert!` instead.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One enum for everything untrusted input can cause.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused `action` on `path`.
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A file says something that cannot be used.
    Input { file: PathBuf, field: String, found: String, wanted: String },
    /// The request itself cannot be served; the text says why and what to do.
    Usage(String),
    /// A number stopped being finite; `tensor` is the first one in which it was seen.
    NotFinite { tensor: String, detail: String },
    /// A check was made and failed (`verify`, a recipe's own bars): the process exits non-zero.
    CheckFailed(String),
}

impl Error {
    /// For `map_err`: attaches what was attempted and on which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// A file whose `field` holds `found` where `wanted` was expected.
    pub fn input(
        file: impl AsRef<Path>,
        field: impl Into<String>,
        found: impl fmt::Display,
        wanted: impl fmt::Display,
    ) -> Error {
        Error::Input {
            file: file.as_ref().to_path_buf(),
            field: field.into(),
            found: found.to_string(),
            wanted: wanted.to_string(),
        }
    }

    /// A request that cannot be served.
    pub fn usage(text: impl fmt::Display) -> Error {
        Error::Usage(text.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())
            }
            Error::Input { file, field, found, wanted } => {
                write!(f, "{}: {field}: found {found}, wanted {wanted}", file.display())
            }
            Error::Usage(text) | Error::CheckFailed(text) => f.write_str(text),
            Error::NotFinite { tensor, detail } => write!(f, "{tensor} is not finite: {detail}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
