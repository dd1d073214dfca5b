//! Everything has a bound, and what goes beyond it is told so.

use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;
use ternlm::serve::Options;

use crate::client::{call, head, send};
use crate::place::{Form, Place, text, user};

/// An answer that takes a while.
fn long(seed: u64) -> Value {
    json!({ "prompt": text(seed, 4), "max_tokens": 8000, "temperature": 1, "seed": seed, "stream": true })
}

fn options() -> Options {
    Options { context: 8192, ..Options::default() }
}

#[test]
fn wrong_fields_are_named() {
    let place = Place::new();
    let chat = "/v1/chat/completions";
    let with = |field: &str, value: Value| {
        let mut body =
            json!({ "prompt": "a", "messages": user("a"), "input": "a", "max_tokens": 1, "unknown": [1] });
        body[field] = value;
        body
    };
    for (path, field, value, param) in [
        ("/v1/completions", "prompt", json!(null), "prompt"),
        ("/v1/completions", "prompt", json!(""), "prompt"),
        ("/v1/completions", "prompt", json!([]), "prompt"),
        ("/v1/completions", "prompt", json!([1, "a"]), "prompt[1]"),
        ("/v1/completions", "prompt", json!([1, 256]), "prompt"),
        ("/v1/completions", "prompt", json!(vec!["a"; 65]), "prompt"),
        ("/v1/completions", "temperature", json!(-1), "temperature"),
        ("/v1/completions", "temperature", json!("hot"), "temperature"),
        ("/v1/completions", "top_p", json!(1.5), "top_p"),
        ("/v1/completions", "max_tokens", json!(1.5), "max_tokens"),
        ("/v1/completions", "n", json!(9), "n"),
        ("/v1/completions", "n", json!(0), "n"),
        ("/v1/completions", "stop", json!([1]), "stop[0]"),
        ("/v1/completions", "stop", json!(vec!["a"; 17]), "stop"),
        ("/v1/completions", "seed", json!(0.5), "seed"),
        ("/v1/completions", "logprobs", json!(21), "logprobs"),
        ("/v1/completions", "logit_bias", json!({ "999": 1 }), "logit_bias"),
        ("/v1/completions", "logit_bias", json!({ "9": 101 }), "logit_bias.9"),
        ("/v1/completions", "suffix", json!("b"), "suffix"),
        ("/v1/completions", "best_of", json!(3), "best_of"),
        ("/v1/completions", "stream_options", json!({ "include_usage": 1 }), "stream_options.include_usage"),
        (chat, "messages", json!([]), "messages"),
        (chat, "messages", json!([{ "content": "a" }]), "messages[0].role"),
        (chat, "messages", json!([{ "role": "user" }]), "messages[0].content"),
        (
            chat,
            "messages",
            json!([{ "role": "user", "content": [{ "type": "image_url" }] }]),
            "messages[0].content[0].type",
        ),
        (chat, "top_logprobs", json!(3), "top_logprobs"),
        (chat, "response_format", json!({ "type": "xml" }), "response_format.type"),
        (
            chat,
            "response_format",
            json!({ "type": "json_schema", "json_schema": {} }),
            "response_format.json_schema.schema",
        ),
        (chat, "tools", json!([{ "type": "function" }]), "tools[0].function"),
        (chat, "tool_choice", json!("required"), "tools"),
        (chat, "chat_template_kwargs", json!({ "messages": 1 }), "chat_template_kwargs.messages"),
        (chat, "functions", json!([]), "functions"),
        (chat, "function_call", json!("auto"), "function_call"),
        ("/v1/responses", "input", json!(1), "input"),
        ("/v1/responses", "truncation", json!("auto"), "truncation"),
        ("/v1/responses", "top_logprobs", json!(2), "top_logprobs"),
        ("/v1/responses", "include", json!(["message.output_text.logprobs"]), "include"),
        ("/v1/responses", "metadata", json!("a"), "metadata"),
        ("/v1/responses", "previous_response_id", json!("r"), "previous_response_id"),
        ("/v1/embeddings", "dimensions", json!(5), "dimensions"),
        ("/v1/embeddings", "encoding_format", json!("hex"), "encoding_format"),
        ("/tokenize", "content", json!(5), "content"),
        ("/detokenize", "tokens", json!([-1]), "tokens[0]"),
    ] {
        let error = place.post(path, &with(field, value.clone())).json(400)["error"].clone();
        assert_eq!(error["param"], param, "{path} {field} {value}: {error}");
        assert!(
            error["message"].as_str().unwrap().contains(param) && error["type"] == "invalid_request_error"
        );
    }
    assert_eq!(
        place.post("/v1/completions", &with("model", json!("other"))).json(404)["error"]["code"],
        "model_not_found"
    );
    assert_eq!(place.post("/v1/completions", &with("model", json!("tiny"))).status, 200);
    for body in ["", "{", "[]", "\"a\"", "{\"prompt\": \"a\"} x", "\u{0}"] {
        call(place.port, "POST", "/v1/completions", &[], body).json(400);
    }
}

