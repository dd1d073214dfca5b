//! An answer is what its prompt, settings and seed give alone, whatever else runs; what prompts share is computed once.

use serde_json::{Value, json};
use std::thread;
use ternlm::serve::Options;

use crate::place::{Form, Place, text, user};

/// Requests of many kinds and lengths, some of which begin alike.
fn requests() -> Vec<Value> {
    let shared = text(1, 300);
    let mut all = Vec::new();
    for i in 0..24u64 {
        let prompt = match i % 4 {
            0 => format!("{shared}{}", text(i, 20 + i as usize)),
            1 => text(i, 5),
            2 => text(i, 200 + 13 * i as usize),
            _ => text(i % 8, 128),
        };
        let temperature = [0.0, 0.7, 1.0][i as usize % 3];
        all.push(json!({
            "prompt": prompt, "max_tokens": 16 + i, "temperature": temperature, "seed": i, "top_p": 0.95,
            "presence_penalty": 0.1, "n": 1 + i % 2, "logprobs": 1,
        }));
    }
    all
}

fn choices(answer: &Value) -> Value {
    answer["choices"].clone()
}

#[test]
fn an_answer_is_the_same_whatever_else_runs() {
    for form in [Form::Int8, Form::F32, Form::Blocks] {
        let requests = requests();
        // Each on a server where nothing ran before it.
        let alone: Vec<Value> = requests
            .chunks(8)
            .flat_map(|some| {
                let places: Vec<Place> = some.iter().map(|_| Place::with(form, Options::default())).collect();
                let ask =
                    |(place, body): (&Place, &Value)| choices(&place.post("/v1/completions", body).json(200));
                places.iter().zip(some).map(ask).collect::<Vec<_>>()
            })
            .collect();
        let busy = Place::with(form, Options { parallel: 20, ..Options::default() });
        for _ in 0..2 {
            let together: Vec<Value> = thread::scope(|scope| {
                let asked: Vec<_> = requests
                    .iter()
                    .map(|body| scope.spawn(|| choices(&busy.post("/v1/completions", body).json(200))))
                    .collect();
                asked.into_iter().map(|one| one.join().unwrap()).collect()
            });
            for (i, (alone, together)) in alone.iter().zip(&together).enumerate() {
                assert_eq!(alone, together, "{form:?}: request {i}");
            }
        }
        assert!(
            busy.metric("prompt_tokens_shared_total") > 0,
            "the second round finds the first one's prompts"
        );
    }
}

#[test]
fn a_prefix_that_twenty_share_is_computed_once() {
    let place = Place::with(Form::Int8, Options { parallel: 8, ..Options::default() });
    let shared = text(3, 1000);
    let answers: Vec<Value> = thread::scope(|scope| {
        let ask = |i: usize| {
            let body = json!({ "prompt": format!("{shared} and {i:02}"), "max_tokens": 4, "temperature": 0 });
            place.post("/v1/completions", &body).json(200)
        };
        let asked: Vec<_> = (0..20).map(|i| scope.spawn(move || ask(i))).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    // Seven chunks of 128 are common to all.
    let (common, each) = (896, 1000 + 7 - 896);
    assert_eq!(place.metric("prompt_tokens_computed_total"), common + 20 * each);
    assert_eq!(place.metric("prompt_tokens_shared_total"), 19 * common);
    let cached =
        answers.iter().map(|a| a["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    assert_eq!(cached.sum::<u64>(), 19 * common);
}

/// The next turn of a conversation goes on from the one before.
#[test]
fn a_conversation_keeps_what_was_read() {
    let place = Place::new();
    let mut messages = user(&text(4, 400));
    let body = |messages: &Value| json!({ "messages": messages, "max_tokens": 8, "temperature": 0 });
    let first = place.post("/v1/chat/completions", &body(&messages)).json(200);
    let said = first["choices"][0]["message"].clone();
    let list = messages.as_array_mut().unwrap();
    list.push(json!({ "role": "assistant", "content": said["content"] }));
    list.push(json!({ "role": "user", "content": "go on" }));
    let second = place.post("/v1/chat/completions", &body(&messages)).json(200);
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], 384);
}

/// With room for little, old prefixes make room for new prompts, and answers stay right.
#[test]
fn pages_are_reclaimed() {
    let options = Options { parallel: 1, context: 512, ..Options::default() };
    let place = Place::with(Form::Int8, options.clone());
    let ask = |place: &Place, seed: u64| {
        place.complete(&json!({ "prompt": text(seed, 450), "max_tokens": 20, "temperature": 0 }))
    };
    let first = ask(&place, 1);
    for seed in 2..8 {
        ask(&place, seed);
    }
    assert!(place.metric("prefixes_reclaimed_total") > 0);
    assert!(place.metric("pages_in_use") <= 5);
    assert_eq!(ask(&place, 1), first);
}
