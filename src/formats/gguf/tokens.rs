//! The tokenizer of a model directory as the metadata of a GGUF file.
//!
//! Two kinds of vocabulary have a place there: byte-level BPE (`gpt2`: tokens, merges, the name of the pattern that cuts a text
//! first) and SentencePiece's BPE (`llama`: tokens with scores). Anything that a tokenizer does besides is refused by name.

use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::write::{Item, Metadata};
use crate::config::around;
use crate::config::patterns::{LLAMA3, QWEN2};
use crate::error::{Error, Result};
use crate::files::{Bundle, MAX_FILE};
use crate::formats::{Description, quoted};

const FILE: &str = "tokenizer.json";
const SIDE: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";

/// SentencePiece's pieces are far shorter; every place in one is tried as the joint of two others.
pub(super) const MAX_PIECE: usize = 512;

/// The key of a vocabulary's kind: `gpt2`, `llama`, or `none`.
pub const MODEL: &str = "tokenizer.ggml.model";
/// Other keys of a vocabulary, and of what is put around a text.
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
pub(super) const TEMPLATE: &str = "tokenizer.chat_template";

/// What [`TYPES`] says of a token.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// The key of a token's id, by what it does: `bos`, `eos`, `eot`, `eom`, `unknown` or `padding`.
pub(super) fn id_key(role: &str) -> String {
    format!("tokenizer.ggml.{role}_token_id")
}

/// The keys of the tokenizer and the chat template among `files`, for an embedding of `rows`; none for a model of bare tokens.
///
/// # Errors
/// A tokenizer that no vocabulary of a GGUF file does, by what it has of its own; ids that the embedding does not have.
pub fn metadata(files: &Bundle, description: &Description, rows: usize) -> Result<Option<Metadata>> {
    let Some(text) = files.read(FILE, MAX_FILE)? else { return Ok(None) };
    let path = files.path_of(FILE);
    let parse = |path: &std::path::Path, text: &[u8]| -> Result<Json> {
        serde_json::from_slice(text).map_err(|why| Error::input(path, "JSON", why, "an object"))
    };
    let json = parse(&path, &text)?;
    let beside = |name: &str| -> Result<Json> {
        match files.read(name, MAX_FILE)? {
            Some(text) => parse(&files.path_of(name), &text),
            None => Ok(Json::Null),
        }
    };
    let (side, map) = (beside(SIDE)?, beside(MAP)?);
    let tokenizer = Tokenizer { files, json: &json, side: &side, map: &map };
    let mut out = tokenizer.tokens(rows)?;
    out.extend(tokenizer.special(description, &out)?);
    if let Some(template) = tokenizer.template()? {
        out.push((TEMPLATE.into(), Item::Text(template)));
    }
    Ok(Some(out))
}

struct Tokenizer<'a> {
    files: &'a Bundle,
    json: &'a Json,
    side: &'a Json,
    map: &'a Json,
}

