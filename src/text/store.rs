//! The cached form of a tokenised corpus: a folder with `tokens.bin` (ids, little-endian) and `meta.json`.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::tokens::{Tokens, width};
use crate::files::{self, DirectoryWriter, IfExists, open_regular, read_limited, sha256_hex};
use crate::{Error, Result};

/// Changes whenever the files below, or what they hold, change meaning.
pub const VERSION: u32 = 2;
const TOKENS: &str = "tokens.bin";
const META: &str = "meta.json";
/// Ends of the documents, only while writing: 16 bytes each, tokens and text bytes up to there.
const ENDS: &str = "documents.tmp";

/// Sums over some documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    pub documents: u64,
    pub tokens: u64,
    pub text_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    version: u32,
    vocab_size: usize,
    crc32c: u32,
    /// Of the training tokens.
    sha256: String,
    train: Sums,
    val: Sums,
}

/// A finished folder.
pub struct Stored {
    pub train: Tokens,
    pub val: Tokens,
    /// SHA-256 of the training tokens as they are stored.
    pub sha256: String,
}

/// Reads a finished folder; `None` if anything about it is not as it was written.
pub fn load(dir: &Path, vocab_size: usize) -> Option<Stored> {
    let meta: Meta = serde_json::from_slice(&read_limited(&dir.join(META), 1 << 16).ok()?).ok()?;
    let path = dir.join(TOKENS);
    let (file, size) = open_regular(&path).ok()?;
    let tokens = meta.train.tokens.checked_add(meta.val.tokens)?;
    let bytes = tokens.checked_mul(width(vocab_size) as u64)?;
    if meta.version != VERSION || meta.vocab_size != vocab_size || meta.train.tokens == 0 || size != bytes {
        return None;
    }
    let all = Tokens::map(&file, &path, width(vocab_size)).ok()?;
    if crc32c::crc32c(all.bytes()) != meta.crc32c {
        return None;
    }
    let part = |start: u64, s: Sums| all.part(start as usize, s.tokens as usize, s.documents, s.text_bytes);
    let (train, val) = (part(0, meta.train), part(meta.train.tokens, meta.val));
    Some(Stored { train, val, sha256: meta.sha256 })
}

/// A folder being written; removed again unless it is published.
pub struct Writer {
    width: usize,
    vocab_size: usize,
    tokens: BufWriter<File>,
    ends: BufWriter<File>,
    crc: u32,
    sums: Sums,
    /// Last, so that its files are closed before it is removed.
    folder: DirectoryWriter,
}

impl Writer {
    /// Starts a folder that is to become `target`, and removes what killed processes left beside it.
    pub fn create(target: &Path, vocab_size: usize) -> Result<Writer> {
        let cache = target.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
        // What resists does no harm.
        let _ = files::sweep(cache);
        if load(target, vocab_size).is_none() {
            // Something unusable may be in the way.
            let _ = fs::remove_dir_all(target).or_else(|_| fs::remove_file(target));
        }
        let folder = DirectoryWriter::new(target, IfExists::Refuse)?;
        let create = |name: &str| {
            let path = folder.path().join(name);
            let options = File::options().read(true).write(true).create_new(true).open(&path);
            options.map(|f| BufWriter::with_capacity(1 << 20, f)).map_err(Error::io("create", path))
        };
        let (tokens, ends) = (create(TOKENS)?, create(ENDS)?);
        let width = width(vocab_size);
        Ok(Writer { width, vocab_size, tokens, ends, crc: 0, sums: Sums::default(), folder })
    }

    /// Appends one document of `text_bytes` bytes.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) -> Result<()> {
        let mut bytes = Vec::with_capacity(ids.len() * self.width);
        for &id in ids {
            assert!((id as usize) < self.vocab_size, "id {id} in a vocabulary of {}", self.vocab_size);
            bytes.extend_from_slice(&id.to_le_bytes()[..self.width]);
        }
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        self.tokens.write_all(&bytes).map_err(Error::io("write", self.path(TOKENS)))?;
        self.sums.documents += 1;
        self.sums.tokens += ids.len() as u64;
        self.sums.text_bytes += text_bytes;
        let mut end = [0; 16];
        end[..8].copy_from_slice(&self.sums.tokens.to_le_bytes());
        end[8..].copy_from_slice(&self.sums.text_bytes.to_le_bytes());
        self.ends.write_all(&end).map_err(Error::io("write", self.path(ENDS)))
    }

    /// All documents so far.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// The first `documents` documents.
    pub fn sums_of(&mut self, documents: u64) -> Result<Sums> {
        if documents == 0 {
            return Ok(Sums::default());
        }
        self.ends.flush().map_err(Error::io("write", self.path(ENDS)))?;
        let mut end = [0; 16];
        let file = self.ends.get_mut();
        let read = file.seek(SeekFrom::Start((documents - 1) * 16)).and_then(|_| file.read_exact(&mut end));
        let read = read.and_then(|()| file.seek(SeekFrom::End(0)));
        read.map_err(Error::io("read", self.path(ENDS)))?;
        let number = |at: usize| u64::from_le_bytes(end[at..at + 8].try_into().expect("8 bytes"));
        Ok(Sums { documents, tokens: number(0), text_bytes: number(8) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Finishes the folder (documents of `train` first, the others are validation) and gives it the name `target`.
    /// Where another process was faster its result is used.
    pub fn publish(mut self, target: &Path, train: Sums) -> Result<Stored> {
        let val = Sums {
            documents: self.sums.documents - train.documents,
            tokens: self.sums.tokens - train.tokens,
            text_bytes: self.sums.text_bytes - train.text_bytes,
        };
        let (vocab_size, crc32c) = (self.vocab_size, self.crc);
        self.tokens.flush().map_err(Error::io("write", self.path(TOKENS)))?;
        let path = self.path(TOKENS);
        let all = Tokens::map(&open_regular(&path)?.0, &path, self.width)?;
        let sha256 = sha256_hex([all.part(0, train.tokens as usize, 0, 0).bytes()]);
        drop(all);
        let meta = Meta { version: VERSION, vocab_size, crc32c, sha256, train, val };
        let (meta_file, ends_file) = (self.path(META), self.path(ENDS));
        // Only closed files can be removed or renamed everywhere.
        let Writer { folder, tokens, ends, .. } = self;
        drop((tokens, ends));
        fs::remove_file(&ends_file).map_err(Error::io("remove", &ends_file))?;
        files::write_bytes(meta_file, &serde_json::to_vec_pretty(&meta).expect("numbers"))?;
        let committed = folder.commit();
        match (load(target, vocab_size), committed) {
            (Some(stored), _) => Ok(stored),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => {
                Err(Error::input(target, META, "other data than was written", "a working disk"))
            }
        }
    }
}
