//! Tokenizers and chat templates from the metadata.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use ternlm::config::ModelConfig;
use ternlm::files::Bundle;
use ternlm::formats::Description;
use ternlm::formats::gguf::{GgufFile, tokens, vocabulary};
use ternlm::text::Tokenizer;

use super::common::data;
use super::common::gguf::File;

fn tokenizer(path: &Path) -> ternlm::Result<Tokenizer> {
    Tokenizer::of(&vocabulary(&GgufFile::open(path)?)?)
}

fn of(file: &File) -> ternlm::Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    fs::write(&path, file.bytes()).unwrap();
    tokenizer(&path)
}

/// Texts and the ids that other programs give them.
fn vectors(name: &str) -> Option<Vec<(String, Vec<u32>)>> {
    let dir = data("tokenizers/ggml-vectors")?;
    let read = |end: &str| fs::read_to_string(dir.join(format!("ggml-vocab-{name}.gguf.{end}"))).unwrap();
    let (texts, ids) = (read("inp"), read("out"));
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let all: Vec<_> = texts.split("\n__ggml_vocab_test__\n").map(String::from).zip(ids).collect();
    assert_eq!(all.len(), 46);
    Some(all)
}

#[track_caller]
fn agrees(tokenizer: &Tokenizer, name: &str) {
    for (text, ids) in vectors(name).into_iter().flatten() {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&ids), text, "{name}");
    }
}

#[test]
fn real_vocabularies_give_the_ids_of_other_programs() {
    for name in ["gpt-2", "llama-spm"] {
        let Some(path) = data(&format!("ckpt/gguf/ggml-vocab-{name}.gguf")) else { continue };
        let tokenizer = tokenizer(&path).unwrap();
        agrees(&tokenizer, name);
        match name {
            "gpt-2" => assert_eq!((tokenizer.eos(), tokenizer.prefix()), (Some(50_256), &[][..])),
            _ => assert_eq!(
                (tokenizer.bos(), tokenizer.eos(), tokenizer.prefix()),
                (Some(1), Some(2), &[1][..])
            ),
        }
    }
}

/// Qwen's vocabulary, written into a file as llama.cpp's converter does.
#[test]
fn qwen_is_cut_as_qwen() {
    let Some(path) = data("tokenizers/qwen3/tokenizer.json") else { return };
    let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut tokens = vec![String::new(); 151_936];
    let mut types = vec![5; tokens.len()];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        (tokens[id], types[id]) = (token.clone(), 1);
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        tokens[id] = added["content"].as_str().unwrap().into();
        types[id] = if added["special"] == true { 3 } else { 4 };
    }
    for (id, token) in tokens.iter_mut().enumerate().filter(|(_, token)| token.is_empty()) {
        *token = format!("[PAD{id}]");
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
        .collect();
    let mut file = File::default();
    file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "qwen2");
    file.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    file.i32s("tokenizer.ggml.token_type", types)
        .texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    file.u32("tokenizer.ggml.eos_token_id", 151_645).u32("tokenizer.ggml.padding_token_id", 151_643);
    file.flag("tokenizer.ggml.add_bos_token", false);
    let ours = of(&file).unwrap();
    agrees(&ours, "qwen2");
    let theirs = Tokenizer::at(&data("tokenizers/qwen3/tokenizer.json").unwrap()).unwrap();
    for text in ["<|im_start|>user\nHi 123<|im_end|>\n", "a<think>b</think>  c"] {
        assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text}");
    }
}

/// 256 bytes and a few merges.
fn small(pre: &str) -> File {
    let mut file = of_specials(pre, ["<|end|>", "<|start|>", "<tool>"]);
    file.u32("tokenizer.ggml.eot_token_id", 2).text("tokenizer.chat_template", "{{ bos_token }}hi");
    file
}

