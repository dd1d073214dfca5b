//! The vocabulary and the chat template of a GGUF file as Hugging Face's files.

use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, HashMap};

use super::file::GgufFile;
use super::keys::bad;
use super::tokens::{
    ADD_BOS, ADD_EOS, ADD_SPACE, BYTE, CONTROL, MAX_PIECE, MERGES, MODEL, NORMAL, PRE, SCORES, TEMPLATE,
    TOKENS, TYPES, UNKNOWN, UNUSED, USER_DEFINED, id_key,
};
use super::value::{Kind, Value};
use crate::config::around;
use crate::config::patterns::{GPT2, LLAMA3, QWEN2};
use crate::error::{Error, Result};
use crate::formats::{hf, quoted};

/// Ways to join two pieces to a third: those of published vocabularies are two or three for a token, and more than so many would
/// outgrow the file by far.
const JOINTS_PER_TOKEN: usize = 16;
const FREE_JOINTS: usize = 1 << 17;

/// `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`, and the tokens that begin and end a text in
/// `config`; nothing for a file without a vocabulary.
///
/// # Errors
/// A vocabulary of another kind; lists that do not fit together; an id outside of it.
pub(super) fn files(file: &GgufFile, config: &mut Map<String, Json>) -> Result<BTreeMap<String, Vec<u8>>> {
    let kind = file.get(MODEL);
    let vocabulary = match kind.map(|kind| kind.as_str()) {
        None | Some(Some("none" | "no_vocab")) => return Ok(BTreeMap::new()),
        Some(Some("gpt2" | "llama")) => Vocabulary::read(file)?,
        Some(_) => return Err(bad(file, MODEL, kind, "\"gpt2\" or \"llama\"")),
    };
    let bytes = |json: &Json| serde_json::to_vec(json).expect("a JSON value");
    let stop: Vec<u64> = vocabulary.stop.clone();
    config.insert("bos_token_id".into(), json!(vocabulary.bos));
    config.insert("eos_token_id".into(), json!(vocabulary.eos));
    let text_of = |id: Option<u64>| id.map(|id| vocabulary.tokens[id as usize]);
    let side = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "bos_token": text_of(vocabulary.bos),
        "eos_token": text_of(vocabulary.eos),
        "unk_token": text_of(vocabulary.unknown),
        "pad_token": text_of(vocabulary.padding),
        "chat_template": text(file, TEMPLATE)?,
    });
    Ok(BTreeMap::from([
        ("tokenizer.json".into(), bytes(&vocabulary.json()?)),
        ("tokenizer_config.json".into(), bytes(&side)),
        (hf::GENERATION_NAME.into(), bytes(&json!({"bos_token_id": vocabulary.bos, "eos_token_id": stop}))),
    ]))
}

fn text<'a>(file: &'a GgufFile, key: &str) -> Result<Option<&'a str>> {
    let value = file.get(key);
    value.map(|v| v.as_str().ok_or_else(|| bad(file, key, value, "a text"))).transpose()
}

fn flag(file: &GgufFile, key: &str) -> Result<Option<bool>> {
    let value = file.get(key);
    value.map(|v| v.as_bool().ok_or_else(|| bad(file, key, value, "true or false"))).transpose()
}

/// How a byte-level vocabulary cuts a text before it merges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cuts {
    Gpt2,
    SmolLm,
    Qwen2,
    Llama3,
    /// llama.cpp's own for a file that does not say.
    Default,
}

impl Cuts {
    const NAMES: &str = "\"gpt-2\", \"smollm\", \"qwen2\", \"llama-bpe\" or \"default\"";

    fn from_name(name: &str) -> Option<Cuts> {
        Some(match name {
            "gpt-2" | "phi-2" | "olmo" => Cuts::Gpt2,
            "smollm" | "starcoder" | "refact" => Cuts::SmolLm,
            "qwen2" | "deepseek-r1-qwen" => Cuts::Qwen2,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => Cuts::Llama3,
            "default" => Cuts::Default,
            _ => return None,
        })
    }

    fn json(self, space_before: bool) -> Json {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": space_before, "trim_offsets": regex, "use_regex": regex});
        let all = match self {
            Cuts::Gpt2 => return byte_level(true),
            Cuts::SmolLm => vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)],
            Cuts::Qwen2 => vec![split(QWEN2), byte_level(false)],
            Cuts::Llama3 => vec![split(LLAMA3), byte_level(false)],
            Cuts::Default => {
                let patterns = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
                patterns.into_iter().map(split).chain([byte_level(false)]).collect()
            }
        };
        json!({"type": "Sequence", "pretokenizers": all})
    }
}

