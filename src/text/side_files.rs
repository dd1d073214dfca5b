//! The files beside a `tokenizer.json`: which tokens begin and end a text, and the chat template.

use serde_json::{Map, Value, json};
use std::path::Path;

use super::builtin::END_OF_TEXT;
use crate::files::{if_there, read_limited, read_text, write_bytes};
use crate::{Error, Result};

const EOS_NAMES: [&str; 7] =
    [END_OF_TEXT, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<|eot_id|>", "[EOS]"];
const BOS_NAMES: [&str; 4] = ["<s>", "<|begin_of_text|>", "<bos>", "[BOS]"];
const MAX_BYTES: u64 = 64 << 20;

/// A JSON object as it was read, byte by byte and parsed.
type Object = (Vec<u8>, Map<String, Value>);

#[derive(Default)]
pub struct SideFiles {
    /// `tokenizer_config.json`.
    config: Option<Object>,
    /// `chat_template.jinja`.
    jinja: Option<String>,
    pub chat_template: Option<String>,
    pub eos: Option<u32>,
    pub bos: Option<u32>,
    /// Ids at which generation stops: `eos` and what `generation_config.json` adds.
    pub stop: Vec<u32>,
}

impl SideFiles {
    /// No files: the well-known names decide.
    pub fn well_known(id_of: impl Fn(&str) -> Option<u32>) -> Self {
        let eos = EOS_NAMES.iter().find_map(|name| id_of(name));
        let bos = BOS_NAMES.iter().find_map(|name| id_of(name));
        SideFiles { eos, bos, stop: eos.into_iter().collect(), ..Self::default() }
    }

    /// Reads what lies in `dir`; `id_of` is the tokenizer, `vocab` its size.
    pub fn read(dir: &Path, id_of: impl Fn(&str) -> Option<u32>, vocab: usize) -> Result<Self> {
        let mut side = Self::well_known(&id_of);
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let map = read_object(&dir.join("special_tokens_map.json"))?;
        let generation = read_object(&dir.join("generation_config.json"))?;

        for (key, slot) in [("eos_token", &mut side.eos), ("bos_token", &mut side.bos)] {
            let named = [("tokenizer_config.json", &config), ("special_tokens_map.json", &map)];
            let stated = named.iter().find_map(|(name, file)| Some((name, file.as_ref()?.1.get(key)?)));
            let ids = || ids(generation.as_ref()?.1.get(&format!("{key}_id"))?).into_iter().next();
            match stated {
                // An explicit null says that there is none.
                Some((_, Value::Null)) => *slot = None,
                Some((name, value)) => {
                    let token = value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default();
                    *slot = Some(id_of(token).ok_or_else(|| {
                        Error::input(dir.join(name), key, value, "a token of tokenizer.json")
                    })?);
                }
                None => *slot = ids().filter(|id| (*id as usize) < vocab).or(*slot),
            }
        }
        side.stop = side.eos.into_iter().collect();
        let listed = generation.as_ref().and_then(|g| g.1.get("eos_token_id")).map(ids).unwrap_or_default();
        for id in listed {
            if (id as usize) < vocab && !side.stop.contains(&id) {
                side.stop.push(id);
            }
        }
        let jinja = dir.join("chat_template.jinja");
        side.jinja = if_there(read_text(&jinja, MAX_BYTES))?;
        side.chat_template =
            side.jinja.clone().or_else(|| template(config.as_ref()?.1.get("chat_template")?));
        side.config = config;
        Ok(side)
    }

    /// `tokenizer_config.json` as parsed.
    pub fn config(&self) -> Option<&Map<String, Value>> {
        self.config.as_ref().map(|(_, map)| map)
    }

    /// Writes `tokenizer_config.json`: the one that was read, completed where it does not name the tokens.
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
            if !config.contains_key(key)
                && let Some(token) = id.and_then(&token_of)
            {
                config.insert(key.into(), token.into());
                changed = true;
            }
        }
        let bytes = match &self.config {
            Some((bytes, _)) if !changed => bytes.clone(),
            _ => serde_json::to_vec_pretty(&config).expect("a map of JSON values"),
        };
        write_bytes(dir.join("tokenizer_config.json"), &bytes)?;
        match &self.jinja {
            Some(text) => write_bytes(dir.join("chat_template.jinja"), text.as_bytes()),
            None => Ok(()),
        }
    }
}

/// A JSON object, or `None` where there is no file.
fn read_object(path: &Path) -> Result<Option<Object>> {
    let Some(bytes) = if_there(read_limited(path, MAX_BYTES))? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(map) => Ok(Some((bytes, map))),
        Err(e) => Err(Error::input(path, "JSON", e, "an object")),
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

/// A chat template: the text itself, or the one called "default" of a list.
fn template(value: &Value) -> Option<String> {
    let of_list = || {
        let list = value.as_array()?;
        list.iter().find(|t| t["name"] == "default").or(list.first())?["template"].as_str()
    };
    value.as_str().or_else(of_list).map(str::to_string)
}
