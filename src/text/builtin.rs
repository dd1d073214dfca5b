//! The two tokenizers that need no file, and the JSON of any byte-level BPE.

use serde_json::{Map, Value, json};
use std::collections::HashMap;

use super::alphabet::{byte_order, to_chars};
use crate::{Error, Result};

pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The `tokenizer.json` of a byte-level BPE: `tokens[id]` is the vocabulary form of each id, `merges` come by rank,
/// `special` are ids in `tokens`. `split`: cut the text with GPT-2's pattern before merging.
pub fn byte_level_json(
    tokens: &[String],
    merges: &[(String, String)],
    special: &[u32],
    split: bool,
) -> Result<Value> {
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(token.clone(), json!(id)).is_some() {
            return Err(Error::usage(format!("the vocabulary would hold {token:?} twice")));
        }
    }
    let added: Vec<Value> = special
        .iter()
        .map(|&id| {
            json!({
                "id": id, "content": tokens[id as usize], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split,
        },
        "post_processor": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true,
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    }))
}

/// 256 ids, each the value of its byte.
pub fn bytes_json() -> Value {
    let tokens: Vec<String> = (0..=255u8).map(|b| to_chars(&[b])).collect();
    byte_level_json(&tokens, &[], &[], false).expect("256 different characters")
}

/// Whether a `tokenizer.json` does exactly what [`bytes_json`] does.
pub fn is_bytes_json(value: &Value) -> bool {
    let (model, pre) = (&value["model"], &value["pre_tokenizer"]);
    let Some(vocab) = model["vocab"].as_object() else { return false };
    let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    let absent = |v: &Value| v.is_null() || v.as_str() == Some("");
    vocab.len() == 256
        && (0..=255u8).all(|b| vocab.get(&to_chars(&[b])).and_then(Value::as_u64) == Some(b.into()))
        && empty(&model["merges"])
        && absent(&model["continuing_subword_prefix"])
        && absent(&model["end_of_word_suffix"])
        && empty(&value["added_tokens"])
        && value["normalizer"].is_null()
        && pre["type"] == "ByteLevel"
        && pre["add_prefix_space"] == false
        && (value["post_processor"].is_null() || value["post_processor"]["type"] == "ByteLevel")
        && value["decoder"]["type"] == "ByteLevel"
}

/// GPT-2's vocabulary of 50,257, rebuilt from the ranks that the `tiktoken-rs` crate carries.
pub fn gpt2_json() -> Value {
    let core = tiktoken_rs::r50k_base_singleton();
    let by_rank: Vec<Vec<u8>> =
        (0..50_256).map(|rank| core.decode_bytes(&[rank]).expect("r50k_base has ranks 0 to 50255")).collect();
    debug_assert!(by_rank.iter().take(256).map(|t| t[0]).eq(byte_order()));
    let merges: Vec<(String, String)> =
        merges_of(&by_rank).into_iter().map(|(a, b)| (to_chars(a), to_chars(b))).collect();
    let mut tokens: Vec<String> = by_rank.iter().map(|t| to_chars(t)).collect();
    tokens.push(END_OF_TEXT.into());
    byte_level_json(&tokens, &merges, &[50_256], true).expect("ranks name different tokens")
}

/// The pair that made each token of two bytes or more: what is left of it after all merges of lower rank.
fn merges_of(by_rank: &[Vec<u8>]) -> Vec<(&[u8], &[u8])> {
    let ranks: HashMap<&[u8], usize> = by_rank.iter().enumerate().map(|(r, t)| (t.as_slice(), r)).collect();
    let mut merges = Vec::with_capacity(by_rank.len());
    for (rank, token) in by_rank.iter().enumerate().filter(|(_, t)| t.len() > 1) {
        // Ends of the parts; part i is ends[i]..ends[i + 1].
        let mut ends: Vec<usize> = (0..=token.len()).collect();
        while ends.len() > 3 {
            let best = (1..ends.len() - 1)
                .filter_map(|i| Some((*ranks.get(&token[ends[i - 1]..ends[i + 1]])?, i)))
                .filter(|(r, _)| *r < rank)
                .min()
                .expect("every token of r50k_base is made of two earlier ones");
            ends.remove(best.1);
        }
        merges.push(token.split_at(ends[1]));
    }
    merges
}
