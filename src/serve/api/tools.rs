//! Calls of tools: how a model's template writes them, what may be written, and what was.

use std::collections::BTreeMap;
use std::ops::Range;

use llguidance::api::TopLevelGrammar;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, shown};
use super::schema::compact;
use crate::chat::{ChatTemplate, RenderOptions};
use crate::generate::begun;
use crate::text::Tokenizer;

/// Tools of one request.
const TOOLS: usize = 128;
const TEXT: &str = "probe_of_a_text";
const NAME: &str = "probe_of_a_name";
const KEY: &str = "probe_of_a_key";

/// How a call is written: a JSON object between two texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallForm {
    before: String,
    after: String,
    several: Several,
    /// The keys of the name and of the arguments, and whether the name comes first.
    name: String,
    arguments: String,
    name_first: bool,
}

/// How more than one call is written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Several {
    /// The template takes one alone.
    Not,
    /// Each between texts of its own.
    Apart,
    /// All between the same two texts, with this in between.
    Listed(String),
}

/// A call that a model wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub name: String,
    /// JSON, as it was written.
    pub arguments: String,
}

/// An answer with calls in it.
#[derive(Debug, Default, PartialEq)]
pub struct Written {
    /// Before the first call, as it stands.
    pub said: String,
    pub calls: Vec<Call>,
    /// Between and after calls, each part without the space around it, a line each.
    pub more: String,
}

impl Written {
    /// What stands between the text before the first call and that behind it.
    pub fn joint(&self) -> &'static str {
        let parted = self.said.is_empty() || self.said.ends_with(char::is_whitespace);
        if self.more.is_empty() || parted { "" } else { "\n" }
    }

    fn push(&mut self, text: &str) {
        let text = text.trim();
        if !text.is_empty() {
            self.more += if self.more.is_empty() { "" } else { "\n" };
            self.more += text;
        }
    }
}

/// What a request says of tools.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// As the template sees them.
    pub list: Vec<Value>,
    /// Names and schemas of those that may be called.
    callable: Vec<(String, Value)>,
    required: bool,
    /// Whether an answer may hold several calls.
    pub parallel: bool,
}

/// Where the object of a probe stands.
struct Found {
    object: Map<String, Value>,
    place: Range<usize>,
}

/// The call of [`NAME`] that stands last in `written` up to `to`, from `from` on.
fn last_call(written: &str, from: usize, to: usize) -> Option<Found> {
    let at = written[..to].rfind(NAME)?;
    let opens = written[..at].rmatch_indices('{').map(|(open, _)| open);
    opens.take_while(|&open| open >= from).find_map(|open| {
        let mut values = serde_json::Deserializer::from_str(&written[open..]).into_iter();
        let object: Map<String, Value> = values.next()?.ok()?;
        let place = open..open + values.byte_offset();
        object.values().any(|value| value == NAME).then_some(Found { object, place })
    })
}

