//! Calls of tools: how a model's template writes them, what may be written, and what was.

use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, shown};
use super::schema::compact;
use crate::chat::{ChatTemplate, RenderOptions};
use crate::text::Tokenizer;

/// Tools of one request.
const TOOLS: usize = 128;
const NAME: &str = "probe_of_a_name";
const KEY: &str = "probe_of_a_key";

/// How a call is written: a JSON object between two texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallForm {
    before: String,
    after: String,
    /// The keys of the name and of the arguments.
    name: String,
    arguments: String,
}

/// A call that a model wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub name: String,
    /// JSON, as a text.
    pub arguments: String,
}

/// What a request says of tools.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// As the template sees them.
    pub list: Vec<Value>,
    /// Names and schemas of those that may be called.
    callable: Vec<(String, Value)>,
    required: bool,
    parallel: bool,
}

impl CallForm {
    /// Lets the template write a call, and looks where it stands. `None`: it knows no tools, or writes no JSON.
    pub fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<CallForm> {
        let tool = json!({ "type": "function", "function": {
            "name": "a", "description": "b", "parameters": { "type": "object", "properties": {} },
        }});
        let options = |prompt, tools: &[Value]| RenderOptions {
            add_generation_prompt: prompt,
            tools: tools.to_vec(),
            ..RenderOptions::default()
        };
        let user = json!({ "role": "user", "content": "c" });
        let call = json!({ "role": "assistant", "content": "", "tool_calls": [{
            "id": "call00000", "type": "function",
            "function": { "name": NAME, "arguments": { KEY: 1 } },
        }]});
        let tools = std::slice::from_ref(&tool);
        let plain = template.render(std::slice::from_ref(&user), options(true, &[])).ok()?;
        let prompt = template.render(std::slice::from_ref(&user), options(true, tools)).ok()?;
        if plain == prompt {
            return None;
        }
        let written = template.render(&[user, call], options(false, tools)).ok()?;
        let same = prompt.bytes().zip(written.bytes()).take_while(|(a, b)| a == b).count();
        let at = written.rfind(NAME)?;
        let opens = written[..at].rmatch_indices('{').map(|(open, _)| open);
        let (open, end, object) = opens.filter(|&open| open >= same).find_map(|open| {
            let mut values = serde_json::Deserializer::from_str(&written[open..]).into_iter();
            let object: Map<String, Value> = values.next()?.ok()?;
            object.values().any(|value| value == NAME).then(|| (open, open + values.byte_offset(), object))
        })?;
        let key =
            |is: &dyn Fn(&Value) -> bool| object.iter().find(|(_, v)| is(v)).map(|(key, _)| key.clone());
        let (name, arguments) = (key(&|v| v == NAME)?, key(&|v| v.get(KEY).is_some())?);
        let mut after = &written[end..];
        let ends = tokenizer.stop_ids().iter().filter_map(|&id| tokenizer.token(id));
        for stop in ends.filter(|stop| !stop.is_empty()) {
            after = after.split(&stop).next().unwrap_or_default();
        }
        let after = after.trim_end().to_string();
        Some(CallForm { before: written[same..open].to_string(), after, name, arguments })
    }

    /// Whether a token is part of how calls are written.
    pub fn is_written_with(&self, token: &str) -> bool {
        !token.is_empty() && (self.before.contains(token) || self.after.contains(token))
    }

    /// The text that a call begins with.
    pub fn before(&self) -> &str {
        &self.before
    }

    /// What an answer may be: calls, or text, or where there is a schema JSON by it.
    pub fn grammar(&self, tools: &Tools, schema: Option<Value>) -> TopLevelGrammar {
        let one = |(name, schema): &(String, Value)| {
            json!({
                "type": "object", "additionalProperties": false,
                "properties": { &self.name: { "const": name }, &self.arguments: schema },
                "required": [&self.name, &self.arguments],
            })
        };
        let any: Vec<Value> = tools.callable.iter().map(one).collect();
        let object = compact(json!({ "anyOf": any }));
        // A text in JSON is one in a grammar.
        let [before, after] = [&self.before, &self.after].map(|text| match text.is_empty() {
            true => String::new(),
            false => json!(text).to_string(),
        });
        let more = if tools.parallel { "call (\"\\n\"? call)*" } else { "call" };
        let call = format!("call: {before} object {after}\n");
        let start = match (tools.required, schema) {
            (true, _) => format!("start: {more}\n{call}"),
            (false, Some(schema)) => {
                format!("start: {more} | answer\n{call}answer: %json {}\n", compact(schema))
            }
            (false, None) if self.before.is_empty() => {
                format!("start: {more} | TEXT\n{call}TEXT: /([^{{](.|\\n)*)?/\n")
            }
            (false, None) => {
                let times = if tools.parallel { "*" } else { "?" };
                format!(
                    "start: said{times} TEXT\nsaid: open object {after}\nopen[lazy]: /(.|\\n)*/ {before}\n\
                     TEXT: /(.|\\n)*/\n"
                )
            }
        };
        TopLevelGrammar::from_lark(format!("{start}object: %json {object}\n"))
    }