struct Vocabulary<'a> {
    file: &'a GgufFile,
    tokens: Vec<&'a str>,
    types: Vec<i32>,
    kind: How<'a>,
    bos: Option<u64>,
    eos: Option<u64>,
    unknown: Option<u64>,
    padding: Option<u64>,
    /// Ids at which generation stops.
    stop: Vec<u64>,
    add_bos: bool,
    add_eos: bool,
    space_before: bool,
}

/// Special tokens that end a turn or a text whatever the keys say, which converters often leave out; llama.cpp knows them by
/// these names, too (llama-vocab.cpp).
const END_TOKENS: [&str; 9] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<end_of_utterance>",
];

/// How texts become tokens.
enum How<'a> {
    /// Byte-level BPE.
    Merges(Cuts, Vec<[&'a str; 2]>),
    /// SentencePiece's BPE.
    Scores(Vec<f64>),
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self> {
        let tokens =
            list(file, TOKENS, Kind::String)?.ok_or_else(|| bad(file, TOKENS, None, "a list of texts"))?;
        let tokens: Vec<&str> = tokens.filter_map(|value| value.as_str()).collect();
        let mut known = HashMap::new();
        for (i, token) in tokens.iter().enumerate() {
            if let Some(first) = known.insert(*token, i) {
                let found = format!("{}, which token {first} is", quoted(token));
                return Err(Error::input(file.path(), format!("{TOKENS}[{i}]"), found, "every token once"));
            }
        }
        let same_length = |key: &str, len: usize| match len == tokens.len() {
            true => Ok(()),
            false => Err(bad(file, key, file.get(key), &format!("a list of {}, one a token", tokens.len()))),
        };
        let types: Vec<i32> = match list(file, TYPES, Kind::I32)? {
            Some(types) => types.map(|value| if let Value::I32(kind) = value { kind } else { 0 }).collect(),
            None => vec![NORMAL; tokens.len()],
        };
        same_length(TYPES, types.len())?;
        let sentence_piece = text(file, MODEL)? == Some("llama");
        let kind = if sentence_piece {
            let scores =
                list(file, SCORES, Kind::F32)?.ok_or_else(|| bad(file, SCORES, None, "a list of numbers"))?;
            let scores: Vec<f64> = scores.filter_map(|value| value.as_f64()).collect();
            same_length(SCORES, scores.len())?;
            How::Scores(scores)
        } else {
            How::Merges(cuts(file)?, merges(file)?)
        };
        // What writers put where llama.cpp would take an id of its own for one that there is not.
        let is_filler = |id: usize| types[id] == UNUSED && tokens[id].starts_with("[PAD");
        let fillers: Vec<bool> = (0..tokens.len()).map(is_filler).collect();
        let id = |key: &str, otherwise: u64| {
            let key = id_key(key);
            let below = |id: &u64| *id < fillers.len() as u64;
            match file.get(&key) {
                None => Ok(Some(otherwise).filter(|_| sentence_piece).filter(below)),
                Some(value) => match value.as_u64().filter(below) {
                    Some(id) => Ok(Some(id).filter(|id| !fillers[*id as usize])),
                    // "None" of older writers.
                    None if value.as_u64() == Some(u32::MAX.into()) => Ok(None),
                    None => Err(bad(file, &key, Some(value), &format!("an id below {}", fillers.len()))),
                },
            }
        };
        let none = u64::MAX;
        let (bos, eos) = (id("bos", 1)?, id("eos", 2)?);
        let mut stop: Vec<u64> = Vec::new();
        let ends = |id: &u64| types[*id as usize] == CONTROL && END_TOKENS.contains(&tokens[*id as usize]);
        let named = (0..tokens.len() as u64).filter(ends);
        for id in [eos, id("eot", none)?, id("eom", none)?].into_iter().flatten().chain(named) {
            if !stop.contains(&id) {
                stop.push(id);
            }
        }
        let default_bos = sentence_piece || matches!(kind, How::Merges(Cuts::Llama3, _));
        let add_bos = flag(file, ADD_BOS)?.unwrap_or(default_bos);
        let add_eos = flag(file, ADD_EOS)?.unwrap_or(false);
        for (add, id, name) in [(add_bos, bos, "bos"), (add_eos, eos, "eos")] {
            if add && id.is_none() {
                return Err(bad(file, &id_key(name), None, &format!("an id, as add_{name}_token is true")));
            }
        }
        Ok(Self {
            file,
            types,
            kind,
            bos,
            eos,
            unknown: id("unknown", 0)?,
            padding: id("padding", none)?,
            stop,
            add_bos,
            add_eos,
            space_before: flag(file, ADD_SPACE)?.unwrap_or(sentence_piece),
            tokens,
        })
    }

    fn json(&self) -> Result<Json> {
        let vocab: Map<String, Json> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
        let added = self
            .types
            .iter()
            .enumerate()
            .filter(|(_, kind)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED));
        let added: Vec<Json> = added
            .map(|(id, kind)| {
                json!({
                    "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != USER_DEFINED,
                })
            })
            .collect();
        let (normalizer, pre, decoder, model) = match &self.kind {
            How::Merges(cuts, merges) => {
                let nfc = (*cuts == Cuts::Qwen2).then(|| json!({"type": "NFC"}));
                let model = json!({
                    "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                    "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
                    "ignore_merges": *cuts == Cuts::Llama3, "vocab": vocab, "merges": merges,
                });
                (json!(nfc), cuts.json(self.space_before), byte_level(), model)
            }
            How::Scores(scores) => {
                let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
                let prepend = json!({"type": "Prepend", "prepend": "▁"});
                let normalizers = if self.space_before { vec![prepend, space] } else { vec![space] };
                let back = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
                let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
                if self.space_before {
                    decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                let model = json!({
                    "type": "BPE", "dropout": null, "unk_token": self.unknown.map(|id| self.tokens[id as usize]),
                    "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                    "byte_fallback": self.types.contains(&BYTE), "ignore_merges": false, "vocab": vocab,
                    "merges": self.joints(scores)?,
                });
                let sequence = json!({"type": "Sequence", "normalizers": normalizers});
                (sequence, Json::Null, json!({"type": "Sequence", "decoders": decoders}), model)
            }
        };
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": self.post_processor(), "decoder": decoder, "model": model,
        }))
    }

    /// What is put around a text.
    fn post_processor(&self) -> Json {
        let token = |id: u64| (self.tokens[id as usize], id);
        let tokens = [(self.add_bos, self.bos), (self.add_eos, self.eos)]
            .map(|(add, id)| id.filter(|_| add).map(token));
        let first = match self.kind {
            How::Merges(..) => byte_level(),
            How::Scores(_) => Json::Null,
        };
        around::post_processor(&first, tokens)
    }

    /// The merges that SentencePiece makes by scores: every pair of pieces whose joint is a piece, the best joint first.
    fn joints(&self, scores: &[f64]) -> Result<Vec<[&'a str; 2]>> {
        let merged = |id: usize| !matches!(self.types[id], UNKNOWN | CONTROL | BYTE);
        let pieces: HashMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .filter(|(id, _)| merged(*id))
            .map(|(id, piece)| (*piece, id))
            .collect();
        let most = JOINTS_PER_TOKEN * self.tokens.len() + FREE_JOINTS;
        let mut joints = Vec::new();
        for (id, &piece) in self.tokens.iter().enumerate().filter(|(id, _)| merged(*id)) {
            if piece.len() > MAX_PIECE {
                let field = format!("{TOKENS}[{id}]");
                let wanted = format!("at most {MAX_PIECE}");
                return Err(Error::input(self.file.path(), field, format!("{} bytes", piece.len()), wanted));
            }
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if pieces.contains_key(left) && pieces.contains_key(right) {
                    joints.push((scores[id], at, [left, right]));
                }
            }
            if joints.len() > most {
                let found = "more pairs of tokens whose joint is one";
                return Err(Error::input(self.file.path(), TOKENS, found, format!("at most {most}")));
            }
        }
        joints.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        Ok(joints.into_iter().map(|(.., pair)| pair).collect())
    }
}

