//! A chat template nobody vouches for, then a message: an error or a text, soon, and never a panic of ours or the engine's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use std::sync::LazyLock;
use ternlm::chat::{ChatTemplate, RenderOptions};
use ternlm::text::Tokenizer;
use ternlm_fuzz::{file, parts};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::bytes);

fuzz_target!(|data: &[u8]| {
    let [template, text] = parts(data);
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
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    for tools in [vec![], vec![tool]] {
        let options = RenderOptions {
            add_generation_prompt: true,
            tools,
            now: Some(1_721_984_703),
            ..Default::default()
        };
        template.render(&messages, options).ok();
    }
});
