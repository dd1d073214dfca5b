//! Answers as they come.

use serde_json::{Value, json};

use ternlm::serve::Options;
use ternlm::text::BpeTrainer;

use crate::place::{Form, Place, user};

fn parsed(data: &str) -> Value {
    serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"))
}

#[test]
fn the_pieces_of_a_stream_are_the_whole() {
    let place = Place::new();
    let body = json!({
        "prompt": "ab", "n": 2, "max_tokens": 60, "temperature": 1.2, "seed": 4, "logprobs": 1, "stop": ["e"],
    });
    streamed_as_whole(&place, body);
}

/// Tokens of several characters, in which a stop string may begin and end.
#[test]
fn probabilities_are_those_of_the_tokens_that_are_said() {
    let trainer = BpeTrainer { vocab_size: 260, special: vec![] };
    let tokenizer = trainer.train([Ok("hello".repeat(9))].into_iter(), |_, _| {}).unwrap();
    let hello = tokenizer.token_id("hello").expect("one of four merges");
    let place = Place::speaking(tokenizer, Form::Int8, Options::default());
    for (stop, text, tokens) in [
        ("never", "hellohellohello", 3),
        ("lo", "hel", 1),
        ("loh", "hel", 1),
        ("h", "", 0),
        ("oh", "hell", 1),
        ("ohelloh", "hell", 1),
    ] {
        let body = json!({
            "prompt": "ab", "max_tokens": 3, "temperature": 0, "logprobs": 0, "stop": [stop],
            "logit_bias": { hello.to_string(): 100 },
        });
        let whole = &streamed_as_whole(&place, body)["choices"][0];
        assert_eq!(whole["text"], text, "{stop}");
        let logprobs = &whole["logprobs"];
        assert_eq!(logprobs["tokens"], json!(vec!["hello"; tokens]), "{stop}");
        assert_eq!(logprobs["text_offset"], json!((0..tokens).map(|i| 5 * i).collect::<Vec<_>>()), "{stop}");
        assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), tokens, "{stop}");
    }
}

/// The whole answer; its stream holds the same.
#[track_caller]
fn streamed_as_whole(place: &Place, body: Value) -> Value {
    let whole = place.post("/v1/completions", &body).json(200);
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({ "include_usage": true });
    let mut events: Vec<String> = place.stream("/v1/completions", &streamed).map(|(_, data)| data).collect();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let usage = parsed(&events.pop().unwrap());
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"]),
        (&json!([]), &whole["usage"]["completion_tokens"])
    );
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let own: Vec<Value> = events
            .iter()
            .map(|data| parsed(data)["choices"][0].clone())
            .filter(|c| c["index"] == i)
            .collect();
        let text: String = own.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(choice["text"], text);
        for list in ["tokens", "token_logprobs", "text_offset"] {
            let of = |c: &Value| c["logprobs"][list].as_array().cloned().unwrap_or_default();
            assert_eq!(of(choice), own.iter().flat_map(of).collect::<Vec<_>>(), "{list}");
        }
        let reasons: Vec<&Value> = own.iter().map(|c| &c["finish_reason"]).filter(|r| !r.is_null()).collect();
        assert_eq!(reasons, [&choice["finish_reason"]]);
    }
    whole
}

#[test]
fn a_turn_is_streamed_with_its_role_first() {
    let place = Place::new();
    let body =
        json!({ "messages": user("hello"), "max_tokens": 25, "temperature": 1, "seed": 1, "stream": true });
    let mut events: Vec<String> = place.stream("/v1/chat/completions", &body).map(|(_, data)| data).collect();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events: Vec<Value> = events.iter().map(|data| parsed(data)).collect();
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e["id"] == events[0]["id"]));
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    let mut whole = body.clone();
    whole["stream"] = false.into();
    assert_eq!(
        place.post("/v1/chat/completions", &whole).json(200)["choices"][0]["message"]["content"],
        text
    );
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_response_is_streamed_as_named_events() {
    let place = Place::new();
    let body = json!({
        "input": [{ "role": "user", "content": [{ "type": "input_text", "text": "hello" }] }], "instructions": "Be brief.",
        "metadata": { "of": "me" },
        "max_output_tokens": 25, "temperature": 0.7, "top_p": 0.9, "seed": 1, "stream": true,
    });
    let events: Vec<(String, Value)> =
        place.stream("/v1/responses", &body).map(|(event, data)| (event, parsed(&data))).collect();
    for (i, (event, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(event), &json!(i)));
    }
    let names: Vec<&str> = events.iter().map(|(event, _)| event.as_str()).collect();
    let added = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ];
    assert_eq!(names[..4], added);
    let done = [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!(names[names.len() - 4..], done);
    let text: String = events.iter().filter_map(|(_, data)| data["delta"].as_str()).collect();
    let whole = json!({
        "prompt": "[system]Be brief.[user]hello[assistant]", "max_tokens": 25, "temperature": 0.7, "top_p": 0.9, "seed": 1,
    });
    assert_eq!(text, place.complete(&whole));
    let last = &events.last().unwrap().1["response"];
    // As it was asked for, and not as it is computed with.
    for name in ["instructions", "metadata", "max_output_tokens", "temperature", "top_p"] {
        assert_eq!(last[name], body[name], "{name}");
    }
    assert_eq!(last["text"], json!({ "format": { "type": "text" } }));
    assert_eq!(
        (&last["output"][0]["content"][0]["text"], &last["usage"]["output_tokens"]),
        (&json!(text), &json!(25))
    );
}
