//! Training of vocabularies.

use proptest::prelude::*;
use std::collections::HashMap;
use std::fs;
use std::time::Instant;
use ternlm::config::DataConfig;
use ternlm::text::{BpeTrainer, Tokenizer, documents, sources};

use super::{mixed_text, shared};

const EOT: &str = "<|endoftext|>";

fn train(text: &str, vocab_size: usize, special: &[&str]) -> ternlm::Result<Tokenizer> {
    let special = special.iter().map(|s| s.to_string()).collect();
    let texts = [Ok(text.to_string())];
    BpeTrainer { vocab_size, special }.train(texts.into_iter(), |_, _| {})
}

fn vocabulary(tokenizer: &Tokenizer) -> Vec<String> {
    (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token(id).unwrap()).collect()
}

fn merges(tokenizer: &Tokenizer) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("tokenizer.json")).unwrap()).unwrap();
    let pair = |m: &serde_json::Value| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap());
    json["model"]["merges"].as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn the_reference_vocabulary_is_reproduced() {
    let Some(dir) = shared("tokenizers/bpe-train-ref") else { return };
    let text = fs::read_to_string(dir.join("corpus.en")).unwrap();
    let tokenizer = train(&text, 500, &[EOT]).unwrap();
    let expected = fs::read_to_string(dir.join("merges-500.txt")).unwrap();
    assert_eq!(merges(&tokenizer), expected.lines().collect::<Vec<_>>());
    let expected: HashMap<String, u32> =
        serde_json::from_slice(&fs::read(dir.join("vocab-500.json")).unwrap()).unwrap();
    let ours: HashMap<String, u32> = vocabulary(&tokenizer).into_iter().zip(0..).collect();
    assert_eq!(ours, expected);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
}

#[test]
fn eleven_megabytes_train_a_whole_vocabulary() {
    let Some(path) = shared("enwiki/train.txt") else { return };
    let start = Instant::now();
    let texts = documents::training_texts(sources::list(&[path]).unwrap(), "text");
    let trainer = BpeTrainer { vocab_size: 8192, special: vec![EOT.into()] };
    let mut last = (0, 0);
    let tokenizer = trainer.train(texts, |done, wanted| last = (done, wanted)).unwrap();
    println!("8192 entries from enwiki/train.txt in {:.2?}", start.elapsed());
    assert_eq!(last, (8192, 8192));
    assert_eq!(tokenizer.vocab_size(), 8192);
}

#[test]
fn ties_go_to_the_greater_pair_of_byte_strings() {
    // "ab" and "ba" are equally frequent, as are the pairs of "xyz"; "zz" is the greatest of the twos.
    let tokenizer = train("ab ba zy yz", 300, &[]).unwrap();
    assert_eq!(merges(&tokenizer)[..2], ["z y", "y z"]);
    // (" ", "z") ties with ("z", "y"); by bytes "z" > " ".
    let tokenizer = train("q zy zy", 257, &[]).unwrap();
    assert_eq!(merges(&tokenizer), ["z y"]);
}

#[test]
fn special_tokens_cut_the_text_and_come_first() {
    let text = format!("one{EOT}one{EOT}one<|end|>one<|endof one");
    let tokenizer = train(&text, 260, &[EOT, "<|end|>"]).unwrap();
    let vocab = vocabulary(&tokenizer);
    assert_eq!(vocab[..4], [EOT, "<|end|>", "!", "\""]);
    assert_eq!(vocab[258..], ["on", "one"]);
    assert_eq!(tokenizer.eos(), Some(0));
    assert_eq!(tokenizer.encode(&format!("one{EOT}one")).unwrap(), [259, 0, 259]);
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    assert_eq!(again.eos(), Some(0));
}

