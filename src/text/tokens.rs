//! A read-only sequence of token ids, in a file or in memory.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::files::{Bytes, Mapped, sha256_hex};

/// Bytes of one id in a token file: 2 while the vocabulary fits, else 4. Little-endian.
pub(super) fn width(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// Token ids of a text, with what is needed to judge it. Cloning is cheap.
#[derive(Clone)]
pub struct Tokens {
    /// Ids of `width` bytes each.
    data: Bytes,
    width: usize,
    documents: u64,
    text_bytes: u64,
    /// How many bytes of the text each token stands for (`u32`), where that was kept.
    lengths: Option<Bytes>,
}

impl Tokens {
    /// Tokens in memory: `documents` and `text_bytes` as [`Tokens::documents`] and [`Tokens::text_bytes`] tell them.
    pub fn from_ids(ids: &[u32], documents: u64, text_bytes: u64) -> Tokens {
        let data = ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>().into();
        Tokens { data, width: 4, documents, text_bytes, lengths: None }
    }

    /// Maps a token file of our own cache, which is never changed once it has its name.
    pub(super) fn map(path: &Path, width: usize) -> Result<Tokens> {
        let map = Mapped::open(path, 0)?;
        let whole = 0..map.len() / width * width;
        let data = Bytes::of(Arc::new(map), whole);
        Ok(Tokens { data, width, documents: 0, text_bytes: 0, lengths: None })
    }

    /// A part of these tokens.
    pub(super) fn part(&self, start: usize, len: usize, documents: u64, text_bytes: u64) -> Tokens {
        let data = self.data.part(start * self.width..(start + len) * self.width);
        Tokens { data, width: self.width, documents, text_bytes, lengths: None }
    }

    /// These tokens, with the bytes that each stands for; `None` unless `lengths` fits them.
    pub(super) fn with_lengths(self, lengths: Tokens) -> Option<Tokens> {
        let fits = lengths.width == 4 && lengths.len() == self.len();
        let tokens = Tokens { lengths: Some(lengths.data), ..self };
        let sum = fits.then(|| tokens.text_bytes_of(0..tokens.len()))??;
        (sum == tokens.text_bytes).then_some(tokens)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// SHA-256 (hexadecimal) of the ids as they are stored: equal for the same tokens of vocabularies of one size.
    pub fn sha256(&self) -> String {
        sha256_hex([self.bytes()])
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.data.len() / self.width
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// UTF-8 bytes of the text that the tokens encode; what was put between documents is none of it.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Bytes of text that some of the tokens stand for; `None` where that was not kept (it is for validation parts).
    pub fn text_bytes_of(&self, tokens: std::ops::Range<usize>) -> Option<u64> {
        let lengths = self.lengths.as_ref()?.as_chunks::<4>().0;
        Some(lengths[tokens].iter().map(|b| u64::from(u32::from_le_bytes(*b))).sum())
    }

    /// Copies the ids from `start` on into `out`. They must exist: `start + out.len() <= len()`.
    pub fn read(&self, start: usize, out: &mut [u32]) {
        let end = start.checked_add(out.len()).filter(|&end| end <= self.len());
        let end = end.unwrap_or_else(|| panic!("tokens {start}.. + {} of {}", out.len(), self.len()));
        let bytes = &self.bytes()[start * self.width..end * self.width];
        if self.width == 2 {
            for (id, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *id = u16::from_le_bytes([b[0], b[1]]).into();
            }
        } else {
            for (id, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *id = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }

    /// All ids; for small corpora and tests.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut ids = vec![0; self.len()];
        self.read(0, &mut ids);
        ids
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} tokens, {} documents, {} bytes)", self.len(), self.documents, self.text_bytes)
    }
}
