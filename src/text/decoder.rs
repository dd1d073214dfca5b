//! Tokens to text one at a time, with the result of decoding them all at once.
//!
//! A `tokenizer.json` names a chain of decoders, each of which turns a list of pieces into another. Here each is a machine
//! that is fed one piece after the other and holds back what a later piece may still change, so that the text given out is
//! the beginning of the whole's, whatever comes. The meaning of each is that of the tokenizers crate (`decode_chain`).

use serde_json::Value;

/// One decoder of the chain, before its first piece.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Replaces a text inside of each piece.
    Replace { from: String, to: String },
    /// `<0xE7>` is a byte. A run of them that is not UTF-8 becomes one U+FFFD for each.
    ByteFallback { run: Vec<u8> },
    /// Removes up to `start` characters `content` from the front of each piece, or of the whole once fused.
    Strip { content: char, start: usize, fused: bool },
    /// Makes `replacement` a space, and nothing in the first piece where a text gets a space before it.
    Metaspace { replacement: char, drop_in_first: bool },
    /// A piece without the prefix is a word of its own.
    WordPiece { prefix: String, cleanup: bool, first: bool },
    /// The suffix ends a word; nothing stands after the last one.
    WordEnd { suffix: String, held: Option<String> },
    /// No decoder: a space between two pieces.
    Spaced { first: bool },
}

/// The decoders of a tokenizer, ready for the first token.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoders(Vec<Step>);

impl Decoders {
    /// Understands the field `decoder` of a `tokenizer.json`; `None` where one of the chain is not known here.
    pub fn of(decoder: &Value) -> Option<Decoders> {
        if decoder.is_null() {
            return Some(Decoders(vec![Step::Spaced { first: true }]));
        }
        let mut steps = Vec::new();
        let mut fused = false;
        let one = std::slice::from_ref(decoder);
        let chain = if decoder["type"] == "Sequence" { decoder["decoders"].as_array()? } else { one };
        for step in chain {
            let string = |key: &str| step[key].as_str().map(String::from);
            let step = match step["type"].as_str()? {
                "Fuse" => {
                    fused = true;
                    continue;
                }
                "Replace" => {
                    let from = step["pattern"]["String"].as_str().filter(|from| !from.is_empty())?;
                    // Across the joint of two fused pieces a longer one could be found.
                    if fused && from.chars().count() > 1 {
                        return None;
                    }
                    Step::Replace { from: from.into(), to: string("content")? }
                }
                "ByteFallback" if !fused => Step::ByteFallback { run: Vec::new() },
                // The end of a text is known last.
                "Strip" if step["stop"] == 0 => {
                    let start = usize::try_from(step["start"].as_u64()?).ok()?;
                    Step::Strip { content: step["content"].as_str()?.chars().next()?, start, fused }
                }
                "Metaspace" if !fused => {
                    let replacement = step["replacement"].as_str()?.chars().next()?;
                    let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                    Step::Metaspace { replacement, drop_in_first: !never }
                }
                "WordPiece" if !fused => {
                    let cleanup = step["cleanup"].as_bool()?;
                    Step::WordPiece { prefix: string("prefix")?, cleanup, first: true }
                }
                "BPEDecoder" if !fused => Step::WordEnd { suffix: string("suffix")?, held: None },
                _ => return None,
            };
            steps.push(step);
        }
        Some(Decoders(steps))
    }

    /// The text that `token` makes certain.
    pub fn push(&mut self, token: String, out: &mut String) {
        feed(&mut self.0, token, out);
    }

    /// The text so far has been said by others, all but an unfinished character: none of it is given out later.
    pub fn settle(&mut self) {
        for at in 0..self.0.len() {
            let (step, rest) = self.0[at..].split_first_mut().expect("at is a step");
            step.settle(&mut |piece| feed(rest, piece, &mut String::new()));
        }
    }

    /// The text that was held back. The next token begins a new text when `self` is replaced by a fresh copy.
    pub fn finish(mut self, out: &mut String) {
        for at in 0..self.0.len() {
            let (step, rest) = self.0[at..].split_first_mut().expect("at is a step");
            step.finish(&mut |piece| feed(rest, piece, out));
        }
    }
}

fn feed(steps: &mut [Step], piece: String, out: &mut String) {
    match steps.split_first_mut() {
        None => out.push_str(&piece),
        Some((step, rest)) => step.push(piece, &mut |piece| feed(rest, piece, out)),
    }
}

