//! Bytes and words are those of the original text that tokens stand for. Right values by hand, unless another source is
//! named.

use std::fs::{self, File};
use std::path::Path;
use ternlm::text::{Extent, Reading, ReadingOptions, Tokenizer};

use super::tokenizer::{sentencepiece_json, written};
use super::{mixed_text, shared};

/// Of all tokens but the first, as a measurement predicts them.
fn predicted(reading: &Reading) -> (u64, u64) {
    let Extent { bytes, words } = reading.extent_from(1);
    (bytes, words)
}

fn read(path: &Path, tokenizer: &Tokenizer, detokenize_wikitext: bool) -> Reading {
    let options = ReadingOptions { detokenize_wikitext, ..ReadingOptions::default() };
    Reading::open(path, tokenizer, &options).unwrap()
}

#[test]
fn a_part_of_a_text_has_its_own_bytes_and_words() {
    let bytes = Tokenizer::bytes();
    let mut reading = Reading::of_text("the cat sat\non the mat\n", &bytes).unwrap();
    // "the" begins with the first token, which nothing predicts; 5 more words, 2 line ends.
    assert_eq!(predicted(&reading), (22, 7));
    reading.truncate(12);
    assert_eq!(predicted(&reading), (11, 3));
    reading.truncate(5);
    assert_eq!(predicted(&reading), (4, 1));
    // A last line without its end is a line.
    assert_eq!(predicted(&Reading::of_text("a b", &bytes).unwrap()), (2, 2));
    // Cut inside of a character: 4 tokens are 4 bytes.
    let mut reading = Reading::of_text("猫猫", &bytes).unwrap();
    reading.truncate(4);
    assert_eq!(predicted(&reading), (3, 0));
}

#[test]
fn special_tokens_in_a_text_keep_their_bytes() {
    let text = "one<|endoftext|>two <|endoftext|>\n";
    let gpt2 = Reading::of_text(text, &Tokenizer::gpt2()).unwrap();
    assert_eq!(gpt2.extent_from(0), Extent { bytes: text.len() as u64, words: 3 });
    assert_eq!(predicted(&gpt2), (text.len() as u64 - 3, 2));
}

#[test]
fn what_is_put_before_and_between_stands_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.jsonl");
    fs::write(&file, "{\"text\": \"ab\"}\n{\"text\": \"a b\"}\n").unwrap();
    let (_dir, spec) = written(&sentencepiece_json());
    let spm = Tokenizer::open(&spec).unwrap();
    let reading = read(&file, &spm, false);
    // <s> ab </s> a b </s>
    assert_eq!(reading.ids, [1, 265, 2, 264, 259, 261, 2]);
    // 3 words; every document ends a line.
    assert_eq!(predicted(&reading), (5, 5));
    // The space that it puts in front is none of the text.
    let encoded = spm.encode_here("ab a").unwrap();
    assert_eq!((encoded.ids, encoded.bytes), (vec![265, 264], vec![2, 2]));
    let bytes = read(&file, &Tokenizer::bytes(), false);
    assert_eq!(Tokenizer::bytes().decode(&bytes.ids), "ab\n\na b");
    assert_eq!(bytes.extent_from(0), Extent { bytes: 5, words: 5 });
}

#[test]
fn every_kind_of_tokenizer_covers_the_whole_text() {
    let text = mixed_text();
    let (_dir, spec) = written(&sentencepiece_json());
    for tokenizer in [Tokenizer::bytes(), Tokenizer::gpt2(), Tokenizer::open(&spec).unwrap()] {
        let reading = Reading::of_text(&text, &tokenizer).unwrap();
        assert_eq!(reading.extent_from(0).bytes, text.len() as u64, "{tokenizer:?}");
        // Up to any token that ends a character the bytes are those of the text decoded so far.
        for n in (0..reading.ids.len()).step_by(7) {
            let before = tokenizer.decode_plain(&reading.ids[..n]);
            if !before.contains(char::REPLACEMENT_CHARACTER) {
                let bytes = text.len() as u64 - reading.extent_from(n).bytes;
                assert_eq!(bytes, before.len() as u64, "{tokenizer:?} after {n} tokens");
            }
        }
    }
}

#[test]
fn wikitext_is_counted_as_it_is_even_when_it_is_read_as_people_write() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.raw");
    let raw = " = A title = \n \n 1 @,@ 000 men , said he . \n";
    fs::write(&file, raw).unwrap();
    let bytes = Tokenizer::bytes();
    let reading = read(&file, &bytes, true);
    assert_eq!(bytes.decode(&reading.ids), "A title\n\n1,000 men, said he.\n");
    assert_eq!(read(&file, &bytes, false).extent_from(0), reading.extent_from(0));
    // = A title = / / 1 @,@ 000 men , said he . /
    assert_eq!(reading.extent_from(0), Extent { bytes: raw.len() as u64, words: 4 + 8 + 3 });
    // The first token is the A, and " = A" before it.
    assert_eq!(predicted(&reading), (raw.len() as u64 - 4, 15 - 2));
}