/// Two control tokens, of which the first ends and the second begins, and one of a user.
fn of_specials(pre: &str, specials: [&str; 3]) -> File {
    let bytes: Vec<u8> = (0..=255).collect();
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    let mut next = 0x100;
    let mut tokens: Vec<String> = specials.map(String::from).into();
    for b in bytes {
        let c = if printable(b) { b as u32 } else { next };
        next += !printable(b) as u32;
        tokens.push(char::from_u32(c).unwrap().to_string());
    }
    let merges = ["1 2", "12 3", "a b", "Ġ a", ". ."];
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    let types = (0..tokens.len()).map(|id| [3, 3, 4].get(id).copied().unwrap_or(1));
    let mut file = File::default();
    file.i32s("tokenizer.ggml.token_type", types).text("tokenizer.ggml.model", "gpt2");
    file.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    file.text("tokenizer.ggml.pre", pre).texts("tokenizer.ggml.merges", merges);
    file.u32("tokenizer.ggml.eos_token_id", 0).u32("tokenizer.ggml.bos_token_id", 1);
    file
}

/// Converters leave out the key for the end of a turn.
#[test]
fn a_turn_ends_at_the_token_that_is_named_so() {
    let stops = |specials| of(&of_specials("gpt-2", specials)).unwrap().stop_ids().to_vec();
    assert_eq!(stops(["</s>", "<|im_end|>", "<tool>"]), [0, 1]);
    assert_eq!(stops(["<|end_of_text|>", "<|eot_id|>", "<tool>"]), [0, 1]);
    assert_eq!(stops(["</s>", "<s>", "<|im_end|>"]), [0], "a token of a user is text");
    assert_eq!(stops(["</s>", "<|im_start|>", "<tool>"]), [0]);
}

#[test]
fn what_a_vocabulary_says_is_kept() {
    let texts = |pre: &str, text: &str| -> Vec<String> {
        let tokenizer = of(&small(pre)).unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect()
    };
    // Digits by themselves; up to three; any number of them; three after all others.
    assert_eq!(texts("smollm", "1234 ab"), ["1", "2", "3", "4", "Ġ", "ab"]);
    assert_eq!(texts("qwen2", "1234"), ["1", "2", "3", "4"]);
    assert_eq!(texts("llama-bpe", "1231"), ["123", "1"]);
    assert_eq!(texts("gpt-2", "1231"), ["123", "1"]);
    assert_eq!(texts("gpt-2", "4123"), ["4", "123"]);
    assert_eq!(texts("llama-bpe", "4123"), ["4", "12", "3"]);
    assert_eq!(texts("default", "4123"), ["4", "12", "3"]);
    assert_eq!(texts("gpt-2", "a<tool>b<|end|>"), ["a", "<tool>", "b", "<|end|>"]);

    let tokenizer = of(&small("gpt-2")).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.bos(), tokenizer.stop_ids()), (Some(0), Some(1), &[0, 2][..]));
    assert_eq!(tokenizer.chat_template(), Some("{{ bos_token }}hi"));
    assert!(tokenizer.is_special(0) && tokenizer.is_special(1) && !tokenizer.is_special(2));
    assert!(tokenizer.prefix().is_empty());
    let mut with_bos = small("gpt-2");
    with_bos.flag("tokenizer.ggml.add_bos_token", true);
    assert_eq!(of(&with_bos).unwrap().encode_prompt("a").unwrap().len(), 2);
    assert_eq!(of(&small("llama-bpe")).unwrap().prefix(), [1], "LLaMA 3 begins a text with it unless told");
}

#[test]
fn pieces_are_joined_by_their_scores() {
    let mut file = File::default();
    let pieces = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "c", "bc", "ab", "▁a", "<tool>"];
    file.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", pieces);
    file.i32s("tokenizer.ggml.token_type", [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 4]);
    file.f32s("tokenizer.ggml.scores", [0., 0., 0., 0., -9., -9., -9., -9., -1., -2., -3., 0.]);
    let texts = |file: &File, text: &str| -> Vec<String> {
        let tokenizer = of(file).unwrap();
        tokenizer.encode(text).unwrap().iter().map(|&id| tokenizer.token(id).unwrap()).collect()
    };
    assert_eq!(texts(&file, "abc"), ["▁a", "bc"]);
    assert_eq!(texts(&file, "ab aA"), ["▁", "ab", "▁a", "<0x41>"]);
    assert_eq!(of(&file).unwrap().prefix(), [1], "unless told, a text begins with <s>");
    file.flag("tokenizer.ggml.add_space_prefix", false).flag("tokenizer.ggml.add_bos_token", false);
    assert_eq!(texts(&file, "abc"), ["a", "bc"]);
    assert!(of(&file).unwrap().prefix().is_empty());
}