impl Tokenizer<'_> {
    fn bad(&self, field: &str, found: impl ToString, wanted: &str) -> Error {
        Error::input(self.files.path_of(FILE), field, found.to_string(), wanted)
    }

    fn warn(&self, what: &str) {
        tracing::warn!("{}: {what}: such texts get other tokens", self.files.path_of(FILE).display());
    }

    /// Tokens, their types, and merges or scores.
    fn tokens(&self, rows: usize) -> Result<Metadata> {
        let model = &self.json["model"];
        if model["type"].as_str().is_some_and(|kind| kind != "BPE") || model["merges"].as_array().is_none() {
            return Err(self.bad(
                "model.type",
                &model["type"],
                "\"BPE\": no other vocabulary has a place in GGUF",
            ));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[key].as_str().is_some_and(|text| !text.is_empty()) {
                return Err(self.bad(&format!("model.{key}"), brief(&model[key]), "none: GGUF has none"));
            }
        }
        if model["dropout"].as_f64().is_some_and(|p| p != 0.0) {
            return Err(self.bad("model.dropout", &model["dropout"], "none: GGUF has none"));
        }
        let vocab = model["vocab"].as_object();
        let vocab = vocab.ok_or_else(|| self.bad("model.vocab", "nothing", "an object of ids"))?;
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
        let byte_fallback = model["byte_fallback"] == true;
        let unknown = model["unk_token"].as_str();
        let place = |token: &str, id: Option<u64>| {
            let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
            id.ok_or_else(|| {
                self.bad(
                    &format!("id of {}", quoted(token)),
                    "none",
                    &format!("one below the embedding's {rows}"),
                )
            })
        };
        for (token, id) in vocab {
            let kind = match byte_fallback {
                true if unknown == Some(token.as_str()) => UNKNOWN,
                true if is_byte(token) => BYTE,
                _ => NORMAL,
            };
            tokens[place(token, id.as_u64())?] = Some((token.clone(), kind));
        }
        for added in self.json["added_tokens"].as_array().into_iter().flatten() {
            let content = added["content"].as_str().unwrap_or_default();
            let at = place(content, added["id"].as_u64())?;
            if let Some(flag) = ["lstrip", "rstrip", "single_word"].into_iter().find(|f| added[*f] == true) {
                let field = format!("added_tokens {} {flag}", quoted(content));
                return Err(self.bad(&field, true, "false: llama.cpp finds such a token wherever it stands"));
            }
            let is_unknown = matches!(&tokens[at], Some((_, UNKNOWN)));
            let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
            tokens[at] = Some((content.to_string(), if is_unknown { UNKNOWN } else { kind }));
        }
        let mut seen = HashSet::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some((token, _)) = token.as_ref().filter(|(token, _)| !seen.insert(token.as_str())) {
                return Err(self.bad(&format!("id {id}"), quoted(token), "every token once"));
            }
        }
        let fill =
            |(id, token): (usize, Option<(String, i32)>)| token.unwrap_or((format!("[PAD{id}]"), UNUSED));
        let tokens: Vec<(String, i32)> = tokens.into_iter().enumerate().map(fill).collect();
        let merges = self.merges()?;
        let mut out: Metadata = if self.is_byte_level() {
            let pre = self.cuts(&merges)?;
            vec![
                (MODEL.into(), Item::Text("gpt2".into())),
                (PRE.into(), Item::Text(pre.into())),
                (MERGES.into(), Item::Texts(merges.iter().map(|[a, b]| format!("{a} {b}")).collect())),
            ]
        } else {
            let space = self.sentence_piece()?;
            vec![
                (MODEL.into(), Item::Text("llama".into())),
                (PRE.into(), Item::Text("default".into())),
                (ADD_SPACE.into(), Item::Bool(space)),
                (SCORES.into(), Item::F32s(self.scores(&tokens, &merges)?)),
            ]
        };
        let (texts, types) = tokens.into_iter().unzip();
        out.insert(2, (TOKENS.into(), Item::Texts(texts)));
        out.insert(3, (TYPES.into(), Item::I32s(types)));
        Ok(out)
    }

    fn merges(&self) -> Result<Vec<[String; 2]>> {
        let merges = self.json["model"]["merges"].as_array().into_iter().flatten();
        let pair = |(i, merge): (usize, &Json)| {
            let pair = match merge {
                Json::String(text) => text.split_once(' ').map(|(a, b)| [a.to_string(), b.to_string()]),
                Json::Array(pair) => match &pair[..] {
                    [Json::String(a), Json::String(b)] => Some([a.clone(), b.clone()]),
                    _ => None,
                },
                _ => None,
            };
            pair.ok_or_else(|| self.bad(&format!("model.merges[{i}]"), merge, "two tokens"))
        };
        merges.enumerate().map(pair).collect()
    }

    /// A step of the tokenizer and all of its parts, in order.
    fn steps(&self, key: &str, parts: &str) -> Vec<&Json> {
        match &self.json[key] {
            Json::Null => Vec::new(),
            step if step["type"] == "Sequence" => step[parts].as_array().into_iter().flatten().collect(),
            step => vec![step],
        }
    }

    fn is_byte_level(&self) -> bool {
        self.steps("pre_tokenizer", "pretokenizers").iter().any(|step| step["type"] == "ByteLevel")
    }

    /// The name that llama.cpp has for how a text is cut before merges are made.
    fn cuts(&self, merges: &[[String; 2]]) -> Result<&'static str> {
        let steps = self.steps("pre_tokenizer", "pretokenizers");
        let pattern = |step: &Json| {
            let isolated =
                step["type"] == "Split" && step["behavior"] == "Isolated" && step["invert"] != true;
            isolated.then(|| step["pattern"]["Regex"].as_str().unwrap_or_default().to_string())
        };
        let last = steps[steps.len() - 1];
        let by_regex = last["use_regex"] != false;
        let plain = last["type"] == "ByteLevel" && last["add_prefix_space"] != true;
        let name = match &steps[..steps.len() - 1] {
            _ if !plain => None,
            // Nothing is merged, wherever a text is cut.
            [] if merges.is_empty() => Some("gpt-2"),
            [] if by_regex => Some("gpt-2"),
            [digits] if by_regex && digits["type"] == "Digits" && digits["individual_digits"] == true => {
                Some("smollm")
            }
            [split] if !by_regex => match pattern(split) {
                Some(text) if text == QWEN2 => Some("qwen2"),
                Some(text) if text == LLAMA3 => Some("llama-bpe"),
                _ => None,
            },
            _ => None,
        };
        let name = name.ok_or_else(|| {
            let wanted = "the cuts of GPT-2, SmolLM, Qwen2 or LLaMA 3, which llama.cpp has a name for";
            self.bad("pre_tokenizer", brief(&self.json["pre_tokenizer"]), wanted)
        })?;
        let ignores = self.json["model"]["ignore_merges"] == true;
        if ignores != (name == "llama-bpe") {
            let wanted = if ignores { "false" } else { "true, as llama.cpp does for LLaMA 3" };
            return Err(self.bad("model.ignore_merges", ignores, wanted));
        }
        for step in self.steps("normalizer", "normalizers") {
            match step["type"].as_str() {
                Some("NFC") => {
                    self.warn("texts are brought into the form NFC here, which llama.cpp does not do")
                }
                _ => return Err(self.bad("normalizer", brief(step), "none: llama.cpp has none")),
            }
        }
        Ok(name)
    }

    /// Whether SentencePiece's vocabulary puts a space before a text.
    fn sentence_piece(&self) -> Result<bool> {
        let wanted = "byte-level BPE, or SentencePiece's BPE with bytes for what it does not know";
        if self.json["model"]["byte_fallback"] != true {
            return Err(self.bad("model.byte_fallback", "false", wanted));
        }
        let mut space = false;
        let mut replaces = false;
        for step in self.steps("normalizer", "normalizers") {
            match step["type"].as_str() {
                Some("Prepend") if step["prepend"] == "▁" => space = true,
                Some("Replace") if step["content"] == "▁" && step["pattern"]["String"] == " " => {
                    replaces = true
                }
                // SentencePiece's remove_extra_whitespaces.
                Some("Replace") if step["pattern"]["Regex"].as_str().is_some_and(only_spaces) => {
                    self.warn("runs of spaces become one here, which llama.cpp does not do");
                }
                _ => return Err(self.bad("normalizer", brief(step), wanted)),
            }
        }
        let prepends = space;
        if prepends {
            self.warn_of_normalized();
        }
        for step in self.steps("pre_tokenizer", "pretokenizers") {
            if step["type"] != "Metaspace" || step["split"] != false || step["replacement"] != "▁" {
                return Err(self.bad("pre_tokenizer", brief(step), wanted));
            }
            replaces = true;
            // "always" where nothing is said, as in the tokenizers crate.
            let scheme = step["prepend_scheme"].as_str().unwrap_or("always");
            // A text that begins with a space gets none, and behind `Prepend` every text does.
            if prepends || scheme == "never" {
                continue;
            }
            space = true;
            self.warn(if scheme == "first" {
                "pre_tokenizer.prepend_scheme \"first\" puts no space before a text that follows a special token or \
                 begins with a space, and llama.cpp puts one"
            } else {
                "pre_tokenizer.prepend_scheme \"always\" puts no space before a text that begins with one, and \
                 llama.cpp puts one"
            });
        }
        match replaces {
            true => Ok(space),
            false => Err(self.bad("normalizer", brief(&self.json["normalizer"]), wanted)),
        }
    }

    /// Where a space is put before every text, a token that is looked for in the text with that space has one of its own.
    fn warn_of_normalized(&self) {
        let mut added = self.json["added_tokens"].as_array().into_iter().flatten();
        if let Some(token) = added.find(|token| token["normalized"] == true) {
            let token = quoted(token["content"].as_str().unwrap_or_default());
            self.warn(&format!(
                "the added token {token} (normalized: true) is found behind a space alone here, and wherever it stands \
                 in llama.cpp"
            ));
        }
    }

    /// Scores by which SentencePiece makes the same merges: that of a token is minus the rank of the merges that make it, which
    /// must stand together.
    fn scores(&self, tokens: &[(String, i32)], merges: &[[String; 2]]) -> Result<Vec<f32>> {
        let mut ranks: HashMap<String, (usize, usize)> = HashMap::new();
        for (at, [a, b]) in merges.iter().enumerate() {
            let next = ranks.len();
            let (_, last) = ranks.entry(format!("{a}{b}")).or_insert((next, at));
            if at > *last + 1 {
                let found = format!("{} again, with others between", quoted(&format!("{a}{b}")));
                let wanted = "merges that SentencePiece's scores can say: those of a token together";
                return Err(self.bad(&format!("model.merges[{at}]"), found, wanted));
            }
            *last = at;
        }
        if ranks.len() >= 1 << 24 {
            return Err(self.bad("model.merges", ranks.len(), "as many as f32 counts"));
        }
        let least = -(ranks.len() as f32) - 1.0;
        let score = |(token, kind): &(String, i32)| match kind {
            &NORMAL => ranks.get(token).map_or(least, |(rank, _)| -(*rank as f32)),
            _ => 0.0,
        };
        // SentencePiece joins any two tokens whose joint is one.
        let known: HashSet<&str> =
            tokens.iter().filter(|(_, kind)| *kind == NORMAL).map(|(token, _)| token.as_str()).collect();
        let made: HashSet<(&str, &str)> = merges.iter().map(|[a, b]| (a.as_str(), b.as_str())).collect();
        for token in &known {
            if token.len() > MAX_PIECE {
                let field = format!("model.vocab {}", quoted(token));
                let wanted = format!("at most {MAX_PIECE}");
                return Err(self.bad(&field, format!("{} bytes", token.len()), &wanted));
            }
            for (at, _) in token.char_indices().skip(1) {
                let (a, b) = token.split_at(at);
                if known.contains(a) && known.contains(b) && !made.contains(&(a, b)) {
                    let found = format!("no merge of {} and {}", quoted(a), quoted(b));
                    return Err(self.bad("model.merges", found, "one, as their joint is a token"));
                }
            }
        }
        Ok(tokens.iter().map(score).collect())
    }

    /// Tokens that begin and end a text, and which of them are put there.
    fn special(&self, description: &Description, tokens: &Metadata) -> Result<Metadata> {
        let around = self.around()?;
        let ids: BTreeMap<&str, u32> = match tokens.iter().find(|(key, _)| key == TOKENS) {
            Some((_, Item::Texts(texts))) => texts.iter().map(String::as_str).zip(0..).collect(),
            _ => BTreeMap::new(),
        };
        let named = |key: &str| ids.get(self.named(key)?).copied();
        let [before, after] = around.map(|token| token.and_then(|token| ids.get(token.as_str()).copied()));
        let bos = before.or(named("bos_token")).or(description.bos);
        let eos = after.or(named("eos_token")).or(description.eos.first().copied());
        // Without an end llama.cpp takes an id of GPT-2 for one; an unused one does no harm.
        let unused = || ids.iter().find(|(token, _)| token.starts_with("[PAD")).map(|(_, id)| *id);
        let mut out = Metadata::new();
        let mut put = |key: &str, id: Option<u32>| {
            out.extend(id.map(|id| (id_key(key), Item::U32(id))));
        };
        put("bos", bos);
        put("eos", eos.or_else(unused));
        put("padding", named("pad_token"));
        put("unknown", named("unk_token").filter(|_| !self.is_byte_level()));
        put("eot", description.eos.iter().copied().find(|id| Some(*id) != eos));
        out.push((ADD_BOS.into(), Item::Bool(before.is_some())));
        out.push((ADD_EOS.into(), Item::Bool(after.is_some())));
        Ok(out)
    }

    /// A special token as the files beside the tokenizer name it.
    fn named(&self, key: &str) -> Option<&str> {
        let lists_added = self.side.get("added_tokens_decoder").is_some();
        let stated =
            around::in_order(lists_added, self.side, self.map).into_iter().find_map(|file| file.get(key))?;
        stated.as_str().or(stated["content"].as_str())
    }

    /// The tokens that are put before and after a text.
    fn around(&self) -> Result<[Option<String>; 2]> {
        let keys = around::by_keys(&self.json["post_processor"], self.side.as_object());
        let mut around = [(keys[0], "bos_token"), (keys[1], "eos_token")]
            .map(|(add, key)| self.named(key).filter(|_| add).map(String::from));
        for step in self.steps("post_processor", "processors") {
            if step["type"] == "ByteLevel" {
                continue;
            }
            let template = step["single"].as_array().filter(|_| step["type"] == "TemplateProcessing");
            let wanted = "at most one token before a text and one after it";
            let template = template.ok_or_else(|| self.bad("post_processor", brief(step), wanted))?;
            let mut text_seen = false;
            for part in template {
                match part["SpecialToken"]["id"].as_str() {
                    None => text_seen = true,
                    Some(token) => {
                        let place = &mut around[usize::from(text_seen)];
                        if place.replace(token.to_string()).is_some() {
                            return Err(self.bad("post_processor", "more of them", wanted));
                        }
                    }
                }
            }
        }
        Ok(around)
    }

    /// The chat template, as Hugging Face's library finds it.
    fn template(&self) -> Result<Option<String>> {
        if let Some(text) = self.files.read_text("chat_template.jinja", MAX_FILE)? {
            return Ok(Some(text));
        }
        Ok(match &self.side["chat_template"] {
            Json::String(text) => Some(text.clone()),
            Json::Array(named) => {
                let default = named.iter().find(|template| template["name"] == "default");
                default.and_then(|template| template["template"].as_str()).map(String::from)
            }
            _ => None,
        })
    }
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a pattern of SentencePiece's normalisation is about spaces alone.
fn only_spaces(pattern: &str) -> bool {
    [r"\A +| +\z", " {2,}"].contains(&pattern)
}

/// A value cut to a length that fits into an error message.
fn brief(json: &Json) -> String {
    quoted(&json.to_string())
}
