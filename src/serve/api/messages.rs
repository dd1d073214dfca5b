//! Conversations as clients send them, as templates expect them.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, shown};
use super::served::Inner;
use super::tools::Tools;
use crate::chat::RenderOptions;

/// Messages of a conversation.
const MESSAGES: usize = 4096;

/// The messages of a list: roles, contents as texts, calls with their arguments as objects.
pub fn read(list: &[Value], at: &str) -> Result<Vec<Value>, ApiError> {
    if list.is_empty() || list.len() > MESSAGES {
        return Err(ApiError::field(
            at,
            format!("a list of {}", list.len()),
            format!("1 to {MESSAGES} messages"),
        ));
    }
    let one = |(i, message): (usize, &Value)| {
        let fields = Fields::inside(message, format!("{at}[{i}]"))?;
        let role = match fields.text("role")? {
            // The newer name of the same.
            Some("developer") => "system",
            Some(role) if !role.is_empty() => role,
            _ => return Err(fields.wrong("role", "system, user, assistant or tool")),
        };
        let mut out = Map::from_iter([("role".to_string(), json!(role))]);
        let content = content(&fields, "content")?;
        let calls = fields.list("tool_calls")?;
        if content.is_none() && calls.is_none() {
            return Err(fields.wrong("content", "a text, or a list of parts with text"));
        }
        out.insert("content".into(), content.unwrap_or_default().into());
        if let Some(calls) = calls {
            let calls = calls
                .iter()
                .enumerate()
                .map(|(c, call)| tool_call(call, &format!("{}[{c}]", fields.name("tool_calls"))));
            out.insert("tool_calls".into(), calls.collect::<Result<Value, ApiError>>()?);
        }
        for name in ["name", "tool_call_id", "reasoning_content"] {
            if let Some(text) = fields.text(name)? {
                out.insert(name.into(), text.into());
            }
        }
        Ok(Value::Object(out))
    };
    list.iter().enumerate().map(one).collect()
}

/// A text, or the texts of a list of parts, a line each.
pub fn content(fields: &Fields<'_>, name: &str) -> Result<Option<String>, ApiError> {
    let parts = match fields.get(name) {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(fields.wrong(name, "a text, or a list of parts with text")),
    };
    let texts =
        parts.iter().enumerate().map(|(i, part)| text_of(part, &format!("{}[{i}]", fields.name(name))));
    Ok(Some(texts.collect::<Result<Vec<&str>, ApiError>>()?.join("\n")))
}

/// The text of a part of a content.
fn text_of<'a>(part: &'a Value, at: &str) -> Result<&'a str, ApiError> {
    if let Value::String(text) = part {
        return Ok(text);
    }
    let part = Fields::inside(part, at)?;
    match part.text("type")? {
        Some("text" | "input_text" | "output_text") => {
            part.text("text")?.ok_or_else(|| part.wrong("text", "a text"))
        }
        _ => Err(part.wrong("type", "text: this model reads nothing else")),
    }
}

/// A call that the assistant made. Clients send its arguments as a text that holds JSON; templates write JSON.
fn tool_call(call: &Value, at: &str) -> Result<Value, ApiError> {
    let fields = Fields::inside(call, at)?;
    let function = Fields::inside(fields.need("function", "an object")?, fields.name("function"))?;
    let name = function.text("name")?.ok_or_else(|| function.wrong("name", "a text"))?;
    let arguments = match function.get("arguments") {
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| text.clone().into()),
        Some(other) => other.clone(),
        None => json!({}),
    };
    let mut out = json!({ "type": "function", "function": { "name": name, "arguments": arguments } });
    if let Some(id) = fields.text("id")? {
        out["id"] = id.into();
    }
    Ok(out)
}

/// The prompt of a conversation.
pub fn prompt(
    served: &Inner,
    messages: &[Value],
    at: &str,
    tools: Option<&Tools>,
    variables: Map<String, Value>,
) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &served.template else {
        let why =
            format!("{} has no chat template: use /v1/completions, or serve it with --template", served.name);
        return Err(ApiError::invalid(why));
    };
    let options = RenderOptions {
        add_generation_prompt: true,
        tools: tools.map(|tools| tools.list.clone()).unwrap_or_default(),
        variables,
        ..RenderOptions::default()
    };
    let text = template.render(messages, options).map_err(|e| {
        // No path of the file system goes to a client.
        let why = match e {
            crate::Error::Usage(why) => {
                why.rsplit("rejects these messages: ").next().unwrap_or_default().to_string()
            }
            crate::Error::Input { found, .. } => found,
            _ => "it fails".into(),
        };
        ApiError::field(at, format!("messages that the chat template refuses ({why})"), "others")
    })?;
    // The template has written the special tokens already.
    Ok(served.encode(at, &text, false)?.ids)
}

/// `chat_template_kwargs`: variables of the template.
pub fn variables(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let Some(map) = fields.map("chat_template_kwargs")? else { return Ok(Map::new()) };
    let known = ["messages", "tools", "documents", "add_generation_prompt"];
    match map.object().keys().find(|key| known.contains(&key.as_str())) {
        Some(key) => Err(ApiError::field(
            map.name(key),
            shown(&map.object()[key]),
            "a variable that is the template's own",
        )),
        None => Ok(map.object().clone()),
    }
}
