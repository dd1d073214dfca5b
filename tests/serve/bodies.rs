//! Bodies that nobody would send.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;
use ternlm::serve::Options;
use ternlm::serve::api::{Endpoint, Served, read};
use ternlm::text::Tokenizer;

use crate::place::{Form, model, served};

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    served(&model(Form::Int8), Tokenizer::bytes(), &Options { context: 512, ..Options::default() })
});

/// Fields that are read somewhere, so that random bodies get past the first check.
const NAMES: [&str; 42] = [
    "prompt",
    "messages",
    "input",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "min_p",
    "top_k",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "include_usage",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "echo",
    "suffix",
    "best_of",
    "response_format",
    "type",
    "json_schema",
    "schema",
    "tools",
    "tool_choice",
    "function",
    "name",
    "parameters",
    "role",
    "content",
    "text",
    "format",
    "tool_calls",
    "tokens",
    "chat_template_kwargs",
];

const TEXTS: [&str; 18] = [
    "",
    "a",
    "é\u{1F600}",
    "user",
    "assistant",
    "system",
    "tool",
    "text",
    "json_object",
    "json_schema",
    "function",
    "object",
    "string",
    "auto",
    "required",
    "tiny",
    "{\"a\": 1}",
    "[assistant]<call>{",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..300).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::sample::select(&TEXTS[..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let key =
            prop_oneof![4 => prop::sample::select(&NAMES[..]).prop_map(String::from), 1 => "[0-9a-z]{0,3}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A body that would be answered, with some of its fields replaced.
fn body() -> impl Strategy<Value = Value> {
    let fields = prop::collection::vec((prop::sample::select(&NAMES[..]), value()), 0..5);
    fields.prop_map(|fields| {
        let mut body = json!({
            "prompt": "a", "messages": [{ "role": "user", "content": "a" }], "input": "a", "content": "a", "tokens": [1],
        });
        for (name, value) in fields {
            body[name] = value;
        }
        body
    })
}

fn cases() -> ProptestConfig {
    // Of the gate; `PROPTEST_CASES=1000000` for the long run.
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    /// Any body is work, or an error that says what is wrong.
    #[test]
    fn bodies_are_read_or_refused(body in body(), endpoint in 0..Endpoint::ALL.len(), cut in 0usize..2000, whole: bool) {
        let text = body.to_string();
        let bytes = text.as_bytes();
        let bytes = if whole { bytes } else { &bytes[..cut.min(bytes.len())] };
        if let Err(wrong) = read(Endpoint::ALL[endpoint], bytes, &SERVED) {
            prop_assert!((400..500).contains(&wrong.status), "{} {:?}", text, wrong);
            prop_assert!(!wrong.message.is_empty() && wrong.message.len() < 3000, "{:?}", wrong);
        }
    }
}