fn byte_level() -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false})
}

/// The values of a list of this kind, where there is one.
fn list<'a>(file: &'a GgufFile, key: &str, kind: Kind) -> Result<Option<impl Iterator<Item = Value<'a>>>> {
    let Some(value) = file.get(key) else { return Ok(None) };
    match value.as_array().filter(|list| list.kind == kind) {
        Some(list) => Ok(Some(list.values())),
        None => Err(bad(file, key, Some(value), &format!("a list of {kind:?}"))),
    }
}

fn cuts(file: &GgufFile) -> Result<Cuts> {
    match text(file, PRE)? {
        Some(name) => Cuts::from_name(name).ok_or_else(|| bad(file, PRE, file.get(PRE), Cuts::NAMES)),
        None => {
            let path = file.path().display();
            tracing::warn!(
                "{path}: no {PRE}: texts are cut as by llama.cpp's default, which is rarely the model's own"
            );
            Ok(Cuts::Default)
        }
    }
}

/// A merge is two tokens with a space between them; one that begins with a space is a token of it.
fn merges(file: &GgufFile) -> Result<Vec<[&str; 2]>> {
    let merges =
        list(file, MERGES, Kind::String)?.ok_or_else(|| bad(file, MERGES, None, "a list of texts"))?;
    merges
        .filter_map(|value| value.as_str())
        .enumerate()
        .map(|(i, merge)| {
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let at = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first);
            at.map(|at| [&merge[..at], &merge[at + 1..]]).ok_or_else(|| {
                Error::input(
                    file.path(),
                    format!("{MERGES}[{i}]"),
                    quoted(merge),
                    "two tokens and a space between",
                )
            })
        })
        .collect()
}