/// A line without an end is read in parts, which leave no mark. A word without one is no text: here of 34 MiB, a hole.
#[test]
fn wikitext_need_not_have_lines() {
    let dir = tempfile::tempdir().unwrap();
    let (file, bytes) = (dir.path().join("a.raw"), Tokenizer::bytes());
    let raw = "1 @,@ 000 men , said he . ".repeat(200_000);
    fs::write(&file, &raw).unwrap();
    let reading = read(&file, &bytes, true);
    assert!(bytes.decode(&reading.ids) == "1,000 men, said he. ".repeat(200_000).trim_end());
    assert_eq!(reading.extent_from(0), Extent { bytes: raw.len() as u64, words: 200_000 * 8 + 1 });
    // The last token is the full stop, and the space behind it.
    assert_eq!(reading.extent_from(reading.ids.len() - 1).bytes, 2);
    File::create(&file).unwrap().set_len(34 << 20).unwrap();
    let options = ReadingOptions { detokenize_wikitext: true, ..ReadingOptions::default() };
    let error = Reading::open(&file, &bytes, &options).unwrap_err().to_string();
    assert!(error.contains("33554432 bytes without a place to cut them, wanted words or lines"), "{error}");
}

/// Of 2 GiB, all but the beginning a hole: as much is measured as is asked for, where it is cut and joined again included.
#[test]
fn no_more_of_a_text_is_read_than_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (file, bytes) = (dir.path().join("a.raw"), Tokenizer::bytes());
    let raw = " = A title = \n \n 1 @,@ 000 men , said he . \n";
    fs::write(&file, raw.repeat(400_000)).unwrap();
    File::options().write(true).open(&file).unwrap().set_len(2 << 30).unwrap();
    // " = " goes with what stands before it.
    for (detokenize_wikitext, line, [more, word]) in
        [(false, raw, [0, 0]), (true, "A title\n\n1,000 men, said he.\n", [3, 1])]
    {
        let options = ReadingOptions { detokenize_wikitext, ..ReadingOptions::default() };
        let some = Reading::to_measure(&file, &bytes, &options, 50_000 * line.len(), 256).unwrap();
        assert!(bytes.decode(&some.ids) == line.repeat(50_000), "detokenised: {detokenize_wikitext}");
        let extent = Extent { bytes: 50_000 * raw.len() as u64 + more, words: 50_000 * 15 + word };
        assert_eq!(some.extent_from(0), extent);
    }
    let error = Reading::open(&file, &bytes, &ReadingOptions::default()).unwrap_err().to_string();
    assert!(error.contains("a.raw: size: found more, wanted at most 1073741824 bytes"), "{error}");
}

#[test]
fn the_first_tokens_are_those_of_the_whole_text() {
    let dir = tempfile::tempdir().unwrap();
    let (file, gpt2) = (dir.path().join("a.txt"), Tokenizer::gpt2());
    let text = mixed_text();
    let mut all = text.repeat((10 << 20) / text.len()).into_bytes();
    all.push(0xff);
    fs::write(&file, all).unwrap();
    let first = gpt2.encode(&text.repeat(20).replace("\r\n", "\n")).unwrap();
    let some = Reading::to_measure(&file, &gpt2, &ReadingOptions::default(), 10_000, 50_257).unwrap();
    assert!(some.ids == first[..10_000]);
}

/// Of thirteen records one cannot be used, which is too many for a file; how many a file has that is not read to its end
/// nobody knows.
#[test]
fn records_behind_what_is_measured_are_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.jsonl");
    let record = serde_json::json!({"text": "abc ".repeat(1 << 18)});
    fs::write(&file, format!("{{}}\n{}", format!("{record}\n").repeat(12))).unwrap();
    let (bytes, options) = (Tokenizer::bytes(), ReadingOptions::default());
    let some = Reading::to_measure(&file, &bytes, &options, 100, 256).unwrap();
    assert_eq!(bytes.decode(&some.ids), "abc ".repeat(25));
    assert_eq!((some.passed_over.unusable, some.passed_over.empty), (1, 0));
    let error = Reading::open(&file, &bytes, &options).unwrap_err().to_string();
    assert!(error.contains("1 of 13 that cannot be used"), "{error}");
}

/// WikiText-2's test part: 1,290,590 bytes; 245,569 words, an end of sentence for each of 4,358 lines included (Merity et
/// al.); 287,644 GPT-2 tokens of its rows joined.
#[test]
fn the_published_counts_of_wikitext_2() {
    let Some(file) = shared("wikitext-2-raw/wiki.test.raw") else { return };
    let gpt2 = Tokenizer::gpt2();
    let extent = Extent { bytes: 1_290_590, words: 245_569 };
    let plain = read(&file, &gpt2, false);
    assert_eq!(plain.extent_from(0), extent);
    assert_eq!(read(&file, &gpt2, true).extent_from(0), extent);
    assert_eq!(plain.ids, gpt2.encode(&fs::read_to_string(&file).unwrap()).unwrap());
}