#[test]
fn lengths_are_bounded() {
    let options = Options { context: 300, body: 4096, ..Options::default() };
    let place = Place::with(Form::Int8, options);
    let ask = |prompt: String| place.post("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 50 }));
    let error = ask(text(1, 300)).json(400)["error"].clone();
    assert_eq!((&error["param"], &error["code"]), (&json!("prompt"), &json!("context_length_exceeded")));
    let cut = ask(text(1, 290)).json(200);
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]),
        (&json!("length"), &json!(10))
    );
    ask(text(1, 5000)).json(413);
    // One that does not say how long it is.
    let mut io = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
    io.write_all(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    for _ in 0..9 {
        let _ = io.write_all(format!("400\r\n{}\r\n", "x".repeat(1024)).as_bytes());
    }
    assert_eq!(head(&mut BufReader::new(io)).unwrap().0, 413);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_again() {
    let place = Place::with(Form::Int8, Options { parallel: 1, queue: 1, ..options() });
    let mut running = place.stream("/v1/completions", &long(1));
    running.next().unwrap();
    let waiting = send(place.port, "POST", "/v1/completions", &[], &long(2).to_string());
    place.until("waiting", |n| n == 1);
    let refused = place.post("/v1/completions", &long(3));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    let error = refused.json(429)["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("queue_full")));
    // Who goes away makes room, running or waiting.
    drop((running, waiting));
    place.until("running", |n| n == 0);
    place.until("waiting", |n| n == 0);
    assert_eq!(place.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 3 })).status, 200);
    assert_eq!(place.metric("refused_total"), 1);
    assert!(place.metric("tokens_made_total") < 8000, "an answer that nobody reads is not finished");
}

#[test]
fn time_is_bounded() {
    let place = Place::with(Form::Int8, Options { time: Duration::from_millis(200), ..options() });
    let mut body = long(1);
    let last: Vec<String> = place.stream("/v1/completions", &body).map(|(_, data)| data).collect();
    assert!(
        last[last.len() - 2].contains("timeout_error") && last[last.len() - 1] == "[DONE]",
        "{:?}",
        last.last()
    );
    body["stream"] = false.into();
    assert_eq!(place.post("/v1/completions", &body).json(504)["error"]["type"], "timeout_error");
    // By OpenAI's reference: `response.failed`, with the response, is the last event of a stream that fails.
    let body =
        json!({ "input": "a", "max_output_tokens": 8000, "temperature": 1, "seed": 1, "stream": true });
    let (event, data) = place.stream("/v1/responses", &body).last().unwrap();
    let data: Value = serde_json::from_str(&data).unwrap();
    assert_eq!((event.as_str(), &data["type"]), ("response.failed", &json!("response.failed")));
    let response = &data["response"];
    assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("failed")));
    assert_eq!(response["error"]["code"], "server_error", "{response}");
    assert!(response["error"]["message"].as_str().unwrap().contains("time"), "{response}");
}

