//! JSON schemas, as requests state them and as grammars take them.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;

/// The schema that `response_format`, or `text.format` of a response, asks for; `None`: text.
pub fn read(fields: &Fields<'_>, name: &str) -> Result<Option<Value>, ApiError> {
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
