//! A tokenizer that is written as the metadata of a GGUF file and read again: where both are tokenizers, a text has the same
//! ids.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::config::ModelConfig;
use ternlm::formats::Description;
use ternlm::formats::gguf::write::{Item, write};
use ternlm::formats::gguf::{GgufFile, tokens, vocabulary};
use ternlm::text::Tokenizer;
use ternlm_fuzz::{bundle, folder, let_caught_panics_pass, mutate_json};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

const FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];
/// Rows of the embedding: more than the vocabularies of the seeds have.
const ROWS: usize = 400;

fn shape() -> ModelConfig {
    ModelConfig {
        vocab_size: ROWS,
        hidden_size: 64,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 64,
        intermediate_size: 64,
        tie_embeddings: true,
        max_positions: 8,
        ..ModelConfig::default()
    }
}

fuzz_target!(init: let_caught_panics_pass(), |data: &[u8]| {
    let files = bundle(FILES, data);
    let Ok(Some(metadata)) = tokens::metadata(&files, &Description::new(shape()), ROWS) else { return };
    let count = metadata.iter().find_map(|(_, item)| match item {
        Item::Texts(texts) => Some(texts.len()),
        _ => None,
    });
    assert_eq!(count, Some(ROWS), "a token for every row");
    let path = folder().join("x.gguf");
    std::fs::remove_file(&path).ok();
    write(&path, &metadata, &[], &mut |_, _| {}).expect("room for a file");
    let file = GgufFile::open(&path).expect("what was written");
    let read = vocabulary(&file);
    let Ok(ours) = Tokenizer::of(&files) else { return };
    let theirs = Tokenizer::of(&read.expect("a vocabulary that was written")).expect("a tokenizer that was written");
    // Without what the writer warns of: forms of characters, runs of spaces, `Metaspace` behind special tokens.
    let metaspace = data.windows(9).any(|part| part == b"Metaspace");
    let text = if metaspace { "ab a 12 é" } else { "ab a<s> 12 é" };
    if let (Ok(a), Ok(b)) = (ours.encode(text), theirs.encode(text)) {
        assert_eq!(a, b);
    }
});
