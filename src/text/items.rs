//! What the readers of the file kinds give: parts of documents, and records to be passed over.

use crate::{Error, Result};

/// Dropped from the front of a file.
pub const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Some text of a document; a long document comes in several parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub text: String,
    /// The first part of its document.
    pub begins: bool,
    /// Bytes of the file read so far.
    pub read: u64,
}

/// What a file's next bytes are.
#[derive(Debug)]
pub enum Item {
    Part(Part),
    /// A record whose text is empty or null.
    Empty,
    /// A record that cannot be used, and why.
    Unusable(Error),
}

/// What `next` gives, up to the first error.
pub fn until_error<S, T>(
    mut state: S,
    next: impl Fn(&mut S) -> Result<Option<T>>,
) -> impl Iterator<Item = Result<T>> {
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let item = next(&mut state).transpose();
        failed = matches!(item, Some(Err(_)));
        item
    })
}
