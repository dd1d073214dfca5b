//! `/tokenize`, `/detokenize`, and what clients ask of a tokenizer that they do not have.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::served::Served;
use super::{Work, prompts};

/// `content` (or `prompt`) as token ids; with `add_special_tokens` as a prompt begins.
pub fn tokenize(fields: &Fields<'_>, served: &Served) -> Result<Work, ApiError> {
    let name = if fields.get("content").is_some() { "content" } else { "prompt" };
    let text = fields.text(name)?.ok_or_else(|| fields.wrong("content", "a text"))?;
    let special = fields.flag("add_special_tokens")?.unwrap_or(false);
    let ids = served.tokenizer.encode_here(text).map_err(|e| ApiError::field(name, e, "a text"))?.ids;
    let ids = if special { [served.tokenizer.prefix(), &ids].concat() } else { ids };
    Ok(Work::Now(json!({ "count": ids.len(), "max_model_len": served.context, "tokens": ids })))
}

/// `tokens` as a text, special ones included.
pub fn detokenize(fields: &Fields<'_>, served: &Served) -> Result<Work, ApiError> {
    let list = fields.list("tokens")?.ok_or_else(|| fields.wrong("tokens", "a list of token ids"))?;
    let text = served.tokenizer.decode(&prompts::ids(list, "tokens")?);
    Ok(Work::Now(json!({ "content": text, "prompt": text })))
}

/// `/tokenizer_info`: lm-eval takes texts apart by these paths where it finds them.
pub fn info(served: &Served) -> Value {
    let tokenizer = &served.tokenizer;
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    json!({
        "eos_token": token(tokenizer.eos()), "bos_token": token(tokenizer.bos()), "vocab_size": tokenizer.vocab_size(),
        "chat_template": tokenizer.chat_template(),
    })
}
