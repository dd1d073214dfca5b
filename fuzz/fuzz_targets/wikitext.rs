//! A text whose WikiText tokenisation is undone: its letters stay, each line is undone by itself, and what is counted is still
//! the text as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ternlm::text::{Extent, Reading, ReadingOptions, Tokenizer};
use ternlm_fuzz::{begins_alike, file};

fn options(detokenize_wikitext: bool) -> ReadingOptions {
    ReadingOptions { detokenize_wikitext, ..ReadingOptions::default() }
}

/// The tokens of a text, which are its bytes.
fn read(data: &[u8], detokenize: bool) -> Option<(Reading, String)> {
    let bytes = Tokenizer::bytes();
    let reading = Reading::open(&file("a.raw", data), &bytes, &options(detokenize)).ok()?;
    let text = bytes.decode(&reading.ids);
    Some((reading, text))
}

fn undone(text: &str) -> String {
    read(text.as_bytes(), true).expect("a text").1
}

fuzz_target!(|data: &[u8]| {
    let Some((plain, original)) = read(data, false) else { return };
    let (reading, text) = read(data, true).expect("a text that can be read");
    let letters = |text: &str| -> String {
        text.chars().filter(|c| !c.is_whitespace() && !['@', '='].contains(c)).collect()
    };
    assert_eq!(letters(&text), letters(&original));
    let lines = |text: &str| text.matches('\n').count();
    assert_eq!(lines(&text), lines(&original));
    // What a file may begin with, and the ends of lines of others, are no longer there.
    if let Some(at) = original.find('\n').filter(|_| !original.contains(['\r', '\u{feff}'])) {
        let (first, rest) = original.split_at(at + 1);
        assert_eq!(undone(first) + &undone(rest), text);
    }
    if !reading.ids.is_empty() {
        assert_eq!(reading.extent_from(0), plain.extent_from(0));
    }
    let step = 1 + reading.ids.len() / 8;
    let extents: Vec<Extent> =
        (0..=reading.ids.len()).step_by(step).map(|first| reading.extent_from(first)).collect();
    assert!(extents.windows(2).all(|w| w[0].bytes >= w[1].bytes && w[0].words >= w[1].words), "{extents:?}");
    begins_alike(&file("a.raw", data), &Tokenizer::bytes(), &options(true), reading);
});
