//! Chat templates: how a conversation becomes the text a model was trained on.

use minijinja::value::{Rest, Serde};
use minijinja::{Error as TemplateError, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use super::chat_guard;
use super::strftime::strftime;
use crate::error::{Error, Result};
use crate::files::{if_there, read_text};

/// Bytes of a tokenizer_config.json; some list thousands of added tokens.
const MAX_CONFIG: u64 = 64 << 20;

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
    /// Reads the template of a Hugging Face model directory: `chat_template.jinja`, or else the `chat_template` of
    /// `tokenizer_config.json`. `None`: the directory has neither.
    pub fn load(model_dir: &Path) -> Result<Option<ChatTemplate>> {
        let (config_file, config) = tokenizer_config(model_dir)?;
        let file = model_dir.join("chat_template.jinja");
        let (file, source) = match if_there(read_text(&file, chat_guard::MAX_TEMPLATE as u64))? {
            Some(source) => (file, source),
            None => match template_in(&config, &config_file)? {
                Some(source) => (config_file, source.to_owned()),
                None => return Ok(None),
            },
        };
        Self::new(source, file, special_tokens(&config)).map(Some)
    }

    /// Takes the template from `file`, and the special tokens it may mention from the model in `model_dir`.
    pub fn from_file(file: &Path, model_dir: &Path) -> Result<ChatTemplate> {
        let source = read_text(file, chat_guard::MAX_TEMPLATE as u64)?;
        let (_, config) = tokenizer_config(model_dir)?;
        Self::new(source, file.into(), special_tokens(&config))
    }

    fn new(source: String, file: PathBuf, tokens: Vec<(String, String)>) -> Result<ChatTemplate> {
        if source.len() > chat_guard::MAX_TEMPLATE {
            let wanted = format!("at most {}", chat_guard::MAX_TEMPLATE);
            return Err(Error::input(file, "chat_template", format!("{} bytes", source.len()), wanted));
        }
        let source = without_generation_tags(&source);
        chat_guard::check(&source).map_err(|e| Error::input(&file, "chat_template", e, TEMPLATE))?;
        Ok(Self { source, file, tokens })
    }

    /// The conversation as one text. `add_generation_prompt`: with the beginning of the assistant's next turn.
    ///
    /// [`Error::Usage`] when the template itself rejects the conversation (`raise_exception`), [`Error::Input`] when
    /// it fails or asks for unreasonable amounts of time or memory.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let raised = Arc::new(Mutex::new(None));
        let tokens: BTreeMap<String, String> = self.tokens.iter().cloned().collect();
        let context = context! {
            messages => Serde(messages), add_generation_prompt,
            tools => (), documents => (),
            ..Value::from(tokens)
        };
        let slot = raised.clone();
        let rendered = chat_guard::render(&self.source, context, |env| {
            env.add_function("raise_exception", move |args: Rest<Value>| -> Result<Value, TemplateError> {
                let text = args.first().map(Value::to_string).unwrap_or_default();
                *slot.lock().unwrap_or_else(|e| e.into_inner()) = Some(text);
                Err(TemplateError::new(ErrorKind::InvalidOperation, "raise_exception"))
            });
            env.add_function("strftime_now", |format: &str| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                // A date is short; a long format is a mistake or worse.
                strftime(format.get(..256).unwrap_or(format), now.as_secs())
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

/// `tokenizer_config.json` of a model: its path and content, null without one.
fn tokenizer_config(model_dir: &Path) -> Result<(PathBuf, Json)> {
    let file = model_dir.join("tokenizer_config.json");
    let config = match if_there(read_text(&file, MAX_CONFIG))? {
        Some(text) => {
            serde_json::from_str(&text).map_err(|e| Error::input(&file, "content", e, "a JSON object"))?
        }
        None => Json::Null,
    };
    Ok((file, config))
}

/// Name and text of the special tokens that templates use.
fn special_tokens(config: &Json) -> Vec<(String, String)> {
    let text = |name: &str| {
        let token = config.get(name)?;
        // Older files hold an added-token object instead of the text.
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    let names = ["bos_token", "eos_token", "pad_token", "unk_token"];
    names.into_iter().filter_map(|name| Some((name.to_owned(), text(name)?))).collect()
}

/// `chat_template` as a text, or the entry named "default" of a list.
fn template_in<'a>(config: &'a Json, file: &Path) -> Result<Option<&'a str>> {
    let Some(field) = config.get("chat_template") else { return Ok(None) };
    match field {
        Json::Null => Ok(None),
        Json::String(text) => Ok(Some(text)),
        Json::Array(list) => {
            let default = list.iter().find(|t| t.get("name").is_some_and(|n| n == "default"));
            let text = default.and_then(|t| t.get("template")?.as_str());
            let wanted = "an entry named \"default\" with a template";
            text.map(Some).ok_or_else(|| Error::input(file, "chat_template", "none in the list", wanted))
        }
        _ => Err(Error::input(file, "chat_template", "neither", "a text or a list of templates")),
    }
}

/// Hugging Face marks the assistant's tokens with `{% generation %}`; for the text it means nothing.
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
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        });
        rest = &tag[word_end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<ChatTemplate> {
        let tokens = vec![("bos_token".into(), "<s>".into())];
        ChatTemplate::new(source.into(), "chat_template.jinja".into(), tokens)
    }

    fn render(source: &str) -> Result<String> {
        template(source)?.render(&[Message::new("user", "Hi <b>&'"), Message::new("assistant", "Yo")], false)
    }

    fn data(path: &str) -> Option<PathBuf> {
        let root = std::env::var_os("TERNLM_DATA").map_or("../shared/data".into(), PathBuf::from);
        let found = Some(root.join(path)).filter(|p| p.exists());
        if found.is_none() {
            println!("skipped: no {path} under {}", root.display());
        }
        found
    }

    #[test]
    fn qwen3_conversation() {
        let Some(dir) = data("tokenizers/qwen3") else { return };
        let template = ChatTemplate::load(&dir).unwrap().unwrap();
        let messages = [
            Message::new("system", "You are terse."),
            Message::new("user", "2+2?"),
            Message::new("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
            Message::new("user", "And <3 \"5\"?"),
        ];
        // Thoughts of turns before the last question are dropped; the prompt opens new ones.
        let turns = "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n\
             <|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\nAnd <3 \"5\"?<|im_end|>\n";
        assert_eq!(template.render(&messages, false).unwrap(), turns);
        let prompt = format!("{turns}<|im_start|>assistant\n<think>\n");
        assert_eq!(template.render(&messages, true).unwrap(), prompt);
        // An answer to the last question keeps its thoughts.
        let kept = template.render(&messages[1..3], false).unwrap();
        assert_eq!(
            kept,
            "<|im_start|>user\n2+2?<|im_end|>\n\
             <|im_start|>assistant\n<think>\nTwo and two.\n</think>\n\n4<|im_end|>\n"
        );
        // A long conversation stays far from the limits.
        let long: Vec<_> =
            (0..2000).map(|i| Message::new(["user", "assistant"][i % 2], "word ".repeat(200))).collect();
        assert!(template.render(&long, true).unwrap().len() > 2_000_000);
    }

    #[test]
    fn jinja_as_hugging_face_sets_it_up() {
        // trim_blocks and lstrip_blocks; no HTML escapes, in tojson neither.
        let text = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n[{{ m.content }}]\n  \
                    {% endif %}\n{% endfor %}\n{{ messages[0] | tojson }}{{ {'b': [1, 2.5, none]} | tojson(indent=2) }}";
        assert_eq!(
            render(text).unwrap(),
            "<s>[Hi <b>&']\n{\"role\": \"user\", \"content\": \"Hi <b>&'\"}{\n  \"b\": [\n    1,\n    2.5,\n    null\n  ]\n}"
        );
        assert_eq!(render("{{ tools is none }} {{ nothing is defined }}").unwrap(), "True False");
        assert_eq!(render("{{ strftime_now('%Y')|int > 2024 }}").unwrap(), "True");
        let generation = "{%- generation -%} a {%- endgeneration -%}";
        assert_eq!(render(generation).unwrap(), "a");
        let macros = "{% macro turn(m, mark='#') %}{{ mark }}{{ m.role }};{% endmacro %}\
                      {% for m in messages %}{{ turn(m) }}{{ turn(m, mark='+') }}{% endfor %}";
        assert_eq!(render(macros).unwrap(), "#user;+user;#assistant;+assistant;");
        let filters = "{{ messages | map(attribute='role') | join(',') }}|\
                       {{ messages | selectattr('role', 'equalto', 'user') | list | length }}|\
                       {{ (messages | selectattr('role', 'in', ['user', 'x']) | first).content | upper | replace('HI', 'ha') }}";
        assert_eq!(render(filters).unwrap(), "user,assistant|1|ha <B>&'");
        let operators = "{{ 1 + 2.5 * 2 }} {{ 7 % 4 }} {{ [1] + [2] }} {{ 'a' ~ 1 ~ none }} {{ 'abcd'[1:-1] }} \
                         {{ messages[::-1][0].role }} {{ 'z' not in 'ab' }} {{ (1, 2)[1] }} {{ 2 <= 2 and 'a' < 'b' }}";
        assert_eq!(render(operators).unwrap(), "6.0 3 [1, 2] a1None bc assistant True 2 True");
    }

    #[test]
    fn rejected_conversations_and_damaged_templates() {
        let error = render("{{ raise_exception('roles must ' ~ 'alternate') }}").unwrap_err();
        assert!(matches!(error, Error::Usage(_)) && error.to_string().ends_with("roles must alternate"));
        for damaged in
            ["{% if %}", "{{ 'a", "{% for x in y %}", "{% include 'x' %}{% block a %}{% endblock %}"]
        {
            assert!(matches!(template(damaged), Err(Error::Input { .. })), "{damaged}");
        }
        for failing in ["{{ nothing.at.all }}", "{{ missing() }}", "{% include 'x' %}", "{{ 1 + 'a' }}"] {
            assert!(matches!(render(failing), Err(Error::Input { .. })), "{failing}");
        }
    }

    #[test]
    fn hostile_templates_end_with_an_error() {
        let doubling = "{% set x = 'ab' %}".to_owned() + &"{% set x = x ~ x %}".repeat(60) + "{{ x|length }}";
        let list = "{% set x = ['ab'] %}".to_owned() + &"{% set x = [x, x] %}".repeat(31) + "{{ x }}";
        let sums = "{% set x = [1] %}".to_owned() + &"{% set x = x + x %}".repeat(60) + "{{ x|length }}";
        let twice = "{% macro f(x, n) %}{% if n > 0 %}{{ f(x + x, n - 1) }}{% endif %}{% endmacro %}{{ f('a', 100) }}";
        let captured = "{% set x %}aaaaaaaa{% endset %}".to_owned()
            + &"{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60);
        let replaced = "{% set x = 'a' %}".to_owned() + &"{% set x = x|replace('a', x ~ x) %}".repeat(20);
        let method = "{% set x = 'a' %}".to_owned() + &"{% set x = x.replace('a', x + x) %}".repeat(20);
        let joined = "{% set x = 'ab' %}".to_owned() + &"{% set x = x.join([x, x, x]) %}".repeat(60);
        let chain = format!("{{{{ 1{} }}}}", " + n".repeat(30_000));
        let deep = format!("{{{{ {}1{} }}}}", "[".repeat(5_000), "]".repeat(5_000));
        let elif = format!("{{% if a %}}{}{{% endif %}}", "{%elif a%}".repeat(12_000));
        let text = format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "x".repeat(100_000));
        let slices = "{% set ns = namespace(x=messages) %}{% for i in range(99999) %}{% set ns.x = ns.x[0:] %}{% endfor %}{{ ns.x|length }}";
        let nested =
            "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
        let cycle = "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a == ns }}";
        for hostile in [
            &doubling,
            &list,
            &sums,
            twice,
            &captured,
            &replaced,
            &method,
            &joined,
            &chain,
            &deep,
            &text,
            nested,
            cycle,
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ 'a' * 99999999 }}",
            "{{ ('a') * 99999999 }}",
            "{% set s = 'a' %}{{ s * 99999999 }}",
            "{{ '{:>99999999}'.format(1) }}",
            "{{ 1 ** 2 ** 99999 ** 99999 ** 9999 * [1] }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ 1 in ns.a }}",
        ] {
            let start = std::time::Instant::now();
            let head = &hostile[..hostile.len().min(60)];
            assert!(matches!(render(hostile), Err(Error::Input { .. })), "{head}");
            assert!(start.elapsed().as_secs() < 20, "{head}: {:?}", start.elapsed());
        }
        // Long but harmless.
        assert_eq!(render(slices).unwrap(), "2");
        assert_eq!(render(&elif).unwrap(), "");
    }

    #[test]
    fn loads_from_either_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let load = || ChatTemplate::load(dir.path());
        let shown = || load().unwrap().unwrap().render(&[], false).unwrap();
        assert!(load().unwrap().is_none());
        write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
        assert!(load().unwrap().is_none());
        write(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<s>"}, "chat_template": "A{{bos_token}}"}"#,
        );
        assert_eq!(shown(), "A<s>");
        let list = r#"{"eos_token": "</s>", "chat_template": [{"name": "rag", "template": "R"},
                      {"name": "default", "template": "D{{ eos_token }}{{ bos_token }}"}]}"#;
        write("tokenizer_config.json", list);
        assert_eq!(shown(), "D</s>");
        write("chat_template.jinja", "J{{ eos_token }}");
        assert_eq!(shown(), "J</s>");
        write("other.jinja", "O{{ eos_token }}");
        let other = ChatTemplate::from_file(&dir.path().join("other.jinja"), dir.path()).unwrap();
        assert_eq!(other.render(&[], false).unwrap(), "O</s>");
        write("chat_template.jinja", "{% if");
        assert!(load().unwrap_err().to_string().contains("chat_template.jinja"));
        std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
        for bad in
            ["{", r#"{"chat_template": 3}"#, r#"{"chat_template": [{"name": "rag", "template": "R"}]}"#]
        {
            write("tokenizer_config.json", bad);
            assert!(load().unwrap_err().to_string().contains("tokenizer_config.json"), "{bad}");
        }
    }
}
