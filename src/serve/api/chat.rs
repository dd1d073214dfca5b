//! `/v1/chat/completions`: the next turn of a conversation.

use serde_json::{Value, json};

use super::answer::{Answer, Choice, Form, Frame, finish_reason, finite, token_text};
use super::error::ApiError;
use super::fields::Fields;
use super::served::Served;
use super::settings::{Settings, TOP, limit};
use super::tools::{Call, CallForm, Tools, Written};
use super::{Ask, Work, constraint, messages, schema};
use crate::files::sha256_hex;
use crate::generate::{Scored, StopStrings};
use crate::serve::queue::{Generate, Piece, Reason};

pub fn read(fields: &Fields<'_>, served: &Served) -> Result<Work, ApiError> {
    let settings = Settings::read(fields, served)?;
    let list = fields.list("messages")?.ok_or_else(|| fields.wrong("messages", "a list of messages"))?;
    let said = messages::read(list, "messages")?;
    for (old, new) in [("functions", "none: they are tools"), ("function_call", "none: it is tool_choice")] {
        if fields.get(old).is_some() {
            return Err(fields.wrong(old, new));
        }
    }
    let tools = Tools::read(fields)?;
    let schema = schema::read(fields, "response_format")?;
    let calls = match &tools {
        None => None,
        Some(tools) => {
            let none = "none: the model's chat template writes no calls of tools";
            let form = served.calls().ok_or_else(|| fields.wrong("tools", none))?.clone();
            Some(if tools.parallel { form } else { form.single() })
        }
    };
    let constraint = match (&tools, &calls, schema) {
        (Some(tools), Some(form), schema) => {
            Some(constraint::compile(served, "tools", form.grammar(tools, schema))?)
        }
        (_, _, Some(schema)) => {
            Some(constraint::compile(served, "response_format", schema::json_grammar(schema))?)
        }
        _ => None,
    };
    let top = fields.whole("top_logprobs", 0..=TOP)?;
    let scores = match (fields.flag("logprobs")?.unwrap_or(false), top) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(fields.wrong("top_logprobs", "none where logprobs is not true")),
    };
    let limit = limit(fields, &["max_completion_tokens", "max_tokens"], served.context)?;
    if let Some(top) = scores {
        settings.judge_scores("top_logprobs", top, limit.min(served.context))?;
    }
    let variables = messages::variables(fields)?;
    let prompts = vec![messages::prompt(served, &said, "messages", tools.as_ref(), variables)?];
    let answer = Answer::new("chatcmpl", served, &prompts, settings.choices);
    let hold = calls.iter().map(|form| form.before().to_string()).collect::<Vec<_>>();
    let form = Chat {
        served: served.clone(),
        usage: settings.stream_usage,
        scored: scores.is_some(),
        calls,
        streams: vec![Stream { said: StopStrings::new(hold), calling: false }; answer.choices.len()],
    };
    let (form, stream) = (Box::new(form), settings.stream);
    let generate = Some(Generate { scores, constraint, ..settings.generate(limit) });
    Ok(Work::Ask(Box::new(Ask { prompts, generate, answer, form, stream })))
}

struct Chat {
    served: Served,
    usage: bool,
    scored: bool,
    /// How calls of tools are written, where there may be some.
    calls: Option<CallForm>,
    streams: Vec<Stream>,
}

/// What of an answer has been streamed: text up to the first call.
#[derive(Clone)]
struct Stream {
    said: StopStrings,
    calling: bool,
}

impl Chat {
    fn chunk(&self, answer: &Answer, index: usize, delta: Value, reason: Value, scores: &[Scored]) -> Frame {
        let choice = json!({
            "index": index, "delta": delta, "logprobs": self.logprobs(scores), "finish_reason": reason,
        });
        self.object(answer, "chat.completion.chunk", json!([choice])).into()
    }

    fn object(&self, answer: &Answer, object: &str, choices: Value) -> Value {
        json!({
            "id": answer.id, "object": object, "created": answer.created, "model": answer.model, "choices": choices,
        })
    }

    fn logprobs(&self, scores: &[Scored]) -> Value {
        if !self.scored {
            return Value::Null;
        }
        let tokenizer = &self.served.tokenizer;
        let one = |id: u32, p: f32| json!({ "token": token_text(tokenizer, id), "logprob": finite(p), "bytes": tokenizer.token_bytes(id) });
        let content = scores.iter().map(|scored| {
            let mut token = one(scored.token, scored.log_probability);
            token["top_logprobs"] = scored.top.iter().map(|(id, p)| one(*id, *p)).collect();
            token
        });
        json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
    }

