//! The cached form of a tokenised corpus: a folder with `tokens.bin` (ids, little-endian), `val-bytes.bin` (bytes of text
//! that each validation token stands for, `u32` little-endian) and `meta.json`.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::documents::PassedOver;
use super::tokenizer::Encoded;
use super::tokens::{Tokens, width};
use crate::files::{self, DirectoryWriter, IfExists, Turn, read_limited, sha256_hex};
use crate::{Error, Result};

/// Changes whenever the files below, or what they hold, change meaning.
pub const VERSION: u32 = 3;
const TOKENS: &str = "tokens.bin";
const VAL_BYTES: &str = "val-bytes.bin";
const META: &str = "meta.json";
/// Only while writing: the number of tokens up to the end of each document, 8 bytes each.
const ENDS: &str = "documents.tmp";
/// Only while writing: bytes of text of each token, one byte each; [`LONG`] stands for more than it can say.
const LENGTHS: &str = "lengths.tmp";
/// Tokens whose lengths are in memory at a time.
const PIECE: usize = 1 << 16;
const LONG: u8 = u8::MAX;

/// Sums over some documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    /// Documents of which some text is here.
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
    /// The largest id.
    largest: u32,
    passed_over: PassedOver,
    train: Sums,
    val: Sums,
}

/// Training and validation tokens.
#[derive(Clone, Debug)]
pub struct Corpus {
    pub train: Tokens,
    /// Empty without validation files when nothing is held out.
    pub val: Tokens,
    /// SHA-256 (hexadecimal) of the training tokens: equal for corpora on which a training goes on as it was.
    pub fingerprint: String,
    /// The largest id in either part.
    pub largest: u32,
    pub passed_over: PassedOver,
}

/// A folder of the cache, there or to be made.
pub enum Opened {
    Stored(Corpus),
    Missing(Writer),
}

/// Reads `target`, or begins it where it is missing or damaged. While another process makes it, this one waits for that.
pub fn open(target: &Path, vocab_size: usize) -> Result<Opened> {
    if let Some(stored) = load(target, vocab_size) {
        return Ok(Opened::Stored(stored));
    }
    let cache = target.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
    let turn = Turn::wait(target)?;
    match load(target, vocab_size) {
        Some(stored) => Ok(Opened::Stored(stored)),
        None => Writer::create(target, vocab_size, turn).map(Opened::Missing),
    }
}

/// Reads a finished folder; `None` if anything about it is not as it was written.
fn load(dir: &Path, vocab_size: usize) -> Option<Corpus> {
    let meta: Meta = serde_json::from_slice(&read_limited(&dir.join(META), 1 << 16).ok()?).ok()?;
    let all = Tokens::map(&dir.join(TOKENS), width(vocab_size)).ok()?;
    let tokens = meta.train.tokens.checked_add(meta.val.tokens)?;
    let whole = all.len() as u64 == tokens;
    if meta.version != VERSION || meta.vocab_size != vocab_size || meta.train.tokens == 0 || !whole {
        return None;
    }
    if crc32c::crc32c(all.bytes()) != meta.crc32c {
        return None;
    }
    let part = |start: u64, s: Sums| all.part(start as usize, s.tokens as usize, s.documents, s.text_bytes);
    let (train, mut val) = (part(0, meta.train), part(meta.train.tokens, meta.val));
    if !val.is_empty() {
        val = val.with_lengths(Tokens::map(&dir.join(VAL_BYTES), 4).ok()?)?;
    }
    let Meta { sha256: fingerprint, largest, passed_over, .. } = meta;
    Some(Corpus { train, val, fingerprint, largest, passed_over })
}

/// A file inside the folder being written.
struct Part {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Part {
    fn create(folder: &Path, name: &str) -> Result<Part> {
        let path = folder.join(name);
        let options = File::options().read(true).write(true).create_new(true).open(&path);
        let out = BufWriter::with_capacity(1 << 20, options.map_err(Error::io("create", &path))?);
        Ok(Part { path, out })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Fills `out` from byte `at` on; writing goes on at the end.
    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        self.flush()?;
        let file = self.out.get_mut();
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(out));
        read.and_then(|()| file.seek(SeekFrom::End(0))).map(drop).map_err(Error::io("read", &self.path))
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(Error::io("write", &self.path))
    }
}

/// A folder being written; removed again unless it is published.
pub struct Writer {
    width: usize,
    vocab_size: usize,
    tokens: Part,
    lengths: Part,
    /// Tokens of [`LONG`] and more bytes, and how many they have.
    long: Vec<(u64, u32)>,
    ends: Part,
    crc: u32,
    largest: u32,
    sums: Sums,
    /// After its files, so that they are closed before it is removed.
    folder: DirectoryWriter,
    /// Last: it ends when all is done.
    _turn: Turn,
}

impl Writer {
    /// Starts a folder in place of `target`, and removes what killed processes left beside it.
    fn create(target: &Path, vocab_size: usize, turn: Turn) -> Result<Writer> {
        // What resists does no harm.
        let _ = target.parent().map(files::sweep);
        // Where there are locks nobody else is at work here: what has the name is of no use.
        let _ = fs::remove_dir_all(target).or_else(|_| fs::remove_file(target));
        let folder = DirectoryWriter::new(target, IfExists::Refuse)?;
        let create = |name: &str| Part::create(folder.path(), name);
        let (tokens, lengths, ends) = (create(TOKENS)?, create(LENGTHS)?, create(ENDS)?);
        let (long, crc, largest, sums) = (Vec::new(), 0, 0, Sums::default());
        Ok(Writer {
            width: width(vocab_size),
            vocab_size,
            tokens,
            lengths,
            long,
            ends,
            crc,
            largest,
            sums,
            folder,
            _turn: turn,
        })
    }

