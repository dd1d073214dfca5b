//! A text to be measured: its tokens, and which part of the original each of them stands for.

use std::cell::{Cell, RefCell};
use std::path::Path;

use super::documents::PassedOver;
use super::encode::{EncodedSegment, Encoder};
use super::sources::{self, DocumentFile};
use super::tokenizer::Tokenizer;
use super::wikitext::{self, Detokenized, Detokenizer};
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
    /// Undo WikiText's tokenisation; what is counted is still the text as it is. A line of more than 1 MiB is no heading, and
    /// a word of more than 32 MiB an error.
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
        Self::first(path, tokenizer, options, usize::MAX)
    }

    /// The first tokens, `most` at most, of a text that a model with `rows` rows of vocabulary is to be measured on. Of one
    /// that has more, no more is read than some MiB behind them.
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
        let mut text = Self::first(path, tokenizer, options, most)?;
        text.truncate(most);
        if text.ids.len() < 2 {
            return Err(Error::input(path, "text", format!("{} tokens", text.ids.len()), "2 or more"));
        }
        tokenizer.fits(&path.display().to_string(), text.ids.iter().copied(), rows)?;
        Ok(text)
    }

    /// As much of a file or folder as has `most` tokens, or all of it.
    fn first(path: &Path, tokenizer: &Tokenizer, options: &ReadingOptions, most: usize) -> Result<Reading> {
        let sources = sources::list_any(&[path.to_path_buf()])?;
        // What is too long in any case is refused before it is tokenised, which takes far longer than reading it twice.
        if most == usize::MAX && sources.iter().map(|source| source.bytes).sum::<u64>() > MAX_TEXT as u64 {
            let mut size = 0;
            for source in &sources {
                source.read(&options.field, &mut |part| count(&mut size, &part.text, path))?;
            }
        }
        Self::of(tokenizer, options, most, |documents| {
            let (mut passed_over, mut size) = (PassedOver::default(), 0);
            for source in &sources {
                let eos = documents.encoder.end_of(source.format)?;
                passed_over += source.read_while(&options.field, &mut |part| {
                    count(&mut size, &part.text, path)?;
                    documents.part(part.begins, &part.text, eos)?;
                    documents.judge_open(source, part.read)?;
                    Ok(documents.wants_more())
                })?;
                if !documents.wants_more() {
                    break;
                }
            }
            Ok(passed_over)
        })
    }

    /// The tokens of one text that is no file.
    pub fn of_text(text: &str, tokenizer: &Tokenizer) -> Result<Reading> {
        Self::of(tokenizer, &ReadingOptions::default(), usize::MAX, |documents| {
            documents.part(true, text, None).map(|()| PassedOver::default())
        })
    }

    /// Of the documents that `read` hands on until there are `most` tokens.
    fn of(
        tokenizer: &Tokenizer,
        options: &ReadingOptions,
        most: usize,
        read: impl FnOnce(&mut Documents<'_>) -> Result<PassedOver>,
    ) -> Result<Reading> {
        let original = RefCell::new(Original::default());
        let (mut ids, mut ends, encoded) = (Vec::new(), Vec::new(), Cell::new(0));
        // The document at hand, and how much of what was encoded of it has passed.
        let (mut document, mut passed) = (0, 0);
        let mut sink = |tokens: EncodedSegment<'_>| {
            match tokens {
                EncodedSegment::Text(encoded) => {
                    let original = original.borrow();
                    ids.extend_from_slice(&encoded.ids);
                    for &bytes in &encoded.bytes {
                        passed += bytes as usize;
                        ends.push(original.end(document, passed));
                    }
                }
                EncodedSegment::Between(between) => {
                    ids.extend_from_slice(between);
                    let at = ends.last().copied().unwrap_or(0);
                    ends.resize(ids.len(), at);
                }
                EncodedSegment::DocumentEnd => (document, passed) = (document + 1, 0),
            }
            encoded.set(ids.len());
            Ok(())
        };
        let mut documents = Documents {
            encoder: Encoder::new(tokenizer, options.join, &mut sink),
            encoded: &encoded,
            most,
            original: &original,
            detokenizer: options.detokenize_wikitext.then(Detokenizer::default),
            open: String::new(),
            eos: None,
        };
        let passed_over = read(&mut documents)?;
        // What is encoded by now goes on in what was read: its tokens and their ends are those of the whole.
        match documents.wants_more() {
            true => documents.finish()?,
            false => drop(documents),
        }
        let Original { text, documents, .. } = original.into_inner();
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

/// Counts the bytes of the text of `path`, of which there is a most.
fn count(size: &mut usize, text: &str, path: &Path) -> Result<()> {
    *size += text.len();
    if *size <= MAX_TEXT {
        return Ok(());
    }
    Err(Error::input(path, "size", "more", format!("at most {MAX_TEXT} bytes of text")))
}

/// The documents of a text on their way to the encoder.
struct Documents<'a> {
    encoder: Encoder<'a>,
    /// Tokens so far, and how many are wanted.
    encoded: &'a Cell<usize>,
    most: usize,
    original: &'a RefCell<Original>,
    detokenizer: Option<Detokenizer>,
    /// What is not detokenised yet, as it depends on what follows.
    open: String,
    /// What follows the document at hand.
    eos: Option<u32>,
}

