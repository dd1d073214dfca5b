//! What Hugging Face's files put before and after a text.

use serde_json::{Map, Value, json};

/// Classes whose post-processor transformers 4 makes of `add_bos_token` and `add_eos_token` (`update_post_processor` in 4.57's
/// models/*/tokenization_*_fast.py).
const CLASSES: [&str; 5] =
    ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer"];

/// What `tokenizer_config.json` and `special_tokens_map.json` hold, in the order in which they are asked for special tokens: the
/// former first where it lists `added_tokens_decoder`.
pub fn in_order<T>(lists_added: bool, config: T, map: T) -> [T; 2] {
    if lists_added { [config, map] } else { [map, config] }
}

/// Whether `add_bos_token` and `add_eos_token` of `config` (`tokenizer_config.json`) put their token before and after a text,
/// where `tokenizer.json` has this `post_processor`.
///
/// transformers 4 follows the keys of these classes and llama.cpp's converter those of all (gguf-py/gguf/vocab.py), while
/// transformers 5 takes `tokenizer.json` alone (5.24, tokenization_utils_base.py, `_from_pretrained`). So a post-processor that
/// speaks of tokens holds, whatever the keys say, and beside one that does not the keys hold. An absent key puts nothing, though
/// LLaMA's class in transformers 4 then takes `add_bos_token` for true.
pub fn by_keys(post_processor: &Value, config: Option<&Map<String, Value>>) -> [bool; 2] {
    let class = config.and_then(|config| config.get("tokenizer_class")?.as_str()).unwrap_or_default();
    let follows = CLASSES.contains(&class.strip_suffix("Fast").unwrap_or(class)) && is_silent(post_processor);
    let says = |key: &str| config.and_then(|config| config.get(key)?.as_bool()).unwrap_or(false);
    ["add_bos_token", "add_eos_token"].map(|key| follows && says(key))
}

/// Whether a post-processor says nothing of tokens: `ByteLevel` trims spaces off the spans of tokens.
fn is_silent(post_processor: &Value) -> bool {
    match (&post_processor["processors"], post_processor["type"].as_str()) {
        (Value::Array(steps), Some("Sequence")) => steps.iter().all(is_silent),
        (_, kind) => post_processor.is_null() || kind == Some("ByteLevel"),
    }
}

/// The post-processor that does what `first` does (null: nothing) and puts these tokens, each with its id, before and after a
/// text.
pub fn post_processor(first: &Value, tokens: [Option<(&str, u64)>; 2]) -> Value {
    let part = |name: &str, kind: u64| {
        let special = |(token, _): (&str, u64)| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let [before, after] = tokens.map(|token| token.map(special));
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        before.into_iter().chain([text]).chain(after).collect::<Vec<Value>>()
    };
    let named = tokens.into_iter().flatten();
    let named: Map<String, Value> = named
        .map(|(token, id)| (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let mut steps = match &first["processors"] {
        Value::Array(steps) => steps.clone(),
        _ if first.is_null() => Vec::new(),
        _ => vec![first.clone()],
    };
    if !named.is_empty() {
        let pair = [part("A", 0), part("B", 1)].concat();
        steps.push(json!({
            "type": "TemplateProcessing", "single": part("A", 0), "pair": pair, "special_tokens": named,
        }));
    }
    match steps.len() {
        0 => Value::Null,
        1 => steps.remove(0),
        _ => json!({"type": "Sequence", "processors": steps}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hold_where_a_post_processor_says_nothing() {
        let config =
            json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true, "add_eos_token": null});
        let said = |post_processor: Value| by_keys(&post_processor, config.as_object());
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
        let text = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]});
        let both = |a: &Value, b: &Value| json!({"type": "Sequence", "processors": [a, b]});
        assert_eq!(said(Value::Null), [true, false]);
        assert_eq!(said(bytes.clone()), [true, false]);
        assert_eq!(said(both(&bytes, &bytes)), [true, false]);
        assert_eq!(said(text.clone()), [false; 2], "a template of the text alone says that there is none");
        assert_eq!(said(both(&bytes, &text)), [false; 2]);
        assert_eq!(said(json!({"type": "BertProcessing"})), [false; 2]);
        assert_eq!(by_keys(&Value::Null, None), [false; 2]);
        for class in ["Qwen2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"] {
            let config = json!({"tokenizer_class": class, "add_bos_token": true, "add_eos_token": true});
            assert_eq!(by_keys(&Value::Null, config.as_object()), [false; 2], "{class}");
        }
    }
}
