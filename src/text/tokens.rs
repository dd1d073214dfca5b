//! A read-only sequence of token ids, in a file or in memory.

use memmap2::Mmap;
use std::fs::File;
use std::sync::Arc;

use crate::Result;
use crate::files::sha256_hex;

/// Bytes of one id in a token file: 2 while the vocabulary fits, else 4. Little-endian.
pub(super) fn width(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// Token ids of a text, with what is needed to judge it. Cloning is cheap.
#[derive(Clone)]
pub struct Tokens {
    data: Data,
    /// Bytes of an id.
    width: usize,
    /// The part of `data` that is meant, in tokens.
    start: usize,
    len: usize,
    documents: u64,
    text_bytes: u64,
    /// How many bytes of the text each token stands for (`u32`), where that was kept.
    lengths: Option<Data>,
}

#[derive(Clone)]
enum Data {
    File(Arc<Mmap>),
    Memory(Arc<[u8]>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::File(map) => map,
            Data::Memory(bytes) => bytes,
        }
    }
}

impl Tokens {
    /// Tokens in memory: `documents` and `text_bytes` as [`Tokens::documents`] and [`Tokens::text_bytes`] tell them.
    pub fn from_ids(ids: &[u32], documents: u64, text_bytes: u64) -> Tokens {
        let data = Data::Memory(ids.iter().flat_map(|id| id.to_le_bytes()).collect());
        Tokens { data, width: 4, start: 0, len: ids.len(), documents, text_bytes, lengths: None }
    }

    /// Maps a token file of our own cache.
    pub(super) fn map(file: &File, path: &std::path::Path, width: usize) -> Result<Tokens> {
        // SAFETY: token files are written under another name and never changed after the rename that makes them
        // visible; replacing one unlinks it, which leaves this mapping as it is.
        let map = unsafe { Mmap::map(file) }.map_err(crate::Error::io("map", path))?;
        let len = map.len() / width;
        let data = Data::File(Arc::new(map));
        Ok(Tokens { data, width, start: 0, len, documents: 0, text_bytes: 0, lengths: None })
    }

    /// A part of these tokens.
    pub(super) fn part(&self, start: usize, len: usize, documents: u64, text_bytes: u64) -> Tokens {
        assert!(start + len <= self.len, "a part lies inside the whole");
        Tokens { start: self.start + start, len, documents, text_bytes, lengths: None, ..self.clone() }
    }

    /// These tokens, with the bytes that each stands for; `None` unless `lengths` fits them.
    pub(super) fn with_lengths(self, lengths: Tokens) -> Option<Tokens> {
        let fits = lengths.width == 4 && lengths.start == 0 && lengths.len == self.len;
        let tokens = Tokens { lengths: Some(lengths.data), ..self };
        let sum = fits.then(|| tokens.text_bytes_of(0..tokens.len))??;
        (sum == tokens.text_bytes).then_some(tokens)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.data.bytes()[self.start * self.width..(self.start + self.len) * self.width]
    }

    /// SHA-256 (hexadecimal) of the ids as they are stored: equal for the same tokens of vocabularies of one size.
    pub fn sha256(&self) -> String {
        sha256_hex([self.bytes()])
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        let lengths = self.lengths.as_ref()?.bytes().as_chunks::<4>().0;
        Some(lengths[tokens].iter().map(|b| u64::from(u32::from_le_bytes(*b))).sum())
    }

    /// Copies the ids from `start` on into `out`. They must exist: `start + out.len() <= len()`.
    pub fn read(&self, start: usize, out: &mut [u32]) {
        let end = start.checked_add(out.len()).filter(|&end| end <= self.len);
        let end = end.unwrap_or_else(|| panic!("tokens {start}.. + {} of {}", out.len(), self.len));
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
        let mut ids = vec![0; self.len];
        self.read(0, &mut ids);
        ids
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} tokens, {} documents, {} bytes)", self.len, self.documents, self.text_bytes)
    }
}
