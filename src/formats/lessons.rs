//! What a teacher says of a text, in a folder: of every position its likeliest next tokens.
//!
//! `lessons.json` says of which teacher, text and tokens they are ([`Index`]). Shards of so many positions each,
//! `lessons-00000.safetensors` and so on, hold `tokens` (`[positions, top]`, U16 where the vocabulary fits, else U32) and `ln_p`
//! (F16, the natural logarithms of their probabilities at the temperature 1); what is left of 1 is that of all other tokens. The
//! metadata of a shard has the digest of the index, the first position, and the digest of the data.

use half::f16;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::json::{self, Fields, as_type};
use super::tensors::{Data, Dtype, Tensor, TensorFiles, write_safetensors};
use super::{bad_tensor, quoted};
use crate::config::Precision;
use crate::error::{Error, Result};
use crate::files::{self, Bytes, sha256_hex};

/// The file that says what the folder holds.
pub const FILE_NAME: &str = "lessons.json";
/// The only version so far.
const FORMAT: usize = 1;
/// Metadata of a shard.
const OF: &str = "lessons";
const FIRST: &str = "first";
const DATA: &str = "sha256";
/// Tensors of a shard.
const TOKENS: &str = "tokens";
const LN_P: &str = "ln_p";
/// What the rounding of probabilities to f16 may add to their sum or take from it, amply: `2^-12` of `Σ p |ln p|`, which is at
/// most the logarithm of the vocabulary.
const ROUNDED: f32 = 0.01;

/// What a folder's lessons are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Index {
    /// SHA-256 of the teacher's shape and weights.
    pub teacher: String,
    /// SHA-256 of the tokens of the text.
    pub corpus: String,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Positions of the text after which the next token is told: all but the last.
    pub positions: usize,
    /// Tokens of the windows in which the teacher read.
    pub context: usize,
    /// Likeliest tokens of each position.
    pub top: usize,
    /// What operands of the teacher's products were rounded to.
    pub precision: Precision,
    /// Positions of a shard; the last one may have fewer.
    pub shard: usize,
}

impl Index {
    /// What the folder says that it holds.
    ///
    /// # Errors
    /// No `lessons.json`, or one with a field that cannot be.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        let map = json::read_object(&path)?;
        let fields = Fields::new(&path, &map);
        let format = fields.size("format")?;
        if format != FORMAT {
            return Err(fields.bad("format", format, FORMAT));
        }
        let known = ["teacher", "corpus", "vocabulary", "positions", "context", "top", "precision", "shard"];
        fields.only(&[&["format"], &known[..]].concat())?;
        let size = |key: &str| match fields.size(key)? {
            0 => Err(fields.bad(key, 0, "1 or more")),
            size => Ok(size),
        };
        let index = Self {
            teacher: fields.text("teacher")?.into(),
            corpus: fields.text("corpus")?.into(),
            vocabulary: size("vocabulary")?,
            positions: size("positions")?,
            context: size("context")?,
            top: size("top")?,
            precision: fields.need("precision", "f32 or bf16", as_type)?,
            shard: size("shard")?,
        };
        if u32::try_from(index.vocabulary).is_err() {
            return Err(fields.bad("vocabulary", index.vocabulary, format!("at most {}", u32::MAX)));
        }
        if index.top > index.vocabulary {
            return Err(fields.bad(
                "top",
                index.top,
                format!("at most the vocabulary, {}", index.vocabulary),
            ));
        }
        Ok(index)
    }

    /// Writes `lessons.json` into the folder, which is there.
    pub fn write(&self, folder: &Path) -> Result<()> {
        files::write_bytes(folder.join(FILE_NAME), &self.text())
    }

    fn text(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Written<'a> {
            format: usize,
            #[serde(flatten)]
            index: &'a Index,
        }
        files::json_text(&Written { format: FORMAT, index: self })
    }

    fn digest(&self) -> String {
        sha256_hex([self.text()])
    }

    pub fn shards(&self) -> usize {
        self.positions.div_ceil(self.shard)
    }

    /// The positions in a shard.
    pub fn positions_of(&self, shard: usize) -> std::ops::Range<usize> {
        let first = shard * self.shard;
        first..self.positions.min(first.saturating_add(self.shard))
    }

    /// Bytes of a token.
    fn width(&self) -> usize {
        if self.vocabulary <= 1 << 16 { 2 } else { 4 }
    }

    /// Bytes of all tokens and probabilities.
    pub fn bytes(&self) -> u128 {
        self.positions as u128 * self.top as u128 * (self.width() + 2) as u128
    }
}

