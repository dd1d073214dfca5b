//! A chat template nobody vouches for, then a message, documents and variables: an error or a text, soon, and never a panic of
//! ours or the engine's. What a template is given by its own names is what it is given as variables.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde_json::{Value, json};
use std::sync::LazyLock;
use ternlm::chat::{ChatTemplate, RenderOptions};
use ternlm::text::Tokenizer;
use ternlm_fuzz::{file, mutate_json, parts};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::bytes);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let [template, text, given] = parts(data);
    let Ok(template) = ChatTemplate::from_file(&file("chat_template.jinja", template), &TOKENIZER) else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let messages = [
        json!({"role": "system", "content": "Be terse."}),
        json!({"role": "user", "content": text, "n": [1, -2, 3.5, null, true]}),
        json!({"role": "assistant", "content": "Yes.", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}),
        json!({"role": "user", "content": [{"type": "text", "text": "é\n"}]}),
    ];
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let given: Value = serde_json::from_slice(given).unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut variables = given["variables"].as_object().cloned().unwrap_or_default();
    variables.retain(|name, _| !["tools", "documents"].contains(&name.as_str()));
    let plain =
        RenderOptions { add_generation_prompt: true, now: Some(1_721_984_703), ..RenderOptions::default() };
    template.render(&messages, plain.clone()).ok();
    let named = RenderOptions {
        tools: list(&tools),
        documents: list(&given["documents"]),
        variables: variables.clone(),
        ..plain.clone()
    };
    if !named.documents.is_empty() {
        variables.insert("documents".into(), given["documents"].clone());
    }
    variables.insert("tools".into(), tools);
    let named = template.render(&messages, named);
    let by_variables = template.render(&messages, RenderOptions { variables, ..plain });
    assert_eq!(named.ok(), by_variables.ok());
});
