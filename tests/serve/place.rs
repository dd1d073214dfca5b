//! A server of a small random model.

use serde_json::{Value, json};
use std::net::TcpListener;
use std::thread::JoinHandle;
use ternlm::chat::ChatTemplate;
use ternlm::config::{Inputs, KvFormat, ModelConfig, Scope};
use ternlm::model::{Decoder, Latents};
use ternlm::serve::{Options, Served, Stop, serve};
use ternlm::ternary::{Density, Grouping};
use ternlm::text::Tokenizer;

use crate::client::{Events, Response, call, send};

/// Writes calls of tools between tags, as Qwen's does.
const TEMPLATE: &str = "{% if tools %}Tools:{% for t in tools %} {{ t | tojson }}{% endfor %}\n{% endif %}\
    {% for m in messages %}[{{ m.role }}]{{ m.content }}\
    {% for c in m.tool_calls or [] %}<call>{\"name\": {{ c.function.name | tojson }}, \"arguments\": \
    {{ c.function.arguments | tojson }}}</call>{% endfor %}\n{% endfor %}\
    {% if add_generation_prompt %}[assistant]{% endif %}";

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// All packed, inputs of 8 bits: products are alike for any number of rows.
    Int8,
    /// All packed, inputs in f32: for up to 15.
    F32,
    /// Embedding and head are dense: for up to 5.
    Blocks,
}

pub fn model(form: Form) -> Decoder {
    of_rows(form, 256)
}

fn of_rows(form: Form, vocab_size: usize) -> Decoder {
    let config = ModelConfig {
        vocab_size,
        hidden_size: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
        intermediate_size: 112,
        qk_norm: true,
        max_positions: 8192,
        ..ModelConfig::default()
    };
    let scope = if form == Form::Blocks { Scope::Blocks } else { Scope::All };
    let mut decoder = Decoder::new(&config, scope, Grouping::Size(48));
    Latents::random(decoder.weights_mut(), 11, None).unwrap();
    decoder.set_inputs(if form == Form::F32 { Inputs::F32 } else { Inputs::Int8 });
    decoder.weights_mut().for_each(|weight| weight.pack(Density::TwoBit));
    decoder
}

pub fn served(decoder: &Decoder, tokenizer: Tokenizer, options: &Options) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.jinja");
    std::fs::write(&file, TEMPLATE).unwrap();
    let template = ChatTemplate::from_file(&file, &tokenizer).unwrap();
    Served::new("tiny".into(), &decoder.config, tokenizer, Some(template), options)
}

/// A server; it is stopped and waited for when it is dropped.
pub struct Place {
    pub port: u16,
    pub stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Place {
    pub fn new() -> Self {
        Self::with(Form::Int8, Options::default())
    }

    pub fn with(form: Form, options: Options) -> Self {
        Self::speaking(Tokenizer::bytes(), form, options)
    }

    pub fn speaking(tokenizer: Tokenizer, form: Form, options: Options) -> Self {
        let options = Options { kv: KvFormat::F32, ..options };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, stop) = (listener.local_addr().unwrap().port(), Stop::default());
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let decoder = of_rows(form, tokenizer.vocab_size());
            let served = served(&decoder, tokenizer, &options);
            serve(&decoder, served, &options, listener, asked).unwrap();
        });
        Self { port, stop, thread: Some(thread) }
    }

    pub fn get(&self, path: &str) -> Response {
        call(self.port, "GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        call(self.port, "POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    pub fn stream(&self, path: &str, body: &Value) -> Events {
        Events::of(send(self.port, "POST", path, &[], &body.to_string()))
    }

    /// The text of a completion.
    #[track_caller]
    pub fn complete(&self, body: &Value) -> String {
        let answer = self.post("/v1/completions", body).json(200);
        answer["choices"][0]["text"].as_str().unwrap().to_string()
    }

    /// A counter.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("ternlm_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    /// Waits until a counter is as wanted.
    pub fn until(&self, name: &str, wanted: impl Fn(u64) -> bool) {
        while !wanted(self.metric(name)) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Waits until it has ended.
    pub fn wait(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            let done = thread.join();
            if !std::thread::panicking() {
                done.unwrap();
            }
        }
    }
}

/// A text of so many bytes, which are tokens.
pub fn text(seed: u64, len: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b"etaoin shrdlu"[(state >> 33) as usize % 13] as char
    };
    (0..len).map(|_| letter()).collect()
}

pub fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}
