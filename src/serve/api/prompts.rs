//! Prompts in the four forms that clients send: a text, texts, token ids, lists of token ids.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, shown};
use super::served::Inner;

const WANTED: &str = "a text, a list of texts, a list of token ids, or a list of such lists";

/// The prompts of a field as token ids. A text begins as the model's texts do; ids are taken as they are.
pub fn read(fields: &Fields<'_>, name: &str, served: &Inner) -> Result<Vec<Vec<u32>>, ApiError> {
    let value = fields.need(name, WANTED)?;
    let list = match value {
        Value::String(text) => return Ok(vec![served.encode(name, text, true)?]),
        Value::Array(list) if !list.is_empty() => list,
        _ => return Err(fields.wrong(name, WANTED)),
    };
    if list[0].is_number() {
        return Ok(vec![served.judge(name, ids(list, name)?)?]);
    }
    if list.len() > served.prompts {
        let wanted = format!("{} prompts at most", served.prompts);
        return Err(ApiError::field(name, format!("{} prompts", list.len()), wanted));
    }
    let one = |(i, value): (usize, &Value)| {
        let at = format!("{name}[{i}]");
        match value {
            Value::String(text) => served.encode(&at, text, true),
            Value::Array(list) => served.judge(&at, ids(list, &at)?),
            _ => Err(ApiError::field(at, shown(value), WANTED)),
        }
    };
    list.iter().enumerate().map(one).collect()
}

/// The prompts of a field that [`read`] took which are texts, as they were sent.
pub fn texts(fields: &Fields<'_>, name: &str) -> Vec<Option<String>> {
    let text = |value: &Value| value.as_str().map(String::from);
    match fields.get(name) {
        Some(Value::Array(list)) if !list[0].is_number() => list.iter().map(text).collect(),
        value => vec![value.and_then(text)],
    }
}

/// Token ids.
pub fn ids(list: &[Value], name: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::field(format!("{name}[{i}]"), shown(value), "a token id"))
    };
    list.iter().enumerate().map(id).collect()
}
