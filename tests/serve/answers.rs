//! What each path answers.

use serde_json::{Value, json};
use ternlm::config::KvFormat;
use ternlm::generate::{Sampler, SamplingConfig, Session};
use ternlm::model::{Span, State, Wanted};
use ternlm::serve::Options;
use ternlm::text::Tokenizer;

use crate::place::{Form, Place, model, user};

#[test]
fn a_completion_is_what_a_session_writes() {
    let place = Place::new();
    let (decoder, tokenizer) = (model(Form::Int8), Tokenizer::bytes());
    for (temperature, seed) in [(0.0, 0), (0.8, 7), (1.3, 8)] {
        let config =
            SamplingConfig { temperature, seed, top_p: 0.9, min_p: 0.01, ..SamplingConfig::default() };
        let mut session = Session::new(&decoder, &tokenizer, KvFormat::F32);
        session.set_tokens(tokenizer.encode("To be, or").unwrap());
        let made = session.generate(&mut Sampler::new(config), 40, &[], &mut |_| true).unwrap();
        let body = json!({
            "prompt": "To be, or", "max_tokens": 40, "temperature": temperature, "seed": seed, "top_p": 0.9, "min_p": 0.01,
        });
        let answer = place.post("/v1/completions", &body).json(200);
        assert_eq!(answer["choices"][0]["text"], made.text, "temperature {temperature}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        let usage = json!({
            "prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49, "prompt_tokens_details": { "cached_tokens": 0 },
        });
        assert_eq!(answer["usage"], usage);
    }
}

/// The log-probabilities of a prompt are those of the model's logits.
#[test]
fn an_echo_is_scored_as_the_model_scores() {
    let place = Place::with(Form::F32, Options::default());
    let prompt = "The quick brown fox".repeat(9);
    let body = json!({ "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 2, "seed": 1 });
    let choice = &place.post("/v1/completions", &body).json(200)["choices"][0];
    let logprobs = &choice["logprobs"];
    let values = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!((values.len(), &values[0]), (prompt.len() + 1, &Value::Null));
    assert!(choice["text"].as_str().unwrap().starts_with(&prompt));
    assert_eq!(logprobs["text_offset"][5], 5);
    let decoder = model(Form::F32);
    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let (mut cache, mut state) = (decoder.cache(KvFormat::F32), State::default());
    let span = Span { tokens: &tokens, cache: &mut cache, wanted: Wanted::All };
    let logits = decoder.advance(&mut [span], &mut state);
    for (i, logits) in logits.chunks_exact(256).enumerate().take(tokens.len() - 1) {
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let wanted = f64::from(logits[tokens[i + 1] as usize]) - sum.ln();
        assert!((values[i + 1].as_f64().unwrap() - wanted).abs() < 1e-4, "token {}", i + 1);
        let top = logprobs["top_logprobs"][i + 1].as_object().unwrap();
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        assert!(
            top.len() <= 2
                && top
                    .values()
                    .any(|p| { (p.as_f64().unwrap() - (f64::from(best) - sum.ln())).abs() < 1e-4 })
        );
    }
}

/// Probabilities are in the answer once for each choice: a small request may ask for gigabytes.
#[test]
fn probabilities_that_are_too_many_are_refused() {
    let place = Place::new();
    let refused = |body: &Value| {
        let wrong = place.post("/v1/completions", body).json(400);
        assert_eq!(wrong["error"]["param"], "logprobs", "{wrong}");
    };
    let prompts = vec![vec![65; 4000]; 64];
    let mut body = json!({ "prompt": prompts, "max_tokens": 0, "echo": true, "logprobs": 20, "n": 8 });
    refused(&body);
    // As many that are still to be made.
    refused(&json!({ "prompt": vec!["a"; 64], "max_tokens": 4000, "logprobs": 20, "n": 8 }));
    let chat = json!({
        "messages": [{ "role": "user", "content": "a" }], "logprobs": true, "top_logprobs": 20, "n": 8, "max_tokens": 8000,
    });
    let place_of_8192 = Place::with(Form::Int8, Options { context: 8192, ..Options::default() });
    let wrong = place_of_8192.post("/v1/chat/completions", &chat).json(400);
    assert_eq!(wrong["error"]["param"], "top_logprobs", "{wrong}");
    (body["prompt"], body["n"]) = (json!([[65, 66]]), 2.into());
    assert_eq!(place.post("/v1/completions", &body).json(200)["choices"][1]["text"], "AB");
}

/// Characters, not the names of bytes that are no whole one.
#[test]
fn offsets_are_those_of_the_text() {
    let place = Place::with(Form::F32, Options::default());
    let body = json!({ "prompt": "\u{e9}a\u{e9}", "max_tokens": 1, "echo": true, "logprobs": 0, "logit_bias": { "98": 100 } });
    let choice = &place.post("/v1/completions", &body).json(200)["choices"][0];
    assert_eq!(choice["text"], "\u{e9}a\u{e9}b");
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 0, 1, 2, 2, 3]));
}

