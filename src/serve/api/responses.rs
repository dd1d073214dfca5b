//! `/v1/responses`: text in, text out. Nothing is stored: a response is not found again.

use serde_json::{Map, Value, json};

use super::answer::{Answer, Form, Frame};
use super::error::ApiError;
use super::fields::Fields;
use super::served::Served;
use super::settings::{Settings, limit};
use super::{Ask, Work, constraint, messages, schema};
use crate::serve::queue::{Generate, Piece, Reason};

pub fn read(fields: &Fields<'_>, served: &Served) -> Result<Work, ApiError> {
    let settings = Settings::read(fields, served)?;
    if settings.choices != 1 {
        return Err(fields.wrong("n", "1"));
    }
    for (name, wanted) in [
        ("previous_response_id", "null: responses are not stored; send the conversation"),
        ("conversation", "null: conversations are not stored; send the messages"),
    ] {
        if fields.get(name).is_some() {
            return Err(fields.wrong(name, wanted));
        }
    }
    if fields.flag("background")?.unwrap_or(false) {
        return Err(fields.wrong("background", "false: an answer comes while its connection is open"));
    }
    if fields.list("tools")?.is_some_and(|tools| !tools.is_empty()) {
        return Err(fields.wrong("tools", "none: /v1/chat/completions calls tools"));
    }
    if fields.text("truncation")?.is_some_and(|how| how != "disabled") {
        return Err(fields.wrong("truncation", "disabled: an input that is too long is refused"));
    }
    if fields.get("top_logprobs").is_some_and(|top| top != 0) {
        return Err(fields.wrong("top_logprobs", "none: /v1/chat/completions has logprobs"));
    }
    let included = fields.list("include")?.unwrap_or_default();
    if included.iter().any(|what| what == "message.output_text.logprobs") {
        return Err(fields.wrong("include", "no logprobs: /v1/chat/completions has them"));
    }
    let mut said = Vec::new();
    if let Some(text) = fields.text("instructions")? {
        said.push(json!({ "role": "system", "content": text }));
    }
    match fields.need("input", "a text or a list of messages")? {
        Value::String(text) => said.push(json!({ "role": "user", "content": text })),
        Value::Array(list) => said.extend(messages::read(list, "input")?),
        _ => return Err(fields.wrong("input", "a text or a list of messages")),
    }
    let text = fields.map("text")?;
    let schema = text.map_or(Ok(None), |text| schema::read(&text, "format"))?;
    let constraint = match schema {
        None => None,
        Some(schema) => Some(constraint::compile(served, "text.format", schema::json_grammar(schema))?),
    };
    let prompts = vec![messages::prompt(served, &said, "input", None, messages::variables(fields)?)?];
    let answer = Answer::new("resp", served, &prompts, 1);
    let limit = limit(fields, &["max_output_tokens"], served.context)?;
    let form = Box::new(Responses { asked: asked(fields)?, sent: 0 });
    let stream = settings.stream;
    let generate = Some(Generate { constraint, ..settings.generate(limit) });
    Ok(Work::Ask(Box::new(Ask { prompts, generate, answer, form, stream })))
}

/// What a response repeats of its request.
fn asked(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let given = |name: &str| fields.get(name).cloned();
    let given_or = |name: &str, default: Value| given(name).unwrap_or(default);
    let metadata = fields.map("metadata")?.map_or(json!({}), |map| map.object().clone().into());
    let repeated = json!({
        "instructions": given("instructions"), "max_output_tokens": given("max_output_tokens"),
        "metadata": metadata, "temperature": given_or("temperature", json!(1.0)),
        "text": given_or("text", json!({ "format": { "type": "text" } })), "top_p": given_or("top_p", json!(1.0)),
    });
    Ok(repeated.as_object().cloned().unwrap_or_default())
}

struct Responses {
    /// Of the request.
    asked: Map<String, Value>,
    /// Events so far.
    sent: usize,
}

impl Responses {
    fn item_id(answer: &Answer) -> String {
        answer.id.replacen("resp", "msg", 1)
    }

    fn part(text: &str) -> Value {
        json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
    }

