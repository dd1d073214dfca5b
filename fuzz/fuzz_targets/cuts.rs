//! A text in chunks, encoded in parallel, has the tokens of the whole, for each kind of place that a text may be cut at; so has
//! a file that is read some bytes at a time, be it measured or trained on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;
use ternlm::config::DataConfig;
use ternlm::config::patterns::{LLAMA3, QWEN2};
use ternlm::files::Bundle;
use ternlm::text::{Corpus, Reading, ReadingOptions, Tokenizer};
use ternlm_fuzz::{begins_alike, file, folder, plain_text};

/// They span what pre-tokenizers keep together.
const MERGES: [&str; 11] = ["a a", "aa a", ". Ċ", ".Ċ Ċ", "Ċ Ċ", "Ġ a", "Ġ Ġ", "č Ċ", "1 1", "' a", ". ."];

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let sequence = |first: Value, last: Value| json!({"type": "Sequence", "pretokenizers": [first, last]});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let pre_tokenizers = vec![
        bytes(true),
        sequence(digits, bytes(true)),
        sequence(split(QWEN2), bytes(false)),
        sequence(split(LLAMA3), bytes(false)),
    ];
    pre_tokenizers.into_iter().map(tokenizer).collect()
});

fn tokenizer(pre_tokenizer: Value) -> Tokenizer {
    let (name, bytes) = Tokenizer::bytes().file();
    let mut json: Value = serde_json::from_slice(&bytes).expect("what was written");
    let mut merges = Vec::new();
    for (merge, id) in MERGES.iter().zip(256..) {
        let (left, right) = merge.split_once(' ').expect("a pair");
        json["model"]["vocab"][format!("{left}{right}")] = json!(id);
        merges.push(json!([left, right]));
    }
    json["model"]["merges"] = merges.into();
    json["normalizer"] = json!({"type": "NFC"});
    json["pre_tokenizer"] = pre_tokenizer;
    json["added_tokens"] = json!([{"id": 256 + MERGES.len(), "content": "<|endoftext|>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}]);
    let files = Bundle::within("made", [(name.to_string(), json.to_string().into_bytes())].into());
    Tokenizer::of(&files).expect("a tokenizer")
}

/// Whether a training takes the file; then it sees what is measured of it.
fn trained_as_measured(path: &Path, tokenizer: &Tokenizer) -> bool {
    let options = ReadingOptions::default();
    let reading = Reading::open(path, tokenizer, &options);
    let data = DataConfig { train: vec![path.into()], val_fraction: 0.2, ..DataConfig::default() };
    let cache = folder().join("cache");
    let corpus = Corpus::open(&data, tokenizer, &cache, &|_, _| {});
    if let Ok(Corpus { train, val, passed_over, .. }) = &corpus {
        let reading = reading.as_ref().expect("what is trained on can be measured");
        assert_eq!([train.to_vec(), val.to_vec()].concat(), reading.ids);
        assert_eq!(*passed_over, reading.passed_over);
        assert_eq!(train.text_bytes() + val.text_bytes(), reading.extent_from(0).bytes);
    }
    std::fs::remove_dir_all(&cache).ok();
    if let Ok(reading) = reading {
        begins_alike(path, tokenizer, &options, reading);
    }
    corpus.is_ok()
}

fuzz_target!(|data: &[u8]| {
    let some = &TOKENIZERS[data.len() % TOKENIZERS.len()];
    trained_as_measured(&file("a.jsonl", data), some);
    let Some(text) = plain_text(data) else { return };
    let path = file("a.txt", data);
    assert_eq!(trained_as_measured(&path, some), !text.trim_ascii().is_empty());
    for tokenizer in TOKENIZERS.iter() {
        // Of a text in one piece, to which these tokenizers add nothing.
        let whole = tokenizer.encode_with_special(&text).expect("a text");
        assert_eq!(tokenizer.encode(&text).expect("a text"), whole);
        let here = tokenizer.encode_here(&text).expect("a text");
        assert_eq!(here.ids, whole);
        assert_eq!(here.bytes.iter().map(|&bytes| bytes as usize).sum::<usize>(), text.len());
        assert_eq!(Reading::of_text(&text, tokenizer).expect("a text").ids, whole);
        let reading = Reading::open(&path, tokenizer, &ReadingOptions::default()).expect("a text");
        assert_eq!(reading.ids, whole);
        assert_eq!(reading.extent_from(0).bytes, text.len() as u64);
    }
});