/// Each comes to the likeliest token.
#[test]
fn every_field_of_sampling_acts() {
    let place = Place::new();
    let mut body = json!({ "prompt": "ab", "max_tokens": 12, "temperature": 1.5, "seed": 5 });
    let drawn = place.complete(&body);
    body["temperature"] = 0.into();
    let likeliest = place.complete(&body);
    assert_ne!(drawn, likeliest);
    for (field, value) in [("presence_penalty", 2.0), ("frequency_penalty", 2.0), ("repetition_penalty", 2.0)]
    {
        let mut body = body.clone();
        body[field] = value.into();
        body["max_tokens"] = 60.into();
        let penalised = place.complete(&body);
        body[field] = if field == "repetition_penalty" { 1.0 } else { 0.0 }.into();
        assert_ne!(penalised, place.complete(&body), "{field}");
    }
    body["temperature"] = 1.5.into();
    for (field, value) in [("top_k", json!(1)), ("top_p", json!(1e-6)), ("min_p", json!(1.0))] {
        let mut body = body.clone();
        body[field] = value;
        assert_eq!(place.complete(&body), likeliest, "{field}");
    }
}

#[test]
fn choices_stops_biases_and_penalties() {
    let place = Place::new();
    let body = json!({ "prompt": ["ab", "cd"], "n": 3, "max_tokens": 12, "temperature": 1.2, "seed": 5 });
    let answer = place.post("/v1/completions", &body).json(200);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    // Each is what its prompt and its seed give alone.
    for (i, choice) in choices.iter().enumerate() {
        let body = json!({ "prompt": (["ab", "cd"][i / 3]), "max_tokens": 12, "temperature": 1.2, "seed": 5 + i % 3 });
        assert_eq!(choice["text"], place.complete(&body), "choice {i}");
    }
    let plain = json!({ "prompt": "ab", "max_tokens": 30, "temperature": 1.2, "seed": 5 });
    let whole = place.complete(&plain);
    let with = |key: &str, value: Value| {
        let mut body = plain.clone();
        body[key] = value;
        place.post("/v1/completions", &body).json(200)["choices"][0].clone()
    };
    let middle: String = whole.chars().skip(8).take(2).collect();
    let stopped = with("stop", json!([middle]));
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"], whole.split(&middle).next().unwrap());
    // Ids, or the text that they stand for, are the same prompt.
    assert_eq!(with("prompt", json!([97, 98]))["text"], whole);
    assert_eq!(with("prompt", json!([[97, 98]]))["text"], whole);
    assert_eq!(with("logit_bias", json!({ "120": 100 }))["text"], "x".repeat(30));
    let forbidden = with("logit_bias", json!({ "120": 100, "121": 100 }));
    assert!(forbidden["text"].as_str().unwrap().chars().all(|c| "xy".contains(c)));
    let body = json!({ "120": 50, "121": 49.5 });
    let twice = json!({
        "prompt": "ab", "max_tokens": 8, "temperature": 0, "logit_bias": body, "frequency_penalty": 2,
    });
    let text = place.complete(&twice);
    assert!(text.contains('x') && text.contains('y'), "{text:?}: what was said becomes less likely");
}

#[test]
fn a_conversation_is_the_template_s_text() {
    let place = Place::new();
    let settings = json!({ "max_tokens": 20, "temperature": 0.9, "seed": 3 });
    let ask = |messages: Value| {
        let mut body = settings.clone();
        body["messages"] = messages;
        place.post("/v1/chat/completions", &body).json(200)
    };
    let answer = ask(json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "one" }, { "type": "text", "text": "two" }] },
    ]));
    let mut body = settings.clone();
    body["prompt"] = "[system]Be brief.[user]one\ntwo[assistant]".into();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], place.complete(&body));
    assert_eq!((&message["role"], &answer["object"]), (&json!("assistant"), &json!("chat.completion")));
    // Calls and what came of them, as agents send them back.
    let call =
        json!({ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"n\": 1}" } });
    let answer = ask(json!([
        { "role": "user", "content": "x" }, { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "c1", "content": "2" },
    ]));
    body["prompt"] =
        "[user]x[assistant]<call>{\"name\": \"f\", \"arguments\": {\"n\": 1}}</call>[tool]2[assistant]"
            .into();
    assert_eq!(answer["choices"][0]["message"]["content"], place.complete(&body));
    let mut scored = settings.clone();
    scored["messages"] = user("x");
    (scored["logprobs"], scored["top_logprobs"]) = (true.into(), 3.into());
    let tokens =
        place.post("/v1/chat/completions", &scored).json(200)["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(tokens.as_array().unwrap().len(), 20);
    assert_eq!(tokens[4]["top_logprobs"].as_array().unwrap().len(), 3);
}