#[test]
fn a_key_opens_and_another_does_not() {
    let place =
        Place::with(Form::Int8, Options { api_key: Some("open sesame".into()), ..Options::default() });
    let body = json!({ "prompt": "a", "max_tokens": 1 }).to_string();
    let ask = |headers: &[(&str, &str)]| call(place.port, "POST", "/v1/completions", headers, &body);
    // RFC 9110, 11.1: the name of a scheme is in any case, what follows is not.
    for header in ["Bearer open sesame", "bearer open sesame"] {
        assert_eq!(ask(&[("authorization", header)]).status, 200, "{header}");
    }
    assert_eq!(ask(&[("authorization", "Bearer Open sesame")]).status, 401);
    for headers in [&[][..], &[("authorization", "Bearer open sesam")], &[("authorization", "open sesame")]] {
        let refused = ask(headers);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert_eq!(refused.json(401)["error"]["code"], "invalid_api_key");
    }
    assert_eq!(place.get("/metrics").status, 401);
    assert_eq!((place.get("/health").status, place.get("/").status), (200, 200));
}

#[test]
fn pages_of_other_sites_are_refused() {
    let place = Place::new();
    let own = format!("http://127.0.0.1:{}", place.port);
    let ask = |origin: &str| call(place.port, "GET", "/v1/models", &[("origin", origin)], "").status;
    assert_eq!([ask(&own), ask("http://example.org"), ask("null")], [200, 403, 403]);
    // A name that its owner has made point here.
    let named = |host: &str| {
        let mut io = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
        write!(io, "GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
        head(&mut BufReader::new(io)).unwrap().0
    };
    let names = [
        "localhost",
        "localhost:8080",
        "[::1]:80",
        "127.0.0.1",
        "example.org",
        "example.org:8080",
        "::1",
        "",
    ];
    assert_eq!(names.map(named), [200, 200, 200, 200, 403, 403, 403, 403]);
}

#[test]
fn slow_clients_are_not_waited_for() {
    let place = Place::with(Form::Int8, Options { patience: Duration::from_millis(300), ..options() });
    let closed = |bytes: &[u8]| {
        let mut io = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
        io.write_all(bytes).unwrap();
        let mut rest = String::new();
        let _ = io.read_to_string(&mut rest);
        rest
    };
    // A request that never ends; a connection that is left open after one.
    closed(b"POST /v1/completions HTTP/1.1\r\nhost:");
    assert!(
        closed(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
            .contains(" 408 ")
    );
    assert!(closed(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").contains(" 200 "));
    // Another is served while one takes nothing of its answers, as many as buffers do not hold.
    let slow: Vec<TcpStream> = (0..4)
        .map(|seed| {
            let mut body = long(seed);
            (body["n"], body["logprobs"]) = (2.into(), 20.into());
            send(place.port, "POST", "/v1/completions", &[], &body.to_string())
        })
        .collect();
    assert_eq!(place.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 3 })).status, 200);
    place.until("running", |n| n == 0);
    place.until("connections", |n| n <= 1);
    drop(slow);
}

#[test]
fn no_more_connections_than_told() {
    let place = Place::with(Form::Int8, Options { connections: 2, ..Options::default() });
    let held: Vec<TcpStream> =
        (0..2).map(|_| TcpStream::connect(("127.0.0.1", place.port)).unwrap()).collect();
    let waiting = send(place.port, "GET", "/health", &[], "");
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(head(&mut BufReader::new(&waiting)), None, "it waits for a place");
    drop(held);
    waiting.set_read_timeout(None).unwrap();
    assert_eq!(head(&mut BufReader::new(&waiting)).unwrap().0, 200);
}

#[test]
fn what_runs_is_finished_before_the_end() {
    let place = Place::with(Form::Int8, options());
    let body = json!({ "prompt": "ab", "max_tokens": 1500, "temperature": 1, "seed": 1, "stream": true });
    let mut events = place.stream("/v1/completions", &body);
    events.next().unwrap();
    place.stop.ask();
    let refused = TcpStream::connect(("127.0.0.1", place.port)).map(|_| place.port);
    let rest: Vec<String> = events.map(|(_, data)| data).collect();
    assert_eq!(rest.last().unwrap(), "[DONE]");
    assert!(rest[rest.len() - 2].contains("\"finish_reason\":\"length\""), "{}", rest[rest.len() - 2]);
    drop(refused);
    place.wait();
}

#[test]
fn the_grace_time_ends() {
    let place = Place::with(Form::Int8, Options { grace: Duration::ZERO, ..options() });
    let mut events = place.stream("/v1/completions", &long(1));
    events.next().unwrap();
    place.stop.ask();
    let rest: Vec<String> = events.map(|(_, data)| data).collect();
    assert!(rest.iter().any(|data| data.contains("shutting down")), "{:?}", rest.last());
    place.wait();
}

/// Half a connection is a client that has gone; garbage is answered or closed, and nothing else is disturbed.
#[test]
fn garbage_on_the_wire() {
    let place = Place::with(Form::Int8, Options { patience: Duration::from_millis(300), ..options() });
    for bytes in [
        &b"\x00\xff\x16\x03\x01 no http"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models/%ff%00../../etc/passwd HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ] {
        let mut io = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
        let _ = io.write_all(bytes);
        let mut rest = Vec::new();
        let _ = io.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 200") && !rest.windows(5).any(|w| w == b"root:"));
    }
    let io = send(place.port, "POST", "/v1/completions", &[], &long(1).to_string());
    place.until("running", |n| n == 1);
    io.shutdown(Shutdown::Write).unwrap();
    place.until("running", |n| n == 0);
    assert_eq!(place.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 3 })).status, 200);
}

