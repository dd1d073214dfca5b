//! Chat templates: how a conversation becomes the text a model was trained on.

use minijinja::value::{Rest, Serde};
use minijinja::{Error as TemplateError, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

mod budget;
mod filters;
mod format;
mod guard;
mod json;
mod methods;
mod ops;
mod predicates;
mod rewrite;
mod sequences;
mod strftime;
mod values;

use self::strftime::strftime;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::text::Tokenizer;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant` in most templates.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a template may see besides the messages. `bool` converts: with or without the generation prompt.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Ends the text with the beginning of the assistant's next turn.
    pub add_generation_prompt: bool,
    /// JSON schemas of functions, in the form of the OpenAI API. Empty: the template sees none.
    pub tools: Vec<Json>,
    /// Documents with `title` and `text`, for retrieval. Empty: the template sees none.
    pub documents: Vec<Json>,
    /// Other variables by name (`enable_thinking` and the like); they win over special tokens.
    pub variables: Map<String, Json>,
    /// The time of `strftime_now` in seconds since 1970, UTC; `None`: now.
    pub now: Option<u64>,
}

impl From<bool> for RenderOptions {
    fn from(add_generation_prompt: bool) -> Self {
        Self { add_generation_prompt, ..Self::default() }
    }
}

/// The Jinja template of a model, with the special tokens it may mention.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// Named in errors.
    file: PathBuf,
    /// `bos_token` and the like, with their text.
    tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// The template that came with a tokenizer; `None`: none did.
    ///
    /// # Errors
    /// A template that is too long, or no Jinja.
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let Some((source, file)) = tokenizer.chat_template_file() else { return Ok(None) };
        Self::new(source.into(), file.into(), tokenizer.named_tokens().to_vec()).map(Some)
    }

    /// Takes the template from `file`; the special tokens that it may mention are the tokenizer's.
    ///
    /// # Errors
    /// A file that cannot be read, and those of [`ChatTemplate::of`].
    pub fn from_file(file: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let source = read_text(file, guard::MAX_TEMPLATE as u64)?;
        Self::new(source, file.into(), tokenizer.named_tokens().to_vec())
    }

    fn new(source: String, file: PathBuf, tokens: Vec<(String, String)>) -> Result<ChatTemplate> {
        if source.len() > guard::MAX_TEMPLATE {
            let wanted = format!("at most {}", guard::MAX_TEMPLATE);
            return Err(Error::input(file, "chat_template", format!("{} bytes", source.len()), wanted));
        }
        let source = without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"));
        guard::check(&source).map_err(|e| Error::input(&file, "chat_template", e, TEMPLATE))?;
        Ok(Self { source, file, tokens })
    }

    /// The conversation as one text. A message is a [`Message`] or whatever else serialises to an object with a role;
    /// its keys keep their order. `options`: `true` for a prompt that ends with the beginning of the assistant's
    /// next turn.
    ///
    /// # Errors
    /// [`Error::Usage`] when the template itself rejects the conversation (`raise_exception`) or a message is no
    /// object, [`Error::Input`] when it fails or asks for unreasonable amounts of time or memory.
    pub fn render<M: Serialize>(&self, messages: &[M], options: impl Into<RenderOptions>) -> Result<String> {
        let options = options.into();
        let messages: Vec<Json> = messages.iter().map(as_templates_expect).collect::<Result<_>>()?;
        let mut variables: Vec<(String, Value)> =
            self.tokens.iter().map(|(name, text)| (name.clone(), text.into())).collect();
        let list = |list: &[Json]| if list.is_empty() { Value::from(()) } else { Serde(list).into() };
        variables.extend([
            ("messages".into(), Serde(&messages).into()),
            ("tools".into(), list(&options.tools)),
            ("documents".into(), list(&options.documents)),
            ("add_generation_prompt".into(), options.add_generation_prompt.into()),
        ]);
        let named = options.variables.iter().filter(|(name, _)| can_be_said(name));
        variables.extend(named.map(|(name, value)| (name.clone(), Serde(value).into())));
        let context = Value::from_pairs(variables);
        let raised = Arc::new(Mutex::new(None));
        let now = options
            .now
            .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        let slot = raised.clone();
        let rendered = guard::render(&self.source, context, |env, budget| {
            let paid = budget.clone();
            env.add_function("raise_exception", move |args: Rest<Value>| -> Result<Value, TemplateError> {
                let text = args.first().map_or(Ok(String::new()), |value| values::text(&paid, value))?;
                *slot.lock().unwrap_or_else(|e| e.into_inner()) = Some(text);
                Err(TemplateError::new(ErrorKind::InvalidOperation, "raise_exception"))
            });
            // A date is short; a long format is a mistake or worse.
            env.add_function("strftime_now", move |format: &str| {
                strftime(&format.chars().take(256).collect::<String>(), now)
            });
        });
        let raised = raised.lock().unwrap_or_else(|e| e.into_inner()).take();
        match (rendered, raised) {
            (Ok(text), _) => Ok(text),
            (Err(_), Some(reason)) => Err(Error::usage(format!(
                "the chat template of {} rejects these messages: {reason}",
                self.file.display()
            ))),
            (Err(e), None) => Err(Error::input(&self.file, "chat_template", e, TEMPLATE)),
        }
    }
}

const TEMPLATE: &str = "a Jinja chat template";

/// Whether a template can say a variable of this name. Some of the other names are operators here, which no variable is to hide.
fn can_be_said(name: &str) -> bool {
    name != "in" && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// A message as `apply_chat_template` hands it to a template: without keys that are null, and with thoughts, which go
/// by three names, under those that templates read.
fn as_templates_expect(message: &impl Serialize) -> Result<Json> {
    let message = serde_json::to_value(message).map_err(|e| Error::usage(format!("a chat message: {e}")))?;
    let Json::Object(mut message) = message else {
        return Err(Error::usage(format!("a chat message is an object with a role, not {message}")));
    };
    message.retain(|_, value| !value.is_null());
    let thoughts = ["reasoning_content", "thinking", "reasoning"];
    if let Some(thought) = thoughts.into_iter().find_map(|name| message.get(name)).cloned() {
        let mut renamed = Map::from_iter([("thinking".to_owned(), thought.clone())]);
        renamed.extend(message);
        renamed.insert("reasoning_content".into(), thought);
        message = renamed;
    }
    Ok(Json::Object(message))
}

/// Hugging Face marks the assistant's tokens with `{% generation %}`; for the text it means a scope and no more.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let word_at = tag.find(|c: char| c != '-' && c != '+' && !c.is_whitespace()).unwrap_or(tag.len());
        let word_end = word_at + tag[word_at..].chars().take_while(|c| c.is_ascii_alphanumeric()).count();
        out.push_str(&tag[..word_at]);
        out.push_str(match &tag[word_at..word_end] {
            "generation" => "with",
            "endgeneration" => "endwith",
            other => other,
        });
        rest = &tag[word_end..];
    }
    out + rest
}

#[cfg(test)]
mod tests;
