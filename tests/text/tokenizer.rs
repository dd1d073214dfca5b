//! Tokenizers made from fixtures.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use ternlm::text::{BpeTrainer, Tokenizer};

use super::mixed_text;

/// A small SentencePiece-like tokenizer: "▁" for spaces, unknown characters as bytes, `<s>` before each text.
pub fn sentencepiece_json() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    };
    ["<unk>", "<s>", "</s>"].iter().for_each(|t| add(t.to_string()));
    (0..256).for_each(|b| add(format!("<0x{b:02X}>")));
    ["▁", "a", "b", "é", "ab", "▁a", "▁ab"].iter().for_each(|t| add(t.to_string()));
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["a b", "▁ a", "▁ ab"]},
    })
}

fn written(json: &Value) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), serde_json::to_vec(json).unwrap()).unwrap();
    let spec = dir.path().to_str().unwrap().to_string();
    (dir, spec)
}

fn trained() -> Tokenizer {
    let special = vec!["<|endoftext|>".into()];
    let texts = std::iter::once(Ok(mixed_text()));
    BpeTrainer { vocab_size: 400, special }.train(texts, |_, _| {}).unwrap()
}

#[test]
fn bytes_are_ids() {
    let tokenizer = Tokenizer::open("bytes").unwrap();
    assert_eq!(tokenizer.encode("aé\n").unwrap(), [97, 0xC3, 0xA9, 10]);
    assert!(tokenizer.encode_with_special("").unwrap().is_empty());
    assert_eq!(tokenizer.decode(&[97, 300, 0xC3, 0xA9, 0xFF]), "aé\u{FFFD}");
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos(), tokenizer.bos()), (256, None, None));
}

#[test]
fn a_saved_byte_tokenizer_is_recognised_and_valid_for_others() {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::bytes().save(dir.path()).unwrap();
    let again = Tokenizer::open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(again.fingerprint(), Tokenizer::bytes().fingerprint());
    let text = mixed_text();
    let by_value: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(again.encode(&text).unwrap(), by_value);
    // The plain Hugging Face library reads the same file to the same effect.
    let hf = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(hf.encode(text.as_str(), false).unwrap().get_ids(), by_value);
    assert_eq!(hf.decode(&by_value, false).unwrap(), text);
}

#[test]
fn gpt2_needs_no_file() {
    let tokenizer = Tokenizer::open("gpt2").unwrap();
    assert_eq!(tokenizer.encode("Hello, world!<|endoftext|>").unwrap(), [15496, 11, 995, 0, 50256]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (50_257, Some(50_256)));
    assert_eq!(tokenizer.stop_ids(), [50_256]);
    assert_eq!(tokenizer.token(262).as_deref(), Some("Ġthe"));
    let text = mixed_text();
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
    assert_eq!(tokenizer.decode_plain(&[15496, 50_256]), "Hello");
}

#[test]
fn long_texts_get_the_ids_of_the_plain_library() {
    let tokenizer = trained();
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let hf = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    let text = mixed_text().repeat(20) + "<|endoftext|>" + &" \n".repeat(100_000) + &"x".repeat(100_000);
    let ids = tokenizer.encode(&text).unwrap();
    assert!(ids == hf.encode(text.as_str(), false).unwrap().get_ids());
    assert!(tokenizer.decode(&ids) == text);
    assert!(tokenizer.encode_batch(&[&text, "a"]).unwrap() == [ids, tokenizer.encode("a").unwrap()]);
}

