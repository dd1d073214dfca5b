//! Prompts in the four forms that clients send: a text, texts, token ids, lists of token ids.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, shown};
use super::served::Inner;
use crate::text::Encoded;

const WANTED: &str = "a text, a list of texts, a list of token ids, or a list of such lists";

/// A prompt as token ids.
pub struct Prompt {
    pub ids: Vec<u32>,
    /// The text as it was sent, and the bytes of it that each token stands for; `None`: ids were.
    pub sent: Option<(String, Vec<u32>)>,
}

/// The prompts of a field. A text begins as the model's texts do; ids are taken as they are.
pub fn read(fields: &Fields<'_>, name: &str, served: &Inner) -> Result<Vec<Prompt>, ApiError> {
    let value = fields.need(name, WANTED)?;
    let of_text = |at: &str, text: &str| {
        let Encoded { ids, bytes } = served.encode(at, text, true)?;
        Ok(Prompt { ids, sent: Some((text.to_string(), bytes)) })
    };
    let of_ids = |at: &str, list: &[Value]| Ok(Prompt { ids: served.judge(at, ids(list, at)?)?, sent: None });
    let list = match value {
        Value::String(text) => return Ok(vec![of_text(name, text)?]),
        Value::Array(list) if !list.is_empty() => list,
        _ => return Err(fields.wrong(name, WANTED)),
    };
    if list[0].is_number() {
        return Ok(vec![of_ids(name, list)?]);
    }
    if list.len() > served.prompts {
        let wanted = format!("{} prompts at most", served.prompts);
        return Err(ApiError::field(name, format!("{} prompts", list.len()), wanted));
    }
    let one = |(i, value): (usize, &Value)| {
        let at = format!("{name}[{i}]");
        match value {
            Value::String(text) => of_text(&at, text),
            Value::Array(list) => of_ids(&at, list),
            _ => Err(ApiError::field(at, shown(value), WANTED)),
        }
    };
    list.iter().enumerate().map(one).collect()
}

/// Token ids.
pub fn ids(list: &[Value], name: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::field(format!("{name}[{i}]"), shown(value), "a token id"))
    };
    list.iter().enumerate().map(id).collect()
}