    fn written(&self, choice: &Choice) -> Written {
        match &self.calls {
            Some(form) => form.parse(&choice.text, choice.reason == Some(Reason::Length)),
            None => Written { said: choice.text.clone(), ..Written::default() },
        }
    }

    /// An answer that was cut says so, whatever it had called by then.
    fn reason(&self, choice: &Choice, calls: &[Call]) -> Value {
        match finish_reason(choice.reason) {
            cut if calls.is_empty() || cut == "length" => cut,
            _ => "tool_calls".into(),
        }
    }
}

fn calls_json(answer: &Answer, index: usize, calls: &[Call], streamed: bool) -> Value {
    let one = |(i, call): (usize, &Call)| {
        let mut out = json!({
            "id": call_id(&format!("{} {index} {i}", answer.id)),
            "type": "function", "function": { "name": call.name, "arguments": call.arguments },
        });
        if streamed {
            out["index"] = i.into();
        }
        out
    };
    calls.iter().enumerate().map(one).collect()
}

/// Nine letters and digits, which every template takes; Mistral's take no other.
fn call_id(of: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let number = u64::from_str_radix(&sha256_hex([of])[..16], 16).expect("hexadecimal digits");
    (0..9).map(|place| DIGITS[(number / 62u64.pow(place) % 62) as usize] as char).collect()
}

impl Form for Chat {
    fn whole(&self, answer: &Answer) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let written = self.written(choice);
            let joint = written.joint();
            let Written { said, calls, more } = written;
            let said = said + joint + &more;
            let said = if calls.is_empty() { said } else { said.trim().to_string() };
            let content = if said.is_empty() && !calls.is_empty() { Value::Null } else { said.into() };
            let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
            if !calls.is_empty() {
                message["tool_calls"] = calls_json(answer, index, &calls, false);
            }
            json!({
                "index": index, "message": message, "logprobs": self.logprobs(&choice.scores),
                "finish_reason": self.reason(choice, &calls),
            })
        };
        let choices = answer.choices.iter().enumerate().map(choice).collect();
        let mut whole = self.object(answer, "chat.completion", choices);
        whole["usage"] = answer.usage();
        whole
    }

    fn begin(&mut self, answer: &Answer) -> Vec<Frame> {
        let role = json!({ "role": "assistant", "content": "" });
        (0..answer.choices.len()).map(|i| self.chunk(answer, i, role.clone(), Value::Null, &[])).collect()
    }

    fn piece(&mut self, answer: &Answer, piece: &Piece) -> Vec<Frame> {
        let stream = &mut self.streams[piece.choice];
        let text = match &self.calls {
            None => piece.text.clone(),
            Some(_) if stream.calling => String::new(),
            // Without a mark a call is known by its first character.
            Some(form) if form.before().is_empty() => {
                stream.calling = answer.choices[piece.choice].text.starts_with('{');
                if stream.calling { String::new() } else { piece.text.clone() }
            }
            Some(_) => {
                let (text, calling) = stream.said.push(&piece.text);
                stream.calling = calling;
                text
            }
        };
        if text.is_empty() && piece.scores.is_empty() {
            return Vec::new();
        }
        vec![self.chunk(answer, piece.choice, json!({ "content": text }), Value::Null, &piece.scores)]
    }

    fn ended(&mut self, answer: &Answer, index: usize) -> Vec<Frame> {
        let choice = &answer.choices[index];
        let written = self.written(choice);
        let joint = written.joint();
        let Written { said, calls, more } = written;
        let mut frames = Vec::new();
        let stream = &mut self.streams[index];
        let mut rest = joint.to_string() + &more;
        if calls.is_empty() {
            // Kept back as the beginning of a mark, or as a call that came to none.
            let held = stream.said.finish().len();
            let mark = self.calls.as_ref().filter(|_| stream.calling).map(|form| form.before());
            let sent = mark.and_then(|mark| choice.text.find(mark)).unwrap_or(choice.text.len() - held);
            rest = said.get(sent..).unwrap_or_default().to_string();
        }
        if !rest.is_empty() {
            frames.push(self.chunk(answer, index, json!({ "content": rest }), Value::Null, &[]));
        }
        if !calls.is_empty() {
            let delta = json!({ "tool_calls": calls_json(answer, index, &calls, true) });
            frames.push(self.chunk(answer, index, delta, Value::Null, &[]));
        }
        frames.push(self.chunk(answer, index, json!({}), self.reason(choice, &calls), &[]));
        frames
    }

    fn finish(&mut self, answer: &Answer) -> Vec<Frame> {
        let mut last = self.object(answer, "chat.completion.chunk", json!([]));
        last["usage"] = answer.usage();
        if self.usage { vec![last.into()] } else { Vec::new() }
    }
}