    fn item(answer: &Answer, status: &str, content: Value) -> Value {
        json!({
            "id": Self::item_id(answer), "type": "message", "role": "assistant", "status": status, "content": content,
        })
    }

    fn done_item(answer: &Answer) -> Value {
        Self::item(answer, Self::status(answer), json!([Self::part(&answer.choices[0].text)]))
    }

    fn response(&self, answer: &Answer, status: &str, output: Value) -> Value {
        let details = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        let usage = matches!(status, "completed" | "incomplete").then(|| {
            json!({
                "input_tokens": answer.prompt_tokens, "output_tokens": answer.made(),
                "total_tokens": answer.prompt_tokens + answer.made(),
                "input_tokens_details": { "cached_tokens": answer.shared },
                "output_tokens_details": { "reasoning_tokens": 0 },
            })
        });
        let mut response = json!({
            "id": answer.id, "object": "response", "created_at": answer.created, "status": status,
            "model": answer.model, "output": output, "error": null, "incomplete_details": details,
            "parallel_tool_calls": false, "tool_choice": "none", "tools": [], "previous_response_id": null,
            "store": false, "truncation": "disabled", "usage": usage,
        });
        for (name, value) in &self.asked {
            response[name] = value.clone();
        }
        response
    }

    fn status(answer: &Answer) -> &'static str {
        if answer.choices[0].reason == Some(Reason::Length) { "incomplete" } else { "completed" }
    }

    fn frame(&mut self, event: &'static str, mut data: Value) -> Frame {
        data["type"] = event.into();
        data["sequence_number"] = self.sent.into();
        self.sent += 1;
        Frame { event: Some(event), data }
    }
}

impl Form for Responses {
    fn whole(&self, answer: &Answer) -> Value {
        self.response(answer, Self::status(answer), json!([Self::done_item(answer)]))
    }

    fn begin(&mut self, answer: &Answer) -> Vec<Frame> {
        let response = self.response(answer, "in_progress", json!([]));
        let (item, id) = (Self::item(answer, "in_progress", json!([])), Self::item_id(answer));
        vec![
            self.frame("response.created", json!({ "response": response })),
            self.frame("response.in_progress", json!({ "response": response })),
            self.frame("response.output_item.added", json!({ "output_index": 0, "item": item })),
            self.frame(
                "response.content_part.added",
                json!({ "item_id": id, "output_index": 0, "content_index": 0, "part": Self::part("") }),
            ),
        ]
    }

    fn piece(&mut self, answer: &Answer, piece: &Piece) -> Vec<Frame> {
        let delta = json!({
            "item_id": Self::item_id(answer), "output_index": 0, "content_index": 0, "delta": piece.text, "logprobs": [],
        });
        vec![self.frame("response.output_text.delta", delta)]
    }

    fn finish(&mut self, answer: &Answer) -> Vec<Frame> {
        let (id, text) = (Self::item_id(answer), &answer.choices[0].text);
        let (item, status) = (Self::done_item(answer), Self::status(answer));
        let at = json!({ "item_id": id, "output_index": 0, "content_index": 0 });
        let with = |key: &str, value: Value| {
            let mut data = at.clone();
            data[key] = value;
            data
        };
        let mut done = with("text", text.as_str().into());
        done["logprobs"] = json!([]);
        let response = self.response(answer, status, json!([item]));
        let last = if status == "incomplete" { "response.incomplete" } else { "response.completed" };
        vec![
            self.frame("response.output_text.done", done),
            self.frame("response.content_part.done", with("part", Self::part(text))),
            self.frame("response.output_item.done", json!({ "output_index": 0, "item": item })),
            self.frame(last, json!({ "response": response })),
        ]
    }

    fn failed(&mut self, answer: &Answer, error: &ApiError) -> Vec<Frame> {
        let said = json!([Self::part(&answer.choices[0].text)]);
        let mut response = self.response(answer, "failed", json!([Self::item(answer, "incomplete", said)]));
        let code = if error.status < 500 { "invalid_prompt" } else { "server_error" };
        response["error"] = json!({ "code": code, "message": error.message });
        vec![self.frame("response.failed", json!({ "response": response }))]
    }

    fn last_line(&self) -> Option<&'static str> {
        None
    }
}
