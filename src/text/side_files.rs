//! The files beside a `tokenizer.json`: which tokens begin and end a text, where generation stops, the chat template.
//!
//! Several files may state the same fact. The order of precedence is that of the Hugging Face tools:
//!
//! - a special token (`bos_token` and the like): `tokenizer_config.json` where it lists `added_tokens_decoder`, else
//!   `special_tokens_map.json` before it, as in files of older versions; an explicit null says that there is none. Then, for
//!   the beginning and the end of a text, the ids of `generation_config.json`, those of `config.json`, and well-known names.
//! - generation stops at all of these: the end of a text as found so, and every `eos_token_id` of `generation_config.json`
//!   and `config.json`.
//! - the chat template: `chat_template.jinja`, then `tokenizer_config.json`.
//!
//! Whether the tokens that begin and end a text are put there is told by `config/around.rs`.

use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

use super::builtin::END_OF_TEXT;
use crate::config::around;
use crate::files::{Bundle, write_bytes};
use crate::{Error, Result};

const EOS_NAMES: [&str; 7] =
    [END_OF_TEXT, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<|eot_id|>", "[EOS]"];
const BOS_NAMES: [&str; 4] = ["<s>", "<|begin_of_text|>", "<bos>", "[BOS]"];
/// The names by which templates know the special tokens.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const JINJA: &str = "chat_template.jinja";
const MAX_BYTES: u64 = 64 << 20;

/// A JSON object as it was read, byte by byte and parsed.
type Object = (Vec<u8>, Map<String, Value>);

#[derive(Default)]
pub struct SideFiles {
    /// `tokenizer_config.json`.
    config: Option<Object>,
    /// `chat_template.jinja`.
    jinja: Option<String>,
    /// The template, and the file that it stands in.
    pub chat_template: Option<(String, PathBuf)>,
    pub eos: Option<u32>,
    pub bos: Option<u32>,
    /// `bos` and `eos` where `tokenizer_config.json` or `special_tokens_map.json` names them.
    pub named_ends: [Option<u32>; 2],
    /// Ids at which generation stops; the first is `eos`.
    pub stop: Vec<u32>,
    /// Special tokens by the names that templates use, with their text.
    pub named: Vec<(String, String)>,
}

impl SideFiles {
    /// No files: the well-known names decide.
    pub fn well_known(id_of: impl Fn(&str) -> Option<u32>) -> Self {
        let eos = EOS_NAMES.iter().find_map(|name| id_of(name));
        let bos = BOS_NAMES.iter().find_map(|name| id_of(name));
        SideFiles { eos, bos, stop: eos.into_iter().collect(), ..Self::default() }
    }

    /// Reads what lies among `files`; `id_of` and `token_of` are the tokenizer, `vocab` its size.
    pub fn read(
        files: &Bundle,
        id_of: impl Fn(&str) -> Option<u32>,
        token_of: impl Fn(u32) -> Option<String>,
        vocab: usize,
    ) -> Result<Self> {
        let mut side = Self::well_known(&id_of);
        let read = |name: &'static str| Ok((name, read_object(files, name)?));
        let config = read("tokenizer_config.json")?;
        let map = read("special_tokens_map.json")?;
        let ids_of = |file: &(&str, Option<Object>), key: &str| {
            let listed = file.1.as_ref().and_then(|file| file.1.get(&format!("{key}_id"))).map(ids);
            listed.unwrap_or_default().into_iter().filter(|&id| (id as usize) < vocab).collect::<Vec<u32>>()
        };
        let by_id = [read("generation_config.json")?, read("config.json")?];

        let modern = config.1.as_ref().is_some_and(|c| c.1.contains_key("added_tokens_decoder"));
        let order = around::in_order(modern, &config, &map);
        for key in NAMED {
            let stated = order.iter().find_map(|(name, file)| Some((*name, file.as_ref()?.1.get(key)?)));
            let text = match stated {
                Some((_, Value::Null)) => None,
                Some((name, value)) => {
                    let text = value.as_str().or_else(|| value["content"].as_str());
                    let wanted = "a token of tokenizer.json";
                    let text = text.ok_or_else(|| Error::input(files.path_of(name), key, value, wanted))?;
                    // A template may mention a token that no text holds.
                    if id_of(text).is_none() && matches!(key, "bos_token" | "eos_token") {
                        return Err(Error::input(files.path_of(name), key, value, wanted));
                    }
                    Some(text.to_string())
                }
                None => {
                    let known = match key {
                        "bos_token" => side.bos,
                        "eos_token" => side.eos,
                        _ => None,
                    };
                    by_id
                        .iter()
                        .find_map(|file| ids_of(file, key).first().copied())
                        .or(known)
                        .and_then(&token_of)
                }
            };
            let id = text.as_deref().and_then(&id_of);
            let named = id.filter(|_| stated.is_some());
            match key {
                "bos_token" => (side.bos, side.named_ends[0]) = (id, named),
                "eos_token" => (side.eos, side.named_ends[1]) = (id, named),
                _ => {}
            }
            side.named.extend(text.map(|text| (key.to_string(), text)));
        }
        side.stop = side.eos.into_iter().collect();
        for id in by_id.iter().flat_map(|file| ids_of(file, "eos_token")) {
            if !side.stop.contains(&id) {
                side.stop.push(id);
            }
        }
        side.jinja = files.read_text(JINJA, MAX_BYTES)?;
        let file = files.path_of(config.0);
        side.config = config.1;
        side.chat_template = match &side.jinja {
            Some(text) => Some((text.clone(), files.path_of(JINJA))),
            None => side.config().map_or(Ok(None), |config| template(config, &file))?.map(|t| (t, file)),
        };
        Ok(side)
    }

    /// `tokenizer_config.json` as parsed.
    pub fn config(&self) -> Option<&Map<String, Value>> {
        self.config.as_ref().map(|(_, map)| map)
    }

    /// Writes `tokenizer_config.json`: the one that was read, with the tokens that begin and end a text as they were found, and
    /// what other files said alone.
    pub fn write(&self, dir: &Path, token_of: impl Fn(u32) -> Option<String>) -> Result<()> {
        let mut config = match &self.config {
            Some((_, map)) => map.clone(),
            None => {
                let class = ("tokenizer_class".to_string(), json!("PreTrainedTokenizerFast"));
                let clean = ("clean_up_tokenization_spaces".to_string(), json!(false));
                Map::from_iter([class, clean])
            }
        };
        let mut changed = self.config.is_none();
        for (key, id) in [("eos_token", self.eos), ("bos_token", self.bos)] {
            let token = id.and_then(&token_of);
            let stated = config.get(key).map(|value| value.as_str().or(value["content"].as_str()));
            if stated.unwrap_or(None) != token.as_deref() {
                config.insert(key.into(), token.into());
                changed = true;
            }
        }
        for (key, text) in &self.named {
            if !config.contains_key(key) {
                config.insert(key.clone(), text.clone().into());
                changed = true;
            }
        }
        let bytes = match &self.config {
            Some((bytes, _)) if !changed => bytes.clone(),
            _ => serde_json::to_vec_pretty(&config).expect("a map of JSON values"),
        };
        write_bytes(dir.join("tokenizer_config.json"), &bytes)?;
        match &self.jinja {
            Some(text) => write_bytes(dir.join(JINJA), text.as_bytes()),
            None => Ok(()),
        }
    }
}

/// A JSON object, or `None` where there is no file.
fn read_object(files: &Bundle, name: &str) -> Result<Option<Object>> {
    let Some(bytes) = files.read(name, MAX_BYTES)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(map) => Ok(Some((bytes, map))),
        Err(e) => Err(Error::input(files.path_of(name), "JSON", e, "an object")),
    }
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// `chat_template`: the text itself, or the one called "default" of a list.
fn template(config: &Map<String, Value>, file: &Path) -> Result<Option<String>> {
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(list)) => {
            let default = list.iter().find(|t| t["name"] == "default");
            let text = default.and_then(|t| t["template"].as_str());
            let wanted = "an entry named \"default\" with a template";
            text.map(|text| Some(text.to_string()))
                .ok_or_else(|| Error::input(file, "chat_template", "none in the list", wanted))
        }
        Some(_) => Err(Error::input(file, "chat_template", "neither", "a text or a list of templates")),
    }
}
