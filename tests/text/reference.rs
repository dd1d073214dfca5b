//! Against token ids that other implementations produced.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::time::Instant;
use ternlm::text::{TokenStream, Tokenizer};

use super::shared;

fn ggml_vectors(tokenizer: &Tokenizer, name: &str) {
    let Some(dir) = shared("tokenizers/ggml-vectors") else { return };
    let input = fs::read_to_string(dir.join(format!("ggml-vocab-{name}.gguf.inp"))).unwrap();
    let output = fs::read_to_string(dir.join(format!("ggml-vocab-{name}.gguf.out"))).unwrap();
    let texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let expected: Vec<Vec<u32>> =
        output.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    // The text after the last separator is no test.
    assert_eq!(expected.len(), 46);
    assert!(texts.len() >= 46);
    for (text, ids) in texts.iter().zip(&expected) {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids), *text);
    }
}

#[test]
fn gpt2_vectors() {
    ggml_vectors(&Tokenizer::gpt2(), "gpt-2");
}

#[test]
fn qwen2_vectors() {
    let Some(file) = shared("tokenizers/qwen3/tokenizer.json") else { return };
    ggml_vectors(&Tokenizer::from_file(file).unwrap(), "qwen2");
}

/// WikiText as the usual perplexity scripts read it: the data set's rows (blank ones empty), joined by blank lines.
fn joined_rows(text: &str) -> String {
    let rows: Vec<&str> =
        text.split_inclusive('\n').map(|row| if row.trim().is_empty() { "" } else { row }).collect();
    rows.join("\n\n")
}

#[test]
fn whole_files_give_the_reference_ids() {
    let Some(root) = shared(".") else { return };
    let reference = fs::read(root.join("tokenizers/reference_counts.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let qwen3 = Tokenizer::open(root.join("tokenizers/qwen3").to_str().unwrap()).unwrap();
    for (key, entry) in reference.as_object().unwrap() {
        let (file, name) = key.rsplit_once('|').unwrap();
        let tokenizer = if name == "gpt2" { Tokenizer::gpt2() } else { qwen3.clone() };
        let text = match file.starts_with("HF-style") {
            true => joined_rows(&fs::read_to_string(root.join("wikitext-2-raw/wiki.test.raw")).unwrap()),
            false => fs::read_to_string(root.join(file)).unwrap(),
        };
        let start = Instant::now();
        let ids = tokenizer.encode(&text).unwrap();
        println!("{key}: {} bytes in {:.2?}", text.len(), start.elapsed());
        assert_eq!(ids.len() as u64, entry["n_tokens"].as_u64().unwrap(), "{key}");
        let list = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
        if entry["first32"].is_array() {
            assert_eq!(ids[..32], list(&entry["first32"]), "{key}");
            assert_eq!(ids[ids.len() - 8..], list(&entry["last8"]), "{key}");
        }
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hash, entry["sha256_u32le"].as_str().unwrap(), "{key}");
        assert_eq!(tokenizer.decode(&ids), text, "{key}");
    }
}

#[test]
fn gpt2_is_rebuilt_exactly() {
    let Some(dir) = shared("tokenizers/gpt2") else { return };
    let out = tempfile::tempdir().unwrap();
    Tokenizer::gpt2().save(out.path()).unwrap();
    let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let saved = json(&out.path().join("tokenizer.json"));

    let merges = fs::read_to_string(dir.join("vocab.bpe")).unwrap();
    let merges: Vec<&str> = merges.lines().skip(1).collect();
    let ours: Vec<String> = saved["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
        .collect();
    assert_eq!(ours.len(), 50_000);
    assert!(ours == merges, "first difference at {:?}", ours.iter().zip(&merges).position(|(a, b)| a != b));

    let vocab = json(&dir.join("encoder.json"));
    let vocab = vocab.as_object().unwrap();
    assert_eq!(saved["model"]["vocab"].as_object().unwrap().len(), vocab.len());
    for (token, id) in vocab {
        assert_eq!(&saved["model"]["vocab"][token], id, "{token:?}");
    }
    let theirs = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    assert_eq!(theirs.fingerprint(), Tokenizer::gpt2().fingerprint());
}

#[test]
fn sentencepiece_models_round_trip() {
    for name in ["tok512", "llama2"] {
        let Some(dir) = shared(&format!("tokenizers/{name}")) else { return };
        let tokenizer = Tokenizer::open(dir.to_str().unwrap()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
        let text = "Once upon a time, there was a little girl named Lily.\nShe said: été, 猫!";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        let with_bos = tokenizer.encode_with_special(text).unwrap();
        assert_eq!(with_bos[0], 1);
        assert_eq!(with_bos[1..], ids);
        assert_eq!(tokenizer.decode_plain(&with_bos), text);
        let mut stream = TokenStream::new(&tokenizer);
        let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        assert_eq!(streamed + &stream.finish(), text);
    }
}

#[test]
fn qwen3_side_files_are_kept() {
    let Some(dir) = shared("tokenizers/qwen3") else { return };
    let tokenizer = Tokenizer::open(dir.to_str().unwrap()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 151_669);
    assert_eq!(tokenizer.eos(), tokenizer.token_id("<|im_end|>"));
    assert_eq!(tokenizer.bos(), None);
    assert!(tokenizer.chat_template().unwrap().contains("<|im_start|>"));
    assert_eq!(tokenizer.encode("a<|im_end|>").unwrap(), [64, 151_645]);
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    let config = "tokenizer_config.json";
    assert_eq!(fs::read(dir.join(config)).unwrap(), fs::read(out.path().join(config)).unwrap());
    let again = Tokenizer::open(out.path().to_str().unwrap()).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    assert_eq!(again.chat_template(), tokenizer.chat_template());
}

#[test]
fn japanese_and_korean_round_trip() {
    for file in ["multilingual/wagahai_ja.txt", "multilingual/kowiki.txt"] {
        let Some(path) = shared(file) else { return };
        let text = fs::read_to_string(path).unwrap();
        for tokenizer in [Tokenizer::bytes(), Tokenizer::gpt2()] {
            let ids = tokenizer.encode(&text).unwrap();
            assert!(tokenizer.decode(&ids) == text);
            let mut stream = TokenStream::new(&tokenizer);
            let mut streamed = String::new();
            for &id in &ids {
                let part = stream.push(id);
                assert!(!part.contains('\u{FFFD}'), "{part:?}");
                streamed += &part;
            }
            assert!(streamed + &stream.finish() == text);
        }
    }
}