#[test]
fn what_does_not_fit_is_named() {
    let refused = |change: &dyn Fn(&mut File), wanted: &str| {
        let mut file = small("gpt-2");
        change(&mut file);
        let error = of(&file).map(drop).unwrap_err().to_string();
        assert!(error.contains("x.gguf: ") && error.contains(wanted), "{wanted}: {error}");
    };
    refused(&|f| _ = f.text("tokenizer.ggml.model", "t5"), "key \"tokenizer.ggml.model\": found \"t5\"");
    refused(&|f| _ = f.text("tokenizer.ggml.pre", "tekken"), "key \"tokenizer.ggml.pre\": found \"tekken\"");
    refused(
        &|f| _ = f.i32s("tokenizer.ggml.token_type", [1]),
        "token_type\": found a list of 1, wanted a list of 264",
    );
    refused(
        &|f| _ = f.f32s("tokenizer.ggml.token_type", [1.0]),
        "token_type\": found a list of 1, wanted a list of I32",
    );
    refused(
        &|f| _ = f.texts("tokenizer.ggml.tokens", ["a", "b", "a"]),
        "tokens[2]: found \"a\", which token 0 is",
    );
    refused(&|f| _ = f.texts("tokenizer.ggml.merges", ["ab"]), "merges[0]: found \"ab\", wanted two tokens");
    refused(&|f| _ = f.texts("tokenizer.ggml.merges", ["zz z"]), "merges[0]");
    refused(
        &|f| _ = f.u32("tokenizer.ggml.eos_token_id", 264),
        "eos_token_id\": found 264, wanted an id below 264",
    );
    refused(
        &|f| _ = f.u32("tokenizer.chat_template", 1),
        "key \"tokenizer.chat_template\": found 1, wanted a text",
    );
    refused(
        &|f| _ = f.key("tokenizer.ggml.tokens", 4, vec![0; 4]),
        "tokens\": found 0, wanted a list of String",
    );
    let long = "x".repeat(600);
    let spm = |f: &mut File| {
        f.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", ["a", "b", &long]);
        f.i32s("tokenizer.ggml.token_type", [1; 3]).f32s("tokenizer.ggml.scores", [0.0; 3]);
        f.u32("tokenizer.ggml.eot_token_id", 1);
    };
    refused(&spm, "tokens[2]: found 600 bytes, wanted at most 512");
    // Runs of two letters: 511 + 510 + … + 1 pairs of each.
    let runs = ["a", "b"].iter().flat_map(|letter| (1..=512).map(move |n| letter.repeat(n)));
    let runs: Vec<String> = runs.collect();
    let spm = |f: &mut File| {
        f.text("tokenizer.ggml.model", "llama");
        f.texts("tokenizer.ggml.tokens", runs.iter().map(String::as_str));
        f.i32s("tokenizer.ggml.token_type", vec![1; runs.len()]);
        f.f32s("tokenizer.ggml.scores", vec![0.0; runs.len()]);
    };
    refused(
        &spm,
        "tokenizer.ggml.tokens: found more pairs of tokens whose joint is one, wanted at most 147456",
    );
}

/// Every place in a piece is tried as the joint of two others, which in a long one would take hours.
#[test]
fn a_piece_that_no_file_may_hold_is_not_written() {
    let long = "x".repeat(1 << 20);
    let normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let model =
        json!({"type": "BPE", "byte_fallback": true, "vocab": {"▁": 0, "a": 1, (long): 2}, "merges": []});
    let tokenizer = json!({"normalizer": normalizer, "model": model}).to_string().into_bytes();
    let files = Bundle::within("m", [("tokenizer.json".to_string(), tokenizer)].into());
    let description = Description::new(ModelConfig::default());
    let error = tokens::metadata(&files, &description, 3).map(drop).unwrap_err().to_string();
    assert!(
        error.contains("model.vocab \"xxx") && error.contains("found 1048576 bytes, wanted at most 512"),
        "{error}"
    );
}
