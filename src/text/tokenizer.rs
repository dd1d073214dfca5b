//! One tokenizer type over the `tokenizers` crate.

use rayon::prelude::*;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};
use tokenizers::Tokenizer as Hf;

use super::cut::Cut;
use super::side_files::SideFiles;
use super::stream::TokenStream;
use super::{alphabet, builtin, judge};
use crate::files::{read_limited, sha256_hex, write_bytes};
use crate::{Error, Result};

/// The largest published `tokenizer.json` is below 40 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Longer texts are encoded in pieces, in parallel, where [`Cut`] allows it.
const PIECE: usize = 32 << 10;

/// Text to token ids and back. Cloning is cheap.
///
/// ```
/// use ternlm::text::Tokenizer;
/// let bytes = Tokenizer::bytes();
/// assert_eq!(bytes.encode("é!")?, [0xC3, 0xA9, b'!'.into()]);
/// assert_eq!((bytes.vocab_size(), bytes.eos()), (256, None));
///
/// let gpt2 = Tokenizer::open("gpt2")?;
/// let ids = gpt2.encode("Hello world")?;
/// assert_eq!((&ids[..], gpt2.decode(&ids)), (&[15496, 995][..], "Hello world".to_string()));
/// assert_eq!((gpt2.vocab_size(), gpt2.eos()), (50257, Some(50256)));
/// # Ok::<(), ternlm::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    /// For messages: `bytes`, `gpt2` or the path.
    name: PathBuf,
    hf: Hf,
    side: SideFiles,
    vocab_size: usize,
    kind: Kind,
    cut: Cut,
    fingerprint: OnceLock<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ids are bytes.
    Bytes,
    /// Vocabulary entries are in the byte alphabet: decoding is concatenation.
    ByteLevel,
    Other,
}

impl Tokenizer {
    /// 256 ids, each the value of its byte; no special tokens.
    pub fn bytes() -> Tokenizer {
        static BYTES: LazyLock<Tokenizer> = LazyLock::new(|| builtin("bytes", builtin::bytes_json()));
        BYTES.clone()
    }