#[test]
fn an_unusual_end_token_survives_saving() {
    let tokenizer = train("some text", 257, &["<stop>"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    assert_eq!(Tokenizer::open(dir.path().to_str().unwrap()).unwrap().eos(), Some(0));
}

#[test]
fn training_stops_when_nothing_is_left_to_merge() {
    let tokenizer = train("abc abc", 1000, &[]).unwrap();
    assert_eq!(merges(&tokenizer).len() + 256, tokenizer.vocab_size());
    assert_eq!(tokenizer.encode("abc abc").unwrap().len(), 2);
}

#[test]
fn unusable_requests_are_errors() {
    for (text, size, special) in [
        ("text", 255, &[][..]),
        ("text", 256, &[EOT]),
        ("text", 1 << 40, &[]),
        ("", 300, &[]),
        (EOT, 300, &[EOT]),
        ("text", 300, &[""]),
        ("text", 300, &["a"]),
        ("text", 300, &[EOT, EOT]),
    ] {
        assert!(train(text, size, special).is_err(), "{text:?} {size} {special:?}");
    }
    // Told before the texts are read.
    for special in [&[""][..], &["a"], &["Ġ"], &[EOT, EOT]] {
        let trainer =
            BpeTrainer { vocab_size: 300, special: special.iter().map(|s| s.to_string()).collect() };
        let texts = std::iter::once_with(|| panic!("a text was read"));
        let error = trainer.train(texts, |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("special tokens: found"), "{error}");
    }
    let failing = [Ok("text".to_string()), Err(ternlm::Error::usage("broken"))];
    let trainer = BpeTrainer { vocab_size: 300, special: vec![] };
    assert_eq!(trainer.train(failing.into_iter(), |_, _| {}).unwrap_err().to_string(), "broken");
}

#[test]
fn long_runs_are_no_obstacle() {
    let spaces = " ".repeat(3 << 20) + "x";
    assert_eq!(train(&spaces, 260, &[]).unwrap().encode("    ").unwrap().len(), 1);
    // One word of a megabyte: a line of DNA, say.
    let mut state = 1u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ['A', 'C', 'G', 'T'][(state >> 62) as usize]
    };
    let word: String = (0..1 << 20).map(|_| letter()).collect();
    let start = Instant::now();
    assert_eq!(train(&word, 1256, &[]).unwrap().vocab_size(), 1256);
    println!("1000 merges in one word of a megabyte: {:.2?}", start.elapsed());
}

/// The definition, without any cleverness: count all pairs, merge the best, repeat.
fn naive(words: &[(&str, u64)], steps: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut words: Vec<(Vec<Vec<u8>>, u64)> =
        words.iter().map(|(w, n)| (w.bytes().map(|b| vec![b]).collect(), *n)).collect();
    let mut merges = Vec::new();
    while merges.len() < steps {
        let mut counts: HashMap<(&[u8], &[u8]), u64> = HashMap::new();
        for (word, n) in &words {
            word.windows(2).for_each(|w| *counts.entry((&w[0], &w[1])).or_default() += n);
        }
        let Some(((a, b), _)) = counts.into_iter().max_by_key(|&(pair, n)| (n, pair)) else { break };
        let (a, b) = (a.to_vec(), b.to_vec());
        for (word, _) in &mut words {
            let mut i = 0;
            while i + 1 < word.len() {
                if word[i] == a && word[i + 1] == b {
                    let right = word.remove(i + 1);
                    word[i].extend(right);
                }
                i += 1;
            }
        }
        merges.push((a, b));
    }
    merges
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_fast_way_equals_the_definition(words in prop::collection::vec(("[abc]{1,9}", 1u64..6), 1..12)) {
        // One word a line: a newline is a word of its own.
        let text: String = words.iter().map(|(w, n)| format!("{w}\n").repeat(*n as usize)).collect();
        let mut all: Vec<(&str, u64)> = words.iter().map(|(w, n)| (w.as_str(), *n)).collect();
        all.push(("\n", 1));
        let expected: Vec<String> = naive(&all, 40)
            .iter()
            .map(|(a, b)| format!("{} {}", str::from_utf8(a).unwrap(), str::from_utf8(b).unwrap()))
            .collect();
        let ours = merges(&train(&text, 296, &[]).unwrap());
        let n = ours.len().min(expected.len());
        prop_assert_eq!(&ours[..n], &expected[..n]);
        prop_assert!(n == 40 || ours.len() == expected.len());
    }
}

#[test]
fn pieces_of_a_file_give_the_vocabulary_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let mixed = mixed_text().replace("\r\n", "\n").repeat(2000);
    // WikiText's spacing, and one line.
    let [spaced, line] = [mixed.replace('\n', " \n "), mixed.replace('\n', " ")];
    for text in [mixed, spaced, line] {
        assert!(text.len() > 9 << 20);
        fs::write(&path, &text).unwrap();
        let list = sources::list(std::slice::from_ref(&path)).unwrap();
        let pieces: Vec<String> =
            documents::training_texts(list, "text").collect::<ternlm::Result<_>>().unwrap();
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() < 6 << 20));
        assert!(pieces.concat() == text);
        let trainer = BpeTrainer { vocab_size: 400, special: vec![] };
        let ours = trainer.train(pieces.into_iter().map(Ok), |_, _| {}).unwrap();
        assert_eq!(ours.fingerprint(), train(&text, 400, &[]).unwrap().fingerprint());
    }
}

