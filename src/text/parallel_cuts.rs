//! Where a long text may be cut so that encoding the chunks gives the ids of the whole.
//!
//! The tokenizers crate needs about a hundred bytes of memory for one byte of text and works on one core, so long
//! texts are encoded in chunks. That is sound only for pre-tokenizers whose pattern is known to us.

use serde_json::Value;

use crate::config::patterns::{LLAMA3, QWEN2};

/// Which cuts a tokenizer allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// None known: normalizers such as "prepend" see the start of the text, or the pattern is not one of ours. A text too
    /// long for the memory is cut all the same, wherever it is read: after a newline, or where none comes, after a space.
    Never,
    /// GPT-2's pattern. No match joins a non-space with a space or newline after it, and nothing looks back.
    Gpt2,
    /// The patterns of Qwen2 and LLaMA-3. Punctuation takes the newlines after it, so the cut is before a space that
    /// follows a non-space, or after a newline that a non-space follows.
    Newlines,
    /// Single bytes: any character boundary.
    Anywhere,
}

impl Cut {
    /// Judges a `tokenizer.json`.
    pub fn of(json: &Value) -> Cut {
        let harmless = |t: &Value| {
            t["content"].as_str().is_some_and(|c| !c.contains([' ', '\n']))
                && ["lstrip", "rstrip", "single_word"].iter().all(|flag| t[*flag] != true)
        };
        let added = json["added_tokens"].as_array();
        if json["model"]["type"] != "BPE"
            || !added.is_none_or(|tokens| tokens.iter().all(harmless))
            || !leaves_ids(&json["post_processor"])
        {
            return Cut::Never;
        }
        let (normalizer, pre) = (&json["normalizer"], &json["pre_tokenizer"]);
        let byte_level = |v: &Value, regex: bool| {
            v["type"] == "ByteLevel"
                && v["add_prefix_space"] == false
                && v["use_regex"].as_bool().unwrap_or(true) == regex
        };
        // NFC never joins a space or newline with its neighbours.
        let nfc = normalizer.is_null() || normalizer["type"] == "NFC";
        if nfc && byte_level(pre, true) {
            return Cut::Gpt2;
        }
        // Digits stand alone, whatever is beside them (SmolLM).
        if nfc
            && pre["type"] == "Sequence"
            && let Some([digits, last]) = pre["pretokenizers"].as_array().map(Vec::as_slice)
            && digits["type"] == "Digits"
            && digits["individual_digits"] == true
            && byte_level(last, true)
        {
            return Cut::Gpt2;
        }
        if nfc
            && pre["type"] == "Sequence"
            && let Some([split, last]) = pre["pretokenizers"].as_array().map(Vec::as_slice)
            && split["type"] == "Split"
            && split["behavior"] == "Isolated"
            && split["invert"] == false
            && split["pattern"]["Regex"].as_str().is_some_and(|p| p == QWEN2 || p == LLAMA3)
            && byte_level(last, false)
        {
            return Cut::Newlines;
        }
        Cut::Never
    }

    /// Size of the chunks that a text is encoded in.
    pub fn chunk_size(self) -> usize {
        match self {
            Cut::Never => 8 << 20,
            _ if cfg!(fuzzing) => 7,
            _ => 32 << 10,
        }
    }

    /// Cuts `text` into chunks of about `size` bytes; a chunk is longer where no cut is allowed.
    pub fn chunks(self, text: &str, size: usize) -> Vec<&str> {
        let mut chunks = Vec::with_capacity(text.len() / size.max(1) + 1);
        let mut rest = text;
        while rest.len() > size {
            let Some(at) = self.next(rest, size.max(1)) else { break };
            let (chunk, tail) = rest.split_at(at);
            chunks.push(chunk);
            rest = tail;
        }
        chunks.push(rest);
        chunks
    }