/// A short prompt waits for a chunk of a long one, not for all of it.
#[test]
fn a_short_prompt_overtakes_a_long_one() {
    let place = Place::with(Form::Int8, options());
    let long = json!({ "prompt": text(9, 8000), "max_tokens": 1 });
    thread::scope(|scope| {
        let read = scope.spawn(|| place.post("/v1/completions", &long).json(200));
        place.until("prompt_tokens_computed_total", |n| n > 0);
        let before = place.metric("prompt_tokens_computed_total");
        place.post("/v1/completions", &json!({ "prompt": "short", "max_tokens": 1 })).json(200);
        let first = place.metric("prompt_tokens_computed_total");
        // In all it is 63 chunks. How many pass before the request is here depends on the machine.
        assert!(before > 4000 || first < 8000, "{before} tokens read before it, {first} after");
        read.join().unwrap();
    });
}

/// A stream flows while a long prompt comes in: between two of its tokens stands one chunk at most.
#[test]
fn a_long_prompt_lets_streams_flow() {
    let place = Place::with(Form::Int8, options());
    let mut stream = place.stream("/v1/completions", &long(1));
    stream.next().unwrap();
    let (made, passes) = (place.metric("tokens_made_total"), place.metric("passes_total"));
    let prompt = json!({ "prompt": text(9, 4000), "max_tokens": 1 });
    thread::scope(|scope| {
        let read = scope.spawn(|| place.post("/v1/completions", &prompt).json(200));
        stream.by_ref().take(200).for_each(drop);
        read.join().unwrap();
    });
    // 32 chunks, each in a pass in which the stream has its token: hardly more passes than tokens.
    let passes = place.metric("passes_total") - passes;
    let made = place.metric("tokens_made_total") - made;
    assert!(passes >= 31 && passes <= made + 3, "{passes} passes, {made} tokens");
}

#[test]
fn a_body_that_does_not_come_whole_is_no_long_one() {
    let place = Place::with(Form::Int8, options());
    for bytes in [
        &b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"[..],
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n{\"a\":",
    ] {
        let mut io = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
        io.write_all(bytes).unwrap();
        io.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("did not come whole"), "{answer}");
    }
    let long = format!("{{\"prompt\":\"{}\"}}", "a".repeat(3 << 20));
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    let mut io = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
    let _ = io.write_all(chunked.as_bytes());
    let mut start = [0; 12];
    io.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[test]
fn times_have_bounds() {
    let year = Duration::from_secs(365 * 24 * 3600);
    for wrong in [
        Options { time: Duration::ZERO, ..options() },
        Options { patience: Duration::ZERO, ..options() },
        Options { time: Duration::MAX, ..options() },
        Options { patience: year * 2, ..options() },
        Options { grace: Duration::from_secs(u64::MAX), ..options() },
    ] {
        assert!(wrong.validate().unwrap_err().to_string().contains("at most"));
    }
    Options { time: year, patience: year, grace: Duration::ZERO, ..options() }.validate().unwrap();
}
