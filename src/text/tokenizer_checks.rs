//! What a `tokenizer.json` may say. The tokenizers crate panics on some malformed files and silently changes ids on
//! others, so the file is checked before it is handed over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::{Error, Result};

/// Ids are below this: larger ones are a damaged or hostile file, and a model would have to have that many rows.
const MAX_ID: u64 = 1 << 24;
/// Ids may have gaps, but tables have a place for each: so many for a token, and some more, are what a file justifies.
const IDS_PER_TOKEN: u64 = 16;
const FREE_IDS: u64 = 1 << 17;

/// Bytes that replacements, one after the other, may make of one: those of published tokenizers make fewer than twenty.
const MAX_GROWTH: f64 = 1024.0;

/// Checks a `tokenizer.json`, drops its truncation and padding (they belong to one use of it), and returns the number
/// of ids (the largest one plus 1).
pub fn check(file: &Path, json: &mut Value) -> Result<usize> {
    let Some(top) = json.as_object_mut() else {
        return Err(Error::input(file, "JSON", kind(json), "an object"));
    };
    top.insert("truncation".into(), Value::Null);
    top.insert("padding".into(), Value::Null);
    let json = &*json;
    let model = &json["model"];
    if !model.is_object() {
        return Err(Error::input(file, "model", kind(model), "an object"));
    }
    if model["dropout"].as_f64().is_some_and(|p| p != 0.0) {
        let wanted = "null: dropout gives the same text other ids each time";
        return Err(Error::input(file, "model.dropout", &model["dropout"], wanted));
    }
    let mut known: HashMap<&str, u64> = HashMap::new();
    let entries = match &model["vocab"] {
        Value::Object(vocab) => {
            for (token, id) in vocab {
                known.insert(token, id_of(file, || format!("model.vocab.{token:?}"), id)?);
            }
            vocab.len()
        }
        Value::Array(pieces) => {
            for (i, piece) in pieces.iter().enumerate() {
                let (Some(token), true) = (piece[0].as_str(), piece[1].is_number()) else {
                    return Err(Error::input(
                        file,
                        format!("model.vocab[{i}]"),
                        kind(piece),
                        "[token, score]",
                    ));
                };
                // The search for the best path would go in circles.
                if token.is_empty() {
                    return Err(Error::input(file, format!("model.vocab[{i}]"), "no text", "a token"));
                }
                known.insert(token, i as u64);
            }
            if let Some(unk) = model["unk_id"].as_u64()
                && unk >= pieces.len() as u64
            {
                return Err(Error::input(file, "model.unk_id", unk, format!("below {}", pieces.len())));
            }
            pieces.len()
        }
        other => return Err(Error::input(file, "model.vocab", kind(other), "an object or a list")),
    } as u64;
    if entries == 0 || entries > MAX_ID {
        return Err(Error::input(file, "model.vocab", format!("{entries} tokens"), format!("1 to {MAX_ID}")));
    }
    let mut used = HashSet::with_capacity(known.len());
    for (token, id) in &known {
        if !used.insert(*id) {
            let wanted = "an id that no other token has";
            return Err(Error::input(file, format!("model.vocab.{token:?}"), id, wanted));
        }
    }
    merges(file, model)?;
    added_tokens(file, &json["added_tokens"], entries, &mut known, &mut used)?;
    for part in ["normalizer", "pre_tokenizer"] {
        parts(file, part, &json[part])?;
    }
    for part in ["normalizer", "decoder"] {
        let made = growth(&json[part]);
        if made > MAX_GROWTH {
            let wanted = format!("replacements that make at most {MAX_GROWTH} bytes of one");
            return Err(Error::input(file, part, format!("{made:.0e}"), wanted));
        }
    }
    let tokens = entries.max(known.len() as u64);
    let end = used.into_iter().max().unwrap_or(0) + 1;
    let most = IDS_PER_TOKEN * tokens + FREE_IDS;
    if end > most {
        let wanted = format!("ids below {most} for {tokens} tokens");
        return Err(Error::input(file, "model.vocab", format!("id {}", end - 1), wanted));
    }
    Ok(end.max(if model["vocab"].is_array() { entries } else { 0 }) as usize)
}