impl CallForm {
    /// Lets the template write calls, and looks where they stand. `None`: it knows no tools, or writes no JSON.
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
        let tools = std::slice::from_ref(&tool);
        let plain = template.render(std::slice::from_ref(&user), options(true, &[])).ok()?;
        let prompt = template.render(std::slice::from_ref(&user), options(true, tools)).ok()?;
        if plain == prompt {
            return None;
        }
        let written = |calls: usize| {
            let call = json!({
                "id": "call00000", "type": "function",
                "function": { "name": NAME, "arguments": { KEY: 1 } },
            });
            let turn = json!({ "role": "assistant", "content": TEXT, "tool_calls": vec![call; calls] });
            template.render(&[user.clone(), turn], options(false, tools)).ok()
        };
        let one = written(1)?;
        let mut from = prompt.bytes().zip(one.bytes()).take_while(|(a, b)| a == b).count();
        // A template may write more than the call, as an empty thought: what follows the text of the turn is the call's.
        if let Some(at) = one.rfind(TEXT) {
            from = from.max(at + TEXT.len());
        }
        while !one.is_char_boundary(from) {
            from -= 1;
        }
        let Found { object, place } = last_call(&one, from, one.len())?;
        let key = |is: &dyn Fn(&Value) -> bool| object.iter().position(|(_, v)| is(v));
        let (name_at, arguments_at) = (key(&|v| v == NAME)?, key(&|v| v.get(KEY).is_some())?);
        let named = |at: usize| object.keys().nth(at).cloned();
        let mut after = &one[place.end..];
        let ends = tokenizer.stop_ids().iter().filter_map(|&id| tokenizer.token(id));
        for stop in ends.filter(|stop| !stop.is_empty()) {
            after = after.split(&stop).next().unwrap_or_default();
        }
        let before = one[from..place.start].trim_start().to_string();
        // A bracket alone is no mark: texts hold others.
        if !before.is_empty() && !before.contains(char::is_alphabetic) {
            return None;
        }
        let (mut after, mut several) = (after.trim_end().to_string(), Several::Not);
        if let Some((between, behind)) = written(2).as_deref().and_then(|two| around_second(two, from)) {
            let same = between.chars().zip(behind.chars()).take_while(|(a, b)| a == b);
            let end: String = same.map(|(a, _)| a).collect();
            let end = end.trim_end();
            several = if !end.is_empty() && between[end.len()..].trim_start() == before {
                after = end.to_string();
                Several::Apart
            } else {
                Several::Listed(between.to_string())
            };
        }
        let (name, arguments) = (named(name_at)?, named(arguments_at)?);
        Some(CallForm { before, after, several, name, arguments, name_first: name_at < arguments_at })
    }

    /// Whether a token is part of how calls are written.
    pub fn is_written_with(&self, token: &str) -> bool {
        let between = if let Several::Listed(between) = &self.several { between } else { "" };
        !token.is_empty() && [&self.before, &self.after, between].iter().any(|text| text.contains(token))
    }

    /// The form where one call is allowed.
    pub fn single(self) -> Self {
        Self { several: Several::Not, ..self }
    }

    /// The text that a call begins with.
    pub fn before(&self) -> &str {
        &self.before
    }

    /// What an answer may be: calls, or text, or where there is a schema JSON by it.
    pub fn grammar(&self, tools: &Tools, schema: Option<Value>) -> TopLevelGrammar {
        // A text in JSON is one in a grammar.
        let quoted = |text: &str| if text.is_empty() { String::new() } else { json!(text).to_string() };
        let [before, after] = [&self.before, &self.after].map(|text| quoted(text));
        let one = |(name, schema): &(String, Value)| {
            let [name_key, name, key] =
                [&self.name, name, &self.arguments].map(|text| json!(text).to_string());
            // Each schema is the root of its own, to which its references are.
            let arguments = format!("%json {}", compact(schema.clone()));
            match self.name_first {
                true => {
                    let opens = quoted(&format!("{{{name_key}: {name}, {key}: "));
                    format!("{opens} {arguments} \"}}\"")
                }
                false => {
                    let closes = quoted(&format!(", {name_key}: {name}}}"));
                    format!("{} {arguments} {closes}", quoted(&format!("{{{key}: ")))
                }
            }
        };
        let object: Vec<String> = tools.callable.iter().map(one).collect();
        let object = format!("object: {}\n", object.join("\n    | "));
        let objects = match &self.several {
            Several::Listed(between) => format!("object ({} object)*", quoted(between)),
            _ => "object".to_string(),
        };
        let more = if self.several == Several::Apart { "call (\"\\n\"? call)*" } else { "call" };
        let call = format!("call: {before} {objects} {after}\n");
        let start = match (tools.required, schema) {
            (true, _) => format!("start: {more}\n{call}"),
            (false, Some(schema)) => {
                format!("start: {more} | answer\n{call}answer: %json {}\n", compact(schema))
            }
            (false, None) if self.before.is_empty() => {
                format!("start: {more} | TEXT\n{call}TEXT: /([^{{](.|\\n)*)?/\n")
            }
            (false, None) => {
                let times = if self.several == Several::Not { "?" } else { "*" };
                format!(
                    "start: said{times} TEXT\nsaid: open {objects} {after}\nopen[lazy]: /(.|\\n)*/ {before}\n\
                     TEXT: /(.|\\n)*/\n"
                )
            }
        };
        TopLevelGrammar::from_lark(start + &object)
    }

    /// What an answer says, and its calls. Of one that was `cut` short the beginning of a call is left out.
    pub fn parse(&self, text: &str, cut: bool) -> Written {
        let (mut written, mut rest, mut listed, mut half) = (Written::default(), text, false, false);
        loop {
            let next = match listed {
                true => Some(("", rest)),
                // Without a mark a call is known by its first character.
                false if self.before.is_empty() && !text.starts_with('{') => None,
                false => rest.split_once(&self.before),
            };
            let Some((said, inside)) = next else { break };
            let (call, length) = match self.object(inside) {
                Ok(found) => found,
                Err(torn) => {
                    half = torn && cut;
                    rest = if half { said } else { rest };
                    break;
                }
            };
            match written.calls.is_empty() {
                true => written.said = said.to_string(),
                false => written.push(said),
            }
            written.calls.push(call);
            let tail = &inside[length..];
            let more = match &self.several {
                Several::Listed(between) => tail.strip_prefix(between.as_str()),
                _ => None,
            };
            listed = more.is_some();
            rest = more.or(tail.strip_prefix(&self.after)).unwrap_or(tail);
            if self.several == Several::Not
                || !listed && self.before.is_empty() && !rest.trim_start().starts_with('{')
            {
                break;
            }
        }
        // As far as a mark was written; before the first call a single character is any text's, and nothing has an end.
        let part = match written.calls.is_empty() {
            true => Some(begun(rest, &self.before)).filter(|&part| part > 1),
            false => Some(begun(rest, &self.before).max(begun(rest, &self.after))),
        };
        let part = part.filter(|_| cut && !half).unwrap_or(0);
        let rest = &rest[..rest.len() - part];
        match written.calls.is_empty() {
            true => written.said = rest.to_string(),
            false => written.push(rest),
        }
        written
    }

    /// The call at the beginning of `text`, and its length; whether it ends too soon to be one.
    fn object(&self, text: &str) -> Result<(Call, usize), bool> {
        let mut values =
            serde_json::Deserializer::from_str(text).into_iter::<BTreeMap<String, Box<RawValue>>>();
        let object = values.next().ok_or(true)?.map_err(|error| error.is_eof())?;
        let name = object.get(&self.name).and_then(|name| serde_json::from_str(name.get()).ok());
        let (name, arguments) = name.zip(object.get(&self.arguments)).ok_or(false)?;
        Ok((Call { name, arguments: arguments.get().to_string() }, values.byte_offset()))
    }
}