fn path_of(folder: &Path, shard: usize) -> PathBuf {
    folder.join(format!("lessons-{shard:05}.safetensors"))
}

/// Writes a shard into the folder: of all of its positions the tokens and the logarithms of their probabilities. What f16 cannot
/// hold, a probability below `e^-65504`, becomes that.
///
/// # Errors
/// A probability that is no number; a disk that is full.
pub fn write_shard(folder: &Path, index: &Index, shard: usize, tokens: &[u32], ln_p: &[f32]) -> Result<()> {
    let (positions, path) = (index.positions_of(shard), path_of(folder, shard));
    assert_eq!([tokens.len(), ln_p.len()], [positions.len() * index.top; 2], "what shard {shard} holds");
    if let Some(at) = ln_p.iter().position(|x| x.is_nan()) {
        let tensor = "what the teacher says".into();
        let detail = format!("after token {} of the text", positions.start + at / index.top);
        return Err(Error::NotFinite { tensor, detail });
    }
    let halves: Vec<f16> = ln_p.iter().map(|&x| f16::from_f32(x.max(f16::MIN.to_f32()))).collect();
    let narrow: Vec<u16> = match index.width() {
        2 => tokens.iter().map(|&token| token as u16).collect(),
        _ => Vec::new(),
    };
    let ids = if index.width() == 2 { Data::U16(&narrow) } else { Data::U32(tokens) };
    let bytes_of_ids: Vec<u8> = match index.width() {
        2 => narrow.iter().flat_map(|token| token.to_le_bytes()).collect(),
        _ => tokens.iter().flat_map(|token| token.to_le_bytes()).collect(),
    };
    let bytes_of_halves: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    let shape = vec![positions.len(), index.top];
    let tensors = [
        Tensor { name: TOKENS.into(), shape: shape.clone(), data: ids },
        Tensor { name: LN_P.into(), shape, data: Data::F16(&halves) },
    ];
    let metadata = BTreeMap::from([
        (OF.to_string(), index.digest()),
        (FIRST.to_string(), positions.start.to_string()),
        (DATA.to_string(), sha256_hex([bytes_of_ids, bytes_of_halves])),
    ]);
    write_safetensors(path, &tensors, &metadata)
}

/// Whether the folder has this shard, whole and as it was written.
pub fn has_shard(folder: &Path, index: &Index, shard: usize) -> bool {
    Shard::open(folder, index, &index.digest(), shard).and_then(|shard| shard.check()).is_ok()
}

/// The lessons of a folder, mapped into memory.
#[derive(Debug)]
pub struct Lessons {
    index: Index,
    digest: String,
    shards: Vec<Shard>,
}

impl Lessons {
    /// Opens all shards. What is in them is judged when it is read.
    ///
    /// # Errors
    /// No index, or shards that are missing, damaged or of other lessons.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = Index::read(folder)?;
        let digest = index.digest();
        let mut shards = Vec::new();
        for shard in 0..index.shards() {
            shards.push(Shard::open(folder, &index, &digest, shard)?);
        }
        let digest = sha256_hex(std::iter::once(&digest).chain(shards.iter().map(|shard| &shard.sha256)));
        Ok(Self { index, digest, shards })
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// SHA-256 of index and shards.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The likeliest tokens after the positions from `first` on, and the natural logarithms of their probabilities: both
    /// `[positions, top]`, of as many positions as there is room for.
    ///
    /// # Errors
    /// A shard that was damaged, a token outside of the vocabulary or twice at a position, or what is no distribution.
    ///
    /// # Panics
    /// Positions that there are not.
    pub fn read(&self, first: usize, tokens: &mut [u32], ln_p: &mut [f32]) -> Result<()> {
        let top = self.index.top;
        assert_eq!(tokens.len(), ln_p.len(), "room for tokens and for their probabilities");
        let end = first + tokens.len() / top;
        assert!(tokens.len().is_multiple_of(top) && end <= self.index.positions, "positions {first}..{end}");
        let mut sorted = vec![0; top];
        let rows = tokens.chunks_mut(top).zip(ln_p.chunks_mut(top));
        for (position, (tokens, ln_p)) in (first..).zip(rows) {
            let shard = &self.shards[position / self.index.shard];
            if !shard.whole.load(Ordering::Relaxed) {
                shard.check()?;
            }
            shard.read(position % self.index.shard, tokens, ln_p);
            let bad = |field: &str, found: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display| {
                Err(Error::input(&shard.path, format!("{field} of position {position}"), found, wanted))
            };
            if let Some(token) = tokens.iter().find(|token| **token as usize >= self.index.vocabulary) {
                return bad(TOKENS, token, &format!("less than the vocabulary, {}", self.index.vocabulary));
            }
            sorted.copy_from_slice(tokens);
            sorted.sort_unstable();
            if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                return bad(TOKENS, &format!("{} twice", twice[0]), &"tokens that differ");
            }
            if let Some(x) = ln_p.iter().find(|x| !(x.is_finite() && **x <= 0.0)) {
                return bad(LN_P, x, &"a finite number, 0 at most");
            }
            let sum: f32 = ln_p.iter().map(|x| x.exp()).sum();
            let least = if top == self.index.vocabulary { 1.0 - ROUNDED } else { 0.0 };
            if !(least..=1.0 + ROUNDED).contains(&sum) {
                let wanted = if least > 0.0 { "1, to rounding" } else { "1 at most, to rounding" };
                return bad(LN_P, &format!("probabilities of {sum} in all"), &wanted);
            }
        }
        Ok(())
    }
}