impl Step {
    fn push(&mut self, piece: String, give: &mut dyn FnMut(String)) {
        match self {
            Step::Replace { from, to } => give(piece.replace(from.as_str(), to)),
            Step::ByteFallback { run } => match byte(&piece) {
                Some(byte) => run.push(byte),
                None => {
                    self.finish(give);
                    give(piece);
                }
            },
            Step::Strip { content, start, fused } => {
                let chars = piece.chars().take(*start).take_while(|c| c == content).count();
                let left = &piece[chars * content.len_utf8()..];
                if *fused {
                    // The front ends at the first other character, or when enough were removed.
                    *start = if left.is_empty() { *start - chars } else { 0 };
                }
                give(left.to_string());
            }
            Step::Metaspace { replacement, drop_in_first } => {
                let space = if std::mem::take(drop_in_first) { "" } else { " " };
                give(piece.replace(*replacement, space));
            }
            Step::WordPiece { prefix, cleanup, first } => {
                let piece = match piece.strip_prefix(prefix.as_str()) {
                    _ if std::mem::take(first) => piece,
                    Some(rest) => rest.to_string(),
                    None => format!(" {piece}"),
                };
                give(if *cleanup { cleaned(&piece) } else { piece });
            }
            Step::WordEnd { suffix, held } => {
                if let Some(before) = held.replace(piece) {
                    give(before.replace(suffix.as_str(), " "));
                }
            }
            Step::Spaced { first } => {
                give(if std::mem::take(first) { piece } else { format!(" {piece}") });
            }
        }
    }

    /// Gives what stands, whatever comes; what the next piece needs of it is kept.
    fn settle(&mut self, give: &mut dyn FnMut(String)) {
        match self {
            Step::ByteFallback { run } => {
                let whole = match std::str::from_utf8(run) {
                    Err(e) if e.error_len().is_none() => e.valid_up_to(),
                    _ => run.len(),
                };
                let unfinished = run.split_off(whole);
                self.finish(give);
                *self = Step::ByteFallback { run: unfinished };
            }
            Step::WordEnd { suffix, held } => {
                if let Some(last) = held.take() {
                    *held =
                        Some(if last.ends_with(suffix.as_str()) { suffix.clone() } else { String::new() });
                    give(last.replace(suffix.as_str(), ""));
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, give: &mut dyn FnMut(String)) {
        match self {
            Step::ByteFallback { run } if !run.is_empty() => match String::from_utf8(std::mem::take(run)) {
                Ok(text) => give(text),
                Err(e) => e.as_bytes().iter().for_each(|_| give(char::REPLACEMENT_CHARACTER.into())),
            },
            Step::WordEnd { suffix, held } => {
                if let Some(last) = held.take() {
                    give(last.replace(suffix.as_str(), ""));
                }
            }
            _ => {}
        }
    }
}

/// The byte that `<0xE7>` stands for.
pub fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// What WordPiece's `cleanup` does to a piece.
fn cleaned(piece: &str) -> String {
    let joined = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")];
    let more = [(" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")];
    joined.iter().chain(&more).fold(piece.to_string(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Decoders as published tokenizers have them: LLaMA and Mistral, Gemma, T5-like, BERT, GPT-1, none.
    fn chains() -> Vec<Value> {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
        vec![
            sequence(&[&replace, &fallback, &fuse, &strip]),
            sequence(&[&replace, &fallback, &fuse]),
            sequence(&[
                &fallback,
                &strip,
                &json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}),
            ]),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            sequence(&[&fuse, &replace]),
            Value::Null,
        ]
    }

    const TOKENS: [&str; 24] = [
        "▁", "▁▁", "a", "▁said", " ", "##b", ".", "'s", "do not", "x</w>", "</w>", "<0x30>", "<0xE4>",
        "<0xBD>", "<0xA0>", "<0xFF>", "<0x0A>", "<0xé>", "<s>", "é", "猫", "  ", "▁ b▁", "n't",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Held against the tokenizers crate, which decodes all tokens at once.
        #[test]
        fn one_at_a_time_equals_all_at_once(ids in prop::collection::vec(0u32..TOKENS.len() as u32, 1..20)) {
            for decoder in chains() {
                let vocab: serde_json::Map<String, Value> =
                    TOKENS.iter().zip(0u64..).map(|(t, id)| (t.to_string(), id.into())).collect();
                let hf: tokenizers::Tokenizer = serde_json::from_value(json!({
                    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
                    "pre_tokenizer": null, "post_processor": null, "decoder": decoder.clone(),
                    "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
                })).unwrap();
                let want = hf.decode(&ids, false).unwrap();
                let mut decoders = Decoders::of(&decoder).unwrap();
                let mut got = String::new();
                for id in &ids {
                    decoders.push(TOKENS[*id as usize].to_string(), &mut got);
                    prop_assert!(want.starts_with(&got), "{:?}: {:?} of {:?}", decoder, got, want);
                }
                decoders.finish(&mut got);
                prop_assert_eq!(got, want, "{:?}", decoder);
            }
        }
    }

    #[test]
    fn chains_that_cannot_be_followed_are_left_to_the_crate() {
        for decoder in [
            json!({"type": "CTC", "pad_token": "x", "word_delimiter_token": "|", "cleanup": true}),
            json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}),
        ] {
            assert_eq!(Decoders::of(&decoder), None, "{decoder}");
        }
    }
}
