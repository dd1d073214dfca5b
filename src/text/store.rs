//! The cached form of a tokenised corpus: a folder with `tokens.bin` (ids, little-endian) and `meta.json`.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::files::{open_regular, read_limited, sibling};
use super::tokens::{Tokens, width};
use crate::{Error, Result};

/// Changes whenever the files below, or what they hold, change meaning.
pub const VERSION: u32 = 1;
const TOKENS: &str = "tokens.bin";
const META: &str = "meta.json";
/// Ends of the documents, only while writing: 16 bytes each, tokens and text bytes up to there.
const ENDS: &str = "documents.tmp";
/// Unfinished folders older than this were left by a process that was killed.
const STALE_SECONDS: u64 = 24 * 3600;

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
    train: Sums,
    val: Sums,
}

/// Reads a finished folder as (train, val); `None` if anything about it is not as it was written.
pub fn load(dir: &Path, vocab_size: usize) -> Option<(Tokens, Tokens)> {
    let meta: Meta = serde_json::from_slice(&read_limited(&dir.join(META), 1 << 16).ok()?).ok()?;
    let path = dir.join(TOKENS);
    let file = open_regular(&path).ok()?;
    let tokens = meta.train.tokens.checked_add(meta.val.tokens)?;
    let bytes = tokens.checked_mul(width(vocab_size) as u64)?;
    if meta.version != VERSION
        || meta.vocab_size != vocab_size
        || meta.train.tokens == 0
        || file.metadata().ok()?.len() != bytes
    {
        return None;
    }
    let all = Tokens::map(&file, &path, width(vocab_size)).ok()?;
    if crc32c::crc32c(all.bytes()) != meta.crc32c {
        return None;
    }
    let part = |start: u64, s: Sums| all.part(start as usize, s.tokens as usize, s.documents, s.text_bytes);
    Some((part(0, meta.train), part(meta.train.tokens, meta.val)))
}

/// A folder being written under another name; removed again unless it is published.
pub struct Writer {
    dir: PathBuf,
    width: usize,
    vocab_size: usize,
    tokens: BufWriter<File>,
    ends: BufWriter<File>,
    crc: u32,
    sums: Sums,
}

impl Writer {
    /// Starts a folder beside `target`.
    pub fn create(target: &Path, vocab_size: usize) -> Result<Writer> {
        let cache = target.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
        remove_stale(cache);
        let dir = sibling(target);
        fs::create_dir(&dir).map_err(Error::io("create", &dir))?;
        let create = |name: &str| {
            let path = dir.join(name);
            let options = File::options().read(true).write(true).create_new(true).open(&path);
            options.map(|f| BufWriter::with_capacity(1 << 20, f)).map_err(Error::io("create", path))
        };
        let files = create(TOKENS).and_then(|tokens| Ok((tokens, create(ENDS)?)));
        let (tokens, ends) = files.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        Ok(Writer { dir, width: width(vocab_size), vocab_size, tokens, ends, crc: 0, sums: Sums::default() })
    }

    /// Appends one document of `text_bytes` bytes.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) -> Result<()> {
        let mut bytes = Vec::with_capacity(ids.len() * self.width);
        for &id in ids {
            assert!((id as usize) < self.vocab_size, "id {id} in a vocabulary of {}", self.vocab_size);
            bytes.extend_from_slice(&id.to_le_bytes()[..self.width]);
        }
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        self.tokens.write_all(&bytes).map_err(Error::io("write", self.dir.join(TOKENS)))?;
        self.sums.documents += 1;
        self.sums.tokens += ids.len() as u64;
        self.sums.text_bytes += text_bytes;
        let mut end = [0; 16];
        end[..8].copy_from_slice(&self.sums.tokens.to_le_bytes());
        end[8..].copy_from_slice(&self.sums.text_bytes.to_le_bytes());
        self.ends.write_all(&end).map_err(Error::io("write", self.dir.join(ENDS)))
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
        self.ends.flush().map_err(Error::io("write", self.dir.join(ENDS)))?;
        let mut end = [0; 16];
        let file = self.ends.get_mut();
        let read = file.seek(SeekFrom::Start((documents - 1) * 16)).and_then(|_| file.read_exact(&mut end));
        let read = read.and_then(|()| file.seek(SeekFrom::End(0)));
        read.map_err(Error::io("read", self.dir.join(ENDS)))?;
        let number = |at: usize| u64::from_le_bytes(end[at..at + 8].try_into().expect("8 bytes"));
        Ok(Sums { documents, tokens: number(0), text_bytes: number(8) })
    }

    /// Finishes the folder (documents of `train` first, the others are validation) and puts it in the place of
    /// `target`. Where another process was faster its result is used. Returns (train, val).
    pub fn publish(mut self, target: &Path, train: Sums) -> Result<(Tokens, Tokens)> {
        let val = Sums {
            documents: self.sums.documents - train.documents,
            tokens: self.sums.tokens - train.tokens,
            text_bytes: self.sums.text_bytes - train.text_bytes,
        };
        let meta = Meta { version: VERSION, vocab_size: self.vocab_size, crc32c: self.crc, train, val };
        let failed = |name: &str| Error::io("write", self.dir.join(name));
        self.tokens.flush().map_err(failed(TOKENS))?;
        self.tokens.get_ref().sync_all().map_err(failed(TOKENS))?;
        fs::remove_file(self.dir.join(ENDS)).map_err(Error::io("remove", self.dir.join(ENDS)))?;
        let bytes = serde_json::to_vec_pretty(&meta).expect("numbers");
        let mut file = File::create(self.dir.join(META)).map_err(failed(META))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed(META))?;

        let mut renamed = fs::rename(&self.dir, target);
        if renamed.is_err() && load(target, self.vocab_size).is_none() {
            // Something unusable is in the way.
            let trash = sibling(target);
            let _ = fs::rename(target, &trash);
            let _ = fs::remove_dir_all(&trash).or_else(|_| fs::remove_file(&trash));
            renamed = fs::rename(&self.dir, target);
        }
        let loaded = load(target, self.vocab_size);
        match (loaded, renamed) {
            (Some(parts), _) => Ok(parts),
            (None, Err(e)) => Err(Error::io("replace", target)(e)),
            (None, Ok(())) => {
                Err(Error::input(target, META, "other data than was written", "a working disk"))
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After publishing there is nothing under this name.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes what killed processes left behind.
fn remove_stale(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let age = || fs::metadata(path.join(TOKENS)).ok()?.modified().ok()?.elapsed().ok();
        if name.starts_with('.')
            && name.ends_with(".tmp")
            && age().is_some_and(|age| age.as_secs() > STALE_SECONDS)
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}
