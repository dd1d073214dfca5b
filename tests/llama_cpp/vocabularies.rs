//! The hard texts of llama.cpp's own tests, cut by vocabularies that were written here.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use ternlm::config::{ModelConfig, patterns};
use ternlm::files::Bundle;
use ternlm::formats::Description;
use ternlm::formats::gguf::tokens;
use ternlm::formats::gguf::write::{Item, write};
use ternlm::text::Tokenizer;

use super::common::{data, models};
use super::probe;

/// Changes a `tokenizer.json`.
type Edit = fn(&mut Value);

fn files(dir: &str, edit: Edit) -> Option<Bundle> {
    let dir = data(&format!("tokenizers/{dir}"))?;
    let mut held = BTreeMap::new();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        held.extend(fs::read(dir.join(name)).ok().map(|bytes| (name.to_string(), bytes)));
    }
    let mut json = serde_json::from_slice(&held["tokenizer.json"]).unwrap();
    edit(&mut json);
    held.insert("tokenizer.json".into(), json.to_string().into());
    Some(Bundle::within(&dir, held))
}

/// A file of a vocabulary and the keys that llama.cpp wants of a model.
fn vocabulary(dir: &Path, files: &Bundle, rows: usize) -> (PathBuf, String) {
    let text = |text: &str| Item::Text(text.into());
    let mut all = vec![("general.architecture".to_string(), text("llama"))];
    for (key, n) in [
        ("context_length", 64),
        ("embedding_length", 64),
        ("block_count", 1),
        ("feed_forward_length", 64),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
    ] {
        all.push((format!("llama.{key}"), Item::U32(n)));
    }
    all.push(("llama.attention.layer_norm_rms_epsilon".into(), Item::F32(1e-6)));
    let shape = ModelConfig { vocab_size: rows, ..models::llama() };
    let metadata = tokens::metadata(files, &Description::new(shape), rows).unwrap().unwrap();
    let pre = match metadata.iter().find(|(key, _)| key == "tokenizer.ggml.pre") {
        Some((_, Item::Text(pre))) => pre.clone(),
        other => panic!("{other:?}"),
    };
    all.extend(metadata);
    let to = dir.join("x.gguf");
    write(&to, &all, &[], &mut |_, _| {}).unwrap();
    (to, pre)
}

fn cut_by(json: &mut Value, pattern: &str) {
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    ]});
}

/// No tokenizer of LLaMA 3 or SmolLM is at hand: GPT-2's tokens, cut as they cut.
#[test]
fn llama_cpp_cuts_texts_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let whole: Edit = |_| {};
    for (pre, tokenizer, rows, edit) in [
        ("gpt-2", "gpt2", 50_257, whole),
        ("qwen2", "qwen3", 151_936, whole),
        ("default", "llama2", 32_000, whole),
        ("default", "llama2", 32_000, |json| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false});
        }),
        ("qwen2", "gpt2", 50_300, |json| cut_by(json, patterns::QWEN2)),
        ("llama-bpe", "gpt2", 50_300, |json| {
            cut_by(json, patterns::LLAMA3);
            json["model"]["ignore_merges"] = true.into();
        }),
        ("smollm", "gpt2", 50_300, |json| {
            json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]});
        }),
    ] {
        // The texts are the same for every vocabulary.
        let texts = data("tokenizers/ggml-vectors/ggml-vocab-gpt-2.gguf.inp");
        let (Some(files), Some(texts)) = (files(tokenizer, edit), texts) else { return };
        let (file, named) = vocabulary(dir.path(), &files, rows);
        assert_eq!(named, pre);
        let ours = Tokenizer::of(&files).unwrap();
        let hard = fs::read_to_string(texts).unwrap();
        let mut hard: Vec<&str> =
            hard.split("\n__ggml_vocab_test__\n").filter(|text| !text.is_empty()).collect();
        assert!(hard.len() > 40);
        // Numbers of every length, in several scripts; words that begin with a digit; what follows an apostrophe.
        hard.extend([
            "1 12 123 1234 12345 123456",
            "x86_64 3rd ٣٤٥٦٧ ४५६७ ½¾ Ⅻ",
            "I'LL he'Ll 'tis ’s DON'T",
            "a\r\n\r\nb \t c",
        ]);
        let input: Vec<u8> = hard.iter().flat_map(|text| [text.as_bytes(), &[0]].concat()).collect();
        let Some(said) = probe("tokens", &file, &[], &input) else { return };
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.lines().count(), hard.len());
        let mut wrong = Vec::new();
        for (text, theirs) in hard.iter().zip(said.lines()) {
            let ids: Vec<String> = ours.encode_prompt(text).unwrap().iter().map(u32::to_string).collect();
            if ids.join(" ") != theirs {
                wrong.push(format!("{text:?}: {} and not {theirs}", ids.join(" ")));
            }
        }
        println!(
            "{pre}, tokens of {tokenizer}: {} of {} texts have the same ids",
            hard.len() - wrong.len(),
            hard.len()
        );
        assert!(wrong.is_empty(), "{pre}: {wrong:#?}");
    }
}