/// Some positions, where they lie in their file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    /// Bytes of a token.
    width: usize,
    tokens: Bytes,
    ln_p: Bytes,
    /// Of both.
    sha256: String,
    /// Whether they were held against it.
    whole: AtomicBool,
}

impl Shard {
    /// `digest` is that of the index.
    fn open(folder: &Path, index: &Index, digest: &str, shard: usize) -> Result<Self> {
        let path = path_of(folder, shard);
        if !path.exists() {
            let all = index.shards();
            let wanted =
                format!("shard {} of {all}: the same `ternlm teach` makes what is missing", shard + 1);
            return Err(Error::input(path, "file", "nothing", wanted));
        }
        let stored = TensorFiles::open_file(&path)?;
        let positions = index.positions_of(shard);
        for (key, wanted) in [(OF, digest), (FIRST, &positions.start.to_string())] {
            let found = stored.metadata(key).map_or("nothing".to_string(), quoted);
            if stored.metadata(key) != Some(wanted) {
                let wanted = format!("{wanted:?}, by {FILE_NAME}: this file is of other lessons");
                return Err(Error::input(path, format!("metadata {key}"), found, wanted));
            }
        }
        if let Some(name) = stored.names().find(|name| ![TOKENS, LN_P].contains(name)) {
            return Err(bad_tensor(path, name, "", "a tensor", format!("{TOKENS} and {LN_P} alone")));
        }
        let shape = [positions.len(), index.top];
        let ids = if index.width() == 2 { Dtype::U16 } else { Dtype::U32 };
        for (name, dtype) in [(TOKENS, ids), (LN_P, Dtype::F16)] {
            stored.tensor(name)?.bytes_of(dtype, &shape)?;
        }
        let Some(sha256) = stored.metadata(DATA).map(String::from) else {
            return Err(Error::input(path, format!("metadata {DATA}"), "nothing", "that of the data"));
        };
        let (tokens, ln_p) = (stored.shared(TOKENS)?, stored.shared(LN_P)?);
        Ok(Self { path, width: index.width(), tokens, ln_p, sha256, whole: AtomicBool::new(false) })
    }

    /// Holds the data against its digest.
    fn check(&self) -> Result<()> {
        let found = sha256_hex([&*self.tokens, &*self.ln_p]);
        if found != self.sha256 {
            let wanted = format!("{}, as when it was written", quoted(&self.sha256));
            return Err(Error::input(&self.path, "SHA-256 of the data", found, wanted));
        }
        self.whole.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The tokens and probabilities of a position.
    fn read(&self, position: usize, tokens: &mut [u32], ln_p: &mut [f32]) {
        let top = tokens.len();
        let ids = &self.tokens[position * top * self.width..][..top * self.width];
        for (token, bytes) in tokens.iter_mut().zip(ids.chunks(self.width)) {
            *token = bytes.iter().rev().fold(0, |id, byte| id << 8 | *byte as u32);
        }
        for (x, bytes) in ln_p.iter_mut().zip(self.ln_p[position * top * 2..].as_chunks::<2>().0) {
            *x = f16::from_le_bytes(*bytes).to_f32();
        }
    }
}
