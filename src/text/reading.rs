//! A text to be measured: its tokens, and which part of the original each of them stands for.

use std::path::Path;

use super::documents::PassedOver;
use super::encode::{EncodedSegment, Encoder};
use super::sources;
use super::tokenizer::Tokenizer;
use super::wikitext::{self, Detokenized};
use crate::config::Join;
use crate::{Error, Result};

const MAX_TEXT: usize = 1 << 30;

/// How a text is read.
#[derive(Clone, Debug)]
pub struct ReadingOptions {
    /// The text field of records.
    pub field: String,
    /// What stands between documents.
    pub join: Join,
    /// Undo WikiText's tokenisation; what is counted is still the text as it is.
    pub detokenize_wikitext: bool,
}

impl Default for ReadingOptions {
    fn default() -> Self {
        let data = crate::config::DataConfig::default();
        ReadingOptions { field: data.field, join: data.join, detokenize_wikitext: false }
    }
}

/// The tokens of a file or folder, the same ones that a training on it would see.
#[derive(Debug)]
pub struct Reading {
    pub ids: Vec<u32>,
    pub passed_over: PassedOver,
    /// All documents, one after the other.
    text: String,
    /// Where in `text` each token ends.
    ends: Vec<usize>,
    /// Where documents begin.
    documents: Vec<usize>,
}

/// What some tokens stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of UTF-8.
    pub bytes: u64,
    /// By the WikiText convention: what white space separates, counted where it begins, and one for each end of a line.
    pub words: u64,
}

impl Reading {
    /// Reads a text, records or a folder of them, of at most 1 GiB.
    ///
    /// # Errors
    /// Those of [`sources::list`] and of reading, a text of more than 1 GiB.
    pub fn open(path: &Path, tokenizer: &Tokenizer, options: &ReadingOptions) -> Result<Reading> {
        let mut texts: Vec<(String, Option<u32>)> = Vec::new();
        let mut passed_over = PassedOver::default();
        let mut size = 0;
        let mut ignore = |_: EncodedSegment<'_>| Ok(());
        let ends = Encoder::new(tokenizer, options.join, &mut ignore);
        for source in sources::list_any(&[path.to_path_buf()])? {
            let eos = ends.end_of(source.format)?;
            passed_over += source.read(&options.field, &mut |part| {
                size += part.text.len();
                if size > MAX_TEXT {
                    let wanted = format!("at most {MAX_TEXT} bytes of text");
                    return Err(Error::input(path, "size", "more", wanted));
                }
                match texts.last_mut() {
                    Some((text, _)) if !part.begins => text.push_str(&part.text),
                    _ => texts.push((part.text, eos)),
                }
                Ok(())
            })?;
        }
        Self::of(texts, passed_over, tokenizer, options)
    }

    /// The first tokens, `most` at most, of a text that a model with `rows` rows of vocabulary is to be measured on.
    ///
    /// # Errors
    /// Those of [`Reading::open`], fewer than two tokens, and tokens that the model has no rows for.
    pub fn to_measure(
        path: &Path,
        tokenizer: &Tokenizer,
        options: &ReadingOptions,
        most: usize,
        rows: usize,
    ) -> Result<Reading> {
        let mut text = Self::open(path, tokenizer, options)?;
        text.truncate(most);
        if text.ids.len() < 2 {
            return Err(Error::input(path, "text", format!("{} tokens", text.ids.len()), "2 or more"));
        }
        tokenizer.fits(&path.display().to_string(), text.ids.iter().copied(), rows)?;
        Ok(text)
    }

    /// The tokens of one text that is no file.
    pub fn of_text(text: &str, tokenizer: &Tokenizer) -> Result<Reading> {
        let texts = vec![(text.to_string(), None)];
        Self::of(texts, PassedOver::default(), tokenizer, &ReadingOptions::default())
    }

    fn of(
        texts: Vec<(String, Option<u32>)>,
        passed_over: PassedOver,
        tokenizer: &Tokenizer,
        options: &ReadingOptions,
    ) -> Result<Reading> {
        let detokenized: Option<Vec<Detokenized>> = options
            .detokenize_wikitext
            .then(|| texts.iter().map(|(text, _)| wikitext::detokenize(text)).collect());
        let mut documents = Vec::with_capacity(texts.len());
        let mut text = String::new();
        for (document, _) in &texts {
            documents.push(text.len());
            text.push_str(document);
        }
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        // The document at hand, and how much of what was encoded of it has passed.
        let (mut document, mut passed) = (0, 0);
        let mut sink = |tokens: EncodedSegment<'_>| {
            match tokens {
                EncodedSegment::Text(encoded) => {
                    ids.extend_from_slice(&encoded.ids);
                    for &bytes in &encoded.bytes {
                        passed += bytes as usize;
                        let original =
                            detokenized.as_ref().map_or(passed, |all| all[document].origin(passed));
                        ends.push(documents[document] + original);
                    }
                }
                EncodedSegment::Between(between) => {
                    ids.extend_from_slice(between);
                    let at = ends.last().copied().unwrap_or(0);
                    ends.resize(ids.len(), at);
                }
                EncodedSegment::DocumentEnd => (document, passed) = (document + 1, 0),
            }
            Ok(())
        };
        let mut encoder = Encoder::new(tokenizer, options.join, &mut sink);
        for (i, (document, eos)) in texts.iter().enumerate() {
            let measured = detokenized.as_ref().map_or(document, |all| &all[i].text);
            encoder.part(true, measured, *eos)?;
        }
        encoder.finish()?;
        Ok(Reading { ids, passed_over, text, ends, documents })
    }

    /// Keeps the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        self.ids.truncate(tokens);
        self.ends.truncate(tokens);
    }

    /// What the tokens from number `first` on stand for.
    pub fn extent_from(&self, first: usize) -> Extent {
        let Some(&end) = self.ends.last() else { return Extent::default() };
        let start = if first == 0 { 0 } else { self.ends[(first - 1).min(self.ends.len() - 1)] };
        let mut words = 0;
        for (i, &begin) in self.documents.iter().enumerate() {
            let stop = self.documents.get(i + 1).copied().unwrap_or(self.text.len());
            if stop <= start || begin >= end {
                continue;
            }
            words += words_between(&self.text[begin..stop], start.max(begin) - begin, end.min(stop) - begin);
        }
        Extent { bytes: (end - start) as u64, words }
    }
}

/// Words that begin at `from` or later and before `to`, and lines that end there.
fn words_between(document: &str, from: usize, to: usize) -> u64 {
    let mut words = 0;
    let mut space = true;
    let mut last = None;
    for (at, c) in document.char_indices().take_while(|&(at, _)| at < to) {
        let inside = at >= from;
        words += (inside && space && !c.is_whitespace()) as u64 + (inside && c == '\n') as u64;
        space = c.is_whitespace();
        last = Some(c);
    }
    // The end of a document ends its last line.
    words + (to == document.len() && last.is_some_and(|c| c != '\n') && from < to) as u64
}