impl Documents<'_> {
    fn wants_more(&self) -> bool {
        self.encoded.get() < self.most
    }

    /// Adds a part of a document, as [`Encoder::part`] does.
    fn part(&mut self, begins: bool, text: &str, eos: Option<u32>) -> Result<()> {
        if begins {
            self.detokenize(self.open.len())?;
            self.original.borrow_mut().begin();
            self.eos = eos;
            self.encoder.part(true, "", eos)?;
        }
        if self.detokenizer.is_none() {
            self.original.borrow_mut().text.push_str(text);
            return self.encoder.part(false, text, eos);
        }
        self.open.push_str(text);
        self.detokenize(wikitext::settled(&self.open))
    }

    /// The first `end` bytes of what is open.
    fn detokenize(&mut self, end: usize) -> Result<()> {
        let Some(detokenizer) = self.detokenizer.as_mut().filter(|_| end > 0) else { return Ok(()) };
        let mut detokenized = detokenizer.part(&self.open, end);
        let measured = std::mem::take(&mut detokenized.text);
        self.original.borrow_mut().push(&self.open[..end], measured.len(), detokenized);
        self.open.drain(..end);
        self.encoder.part(false, &measured, self.eos)
    }

    /// [`DocumentFile::judge_open`] of what waits here or in the encoder.
    fn judge_open(&self, source: &DocumentFile, read: u64) -> Result<()> {
        source.judge_open(self.open.len().max(self.encoder.open()), read)
    }

    fn finish(mut self) -> Result<()> {
        self.detokenize(self.open.len())?;
        self.encoder.finish().map(drop)
    }
}

/// The documents as they are in the files.
#[derive(Default)]
struct Original {
    /// One after the other.
    text: String,
    /// Where they begin in `text`.
    documents: Vec<usize>,
    /// Of documents that are detokenised.
    lines: Vec<Lines>,
    /// Bytes of the last document as it is measured.
    measured: usize,
}

/// Some lines of a document, or a part of one, that are measured detokenised.
struct Lines {
    document: usize,
    /// Where they begin in the document as it is measured, and in the original.
    measured: usize,
    original: usize,
    detokenized: Detokenized,
}

impl Original {
    fn begin(&mut self) {
        self.documents.push(self.text.len());
        self.measured = 0;
    }

    fn push(&mut self, lines: &str, measured: usize, detokenized: Detokenized) {
        let (document, original) = (self.documents.len() - 1, self.text.len());
        self.lines.push(Lines { document, measured: self.measured, original, detokenized });
        self.text.push_str(lines);
        self.measured += measured;
    }

    /// Where in the text the first `measured` bytes of a document end.
    fn end(&self, document: usize, measured: usize) -> usize {
        let after = self.lines.partition_point(|l| (l.document, l.measured) <= (document, measured));
        match self.lines[..after].last() {
            Some(lines) => lines.original + lines.detokenized.origin(measured - lines.measured),
            None => self.documents[document] + measured,
        }
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
