//! Documents to tokens: what stands before, between and after them, and how long ones are encoded in parallel chunks. All
//! that reads a text reads it through here, so the same files give the same tokens everywhere.

use rayon::prelude::*;

use super::documents::PassedOver;
use super::sources::{DocumentFile, Format, MAX_UNCUT, WORDS, uncut};
use super::tokenizer::{Encoded, Tokenizer};
use crate::config::Join;
use crate::{Error, Result};

/// Text encoded at once, in bytes.
const BATCH: usize = if cfg!(fuzzing) { 29 } else { 8 << 20 };

/// Some tokens, in the order of the text.
pub enum EncodedSegment<'a> {
    /// Of a chunk of a document.
    Text(&'a Encoded),
    /// What stands before, between or after documents; they stand for no text.
    Between(&'a [u32]),
    /// Here a document ends, and what stands after it.
    DocumentEnd,
}

enum Segment {
    Text(String),
    Between(Vec<u32>),
    DocumentEnd,
}

/// Encodes documents one after the other.
///
/// A text begins with what the tokenizer puts before one ([`Tokenizer::prefix`]). After a document stands the end-of-text
/// token, or between two of them what is missing of a blank line, as `data.join` says.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    join: Join,
    sink: &'a mut dyn FnMut(EncodedSegment<'_>) -> Result<()>,
    /// The part of the document at hand that has not been cut yet.
    open: String,
    /// A document has begun: what follows it, and how its text ends.
    document: Option<(Option<u32>, Tail)>,
    queue: Vec<Segment>,
    queued: usize,
    begun: bool,
    any_text: bool,
    /// Tokens of so many newlines inside a text.
    newlines: [Option<Vec<u32>>; 3],
}

/// Newlines at the end of a text.
#[derive(Clone, Copy, Default)]
struct Tail(usize);

impl Tail {
    fn after(self, text: &str) -> Tail {
        let newlines = text.bytes().rev().take_while(|&b| b == b'\n').count();
        Tail(if newlines == text.len() { self.0 + newlines } else { newlines }.min(2))
    }
}

impl<'a> Encoder<'a> {
    /// `sink` gets the tokens in order.
    pub fn new(
        tokenizer: &'a Tokenizer,
        join: Join,
        sink: &'a mut dyn FnMut(EncodedSegment<'_>) -> Result<()>,
    ) -> Encoder<'a> {
        Encoder {
            tokenizer,
            join,
            sink,
            open: String::new(),
            document: None,
            queue: Vec::new(),
            queued: 0,
            begun: false,
            any_text: false,
            newlines: Default::default(),
        }
    }

    /// Encodes all documents of a file. `progress` is told the bytes of it that were read.
    pub fn file(&mut self, source: &DocumentFile, field: &str, progress: &dyn Fn(u64)) -> Result<PassedOver> {
        let eos = self.end_of(source.format)?;
        source.read(field, &mut |part| {
            self.part(part.begins, &part.text, eos)?;
            source.judge_open(self.open.len(), part.read)?;
            progress(part.read.min(source.bytes));
            Ok(())
        })
    }

    /// Bytes that wait for a place to cut.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The token after each document of such a file; `None`: a blank line between two.
    pub fn end_of(&self, format: Format) -> Result<Option<u32>> {
        match (self.join, format) {
            (Join::Newline, _) | (Join::Auto, Format::Text) => Ok(None),
            (Join::Auto, _) => Ok(self.tokenizer.eos()),
            (Join::Eos, _) => match self.tokenizer.eos() {
                Some(eos) => Ok(Some(eos)),
                None => Err(Error::usage(format!(
                    "data.join = \"eos\", but the tokenizer {} has no end-of-text token: use \"newline\"",
                    self.tokenizer.name()
                ))),
            },
        }
    }

    /// Adds a part of a document that `eos` or a blank line will follow.
    pub fn part(&mut self, begins: bool, text: &str, eos: Option<u32>) -> Result<()> {
        if begins {
            self.end_document(true)?;
            if !std::mem::replace(&mut self.begun, true) {
                self.queue.push(Segment::Between(self.tokenizer.prefix().to_vec()));
            }
            self.document = Some((eos, Tail::default()));
        }
        let tail = &mut self.document.as_mut().expect("a document begins with its first part").1;
        *tail = tail.after(text);
        self.any_text |= text.bytes().any(|b| !b.is_ascii_whitespace());
        self.open.push_str(text);
        if self.open.len() >= BATCH {
            let mut chunks = self.tokenizer.chunks(&self.open);
            // The last one may go on.
            let rest = chunks.pop().unwrap_or_default().to_string();
            self.queue.extend(chunks.into_iter().map(|chunk| Segment::Text(chunk.into())));
            self.queued += self.open.len() - rest.len();
            self.open = rest;
        }
        if self.queued >= BATCH { self.flush() } else { Ok(()) }
    }

    fn end_document(&mut self, another: bool) -> Result<()> {
        let Some((eos, tail)) = self.document.take() else { return Ok(()) };
        let open = std::mem::take(&mut self.open);
        self.queued += open.len();
        let chunks = self.tokenizer.chunks(&open).into_iter().filter(|chunk| !chunk.is_empty());
        self.queue.extend(chunks.map(|chunk| Segment::Text(chunk.into())));
        match eos {
            Some(eos) => self.queue.push(Segment::Between(vec![eos])),
            None if another => {
                let between = self.newlines(2 - tail.0)?;
                self.queue.push(Segment::Between(between));
            }
            None => {}
        }
        self.queue.push(Segment::DocumentEnd);
        if self.queued >= BATCH { self.flush() } else { Ok(()) }
    }

    /// The tokens of `count` newlines inside a text.
    fn newlines(&mut self, count: usize) -> Result<Vec<u32>> {
        if let Some(known) = &self.newlines[count] {
            return Ok(known.clone());
        }
        let newlines = &"\n\n"[..count];
        // Some tokenizers put a space before whatever a text begins with.
        let before = self.tokenizer.encode("a")?;
        let both = self.tokenizer.encode(&format!("a{newlines}"))?;
        let found = match both.strip_prefix(&before[..]) {
            Some(after) => after.to_vec(),
            None => self.tokenizer.encode(newlines)?,
        };
        Ok(self.newlines[count].insert(found).clone())
    }

    fn flush(&mut self) -> Result<()> {
        let encode = |segment: &Segment| match segment {
            Segment::Text(text) if text.len() > MAX_UNCUT => {
                Err(Error::usage(format!("a text: found {}, wanted {WORDS}", uncut())))
            }
            Segment::Text(text) => self.tokenizer.encode_chunk(text),
            _ => Ok(Encoded::default()),
        };
        let encoded: Vec<Encoded> = self.queue.par_iter().map(encode).collect::<Result<_>>()?;
        for (segment, encoded) in self.queue.iter().zip(&encoded) {
            (self.sink)(match segment {
                Segment::Text(_) => EncodedSegment::Text(encoded),
                Segment::Between(ids) => EncodedSegment::Between(ids),
                Segment::DocumentEnd => EncodedSegment::DocumentEnd,
            })?;
        }
        self.queue.clear();
        self.queued = 0;
        Ok(())
    }

    /// Encodes what is left. Tells whether there was anything but white space.
    pub fn finish(mut self) -> Result<bool> {
        self.end_document(false)?;
        self.flush()?;
        Ok(self.any_text)
    }
}
