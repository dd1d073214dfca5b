//! A body that a client sent to one of the server's paths, then what an answer says: work, or an error with a status of 400 to
//! 499; what is streamed is the whole; ids of a text are that text.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde_json::{Value, json};
use std::sync::LazyLock;
use ternlm::serve::api::{Endpoint, Served, Work, read};
use ternlm_fuzz::{mutate_json, parts, served, streamed_as_whole};

const TEMPLATE: &str = "{{ tools }}{{ documents }}{{ enable_thinking }}{% for m in messages %}{{ m.content }}\
    {% for c in m.tool_calls or [] %}\
    <call>{\"name\": {{ c.function.name | tojson }}, \"arguments\": {{ c.function.arguments | tojson }}}</call>\
    {% endfor %}{% endfor %}";

static SERVED: LazyLock<Served> = LazyLock::new(|| served(TEMPLATE.as_bytes()).expect("a template"));

/// The ids of a text, as `/detokenize` takes them.
fn text_again(body: &[u8], answer: &Value) {
    let asked: Value = serde_json::from_slice(body).expect("it was read");
    let ids = json!({"tokens": answer["tokens"]}).to_string();
    let Ok(Work::Now(again)) = read(Endpoint::Detokenize, ids.as_bytes(), &SERVED) else { panic!("{ids}") };
    assert_eq!(again["content"].as_str(), asked["content"].as_str().or(asked["prompt"].as_str()));
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let [endpoint, body, said] = parts(data);
    let number = endpoint.first().map_or(0, |byte| usize::from(*byte));
    let endpoint = Endpoint::ALL[number % Endpoint::ALL.len()];
    match read(endpoint, body, &SERVED) {
        Ok(Work::Ask(ask)) => streamed_as_whole(*ask, &String::from_utf8_lossy(said), said.len() % 2 == 1),
        Ok(Work::Now(answer)) if endpoint == Endpoint::Tokenize => text_again(body, &answer),
        Ok(Work::Now(_)) => {}
        Err(wrong) => assert!((400..500).contains(&wrong.status), "{wrong:?}"),
    }
});