#[test]
fn answers_keep_to_a_schema() {
    let place = Place::new();
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["n", "of"],
        "properties": { "n": { "type": "integer", "minimum": 0, "maximum": 99 }, "of": { "enum": ["trits", "bits"] } },
    });
    let judge = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(
            value["n"].as_u64().unwrap() < 100 && ["trits", "bits"].contains(&value["of"].as_str().unwrap())
        );
    };
    for seed in 0..5 {
        let body = json!({
            "messages": user("how many?"), "seed": seed, "temperature": 1.5,
            "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": schema } },
        });
        let answer = place.post("/v1/chat/completions", &body).json(200);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        judge(answer["choices"][0]["message"]["content"].as_str().unwrap());
    }
    let body = json!({
        "input": "how many?", "text": { "format": { "type": "json_schema", "name": "a", "schema": schema } },
    });
    let answer = place.post("/v1/responses", &body).json(200);
    judge(answer["output"][0]["content"][0]["text"].as_str().unwrap());
    // One that no grammar can be made of is named.
    let body = json!({
        "prompt": "x", "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "nothing" } } },
    });
    let wrong = place.post("/v1/completions", &body).json(400);
    assert_eq!(wrong["error"]["param"], "response_format");
    // Nor is it the server's fault that nothing keeps to one: whoever asks again after a 5xx would do so without end.
    let body = json!({
        "prompt": "x", "response_format": { "type": "json_schema", "json_schema": { "schema": { "$ref": "#" } } },
    });
    assert_eq!(place.post("/v1/completions", &body).json(400)["error"]["type"], "invalid_request_error");
    let format = json!({ "type": "json_schema", "name": "a", "schema": { "$ref": "#" } });
    let body = json!({ "input": "x", "stream": true, "text": { "format": format } });
    let (_, data) = place.stream("/v1/responses", &body).last().unwrap();
    let data: Value = serde_json::from_str(&data).unwrap();
    assert_eq!(data["response"]["error"]["code"], "invalid_prompt", "{data}");
}

#[test]
fn tools_are_called_as_the_template_writes_calls() {
    let place = Place::new();
    let tool = |name: &str| {
        json!({ "type": "function", "function": { "name": name, "parameters": {
            "type": "object", "additionalProperties": false, "required": ["day"],
            "properties": { "day": { "type": "integer", "minimum": 1, "maximum": 31 } },
        }}})
    };
    let mut body = json!({
        "messages": user("when?"), "tools": [tool("set_day"), tool("get_day")], "temperature": 1.5, "seed": 2,
        "tool_choice": "required", "parallel_tool_calls": false,
    });
    let judge = |calls: &Value, name: Option<&str>| {
        let function = &calls[0]["function"];
        assert!(name.is_none_or(|name| function["name"] == name), "{calls}");
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert!((1..=31).contains(&arguments["day"].as_u64().unwrap()));
    };
    let choice = &place.post("/v1/chat/completions", &body).json(200)["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    judge(&choice["message"]["tool_calls"], None);
    body["tool_choice"] = json!({ "type": "function", "function": { "name": "get_day" } });
    let choice = &place.post("/v1/chat/completions", &body).json(200)["choices"][0];
    judge(&choice["message"]["tool_calls"], Some("get_day"));
    body["stream"] = true.into();
    let events: Vec<_> = place.stream("/v1/chat/completions", &body).map(|(_, data)| data).collect();
    let called = events.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let called: Vec<Value> = called.filter(|e| e["choices"][0]["delta"]["tool_calls"].is_array()).collect();
    judge(&called[0]["choices"][0]["delta"]["tool_calls"], Some("get_day"));
    assert!(!events.iter().any(|data| data.contains("<call>")), "calls are no text: {events:?}");
    // Left to itself, it may say something, and the text is free.
    body["tool_choice"] = "auto".into();
    (body["stream"], body["max_tokens"]) = (false.into(), 30.into());
    let choice = &place.post("/v1/chat/completions", &body).json(200)["choices"][0];
    assert!(choice["message"]["content"].as_str().is_some_and(|text| !text.is_empty()), "{choice}");
}

/// As Pydantic and many others write schemas: a reference is to the tool's own root.
#[test]
fn the_schema_of_a_tool_may_refer_to_itself() {
    let place = Place::new();
    let tool = |name: &str, colours: [&str; 2]| {
        json!({ "type": "function", "function": { "name": name, "parameters": {
            "type": "object", "additionalProperties": false, "required": ["colour"],
            "properties": { "colour": { "$ref": "#/$defs/Colour" } }, "$defs": { "Colour": { "enum": colours } },
        }}})
    };
    let mut body = json!({
        "messages": user("which?"), "tools": [tool("paint", ["red", "blue"]), tool("say \"it\"", ["green", "grey"])],
        "temperature": 1.5, "seed": 2, "parallel_tool_calls": false,
    });
    for (name, colours) in [("paint", ["red", "blue"]), ("say \"it\"", ["green", "grey"])] {
        body["tool_choice"] = json!({ "type": "function", "function": { "name": name } });
        let choice = place.post("/v1/chat/completions", &body).json(200)["choices"][0].clone();
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(
            (&call["function"]["name"], &choice["finish_reason"]),
            (&json!(name), &json!("tool_calls"))
        );
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(colours.contains(&arguments["colour"].as_str().unwrap()), "{arguments}");
        let id = call["id"].as_str().unwrap();
        assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    }
    // Cut short, it says so.
    body["max_tokens"] = 12.into();
    let choice = place.post("/v1/chat/completions", &body).json(200)["choices"][0].clone();
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["tool_calls"]),
        (&json!("length"), &Value::Null)
    );
}