#[test]
fn sentencepiece_fixture_with_special_tokens_and_bytes() {
    let (_dir, spec) = written(&sentencepiece_json());
    let tokenizer = Tokenizer::open(&spec).unwrap();
    // Truncation to 4 in the file is not ours.
    let text = "ab ab é猫a";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids, [265, 265, 259, 262, 0xE7 + 3, 0x8C + 3, 0xAB + 3, 260]);
    assert_eq!(tokenizer.decode(&ids), text);
    assert_eq!(tokenizer.encode_with_special(text).unwrap()[0], 1);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert_eq!(tokenizer.encode("</s>").unwrap(), [2]);

    let mut stream = tokenizer.stream();
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(parts, ["ab", " ab", " ", "é", "", "", "猫", "a"]);
    assert_eq!(stream.finish(), "");
    // An unfinished character comes out at the end only.
    assert_eq!(stream.push(0xE7 + 3), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn a_byte_stream_gives_whole_characters_and_lossy_rest() {
    let tokenizer = Tokenizer::bytes();
    let mut stream = tokenizer.stream();
    let parts: Vec<String> = "a猫".bytes().map(|b| stream.push(b.into())).collect();
    assert_eq!(parts, ["a", "", "", "猫"]);
    assert_eq!(stream.push(0xE7), "");
    assert_eq!(stream.push(b'x'.into()), "\u{FFFD}x");
    assert_eq!(stream.push(0xF0), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streaming_equals_decoding(ids in prop::collection::vec(0u32..260, 0..60)) {
        let tokenizer = Tokenizer::bytes();
        let mut stream = tokenizer.stream();
        let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        prop_assert_eq!(streamed + &stream.finish(), tokenizer.decode(&ids));
    }

    #[test]
    fn streaming_text_never_breaks_a_character(text in "\\PC{0,40}") {
        for tokenizer in [Tokenizer::bytes(), Tokenizer::gpt2()] {
            let mut stream = tokenizer.stream();
            let mut streamed = String::new();
            for id in tokenizer.encode(&text).unwrap() {
                let part = stream.push(id);
                let replaced = part.contains(char::REPLACEMENT_CHARACTER);
                prop_assert!(!replaced || text.contains(char::REPLACEMENT_CHARACTER));
                streamed += &part;
            }
            prop_assert_eq!(streamed + &stream.finish(), text.clone());
        }
    }
}

#[test]
fn side_files_name_the_special_tokens() {
    let (dir, spec) = written(&sentencepiece_json());
    let write = |name: &str, value: Value| {
        fs::write(dir.path().join(name), serde_json::to_vec(&value).unwrap()).unwrap();
    };
    let open = || Tokenizer::open(&spec).unwrap();
    write("generation_config.json", json!({"eos_token_id": [5, 2, 100_000], "bos_token_id": 3}));
    assert_eq!((open().eos(), open().bos()), (Some(5), Some(3)));
    assert_eq!(open().stop_ids(), [5, 2]);
    write("special_tokens_map.json", json!({"eos_token": {"content": "ab"}}));
    assert_eq!((open().eos(), open().stop_ids()), (open().token_id("ab"), &[263, 5, 2][..]));
    let config = json!({"eos_token": "b", "bos_token": null, "chat_template": [
        {"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]});
    write("tokenizer_config.json", config.clone());
    assert_eq!((open().eos(), open().bos()), (open().token_id("b"), None));
    assert_eq!(open().chat_template(), Some("D"));
    fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(open().chat_template(), Some("J"));

    let out = tempfile::tempdir().unwrap();
    open().save(out.path().join("new")).unwrap();
    let again = Tokenizer::from_file(out.path().join("new/tokenizer.json")).unwrap();
    assert_eq!(again.chat_template(), Some("J"));
    assert_eq!(again.config(), config.as_object());
    assert_eq!(again.fingerprint(), open().fingerprint());
    let names: Vec<_> =
        fs::read_dir(out.path().join("new")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn fingerprints_tell_vocabularies_apart() {
    let (_dir, spec) = written(&sentencepiece_json());
    let mut other = sentencepiece_json();
    other["model"]["merges"] = json!(["a b"]);
    let (_other, other_spec) = written(&other);
    let fingerprint = |spec: &str| Tokenizer::open(spec).unwrap().fingerprint().to_string();
    assert_eq!(fingerprint(&spec).len(), 64);
    assert_ne!(fingerprint(&spec), fingerprint(&other_spec));
    // The place and the way of writing merges do not matter.
    let mut tuples = sentencepiece_json();
    tuples["model"]["merges"] = json!([["a", "b"], ["▁", "a"], ["▁", "ab"]]);
    let (_tuples, tuples_spec) = written(&tuples);
    assert_eq!(fingerprint(&spec), fingerprint(&tuples_spec));
}
