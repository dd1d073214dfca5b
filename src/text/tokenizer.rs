//! One tokenizer type over the `tokenizers` crate.

use rayon::prelude::*;
use serde_json::{Map, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};
use tokenizers::{PostProcessorWrapper, Tokenizer as Hf};

use super::decoder::{self, Decoders};
use super::parallel_cuts::Cut;
use super::side_files::SideFiles;
use super::{alphabet, builtin, tokenizer_checks};
use crate::config::around;
use crate::files::{Bundle, MAX_FILE, read_limited, sha256_hex, write_bytes};
use crate::{Error, Result};

/// The tokenizer's name among the files of a model.
const FILE_NAME: &str = "tokenizer.json";
/// A text to find out what a tokenizer adds to it.
const SAMPLE: &str = "a";
/// All bytes.
const BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};

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
    /// What the tokenizer puts before a text, such as LLaMA's `<s>`.
    prefix: Vec<u32>,
    fingerprint: OnceLock<String>,
}

enum Kind {
    /// Ids are bytes.
    Bytes,
    /// Vocabulary entries are in the byte alphabet: decoding is concatenation. The bytes of each id.
    ByteLevel(Vec<Box<[u8]>>),
    /// Decoded by a chain; `None`: one that only the tokenizers crate knows.
    Other(Option<Decoders>),
}

