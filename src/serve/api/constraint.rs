//! What answers must be: JSON by a schema, or calls of tools, as llguidance follows them.

use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::served::Inner;
use super::tools::CallForm;
use crate::text::Tokenizer;

/// What a tokenizer's tokens are to grammars. Rows of the model without a token are never allowed.
/// Special tokens that `calls` is written with are text.
pub fn factory(
    tokenizer: &Tokenizer,
    vocab: usize,
    calls: Option<&CallForm>,
) -> Result<ParserFactory, String> {
    let written = |token: &[u8]| {
        calls.is_some_and(|form| std::str::from_utf8(token).is_ok_and(|token| form.is_written_with(token)))
    };
    let bytes = |id: u32| {
        let text = tokenizer.token_bytes(id);
        if tokenizer.stop_ids().contains(&id) || tokenizer.is_special(id) && !written(&text) {
            return [&[TokTrie::SPECIAL_TOKEN_MARKER], &text[..]].concat();
        }
        text
    };
    let mut words: Vec<Vec<u8>> = (0..vocab as u32).map(bytes).collect();
    // A model that never ends a text gets a token for it that no draw can choose.
    let stops: Vec<u32> = tokenizer.stop_ids().iter().copied().filter(|&id| (id as usize) < vocab).collect();
    let stops = if stops.is_empty() {
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], &b"<end>"[..]].concat());
        vec![vocab as u32]
    } else {
        stops
    };
    let info = TokRxInfo::new(words.len() as u32, stops[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&stops);
    let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
    factory.quiet();
    // Errors go to strangers: without what the parser holds. A state takes 1 to 2 kB.
    *factory.limits_mut() =
        ParserLimits { verbose_errors: false, max_lexer_states: 20_000, ..ParserLimits::default() };
    Ok(factory)
}

/// A constraint, compiled within llguidance's limits of time and size.
pub fn compile(served: &Inner, field: &str, grammar: TopLevelGrammar) -> Result<Matcher, ApiError> {
    let factory = served.grammars()?;
    // The parser is other people's code, and the schema is a stranger's.
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Matcher::new(factory.create_parser(grammar))
    }));
    let matcher = made.map_err(|_| ApiError::field(field, "a schema that cannot be compiled", "another"))?;
    match matcher.get_error() {
        None => Ok(matcher),
        Some(why) => {
            let why: String = why.chars().take(400).collect();
            Err(ApiError { param: Some(field.into()), ..ApiError::invalid(format!("{field}: {why}")) })
        }
    }
}

/// The schema that `response_format`, or `text.format` of a response, asks for; `None`: text.
pub fn schema(fields: &Fields<'_>, name: &str) -> Result<Option<Value>, ApiError> {
    let Some(format) = fields.map(name)? else { return Ok(None) };
    match format.text("type")? {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({ "type": "object" }))),
        Some("json_schema") => {
            // A completion nests it, a response does not.
            let holder = format.map("json_schema")?.unwrap_or(format);
            let schema = holder.need("schema", "a JSON schema")?;
            if !schema.is_object() {
                return Err(holder.wrong("schema", "a JSON schema"));
            }
            Ok(Some(schema.clone()))
        }
        _ => Err(format.wrong("type", "text, json_object or json_schema")),
    }
}

/// JSON by a schema, with a space after colons and commas and no other: a small model could write blanks without end.
pub fn json_grammar(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(compact(schema))
}

/// A schema by which JSON has one form.
pub fn compact(mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        let form = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        schema.entry("x-guidance").or_insert(form);
    }
    schema
}