/// What stands between the two calls of a probe, from `from` on, and what behind the second.
fn around_second(written: &str, from: usize) -> Option<(&str, &str)> {
    let second = last_call(written, from, written.len())?.place;
    let first = last_call(written, from, second.start)?.place;
    Some((&written[first.end..second.start], &written[second.end..]))
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
    use crate::text::BpeTrainer;

    fn form(before: &str, after: &str, several: Several) -> CallForm {
        let [before, after] = [before, after].map(String::from);
        let [name, arguments] = ["name", "arguments"].map(String::from);
        CallForm { before, after, several, name, arguments, name_first: true }
    }

    fn call(n: u64) -> String {
        format!("{{\"name\": \"f\", \"arguments\": {{\"n\": {n}}}}}")
    }

    fn whole(said: &str, calls: usize, more: &str) -> (String, usize, String) {
        (said.into(), calls, more.into())
    }

    #[test]
    fn calls_are_taken_out_of_a_text() {
        let tags = form("<tool_call>\n", "\n</tool_call>", Several::Apart);
        let tagged = |n| format!("<tool_call>\n{}\n</tool_call>", call(n));
        let parts = |form: &CallForm, text: &str, cut| {
            let Written { said, calls, more } = form.parse(text, cut);
            (said, calls.len(), more)
        };
        // More than 64 bits: as it was written.
        let second = call(2).replace('2', "123456789012345678901");
        let second = format!("<tool_call>\n{second}\n</tool_call>");
        let text = format!("Well.\n{}\nAnd\n{second} Done.", tagged(1));
        assert_eq!(parts(&tags, &text, false), whole("Well.\n", 2, "And\nDone."));
        let arguments = "{\"n\": 123456789012345678901}".to_string();
        assert_eq!(tags.parse(&text, false).calls[1], Call { name: "f".into(), arguments });
        assert_eq!(parts(&tags.clone().single(), &text, false).1, 1, "what follows is text");
        for text in ["plain", "<tool_call>\n{\"name\": 3}\n</tool_call>", "<tool_call>\n{\"na", "a <", ""] {
            assert_eq!(parts(&tags, text, false), whole(text, 0, ""));
        }
        // Cut short, it shows no half of a call.
        let two = format!("So: {}\n{}", tagged(1), tagged(2));
        for end in 0..=two.len() {
            let (said, calls, more) = parts(&tags, &two[..end], true);
            let one = "So: ".len() + tagged(1).len() - "\n</tool_call>".len();
            assert_eq!(
                calls,
                usize::from(end >= one) + usize::from(end >= two.len() - "\n</tool_call>".len())
            );
            assert!(more.is_empty() && (calls == 0 || said == "So: "), "{end}: {said:?}, {more:?}");
            assert!(said.len() <= "So: <".len(), "{end}: {said:?}");
        }
        assert_eq!(parts(&tags, "<div>\n</", true), whole("<div>\n</", 0, ""), "the end of no call");
        assert_eq!(parts(&tags, "<tool<tool_call>\n{\"na", true), whole("<tool", 0, ""));
        let bare = form("", "", Several::Not);
        assert_eq!(parts(&bare, &call(1), false), whole("", 1, ""));
        let spaced = format!(" {}", call(1));
        assert_eq!(parts(&bare, &spaced, false), whole(&spaced, 0, ""));
        assert_eq!(parts(&bare, &format!("no {}", call(1)), false).1, 0);
        let list = form("[CALLS][", "]", Several::Listed(", ".into()));
        let text = format!("[CALLS][{}, {}] So.", call(1), call(2));
        assert_eq!(parts(&list, &text, false), whole("", 2, "So."));
        let torn = format!("[CALLS][{}, {{\"name", call(1));
        assert_eq!(parts(&list, &torn, true), whole("", 1, ""));
    }

    /// What answers are held to, by the tokens of bytes.
    #[test]
    fn answers_keep_to_the_form_and_to_schemas() {
        let integer = json!({ "type": "object", "additionalProperties": false, "required": ["n"],
            "properties": { "n": { "type": "integer" } } });
        let tools = |required, parallel| Tools {
            callable: vec![("f".into(), integer.clone())],
            required,
            parallel,
            ..Tools::default()
        };
        let takes = |form: &CallForm, tools: &Tools, schema: Option<Value>, text: &str| {
            let bytes = Tokenizer::open("bytes").unwrap();
            let factory = super::super::vocabulary::factory(&bytes, 256, Some(form)).unwrap();
            let mut matcher = llguidance::Matcher::new(factory.create_parser(form.grammar(tools, schema)));
            assert_eq!(matcher.get_error(), None);
            let mut byte = |byte: u8| {
                let allowed = matcher.compute_mask().is_ok_and(|mask| mask.is_allowed(byte.into()));
                allowed && matcher.consume_token(byte.into()).is_ok()
            };
            text.bytes().all(&mut byte) && matcher.is_accepting().unwrap()
        };
        let tags = form("<call>", "</call>", Several::Apart);
        let list = form("[CALLS][", "]", Several::Listed(", ".into()));
        let tagged = |call: &str| format!("<call>{call}</call>");
        let (good, other) = (call(1), call(1).replace("\"f\"", "\"g\""));
        let wrong = call(1).replace("1", "\"a\"");
        for required in [false, true] {
            let many = tools(required, true);
            let one = tools(required, false);
            assert!(
                takes(&tags, &many, None, &tagged(&good))
                    && takes(&tags.clone().single(), &one, None, &tagged(&good))
            );
            assert!(takes(&tags, &many, None, &format!("{}\n{}", tagged(&good), tagged(&good))));
            assert!(takes(&list, &many, None, &format!("[CALLS][{good}, {good}]")));
            for bad in [&other, &wrong] {
                assert!(!takes(&tags, &many, None, &tagged(bad)), "{bad}");
                assert!(!takes(&tags, &many, None, &format!("{}\n{}", tagged(&good), tagged(bad))), "{bad}");
                assert!(!takes(&list, &many, None, &format!("[CALLS][{good}, {bad}]")), "{bad}");
                assert!(!takes(&list, &many, None, &format!("[CALLS][{good}] [CALLS][{bad}]")), "{bad}");
            }
            for form in [&tags, &list] {
                assert_eq!(takes(form, &many, None, "Only text."), !required);
            }
        }
        let said = format!("Well.\n{}\nDone.", tagged(&good));
        assert!(
            takes(&tags, &tools(false, true), None, &said) && !takes(&tags, &tools(true, true), None, &said)
        );
        assert!(!takes(&tags.clone().single(), &tools(true, false), None, &tagged(&good).repeat(2)));
        // Beside a schema an answer is a call or by that.
        let either = |text: &str| takes(&tags, &tools(false, true), Some(json!({ "type": "boolean" })), text);
        assert!(either("true") && either(&tagged(&good)) && !either("1") && !either(&tagged(&wrong)));
        // Without a mark it is a call from its first character on.
        let bare = form("", "", Several::Not);
        assert!(
            takes(&bare, &tools(false, true), None, &good) && takes(&bare, &tools(false, true), None, "a {")
        );
        assert!(!takes(&bare, &tools(false, true), None, &wrong));
    }

    #[test]
    fn the_forms_of_known_templates() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chat_templates/templates/");
        let dir = tempfile::tempdir().unwrap();
        let special = ["<s>", "</s>"].map(String::from).into();
        let text = [Ok("a text".to_string())].into_iter();
        BpeTrainer { vocab_size: 260, special }.train(text, |_, _| {}).unwrap().save(dir.path()).unwrap();
        let tokens = r#"{"bos_token": "<s>", "eos_token": "</s>"}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), tokens).unwrap();
        let tokenizer = Tokenizer::at(dir.path()).unwrap();
        let of = |file: &str| {
            let template = ChatTemplate::from_file(format!("{folder}{file}.jinja").as_ref(), &tokenizer);
            CallForm::of(&template.unwrap(), &tokenizer)
        };
        // A thought before the call, here an empty one, is not part of it.
        let tags = form("<tool_call>\n", "\n</tool_call>", Several::Apart);
        assert_eq!(of("Qwen-Qwen3-0.6B"), Some(tags.clone()));
        assert_eq!(of("Qwen-Qwen2.5-7B-Instruct"), Some(tags));
        let list = form("[TOOL_CALLS][", "]", Several::Listed(", ".into()));
        assert_eq!(of("mistralai-Mistral-Nemo-Instruct-2407"), Some(list));
        assert_eq!(of("SmolLM2-135M-Instruct"), None, "knows no tools");
    }
}
