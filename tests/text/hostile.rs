//! Files that are damaged or malicious: one clear error each.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use ternlm::text::Tokenizer;

use super::tokenizer::sentencepiece_json;

fn error_of(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, bytes).unwrap();
    let error = Tokenizer::from_file(&path).expect_err("a malformed file").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    error
}

fn changed(pointer: &str, value: Value) -> String {
    let mut json = sentencepiece_json();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[key] = value;
    error_of(&serde_json::to_vec(&json).unwrap())
}

#[test]
fn malformed_files_are_errors() {
    for bytes in
        [&b""[..], b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe", b"{\"model\": 3}", b"{\"model\": {}}"]
    {
        error_of(bytes);
    }
    error_of("[".repeat(1 << 20).as_bytes());
    let whole = serde_json::to_vec(&sentencepiece_json()).unwrap();
    for len in (0..whole.len()).step_by(97) {
        error_of(&whole[..len]);
    }
}

fn tenfold() -> Value {
    json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(10)})
}

#[test]
fn inconsistent_parts_are_named() {
    for (pointer, value, named) in [
        ("/version", json!("9"), "9"),
        ("/model/type", json!("GPT"), "content"),
        ("/model/vocab", json!({}), "model.vocab"),
        ("/model/vocab/ab", json!(-1), "\"ab\""),
        ("/model/vocab/ab", json!(4_294_967_295u32), "\"ab\""),
        ("/model/vocab/ab", json!(1u64 << 60), "\"ab\""),
        ("/model/vocab/ab", json!((1 << 24) - 1), "ids below"),
        ("/model/vocab/ab", json!("x"), "\"ab\""),
        ("/model/vocab/ab", json!(5), "no other token"),
        ("/model/merges", json!(["a b", "a x"]), "merges[1]"),
        ("/model/merges", json!(["a b", "ab ab"]), "merges[1]"),
        ("/model/merges", json!([["a"]]), "merges[0]"),
        ("/model/merges", json!([3]), "merges[0]"),
        ("/model/merges", json!("a b"), "content"),
        ("/model/dropout", json!(0.5), "dropout"),
        ("/model/continuing_subword_prefix", json!("▁▁▁▁▁▁"), "merges[0]"),
        ("/added_tokens", json!(3), "added_tokens"),
        ("/added_tokens/1/id", json!(7), "<s>"),
        ("/added_tokens/1/id", json!(null), "added_tokens[1]"),
        ("/added_tokens/1/content", json!("<new>"), "<new>"),
        ("/added_tokens/1/content", json!(null), "added_tokens[1]"),
        ("/post_processor/special_tokens/<s>/ids", json!([4_000_000_000u32]), "post_processor"),
        ("/post_processor", json!({"type": "Nothing"}), "content"),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "charsmap"),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}]}),
            "charsmap",
        ),
        // A table that points outside itself: found when the tokenizer is tried.
        (
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP///w8="}),
            "tokenizers crate",
        ),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "length"),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": false}),
            "content",
        ),
        ("/decoder", json!([]), "content"),
        // Of a letter, 10^40 of them.
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": vec![tenfold(); 40]}),
            "normalizer: found 1e40",
        ),
        ("/decoder", json!({"type": "Sequence", "decoders": vec![tenfold(); 40]}), "decoder: found 1e40"),
    ] {
        let error = changed(pointer, value.clone());
        assert!(error.contains(named), "{pointer} = {value}: {error}");
    }
}

/// A table of all ids would be thousands of times larger than the file.
#[test]
fn ids_may_have_gaps_that_the_file_justifies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json = sentencepiece_json();
    json["model"]["vocab"]["ab"] = json!(60_000);
    fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
    assert_eq!(Tokenizer::from_file(&path).unwrap().vocab_size(), 60_001);
}

#[test]
fn a_unigram_model_is_judged_too() {
    let unigram =
        |vocab: Value, unk: Value| json!({"model": {"type": "Unigram", "unk_id": unk, "vocab": vocab}});
    for bad in [
        unigram(json!([]), json!(0)),
        unigram(json!([["a", 0.0]]), json!(1)),
        unigram(json!([["a"]]), json!(0)),
        unigram(json!(["a"]), json!(0)),
        unigram(json!([["?", 0.0], ["", 1.0]]), json!(0)),
    ] {
        assert!(error_of(&serde_json::to_vec(&bad).unwrap()).contains("model."), "{bad}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let good = unigram(json!([["?", 0.0], ["a", -1.0], ["ab", -1.5]]), json!(0));
    fs::write(&path, serde_json::to_vec(&good).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.encode("ab").unwrap()), (3, vec![2]));
}

#[test]
fn side_files_are_judged() {
    for (name, content) in [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", r#"{"eos_token": "<none>"}"#),
        ("tokenizer_config.json", r#"{"eos_token": 7}"#),
        ("special_tokens_map.json", r#"{"bos_token": {"content": "<none>"}}"#),
        ("generation_config.json", "true"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), serde_json::to_vec(&sentencepiece_json()).unwrap())
            .unwrap();
        fs::write(dir.path().join(name), content).unwrap();
        let error = Tokenizer::open(dir.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn what_is_no_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let missing = |path: &Path| Tokenizer::open(path.to_str().unwrap()).unwrap_err().to_string();
    assert!(missing(dir.path()).contains("tokenizer.json"));
    assert!(missing(&dir.path().join("none")).contains("none"));
    assert!(Tokenizer::open("").is_err());
    #[cfg(target_os = "linux")]
    for special in ["/dev/zero", "/dev/stdin"] {
        Tokenizer::from_file(special).unwrap_err();
    }
}