/// Token ids of a text, and how many of its bytes each stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Their sum is the length of the text. Of the tokens of one character the last has all of its bytes, unless tokens
    /// are bytes.
    pub bytes: Vec<u32>,
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
        if path.is_dir() { Self::of(&Bundle::folder(path)) } else { Self::from_file(path) }
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
            path => Self::at(Path::new(path)),
        }
    }

    /// The tokenizer among the files of a model: `tokenizer.json`, and what [`Tokenizer::from_file`] reads beside it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_file`].
    pub fn of(files: &Bundle) -> Result<Tokenizer> {
        match Self::other_form(files) {
            Some(other) if !files.contains(FILE_NAME) => Err(Error::input(
                files.place(),
                FILE_NAME,
                format!("only {other}"),
                "this file, which Python's transformers makes of it: \
                 AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            )),
            _ => Self::read(&files.path_of(FILE_NAME), files.need(FILE_NAME, MAX_FILE)?, Some(files)),
        }
    }

    /// Whether one of `files` holds a tokenizer, be it in a form that is not read.
    pub fn is_in(files: &Bundle) -> bool {
        files.contains("tokenizer.json") || Self::other_form(files).is_some()
    }

    /// One of `files` that holds a tokenizer in a form that is not read.
    fn other_form(files: &Bundle) -> Option<&'static str> {
        let names = [
            ("tokenizer.model", "tokenizer.model (SentencePiece)"),
            ("spiece.model", "spiece.model (SentencePiece)"),
            ("vocab.json", "vocab.json"),
        ];
        names.iter().find(|(name, _)| files.contains(name)).map(|(_, said)| *said)
    }

    /// Reads a Hugging Face `tokenizer.json`, and from beside it `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json`, `config.json` and `chat_template.jinja` where they exist. Truncation and padding stored in
    /// the file are ignored.
    ///
    /// # Errors
    /// A file that is missing, malformed, inconsistent, or states ids that its parts do not have.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let bytes = read_limited(path, MAX_FILE)?;
        // Under another name the files beside it may belong to another tokenizer.
        let named = path.file_name().is_some_and(|name| name == FILE_NAME);
        let beside = named.then(|| Bundle::folder(path.parent().unwrap_or(Path::new(""))));
        Self::read(path, bytes, beside.as_ref())
    }

    fn read(name: &Path, bytes: Vec<u8>, beside: Option<&Bundle>) -> Result<Tokenizer> {
        let json = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(name, "JSON", e, "a Hugging Face tokenizer.json"))?;
        drop(bytes);
        Self::build(name, json, beside)
    }

    /// From a `tokenizer.json` made here; the well-known names decide which token ends a text.
    pub(super) fn from_json(name: &Path, json: Value) -> Result<Tokenizer> {
        Self::build(name, json, None)
    }

    fn build(name: &Path, mut json: Value, beside: Option<&Bundle>) -> Result<Tokenizer> {
        let vocab_size = tokenizer_checks::check(name, &mut json)?;
        let cut = if builtin::is_bytes_json(&json) { Cut::Anywhere } else { Cut::of(&json) };
        let decoders = Decoders::of(&json["decoder"]);
        let byte_level = json["decoder"]["type"] == "ByteLevel";
        let post_processor = json["post_processor"].clone();
        let wanted = "a tokenizer that the tokenizers crate accepts";
        let mut hf = guarded(|| serde_json::from_value::<Hf>(json).map_err(|e| e.to_string()))
            .map_err(|e| Error::input(name, "content", e, wanted))?;
        let kind = match cut {
            Cut::Anywhere => Kind::Bytes,
            _ if byte_level => Kind::ByteLevel(bytes_of_all(&hf, vocab_size)),
            _ => Kind::Other(decoders),
        };
        let id_of = |token: &str| hf.token_to_id(token);
        let side = match beside {
            Some(files) => SideFiles::read(files, id_of, |id| hf.id_to_token(id), vocab_size)?,
            None => SideFiles::well_known(id_of),
        };
        follow_keys(&mut hf, &post_processor, &side)
            .map_err(|e| Error::input(name, "post_processor", e, wanted))?;
        let (prefix, fingerprint) = (Vec::new(), OnceLock::new());
        let mut inner = Inner { name: name.into(), hf, side, vocab_size, kind, cut, prefix, fingerprint };
        // Special tokens are free numbers in the file: try them once.
        let ids = inner.encode(SAMPLE, true)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::input(name, "post_processor", id, format!("ids below {vocab_size}")));
        }
        let plain = inner.encode(SAMPLE, false)?;
        let at = ids.windows(plain.len().max(1)).position(|part| part == plain);
        inner.prefix = ids[..at.unwrap_or(0)].to_vec();
        inner.tell_of_bos();
        Ok(Tokenizer(Arc::new(inner)))
    }

    /// Token ids of `text`. No special tokens are added; those that occur in the text are recognised, as Hugging Face
    /// does. Long texts are encoded in parallel chunks where that cannot change the ids, and beyond 8 MiB in any case.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encode = |chunk: &&str| self.0.encode(chunk, false);
        if matches!(self.0.kind, Kind::Bytes) {
            return encode(&text);
        }
        match &self.chunks(text)[..] {
            [one] => encode(one),
            chunks => Ok(chunks.par_iter().map(encode).collect::<Result<Vec<_>>>()?.concat()),
        }
    }

    /// [`Tokenizer::encode`] on the calling thread alone, for one that is to leave the others to their work, and what bytes
    /// each token stands for.
    pub fn encode_here(&self, text: &str) -> Result<Encoded> {
        let mut all = Encoded::default();
        for chunk in self.chunks(text) {
            let Encoded { ids, bytes } = self.encode_chunk(chunk)?;
            all.ids.extend(ids);
            all.bytes.extend(bytes);
        }
        Ok(all)
    }

    /// The chunks of `text` that are encoded by themselves.
    pub(super) fn chunks<'a>(&self, text: &'a str) -> Vec<&'a str> {
        self.0.cut.chunks(text, self.0.cut.chunk_size())
    }

    /// The ids of a text that is one of its own [`Tokenizer::chunks`], and what bytes each stands for.
    pub(super) fn encode_chunk(&self, text: &str) -> Result<Encoded> {
        let inner = &*self.0;
        match &inner.kind {
            Kind::Bytes => {
                let ids = inner.encode(text, false)?;
                Ok(Encoded { bytes: vec![1; ids.len()], ids })
            }
            Kind::ByteLevel(table) => {
                let ids = inner.encode(text, false)?;
                // Not so where a normalizer changed the text or an added token took the spaces beside it.
                let mut rest = Some(text.as_bytes());
                let bytes = ids.iter().map(|&id| {
                    let own = &table[id as usize];
                    rest = rest.and_then(|rest| rest.strip_prefix(&own[..]));
                    own.len() as u32
                });
                let bytes: Vec<u32> = bytes.collect();
                match rest {
                    Some([]) => Ok(Encoded { ids, bytes }),
                    _ => inner.encode_by_offsets(text, |id| Some(table[id as usize].len())),
                }
            }
            Kind::Other(_) => inner.encode_by_offsets(text, |id| {
                let token = inner.hf.id_to_token(id)?;
                decoder::byte(&token).map(|_| 1)
            }),
        }
    }

    /// What the tokenizer puts before a text, such as LLaMA's `<s>`.
    pub fn prefix(&self) -> &[u32] {
        &self.0.prefix
    }

    /// Token ids of the beginning of a text: [`Tokenizer::prefix`], then `text`. What the tokenizer puts after a text is
    /// left out, since this one goes on.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok([self.prefix(), &self.encode(text)?].concat())
    }

    /// Token ids of `text` with the special tokens that the tokenizer's post-processor adds before and after it.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.0.encode(text, true)
    }

    /// The text of `ids`, special tokens included. Ids outside the vocabulary are left out; bytes that are not UTF-8
    /// become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        if ids.is_empty() {
            return String::new();
        }
        match &self.0.kind {
            Kind::Other(None) => {
                let hf = &self.0.hf;
                guarded(|| hf.decode(ids, false).map_err(|e| e.to_string()))
                    .unwrap_or_else(|_| ids.iter().filter_map(|&id| hf.id_to_token(id)).collect())
            }
            Kind::Other(Some(chain)) => {
                let mut chain = chain.clone();
                let mut text = String::new();
                ids.iter().filter_map(|&id| self.token(id)).for_each(|token| chain.push(token, &mut text));
                chain.finish(&mut text);
                text
            }
            Kind::Bytes | Kind::ByteLevel(_) => {
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes_of(id)).copied().collect();
                // Without a copy of what is valid.
                String::from_utf8(bytes)
                    .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
            }
        }
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

    /// The bytes of one token, where decoding is concatenation ([`Tokenizer::decoders`]); none outside the vocabulary.
    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        match &self.0.kind {
            Kind::Bytes => BYTES.get(id as usize..).and_then(|rest| rest.get(..1)).unwrap_or_default(),
            Kind::ByteLevel(table) => table.get(id as usize).map_or(&[], |bytes| bytes),
            Kind::Other(_) => unreachable!("decoding is no concatenation"),
        }
    }

    /// The bytes that a token adds inside of a text; none outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.0.kind {
            Kind::Bytes | Kind::ByteLevel(_) => self.bytes_of(id).to_vec(),
            Kind::Other(_) => {
                let Some(token) = self.token(id) else { return Vec::new() };
                if let Some(byte) = decoder::byte(&token) {
                    return vec![byte];
                }
                // What it adds to a text that has begun; `id` itself is as good a beginning as any.
                let (once, twice) = (self.decode(&[id]), self.decode(&[id, id]));
                twice.get(once.len()..).unwrap_or_default().as_bytes().to_vec()
            }
        }
    }

    /// How ids become text: `None` where decoding is concatenation, `Some(None)` where only the crate knows.
    pub(super) fn decoders(&self) -> Option<Option<&Decoders>> {
        match &self.0.kind {
            Kind::Other(chain) => Some(chain.as_ref()),
            _ => None,
        }
    }

    /// The largest id plus 1: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// Whether a model whose embedding has `rows` rows can read `ids`. `text` names what they were made of.
    ///
    /// # Errors
    /// A token without a row; a tokenizer may have more tokens than a text uses.
    pub fn fits(&self, text: &str, ids: impl IntoIterator<Item = u32>, rows: usize) -> Result<()> {
        match ids.into_iter().find(|&id| id as usize >= rows) {
            None => Ok(()),
            Some(id) => {
                let token = self.token(id).unwrap_or_default();
                let wanted = format!("tokens below {rows}, the rows of the model's vocabulary");
                Err(Error::input(&self.0.name, text, format!("token {id} ({token:?})"), wanted))
            }
        }
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.0.side.eos
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.0.side.bos
    }

    /// Ids at which generation stops: [`Tokenizer::eos`] and those that `generation_config.json` and `config.json` add.
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
        self.chat_template_file().map(|(text, _)| text)
    }

    /// The chat template, and the file that it stands in.
    pub fn chat_template_file(&self) -> Option<(&str, &Path)> {
        self.0.side.chat_template.as_ref().map(|(text, file)| (text.as_str(), file.as_path()))
    }

    /// Special tokens by the names that chat templates use (`bos_token`), with their text.
    pub fn named_tokens(&self) -> &[(String, String)] {
        &self.0.side.named
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
        write_bytes(dir.join(FILE_NAME), self.json(true).as_bytes())
    }

    /// `tokenizer.json`, as [`Tokenizer::save`] writes it.
    pub fn file(&self) -> (&'static str, Vec<u8>) {
        (FILE_NAME, self.json(true).into_bytes())
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

impl Inner {
    /// transformers 4 and llama.cpp's converter follow `tokenizer_config.json` where it contradicts `tokenizer.json`,
    /// transformers 5 does not ([`around::by_keys`]).
    fn tell_of_bos(&self) {
        let said = self.side.config().and_then(|config| config.get("add_bos_token")?.as_bool());
        let adds = self.side.bos.is_some_and(|bos| self.prefix.contains(&bos));
        if said.is_some_and(|said| said != adds) {
            let does = if adds { "one" } else { "none" };
            tracing::warn!(
                "tokenizer_config.json: add_bos_token is {}, but tokenizer.json adds {does}: texts begin as that says",
                !adds
            );
        }
    }

    /// The ids of a text as a whole.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        if let Kind::Bytes = self.kind {
            return Ok(text.bytes().map(u32::from).collect());
        }
        let ids = guarded(|| {
            let encoding = self.hf.encode_fast(text, special).map_err(|e| e.to_string())?;
            Ok(encoding.get_ids().to_vec())
        });
        ids.map_err(|e| self.failed(e))
    }

    fn failed(&self, why: String) -> Error {
        Error::input(&self.name, "encoding a text", why, "no error")
    }

    /// The ids of a text as a whole, and the bytes of each by its offsets; `own` tells how many bytes a token stands for by
    /// itself, where that is known.
    fn encode_by_offsets(&self, text: &str, own: impl Fn(u32) -> Option<usize>) -> Result<Encoded> {
        let encoding = guarded(|| self.hf.encode(text, false).map_err(|e| e.to_string()));
        let encoding = encoding.map_err(|e| self.failed(e))?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let mut bytes = Vec::with_capacity(ids.len());
        let mut at = 0;
        while bytes.len() < ids.len() {
            let first = bytes.len();
            let same = offsets[first..].iter().take_while(|&&o| o == offsets[first]).count();
            let end = offsets[first].1.clamp(at, text.len());
            // Several tokens of one span are parts of a character: each its own bytes, if that explains it.
            let parts: Option<Vec<usize>> = ids[first..first + same].iter().map(|&id| own(id)).collect();
            match parts.filter(|parts| same > 1 && parts.iter().sum::<usize>() == end - at) {
                Some(parts) => bytes.extend(parts.iter().map(|&n| n as u32)),
                None => {
                    bytes.extend(std::iter::repeat_n(0, same - 1));
                    bytes.push((end - at) as u32);
                }
            }
            at = end;
        }
        // What no token stands for (spaces that a normalizer strips) goes with the last one.
        if let Some(last) = bytes.last_mut() {
            *last += (text.len() - at) as u32;
        }
        Ok(Encoded { ids: ids.to_vec(), bytes })
    }
}

