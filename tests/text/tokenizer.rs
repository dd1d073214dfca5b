//! Tokenizers made from fixtures.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use ternlm::text::{BpeTrainer, Reading, TokenStream, Tokenizer};

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

pub fn written(json: &Value) -> (tempfile::TempDir, String) {
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

    let mut stream = TokenStream::new(&tokenizer);
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    // A byte token more would make the whole run invalid: it waits for what follows.
    assert_eq!(parts, ["ab", " ab", " ", "é", "", "", "", "猫a"]);
    assert_eq!(stream.finish(), "");
    // An unfinished character comes out at the end only.
    let mut stream = TokenStream::new(&tokenizer);
    assert_eq!(stream.push(0xE7 + 3), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn a_byte_stream_gives_whole_characters_and_lossy_rest() {
    let tokenizer = Tokenizer::bytes();
    let mut stream = TokenStream::new(&tokenizer);
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
        let mut stream = TokenStream::new(&tokenizer);
        let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        prop_assert_eq!(streamed + &stream.finish(), tokenizer.decode(&ids));
    }

    #[test]
    fn streaming_text_never_breaks_a_character(text in "\\PC{0,40}") {
        for tokenizer in [Tokenizer::bytes(), Tokenizer::gpt2()] {
            let mut stream = TokenStream::new(&tokenizer);
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
    // As transformers 5.24 reads it: the map wins over a configuration that does not list its added tokens.
    assert_eq!((open().eos(), open().bos()), (open().token_id("ab"), None));
    let named = [("eos_token", "ab")].map(|(key, text)| (key.to_string(), text.to_string()));
    assert_eq!(open().named_tokens(), named);
    let mut config = config;
    config["added_tokens_decoder"] = json!({});
    write("tokenizer_config.json", config.clone());
    assert_eq!((open().eos(), open().bos()), (open().token_id("b"), None));
    // Generation stops wherever one of the files says so.
    write("config.json", json!({"eos_token_id": [7, 100_000], "bos_token_id": 6}));
    assert_eq!(open().stop_ids(), [open().token_id("b").unwrap(), 5, 2, 7]);
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

/// Only `special_tokens_map.json` names the token that begins a text.
#[test]
fn a_fact_is_found_in_whichever_file_states_it() {
    let (dir, spec) = written(&sentencepiece_json());
    let write = |name: &str, value: Value| fs::write(dir.path().join(name), value.to_string()).unwrap();
    write("tokenizer_config.json", json!({"tokenizer_class": "LlamaTokenizer"}));
    write("special_tokens_map.json", json!({"bos_token": "a", "pad_token": {"content": "no such token"}}));
    write("config.json", json!({"eos_token_id": 5}));
    let tokenizer = Tokenizer::open(&spec).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (tokenizer.token_id("a"), Some(5)));
    let named = tokenizer.named_tokens();
    let text = |key: &str| named.iter().find(|(name, _)| name == key).map(|(_, text)| text.clone());
    assert_eq!(
        (text("bos_token").as_deref(), text("pad_token").as_deref()),
        (Some("a"), Some("no such token"))
    );
    assert_eq!(text("eos_token"), tokenizer.token(5));
    // What was found stays when the files are left behind.
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    let again = Tokenizer::from_file(out.path().join("tokenizer.json")).unwrap();
    assert_eq!((again.bos(), again.eos()), (tokenizer.bos(), tokenizer.eos()));
    assert_eq!(again.named_tokens(), tokenizer.named_tokens());
}

#[test]
fn an_added_token_is_its_own_text() {
    // Their letters stand in the byte alphabet: as vocabulary entries they would be other bytes.
    let added = |id: usize, content: &str| {
        json!({"id": id, "content": content, "special": false, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let mut gpt2: Value = {
        let out = tempfile::tempdir().unwrap();
        Tokenizer::gpt2().save(out.path()).unwrap();
        serde_json::from_slice(&fs::read(out.path().join("tokenizer.json")).unwrap()).unwrap()
    };
    let tokens = gpt2["added_tokens"].as_array_mut().unwrap();
    tokens.push(added(50_257, "éé"));
    tokens.push(added(50_258, "ĠxĠ"));
    let (_dir, spec) = written(&gpt2);
    let tokenizer = Tokenizer::open(&spec).unwrap();
    let ids = [50_257, 50_258, 15496];
    assert_eq!(tokenizer.decode(&ids), "ééĠxĠHello");
    let mut stream = TokenStream::new(&tokenizer);
    assert_eq!(ids.map(|id| stream.push(id)), ["éé", "ĠxĠ", "Hello"]);
}

/// What a post-processor puts after a text (`add_eos_token`) does not end one that goes on.
#[test]
fn a_prompt_begins_and_does_not_end() {
    let mut json = sentencepiece_json();
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    json["post_processor"]["single"] =
        json!([special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, special("</s>")]);
    json["post_processor"]["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    let (_dir, spec) = written(&json);
    let tokenizer = Tokenizer::open(&spec).unwrap();
    let ids = tokenizer.encode("ab").unwrap();
    assert_eq!(tokenizer.encode_with_special("ab").unwrap(), [&[1], &ids[..], &[2]].concat());
    assert_eq!(tokenizer.prefix(), [1]);
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [&[1], &ids[..]].concat());
    assert_eq!(Reading::of_text("ab", &tokenizer).unwrap().ids, [&[1], &ids[..]].concat());
    assert_eq!(Tokenizer::gpt2().prefix(), [0u32; 0]);
}

/// The reference is the tokenizers crate, told by a post-processor what transformers 4.57 makes of keys that are
/// there (`LlamaTokenizerFast.update_post_processor`); an absent one puts nothing here.
#[test]
fn keys_say_what_stands_around_a_text_where_the_file_does_not() {
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let mut told = sentencepiece_json();
    told["post_processor"]["single"] =
        json!([special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, special("</s>")]);
    told["post_processor"]["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    let ids = |hf: &tokenizers::Tokenizer| hf.encode("ab", true).unwrap().get_ids().to_vec();
    let wanted = ids(&serde_json::from_value(told).unwrap());
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    for silent in [Value::Null, bytes] {
        let mut json = sentencepiece_json();
        json["post_processor"] = silent;
        let (dir, spec) = written(&json);
        let open = |config: Value| {
            fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            Tokenizer::open(&spec).unwrap()
        };
        for class in ["LlamaTokenizer", "LlamaTokenizerFast"] {
            let config = json!({"tokenizer_class": class, "add_bos_token": true, "add_eos_token": true,
                "bos_token": "<s>", "eos_token": {"content": "</s>"}});
            let tokenizer = open(config);
            assert_eq!(tokenizer.encode_with_special("ab").unwrap(), wanted);
            assert_eq!(tokenizer.prefix(), [1]);
            assert_eq!(tokenizer.encode_prompt("ab").unwrap(), wanted[..2].to_vec());
            // What is saved says it to readers that do not know the keys.
            let out = tempfile::tempdir().unwrap();
            tokenizer.save(out.path()).unwrap();
            let saved = tokenizers::Tokenizer::from_file(out.path().join("tokenizer.json")).unwrap();
            assert_eq!(ids(&saved), wanted);
        }
        for config in [
            json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>"}),
            json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": null, "add_bos_token": true}),
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "add_bos_token": true}),
        ] {
            assert_eq!(open(config).encode_with_special("ab").unwrap(), [wanted[1]]);
        }
    }
    // A post-processor that says it holds, as in transformers 5.24.
    let (dir, spec) = written(&sentencepiece_json());
    let config = json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "add_bos_token": false});
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    assert_eq!(Tokenizer::open(&spec).unwrap().prefix(), [1]);
}

/// The reference decodes all tokens at once: the tokenizers crate.
#[test]
fn any_tokens_stream_as_they_decode() {
    let (_dir, spec) = written(&sentencepiece_json());
    let tokenizer = Tokenizer::open(&spec).unwrap();
    let hf = tokenizers::Tokenizer::from_file(Path::new(&spec).join("tokenizer.json")).unwrap();
    let size = tokenizer.vocab_size() as u32;
    let (mut seed, mut in_two) = (1u64, 0);
    for round in 0..2000 {
        let ids: Vec<u32> = (0..1 + round % 12)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Mostly byte tokens of a few values, so that whole characters occur.
                let draw = (seed >> 33) as u32;
                if draw & 1 == 0 { draw % size } else { [0xE7, 0x8C, 0xAB, 0x41][draw as usize / 2 % 4] + 3 }
            })
            .collect();
        let whole = tokenizer.decode(&ids);
        assert_eq!(whole, hf.decode(&ids, false).unwrap(), "{ids:?}");
        let mut stream = TokenStream::new(&tokenizer);
        let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        assert_eq!(streamed + &stream.finish(), whole, "{ids:?}");
        // A text in two: the second begins where the first, as it is shown, ends.
        let (before, after) = ids.split_at(ids.len() / 2);
        let mut second = TokenStream::after(&tokenizer, before);
        let rest = after.iter().map(|&id| second.push(id)).collect::<String>() + &second.finish();
        let shown = tokenizer.decode(before);
        if whole.starts_with(&shown) && !shown.contains(char::REPLACEMENT_CHARACTER) {
            assert_eq!(shown + &rest, whole, "{ids:?}");
            in_two += 1;
        }
    }
    assert!(in_two > 200, "{in_two}");
    // A character that the first text leaves unfinished is finished by the second, and one that stands is not said again.
    let rest = |before: &[u8], after: &[u8]| {
        let ids = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b) + 3).collect::<Vec<_>>();
        let mut second = TokenStream::after(&tokenizer, &ids(before));
        ids(after).into_iter().map(|id| second.push(id)).collect::<String>() + &second.finish()
    };
    let [cat, first, last] = ["猫".as_bytes(), &"猫".as_bytes()[..2], &"猫".as_bytes()[2..]];
    assert_eq!((rest(cat, b"a"), rest(first, last)), ("a".into(), "猫".into()));
    assert_eq!(rest(&[b"\n", cat, first].concat(), &[last, b"\n"].concat()), "猫\n");
}

/// Right values by hand: the bytes that each token stands for.
#[test]
fn every_token_knows_the_bytes_it_stands_for() {
    let bytes_of = |tokenizer: &Tokenizer, text: &str| {
        let reading = Reading::of_text(text, tokenizer).unwrap();
        let ends: Vec<u64> = (0..=reading.ids.len()).map(|n| reading.extent_from(n).bytes).collect();
        ends.windows(2).map(|w| w[0] - w[1]).collect::<Vec<u64>>()
    };
    assert_eq!(bytes_of(&Tokenizer::bytes(), "a猫"), [1, 1, 1, 1]);
    // GPT-2 has no token for 猫: a space with its first byte, and two bytes more.
    let gpt2 = Tokenizer::gpt2();
    assert_eq!(bytes_of(&gpt2, "Hello world<|endoftext|> 猫!"), [5, 6, 13, 2, 1, 1, 1]);
    let (_dir, spec) = written(&sentencepiece_json());
    let spm = Tokenizer::open(&spec).unwrap();
    // <s> stands for nothing; "ab", " ab", a space, é, the bytes of 猫, "a".
    assert_eq!(bytes_of(&spm, "ab ab é猫a"), [0, 2, 3, 1, 2, 1, 1, 1, 1]);
}