/// 34 MiB, a hole.
#[test]
fn what_is_never_cut_makes_no_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::File::create(&path).unwrap().set_len(34 << 20).unwrap();
    let data = DataConfig { train: vec![path], ..DataConfig::default() };
    let error = BpeTrainer::of_training_text(&data, 300, |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("33554432 bytes without a place to cut them, wanted words or lines"), "{error}");
}

/// A vocabulary of 300 made of `name`, of which the last `left_out` have no part in it.
fn of_file(name: &std::path::Path, left_out: f64) -> Tokenizer {
    let val_fraction = left_out / 1.1;
    let data = DataConfig { train: vec![name.into()], val_fraction, ..DataConfig::default() };
    BpeTrainer::of_training_text(&data, 300, |_, _| {}).unwrap()
}

#[test]
fn a_vocabulary_of_the_training_text_knows_nothing_of_what_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    // "é" has two bytes, the first of which ends what is kept.
    let (kept, held_out) = ("the cat sat on the mat ".repeat(40), "zzzz qqqq ".repeat(92));
    assert_eq!(kept.len(), held_out.len());
    let text = format!("{kept}é{held_out}");
    let path = dir.path().join("text.txt");
    fs::write(&path, &text).unwrap();
    let expected = train(&kept, 300, &[EOT]).unwrap();
    let half = of_file(&path, 0.5);
    assert_eq!(vocabulary(&half), vocabulary(&expected));
    assert_eq!((half.eos(), half.token(0)), (Some(0), Some(EOT.into())));
    assert!(!vocabulary(&half).iter().any(|token| token.contains("zz")));
    assert_eq!(vocabulary(&of_file(&path, 0.0)), vocabulary(&train(&text, 300, &[EOT]).unwrap()));

    // Of records it is the share of their text, not of the file.
    let padding = "x".repeat(5000);
    let record = |text: &str| format!("{}\n", serde_json::json!({ "text": text, "other": padding }));
    let path = dir.path().join("text.jsonl");
    fs::write(&path, record(&kept) + &record(&held_out)).unwrap();
    assert_eq!(vocabulary(&of_file(&path, 0.5)), vocabulary(&expected));

    // Files of their own are held out: all of the text counts.
    let data = DataConfig { train: vec![path.clone()], val: vec![path], ..DataConfig::default() };
    let whole = BpeTrainer::of_training_text(&data, 300, |_, _| {}).unwrap();
    assert!(vocabulary(&whole).iter().any(|token| token.contains("zz")));
}