    /// What an answer says besides its calls, and these.
    pub fn parse(&self, text: &str) -> (String, Vec<Call>) {
        let (mut said, mut calls, mut rest) = (String::new(), Vec::new(), text);
        while let Some(at) = rest.find(&self.before) {
            let inside = &rest[at + self.before.len()..];
            let mut values = serde_json::Deserializer::from_str(inside).into_iter::<Map<String, Value>>();
            let call = match values.next() {
                Some(Ok(object)) => self.call(&object),
                _ => None,
            };
            let Some(call) = call else { break };
            said.push_str(rest[..at].trim());
            calls.push(call);
            let tail = &inside[values.byte_offset()..];
            rest = tail.strip_prefix(&self.after).unwrap_or(tail);
            if self.before.is_empty() && !rest.trim_start().starts_with('{') {
                break;
            }
        }
        if calls.is_empty() { (text.to_string(), calls) } else { (said + rest.trim(), calls) }
    }

    fn call(&self, object: &Map<String, Value>) -> Option<Call> {
        let name = object.get(&self.name)?.as_str()?.to_string();
        Some(Call { name, arguments: object.get(&self.arguments)?.to_string() })
    }
}

impl Tools {
    /// `tools`, `tool_choice` and `parallel_tool_calls`; `None`: no tool may be called.
    pub fn read(fields: &Fields<'_>) -> Result<Option<Tools>, ApiError> {
        let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        let list = fields.list("tools")?.unwrap_or_default();
        if list.len() > TOOLS {
            return Err(fields.wrong("tools", format!("{TOOLS} at most")));
        }
        let mut callable = Vec::new();
        for (i, tool) in list.iter().enumerate() {
            let tool = Fields::inside(tool, format!("tools[{i}]"))?;
            if tool.text("type")?.is_some_and(|kind| kind != "function") {
                return Err(tool.wrong("type", "function"));
            }
            let function = Fields::inside(tool.need("function", "an object")?, tool.name("function"))?;
            let name = function.text("name")?.filter(|name| !name.is_empty() && name.len() <= 256);
            let name = name.ok_or_else(|| function.wrong("name", "a text of 1 to 256 bytes"))?;
            let any = json!({ "type": "object" });
            let schema = function.map("parameters")?.map_or(any, |p| Value::Object(p.object().clone()));
            callable.push((name.to_string(), schema));
        }
        let mut required = false;
        match fields.get("tool_choice") {
            None => {}
            Some(choice) if choice == "auto" => {}
            Some(choice) if choice == "none" => return Ok(None),
            Some(choice) if choice == "required" => required = true,
            Some(choice) => {
                let name = choice["function"]["name"].as_str();
                callable.retain(|(tool, _)| Some(tool.as_str()) == name);
                if callable.is_empty() {
                    let wanted = "auto, none, required, or a function among tools";
                    return Err(ApiError::field("tool_choice", shown(choice), wanted));
                }
                required = true;
            }
        }
        if callable.is_empty() {
            return match required {
                true => {
                    Err(ApiError::field("tools", "none", "one at least, since tool_choice requires a call"))
                }
                false => Ok(None),
            };
        }
        Ok(Some(Tools { list: list.to_vec(), callable, required, parallel }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(before: &str, after: &str) -> CallForm {
        CallForm {
            before: before.into(),
            after: after.into(),
            name: "name".into(),
            arguments: "arguments".into(),
        }
    }

    #[test]
    fn calls_are_taken_out_of_a_text() {
        let tags = form("<tool_call>\n", "\n</tool_call>");
        let call =
            |n: i32| format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {{\"n\": {n}}}}}\n</tool_call>");
        let (said, calls) = tags.parse(&format!("Well.\n{}\n{}", call(1), call(2)));
        assert_eq!((said.as_str(), calls.len()), ("Well.", 2));
        assert_eq!(calls[1], Call { name: "f".into(), arguments: "{\"n\":2}".into() });
        for text in ["plain", "<tool_call>\n{\"name\": 3}\n</tool_call>", "<tool_call>\n{\"na", ""] {
            assert_eq!(tags.parse(text), (text.to_string(), Vec::new()));
        }
        let bare = form("", "");
        assert_eq!(bare.parse("{\"name\": \"f\", \"arguments\": {}}").1.len(), 1);
        assert_eq!(bare.parse("no {\"name\": \"f\", \"arguments\": {}}").1.len(), 0);
    }
}