    /// The next cut, at byte `size` or later and before the end; the same one however much of the text follows.
    fn next(self, text: &str, size: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        let space_before = |at: usize| text[..at].chars().next_back().is_none_or(char::is_whitespace);
        let space_after = |at: usize| text[at..].chars().next().is_none_or(char::is_whitespace);
        let mut all = size..text.len();
        match self {
            Cut::Never => {
                let mut near = size..text.len().min(2 * size);
                let newline = near.find(|&at| bytes[at - 1] == b'\n');
                let word =
                    |at: &usize| bytes[at - 1].is_ascii_whitespace() && !bytes[*at].is_ascii_whitespace();
                newline.or_else(|| if text.len() < 2 * size { None } else { all.find(word) })
            }
            Cut::Anywhere => all.find(|&at| text.is_char_boundary(at)),
            Cut::Gpt2 => all.find(|&at| matches!(bytes[at], b' ' | b'\n') && !space_before(at)),
            Cut::Newlines => all.find(|&at| {
                bytes[at] == b' ' && !space_before(at) || bytes[at - 1] == b'\n' && !space_after(at)
            }),
        }
    }
}

/// Whether a post-processor leaves the ids of a text as they are where no special tokens are added: a template may hold the
/// text twice, which two chunks do not.
fn leaves_ids(processor: &Value) -> bool {
    match processor["type"].as_str() {
        None => processor.is_null(),
        Some("TemplateProcessing") => {
            let pieces = processor["single"].as_array().map_or(&[][..], Vec::as_slice);
            pieces.iter().filter(|piece| piece["Sequence"].is_object()).count() == 1
        }
        Some("Sequence") => processor["processors"].as_array().is_some_and(|all| all.iter().all(leaves_ids)),
        Some(kind) => ["ByteLevel", "BertProcessing", "RobertaProcessing"].contains(&kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::alphabet::{byte_order, to_chars};
    use crate::text::builtin::{END_OF_TEXT, byte_level_json};
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    /// A byte-level tokenizer whose merges span what pre-tokenizers keep together.
    fn json(pattern: Option<&str>) -> Value {
        let mut tokens: Vec<String> = byte_order().map(|b| to_chars(&[b])).collect();
        let merges: Vec<(String, String)> =
            ["a a", "aa a", ". Ċ", ".Ċ Ċ", "Ċ Ċ", "Ġ a", "Ġ Ġ", "č Ċ", "1 1", "' a", ". ."]
                .iter()
                .map(|m| m.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())).unwrap())
                .collect();
        tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
        tokens.push(END_OF_TEXT.into());
        let last = tokens.len() as u32 - 1;
        let mut json = byte_level_json(&tokens, &merges, &[last], true).unwrap();
        if let Some(pattern) = pattern {
            json["normalizer"] = json!({"type": "NFC"});
            json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]});
        }
        json
    }

    static TOKENIZERS: LazyLock<Vec<(Cut, tokenizers::Tokenizer)>> = LazyLock::new(|| {
        let of = |pattern| {
            let json = json(pattern);
            (Cut::of(&json), serde_json::from_value(json).unwrap())
        };
        let mut digits = json(None);
        let parts = [json!({"type": "Digits", "individual_digits": true}), digits["pre_tokenizer"].take()];
        digits["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": parts});
        let digits = (Cut::of(&digits), serde_json::from_value(digits).unwrap());
        vec![of(None), of(Some(QWEN2)), of(Some(LLAMA3)), digits]
    });

    #[test]
    fn known_patterns_are_recognised_and_others_not() {
        let cuts: Vec<Cut> = TOKENIZERS.iter().map(|t| t.0).collect();
        assert_eq!(cuts, [Cut::Gpt2, Cut::Newlines, Cut::Newlines, Cut::Gpt2]);
        assert_eq!(Cut::of(&json(Some(r"\s+|\S+"))), Cut::Never);
        for (pointer, value) in [
            ("/normalizer", json!({"type": "Lowercase"})),
            ("/pre_tokenizer", json!(null)),
            ("/pre_tokenizer/add_prefix_space", json!(true)),
            ("/added_tokens/0/rstrip", json!(true)),
            ("/added_tokens/0/content", json!("a b")),
            ("/model/type", json!("Unigram")),
            ("/post_processor", template(2)),
            ("/post_processor", template(0)),
            ("/post_processor", json!({"type": "Sequence", "processors": [template(1), template(2)]})),
        ] {
            let mut json = json(None);
            *json.pointer_mut(pointer).unwrap() = value;
            assert_eq!(Cut::of(&json), Cut::Never, "{pointer}");
        }
        let bytes = json(None)["post_processor"].take();
        for processor in
            [json!(null), template(1), json!({"type": "Sequence", "processors": [bytes, template(1)]})]
        {
            let mut json = json(None);
            json["post_processor"] = processor;
            assert_eq!(Cut::of(&json), Cut::Gpt2);
        }
    }

    /// One with the text so many times.
    fn template(times: usize) -> Value {
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let pieces = [vec![json!({"SpecialToken": {"id": "<s>", "type_id": 0}})], vec![text; times]].concat();
        json!({"type": "TemplateProcessing", "single": pieces})
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn chunks_have_the_ids_of_the_whole(
            parts in prop::collection::vec(prop::sample::select(vec![
                " ", "  ", "\n", "\n\n", "\r", "\r\n", "\t", "\u{a0}", "\u{3000}", "a", "aaa", "e", "\u{301}", "猫", "1",
                "11", ".", "。", "..", "'", "'s", "🙂", "\u{200b}", END_OF_TEXT,
            ]), 0..30),
            size in 1usize..12,
        ) {
            let text = parts.concat();
            for (cut, hf) in TOKENIZERS.iter() {
                let ids = |text: &str| hf.encode_fast(text, false).unwrap().get_ids().to_vec();
                let chunks = cut.chunks(&text, size);
                prop_assert_eq!(chunks.concat(), text.clone());
                let joined: Vec<u32> = chunks.iter().flat_map(|chunk| ids(chunk)).collect();
                prop_assert_eq!(joined, ids(&text), "{:?} {:?}", cut, chunks);
            }
        }
    }

    proptest! {
        /// A text comes in parts, and its last chunk may go on.
        #[test]
        fn parts_make_no_difference(parts in prop::collection::vec("[a猫. \n]{0,6}", 0..12), size in 1usize..9) {
            for cut in [Cut::Never, Cut::Gpt2, Cut::Newlines, Cut::Anywhere] {
                let (mut chunks, mut open) = (Vec::new(), String::new());
                for part in &parts {
                    open.push_str(part);
                    let mut cuts: Vec<String> = cut.chunks(&open, size).into_iter().map(String::from).collect();
                    open = cuts.pop().unwrap();
                    chunks.extend(cuts);
                }
                chunks.push(open);
                let whole = parts.concat();
                prop_assert_eq!(chunks, cut.chunks(&whole, size), "{:?}", cut);
            }
        }
    }

    #[test]
    fn chunks_end_where_they_may() {
        assert_eq!(Cut::Gpt2.chunks("ab cd\n\nef  g", 1), ["ab", " cd", "\n\nef", "  g"]);
        assert_eq!(Cut::Newlines.chunks("ab. cd.\n\nef  g", 1), ["ab.", " cd.\n\n", "ef", "  g"]);
        assert_eq!(Cut::Never.chunks("ab cd\n\nef", 4), ["ab cd\n", "\nef"]);
        assert_eq!(Cut::Never.chunks("ab cd  ef\ngh", 2), ["ab ", "cd  ", "ef\n", "gh"]);
        assert_eq!(Cut::Never.chunks("abcdef g\nh", 2), ["abcdef ", "g\n", "h"]);
        assert_eq!(Cut::Never.chunks("abcdefgh", 2), ["abcdefgh"]);
        assert_eq!(Cut::Anywhere.chunks("a猫b", 2), ["a猫", "b"]);
        assert_eq!(Cut::Gpt2.chunks("", 1), [""]);
    }
}