    /// Appends tokens of a text.
    pub fn push(&mut self, encoded: &Encoded) -> Result<()> {
        let mut ids = Vec::with_capacity(encoded.ids.len() * self.width);
        for &id in &encoded.ids {
            assert!((id as usize) < self.vocab_size, "id {id} in a vocabulary of {}", self.vocab_size);
            ids.extend_from_slice(&id.to_le_bytes()[..self.width]);
            self.largest = self.largest.max(id);
        }
        self.crc = crc32c::crc32c_append(self.crc, &ids);
        self.tokens.write(&ids)?;
        let mut lengths = Vec::with_capacity(encoded.bytes.len());
        for (&bytes, at) in encoded.bytes.iter().zip(self.sums.tokens..) {
            lengths.push(u8::try_from(bytes).unwrap_or(LONG));
            if bytes >= LONG.into() {
                self.long.push((at, bytes));
            }
            self.sums.text_bytes += u64::from(bytes);
        }
        self.lengths.write(&lengths)?;
        self.sums.tokens += encoded.ids.len() as u64;
        Ok(())
    }

    /// Appends tokens that stand for no text.
    pub fn push_between(&mut self, ids: &[u32]) -> Result<()> {
        self.push(&Encoded { ids: ids.to_vec(), bytes: vec![0; ids.len()] })
    }

    /// What was appended since the last end is a document.
    pub fn end_document(&mut self) -> Result<()> {
        self.sums.documents += 1;
        self.ends.write(&self.sums.tokens.to_le_bytes())
    }

    /// Everything so far.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// The training part when the last `held_out` tokens are kept from it, or about as many, where a document ends there.
    pub fn split(&mut self, held_out: u64) -> Result<Sums> {
        let all = self.sums;
        let wanted = all.tokens - held_out;
        let near = |end: &u64| end.abs_diff(wanted) <= held_out / 10 && (1..all.tokens).contains(end);
        // Documents that end before the cut.
        let before = self.documents_up_to(wanted.saturating_sub(1))?;
        let ends = [before.checked_sub(1), Some(before)].into_iter().flatten().filter(|&n| n < all.documents);
        let ends = ends.map(|n| self.end_of(n)).collect::<Result<Vec<u64>>>()?;
        let end = ends.into_iter().filter(near).min_by_key(|end| end.abs_diff(wanted));
        let tokens = end.unwrap_or(wanted);
        let mut val_bytes = 0;
        self.lengths_from(tokens, &mut |lengths| {
            val_bytes += lengths.iter().map(|&n| u64::from(n)).sum::<u64>();
            Ok(())
        })?;
        let ended = self.documents_up_to(tokens)?;
        let open = ended == 0 || self.end_of(ended - 1)? < tokens;
        Ok(Sums { documents: ended + open as u64, tokens, text_bytes: all.text_bytes - val_bytes })
    }

    /// Tokens up to the end of document `n`, counted from 0.
    fn end_of(&mut self, n: u64) -> Result<u64> {
        let mut end = [0; 8];
        self.ends.read(n * 8, &mut end)?;
        Ok(u64::from_le_bytes(end))
    }

    /// How many documents have ended after `tokens` tokens.
    fn documents_up_to(&mut self, tokens: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.sums.documents);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.end_of(middle)? <= tokens { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// Hands the bytes of text of every token from number `first` on to `each`, some at a time: they may be more than memory.
    fn lengths_from(&mut self, first: u64, each: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
        for start in (first..self.sums.tokens).step_by(PIECE) {
            let mut short = vec![0; PIECE.min((self.sums.tokens - start) as usize)];
            self.lengths.read(start, &mut short)?;
            let mut lengths: Vec<u32> = short.into_iter().map(u32::from).collect();
            let end = start + lengths.len() as u64;
            let long = self.long.partition_point(|(at, _)| *at < start)
                ..self.long.partition_point(|(at, _)| *at < end);
            for &(at, bytes) in &self.long[long] {
                lengths[(at - start) as usize] = bytes;
            }
            each(&lengths)?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Finishes the folder (tokens of `train` first, the others are validation) and gives it the name `target`. Where
    /// there are no locks and another process was faster, its result is used.
    pub fn publish(mut self, target: &Path, train: Sums, passed_over: PassedOver) -> Result<Corpus> {
        // A document that was cut has text in both parts.
        let ended = self.documents_up_to(train.tokens)?;
        let val = Sums {
            documents: self.sums.documents - ended,
            tokens: self.sums.tokens - train.tokens,
            text_bytes: self.sums.text_bytes - train.text_bytes,
        };
        self.tokens.flush()?;
        let all = Tokens::map(&self.path(TOKENS), self.width)?;
        let sha256 = sha256_hex([all.part(0, train.tokens as usize, 0, 0).bytes()]);
        drop(all);
        if val.tokens > 0 {
            let path = self.path(VAL_BYTES);
            files::write_file(&path, |out| {
                self.lengths_from(train.tokens, &mut |lengths| {
                    let bytes: Vec<u8> = lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
                    out.write_all(&bytes).map_err(Error::io("write", &path))
                })
            })?;
        }
        let (vocab_size, crc32c, largest) = (self.vocab_size, self.crc, self.largest);
        let meta = Meta { version: VERSION, vocab_size, crc32c, sha256, largest, passed_over, train, val };
        let meta_file = self.path(META);
        // Only closed files can be removed or renamed everywhere.
        let Writer { folder, tokens, lengths, ends, _turn, .. } = self;
        let temporary = [lengths.path.clone(), ends.path.clone()];
        drop((tokens, lengths, ends));
        for path in temporary {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
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