/// Puts the tokens around a text that `tokenizer_config.json` says to add, where `post_processor` says nothing of them.
fn follow_keys(hf: &mut Hf, post_processor: &Value, side: &SideFiles) -> serde_json::Result<()> {
    let keys = around::by_keys(post_processor, side.config());
    let token = |at: usize| {
        let id = side.named_ends[at].filter(|_| keys[at])?;
        Some((hf.id_to_token(id)?, u64::from(id)))
    };
    let tokens = [token(0), token(1)];
    let tokens = tokens.each_ref().map(|token| token.as_ref().map(|(token, id)| (token.as_str(), *id)));
    if tokens.iter().any(Option::is_some) {
        let made = around::post_processor(post_processor, tokens);
        hf.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(made)?));
    }
    Ok(())
}

/// The bytes of every id of a byte-level vocabulary; an added token is its own text.
fn bytes_of_all(hf: &Hf, vocab_size: usize) -> Vec<Box<[u8]>> {
    let added = hf.get_added_vocabulary().get_added_tokens_decoder();
    let bytes = |id: u32| {
        let mut bytes = Vec::new();
        match (added.get(&id), hf.id_to_token(id)) {
            (Some(token), _) => bytes.extend_from_slice(token.content.as_bytes()),
            (None, Some(token)) => alphabet::push_bytes(&token, &mut bytes),
            (None, None) => {}
        }
        bytes.into_boxed_slice()
    };
    (0..vocab_size as u32).map(bytes).collect()
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} ids)", self.name(), self.vocab_size())
    }
}

fn builtin(name: &str, json: Value) -> Tokenizer {
    Tokenizer::from_json(Path::new(name), json).expect("a tokenizer made here is valid")
}

/// The crate panics on malformed parts that [`tokenizer_checks`] cannot all foresee (compiled normalizer tables, for one).
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("a fault inside the tokenizers crate".to_string()))
}