    /// GPT-2's vocabulary of 50,257; `<|endoftext|>` (50256) ends a text. Built on the first call, without a download.
    pub fn gpt2() -> Tokenizer {
        static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| builtin("gpt2", builtin::gpt2_json()));
        GPT2.clone()
    }

    /// A `tokenizer.json`, or a folder that holds one, whatever its name.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_file`].
    pub fn at(path: &Path) -> Result<Tokenizer> {
        Self::from_file(if path.is_dir() { path.join("tokenizer.json") } else { path.into() })
    }

    /// `bytes`, `gpt2`, a `tokenizer.json`, or a folder that holds one. (A folder called `gpt2` is `./gpt2`.)
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_file`].
    pub fn open(spec: &str) -> Result<Tokenizer> {
        match spec {
            "bytes" => Ok(Self::bytes()),
            "gpt2" => Ok(Self::gpt2()),
            "" => Err(Error::usage("no tokenizer: name bytes, gpt2, a tokenizer.json or a folder with one")),
            path if Path::new(path).is_dir() => Self::from_file(Path::new(path).join("tokenizer.json")),
            path => Self::from_file(path),
        }
    }

    /// Reads a Hugging Face `tokenizer.json`, and from beside it `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` and `chat_template.jinja` where they exist. Truncation and padding stored in the file
    /// are ignored.
    ///
    /// # Errors
    /// A file that is missing, malformed, inconsistent, or states ids that its parts do not have.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let bytes = read_limited(path, MAX_BYTES)?;
        let json = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(path, "JSON", e, "a Hugging Face tokenizer.json"))?;
        drop(bytes);
        let dir = path.parent().unwrap_or(Path::new(""));
        // Under another name the files beside it may belong to another tokenizer.
        let beside = path.file_name().is_some_and(|name| name == "tokenizer.json").then_some(dir);
        Self::build(path, json, beside)
    }

    /// From a `tokenizer.json` made here; the well-known names decide which token ends a text.
    pub(super) fn from_json(name: &Path, json: Value) -> Result<Tokenizer> {
        Self::build(name, json, None)
    }

    fn build(name: &Path, mut json: Value, beside: Option<&Path>) -> Result<Tokenizer> {
        let vocab_size = judge::judge(name, &mut json)?;
        let cut = if builtin::is_bytes_json(&json) { Cut::Anywhere } else { Cut::of(&json) };
        let kind = match (cut, json["decoder"]["type"].as_str()) {
            (Cut::Anywhere, _) => Kind::Bytes,
            (_, Some("ByteLevel")) => Kind::ByteLevel,
            _ => Kind::Other,
        };
        let wanted = "a tokenizer that the tokenizers crate accepts";
        let hf = guarded(|| serde_json::from_value::<Hf>(json).map_err(|e| e.to_string()))
            .map_err(|e| Error::input(name, "content", e, wanted))?;
        let id_of = |token: &str| hf.token_to_id(token);
        let side = match beside {
            Some(dir) => SideFiles::read(dir, id_of, vocab_size)?,
            None => SideFiles::well_known(id_of),
        };
        let inner =
            Inner { name: name.into(), hf, side, vocab_size, kind, cut, fingerprint: OnceLock::new() };
        let this = Tokenizer(Arc::new(inner));
        // Special tokens are free numbers in the file: try them once.
        let ids = this.encode_with_special("a")?;
        match ids.into_iter().find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(Error::input(name, "post_processor", id, format!("ids below {vocab_size}"))),
            None => Ok(this),
        }
    }

    /// Token ids of `text`. No special tokens are added; those that occur in the text are recognised, as Hugging Face
    /// does. Long texts are encoded in parallel pieces where that cannot change the ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if self.0.kind == Kind::Bytes {
            return Ok(text.bytes().map(u32::from).collect());
        }
        match self.0.cut {
            Cut::Never => self.encode_whole(text, false),
            _ if text.len() <= 2 * PIECE => self.encode_whole(text, false),
            cut => {
                let pieces: Vec<Vec<u32>> = cut
                    .pieces(text, PIECE)
                    .into_par_iter()
                    .map(|piece| self.encode_whole(piece, false))
                    .collect::<Result<_>>()?;
                Ok(pieces.concat())
            }
        }
    }

    /// Token ids of `text` with the special tokens that the tokenizer's post-processor adds, such as LLaMA's `<s>`.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        match self.0.kind {
            Kind::Bytes => self.encode(text),
            _ => self.encode_whole(text, true),
        }
    }

    /// [`Tokenizer::encode`] of each text, in parallel.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    fn encode_whole(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encode = || self.0.hf.encode_fast(text, special).map_err(|e| e.to_string());
        match guarded(encode) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(Error::input(&self.0.name, "encoding a text", e, "no error")),
        }
    }

    /// The text of `ids`, special tokens included. Ids outside the vocabulary are left out; bytes that are not UTF-8
    /// become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        if self.0.kind != Kind::Other {
            let mut bytes = Vec::with_capacity(ids.len() * 4);
            ids.iter().for_each(|&id| self.push_bytes(id, &mut bytes));
            return match String::from_utf8_lossy(&bytes) {
                Cow::Borrowed(_) => String::from_utf8(bytes).expect("just checked"),
                Cow::Owned(text) => text,
            };
        }
        guarded(|| self.0.hf.decode(ids, false).map_err(|e| e.to_string()))
            .unwrap_or_else(|_| ids.iter().filter_map(|&id| self.0.hf.id_to_token(id)).collect())
    }

    /// [`Tokenizer::decode`] without the special tokens.
    pub fn decode_plain(&self, ids: &[u32]) -> String {
        let kept: Vec<u32> = ids.iter().copied().filter(|&id| !self.is_special(id)).collect();
        self.decode(&kept)
    }

    /// Whether `id` is a special token, which is no text of its own.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.0.hf.get_added_vocabulary();
        added.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Appends the bytes of one token.
    ///
    /// Only for tokenizers where decoding is concatenation ([`Tokenizer::is_byte_level`]).
    pub(super) fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
        match self.0.kind {
            Kind::Bytes => out.extend(u8::try_from(id).ok()),
            _ => {
                if let Some(token) = self.0.hf.id_to_token(id) {
                    alphabet::push_bytes(&token, out);
                }
            }
        }
    }

    pub(super) fn is_byte_level(&self) -> bool {
        self.0.kind != Kind::Other
    }

    /// Decoding of one id at a time.
    pub fn stream(&self) -> TokenStream {
        TokenStream::new(self.clone())
    }

    /// The largest id plus 1: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// Whether a model whose embedding has `rows` rows can read every token.
    ///
    /// # Errors
    /// More tokens than rows.
    pub fn fits(&self, rows: usize) -> Result<()> {
        if self.vocab_size() <= rows {
            return Ok(());
        }
        let wanted = format!("at most the model's vocab_size of {rows}");
        Err(Error::input(&self.0.name, "vocabulary", format!("{} tokens", self.vocab_size()), wanted))
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.0.side.eos
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.0.side.bos
    }

    /// Ids at which generation stops: [`Tokenizer::eos`] and those that `generation_config.json` adds.
    pub fn stop_ids(&self) -> &[u32] {
        &self.0.side.stop
    }

    /// The id of a vocabulary entry or special token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.hf.token_to_id(token)
    }

    /// The vocabulary entry of an id, in the vocabulary's own form (`Ġthe`, `▁the`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.hf.id_to_token(id)
    }

    /// The chat template (Jinja) that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.side.chat_template.as_deref()
    }

    /// The `tokenizer_config.json` that came with the tokenizer.
    pub fn config(&self) -> Option<&Map<String, Value>> {
        self.0.side.config()
    }

    /// `bytes`, `gpt2`, or the path that was opened.
    pub fn name(&self) -> String {
        self.0.name.display().to_string()
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (the one that the tokenizer came with, where there was
    /// one), each atomically, into `dir`, which is created.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        self.0.side.write(dir, |id| self.token(id))?;
        write_bytes(dir.join("tokenizer.json"), self.json(true).as_bytes())
    }

    /// SHA-256 (hexadecimal) of the compact `tokenizer.json`: equal for tokenizers that give the same ids by the same
    /// means, wherever they were read from.
    pub fn fingerprint(&self) -> &str {
        self.0.fingerprint.get_or_init(|| sha256_hex([self.json(false)]))
    }

    fn json(&self, pretty: bool) -> String {
        self.0.hf.to_string(pretty).expect("what was read can be written")
    }

    /// Sets the token that ends a text; for tokenizers trained here.
    pub(super) fn with_eos(self, eos: u32) -> Tokenizer {
        let mut inner = Arc::into_inner(self.0).expect("just made");
        inner.side.eos = Some(eos);
        inner.side.stop = vec![eos];
        Tokenizer(Arc::new(inner))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} ids)", self.name(), self.vocab_size())
    }
}

fn builtin(name: &str, json: Value) -> Tokenizer {
    Tokenizer::from_json(Path::new(name), json).expect("a tokenizer made here is valid")
}

/// The crate panics on malformed parts that [`judge`] cannot all foresee (compiled normalizer tables, for one).
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("a fault inside the tokenizers crate".to_string()))
}