#[test]
fn embeddings_are_means_of_hidden_states() {
    let place = Place::with(Form::F32, Options::default());
    let texts = ["a short one", &"a long one, of more than one chunk. ".repeat(5)];
    let answer = place.post("/v1/embeddings", &json!({ "input": texts })).json(200);
    let decoder = model(Form::F32);
    for (i, text) in texts.iter().enumerate() {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        let (mut cache, mut state) = (decoder.cache(KvFormat::F32), State::default());
        let span = Span { tokens: &tokens, cache: &mut cache, wanted: Wanted::All };
        let states = decoder.hidden_states(&mut [span], &mut state);
        let mut mean: Vec<f64> = vec![0.0; 96];
        for row in states.chunks_exact(96) {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x));
        }
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        let got = answer["data"][i]["embedding"].as_array().unwrap();
        assert_eq!(got.len(), 96);
        for (got, mean) in got.iter().zip(mean) {
            assert!((got.as_f64().unwrap() - mean / length).abs() < 1e-4);
        }
    }
    let body = json!({ "input": texts[0], "encoding_format": "base64" });
    let coded = place.post("/v1/embeddings", &body).json(200)["data"][0]["embedding"].clone();
    // RFC 4648, four characters of six bits for three bytes.
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let bytes: Vec<u8> = coded
        .as_str()
        .unwrap()
        .as_bytes()
        .chunks(4)
        .flat_map(|four| {
            let bits = four.iter().fold(0u32, |bits, c| bits << 6 | u32::from(digit(*c)));
            bits.to_be_bytes()[1..].to_vec()
        })
        .collect();
    let floats = bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
    let wanted =
        &place.post("/v1/embeddings", &json!({ "input": texts[0] })).json(200)["data"][0]["embedding"];
    assert_eq!(floats.clone().count(), 96);
    for (x, wanted) in floats.zip(wanted.as_array().unwrap()) {
        assert!((f64::from(x) - wanted.as_f64().unwrap()).abs() < 1e-6);
    }
}

#[test]
fn small_paths() {
    let place = Place::new();
    assert_eq!(place.get("/health").json(200), json!({ "status": "ok" }));
    assert_eq!(place.get("/v1/models").json(200)["data"][0]["id"], "tiny");
    assert_eq!(place.get("/v1/models/tiny").json(200)["max_model_len"], 4096);
    for other in ["other", "a%2Fb", "%FF"] {
        let path = format!("/v1/models/{other}");
        assert_eq!(place.get(&path).json(404)["error"]["code"], "model_not_found", "{other}");
    }
    let tokens = place.post("/tokenize", &json!({ "content": "é!" })).json(200);
    assert_eq!((&tokens["tokens"], &tokens["count"]), (&json!([0xC3, 0xA9, 33]), &json!(3)));
    assert_eq!(place.post("/detokenize", &json!({ "tokens": [0xC3, 0xA9, 33] })).json(200)["content"], "é!");
    let page = place.get("/");
    assert!(page.status == 200 && page.body.contains("<textarea"));
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "the page asks nobody else");
    assert!(page.header("content-security-policy").unwrap().contains("connect-src 'self'"));
    assert_eq!(place.get("/nothing").json(404)["error"]["type"], "invalid_request_error");
    assert_eq!(place.get("/v1/completions").status, 405);
}