/// Each merge joins two tokens into a third, all of them in the vocabulary.
fn merges(file: &Path, model: &Value) -> Result<()> {
    let Value::Array(merges) = &model["merges"] else { return Ok(()) };
    let Value::Object(vocab) = &model["vocab"] else { return Ok(()) };
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    let mut joined = String::new();
    for (i, merge) in merges.iter().enumerate() {
        let pair = match merge {
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' '),
            _ => merge[0].as_str().zip(merge[1].as_str()),
        };
        let Some((a, b)) = pair else {
            return Err(Error::input(file, format!("model.merges[{i}]"), merge, "a pair of tokens"));
        };
        joined.clear();
        joined.push_str(a);
        let Some(suffix) = b.get(prefix.len()..) else {
            let wanted = format!("a token after the prefix {prefix:?}");
            return Err(Error::input(file, format!("model.merges[{i}]"), format!("{b:?}"), wanted));
        };
        joined.push_str(suffix);
        if let Some(missing) = [a, b, joined.as_str()].iter().find(|t| !vocab.contains_key(**t)) {
            let found = format!("{missing:?}, which the vocabulary lacks");
            return Err(Error::input(file, format!("model.merges[{i}]"), found, "tokens of the vocabulary"));
        }
    }
    Ok(())
}

/// The crate numbers added tokens itself: known ones keep their id, new ones go on from the number of entries. A file
/// that states other ids would be read differently from what it says.
fn added_tokens<'a>(
    file: &Path,
    added: &'a Value,
    entries: u64,
    known: &mut HashMap<&'a str, u64>,
    used: &mut HashSet<u64>,
) -> Result<()> {
    let added = match added {
        Value::Null => return Ok(()),
        Value::Array(added) => added,
        other => return Err(Error::input(file, "added_tokens", kind(other), "a list")),
    };
    let mut next = entries;
    for (i, token) in added.iter().enumerate() {
        let Some(content) = token["content"].as_str() else {
            let found = kind(&token["content"]);
            return Err(Error::input(file, format!("added_tokens[{i}].content"), found, "text"));
        };
        let stated = id_of(file, || format!("added_tokens[{i}].id"), &token["id"])?;
        if content.is_empty() {
            continue;
        }
        let field = || format!("added_tokens[{i}] ({content:?})");
        let id = match known.get(content) {
            Some(&id) => id,
            None => {
                if !used.insert(next) {
                    return Err(Error::input(file, field(), format!("id {next}"), "an id that is free"));
                }
                known.insert(content, next);
                next += 1;
                next - 1
            }
        };
        if id != stated {
            return Err(Error::input(file, field(), format!("id {stated}"), format!("id {id}")));
        }
    }
    Ok(())
}

/// Parts on which the crate would panic, hang or allocate without bound.
fn parts(file: &Path, path: &str, value: &Value) -> Result<()> {
    match value {
        Value::Object(map) => {
            let kind = map.get("type").and_then(Value::as_str);
            if kind == Some("FixedLength") && map.get("length").is_some_and(|n| n == 0) {
                return Err(Error::input(file, format!("{path}.length"), 0, "1 or more"));
            }
            if kind == Some("Precompiled") && !map.get("precompiled_charsmap").is_some_and(is_charsmap) {
                let field = format!("{path}.precompiled_charsmap");
                return Err(Error::input(file, field, "a damaged table", "a SentencePiece table in base64"));
            }
            map.iter().try_for_each(|(key, v)| parts(file, &format!("{path}.{key}"), v))
        }
        Value::Array(list) => list.iter().try_for_each(|v| parts(file, path, v)),
        _ => Ok(()),
    }
}

/// How many bytes all replacements in a part make of one at most.
fn growth(value: &Value) -> f64 {
    match value {
        Value::Object(map) => {
            let text = |value: &Value| value.as_str().map_or(0.0, |text| text.len() as f64);
            let own = match &value["pattern"]["String"] {
                _ if value["type"] != "Replace" => 1.0,
                from if text(from) > 0.0 => (text(&value["content"]) / text(from)).max(1.0),
                // A pattern may match nothing at all, before every byte.
                _ => 1.0 + text(&value["content"]),
            };
            map.values().map(growth).fold(own, |all, part| all * part)
        }
        Value::Array(list) => list.iter().map(growth).product(),
        _ => 1.0,
    }
}

/// Size of a trie (u32), the trie, and UTF-8 text.
fn is_charsmap(value: &Value) -> bool {
    let Some(bytes) = value.as_str().and_then(|text| STANDARD.decode(text).ok()) else { return false };
    let Some((size, rest)) = bytes.split_first_chunk::<4>() else { return false };
    let size = u32::from_le_bytes(*size) as usize;
    size >= 4 && size.is_multiple_of(4) && rest.get(size..).is_some_and(|text| str::from_utf8(text).is_ok())
}

fn id_of(file: &Path, field: impl Fn() -> String, id: &Value) -> Result<u64> {
    match id.as_u64() {
        Some(id) if id < MAX_ID => Ok(id),
        _ => Err(Error::input(file, field(), id, format!("a number below {MAX_ID}"))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_larger_than_its_bytes_is_refused() {
        assert!(is_charsmap(&"BAAAAAAAAAA=".into()));
        assert!(!is_charsmap(&"/////wAAAAA=".into()));
        assert!(!is_charsmap(&"AAAA".into()));
    }
}
