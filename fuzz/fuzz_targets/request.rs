//! A body that a client sent to one of the server's paths: work, or an error with a status of 400 to 499.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use std::sync::LazyLock;
use ternlm::chat::ChatTemplate;
use ternlm::config::ModelConfig;
use ternlm::serve::Options;
use ternlm::serve::api::{Endpoint, Served, read};
use ternlm::text::Tokenizer;
use ternlm_fuzz::{file, mutate_json, parts};

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let config = ModelConfig {
        vocab_size: 256,
        hidden_size: 16,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        intermediate_size: 16,
        tie_embeddings: true,
        max_positions: 512,
        ..ModelConfig::default()
    };
    let tokenizer = Tokenizer::bytes();
    let template = "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}\
                    <call>{\"name\": {{ c.function.name | tojson }}, \"arguments\": {{ c.function.arguments | tojson }}}</call>\
                    {% endfor %}{% endfor %}";
    let template =
        ChatTemplate::from_file(&file("chat.jinja", template.as_bytes()), &tokenizer).expect("a template");
    Served::new("tiny".into(), &config, tokenizer, Some(template), &Options::default())
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let [endpoint, body] = parts(data);
    let number = endpoint.first().map_or(0, |byte| usize::from(*byte));
    let endpoint = Endpoint::ALL[number % Endpoint::ALL.len()];
    if let Err(wrong) = read(endpoint, body, &SERVED) {
        assert!((400..500).contains(&wrong.status), "{wrong:?}");
    }
});
