//! The one reader of texts: the documents of .txt, .jsonl and .parquet files, for training and for measuring alike.
//!
//! A text file is one document, its blank lines its own; a byte order mark is dropped and CRLF becomes LF. Of records the
//! text is the field asked for, as it is; what stands in other fields does not matter, even where it is no JSON (Python
//! writes `NaN`).

use std::fmt;
use std::path::{Path, PathBuf};

use super::items::{Item, Part, until_error};
use super::jsonl::Records;
use super::plain::Text;
use super::sources::{DocumentFile, Format, MAX_UNCUT};
use crate::{Error, Result};

/// Size of the chunks of [`training_texts`].
const TRAINING_CHUNK: usize = if cfg!(fuzzing) { 61 } else { 4 << 20 };
/// A file of records is refused when more than one in so many cannot be used.
const MOST_UNUSABLE: u64 = 20;
/// Records after which that is judged for the first time, before the end of a file.
const FIRST_JUDGED: u64 = 1000;

/// Records that were passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassedOver {
    /// Their text is empty or null.
    pub empty: u64,
    /// No object, no text in the field asked for, or no Unicode.
    pub unusable: u64,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Records passed over: {} without text, {} unusable", self.empty, self.unusable)
    }
}

impl std::ops::AddAssign for PassedOver {
    fn add_assign(&mut self, other: Self) {
        self.empty += other.empty;
        self.unusable += other.unusable;
    }
}

/// Counts the records of a file and refuses it when too many are unusable.
struct Judge {
    path: PathBuf,
    records: u64,
    passed: PassedOver,
    first: Option<Error>,
}

impl Judge {
    fn new(path: &Path) -> Judge {
        Judge { path: path.into(), records: 0, passed: PassedOver::default(), first: None }
    }

    fn count(&mut self, item: Item) -> Result<Option<Part>> {
        // A later part belongs to a record that was counted.
        self.records += !matches!(item, Item::Part(Part { begins: false, .. })) as u64;
        let part = match item {
            Item::Part(part) => return Ok(Some(part)),
            Item::Empty => {
                self.passed.empty += 1;
                None
            }
            Item::Unusable(why) => {
                self.passed.unusable += 1;
                self.first.get_or_insert(why);
                None
            }
        };
        if self.records >= FIRST_JUDGED {
            self.judge()?
        }
        Ok(part)
    }

    fn judge(&mut self) -> Result<()> {
        if self.passed.unusable * MOST_UNUSABLE <= self.records {
            return Ok(());
        }
        let first = self.first.take().expect("the first unusable record is kept");
        // A file of one kind of mistake is told by its first one.
        if self.passed.unusable == self.records {
            return Err(first);
        }
        let found = format!("{} of {} that cannot be used; {first}", self.passed.unusable, self.records);
        Err(Error::input(&self.path, "records", found, format!("at most 1 in {MOST_UNUSABLE}")))
    }

    fn finish(mut self) -> Result<PassedOver> {
        self.judge()?;
        Ok(self.tell())
    }

    /// Ends without a judgement.
    fn tell(self) -> PassedOver {
        if let Some(first) = &self.first {
            tracing::warn!("{} unusable records passed over; the first one: {first}", self.passed.unusable);
        }
        self.passed
    }
}

impl DocumentFile {
    /// Hands every part of every document to `each`, in order. `field` holds the text of a record.
    ///
    /// # Errors
    /// A text file that is not UTF-8, a damaged file, more unusable records than one in 20, and what `each` returns.
    pub fn read(&self, field: &str, each: &mut dyn FnMut(Part) -> Result<()>) -> Result<PassedOver> {
        self.read_while(field, &mut |part| each(part).map(|()| true))
    }

    /// [`DocumentFile::read`] as long as `each` wants more. A file of fewer than 1,000 records up to there is not judged.
    ///
    /// # Errors
    /// Those of [`DocumentFile::read`], in what is read.
    pub(super) fn read_while(
        &self,
        field: &str,
        each: &mut dyn FnMut(Part) -> Result<bool>,
    ) -> Result<PassedOver> {
        let mut judge = Judge::new(&self.path);
        for item in self.items(field)? {
            if let Some(part) = judge.count(item?)?
                && !each(part)?
            {
                return Ok(judge.tell());
            }
        }
        judge.finish()
    }

    /// The documents in order, read as they are asked for; nothing is judged.
    fn items(&self, field: &str) -> Result<Box<dyn Iterator<Item = Result<Item>>>> {
        Ok(match self.format {
            Format::Text => Box::new(until_error(Text::open(&self.path)?, Text::next)),
            Format::Jsonl => Box::new(until_error(Records::open(&self.path, field)?, Records::next)),
            #[cfg(feature = "parquet")]
            Format::Parquet => Box::new(super::parquet::items(&self.path, field)?),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                return Err(Error::usage(format!(
                    "{}: this program was built without .parquet support; build it with \
                     `cargo build --release --features parquet`",
                    self.path.display()
                )));
            }
        })
    }
}

/// The texts of files for [`super::BpeTrainer`], long ones in chunks cut where no word is.
pub fn training_texts(sources: Vec<DocumentFile>, field: &str) -> impl Iterator<Item = Result<String>> {
    let field = field.to_string();
    sources.into_iter().flat_map(move |source| -> Box<dyn Iterator<Item = Result<String>>> {
        match source.items(&field) {
            Ok(items) => {
                let judge = Some(Judge::new(&source.path));
                let chunks = Chunks { source, items, judge, text: String::new(), read: 0, next: None };
                Box::new(until_error(chunks, Chunks::chunk))
            }
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    })
}

/// Documents in large chunks, each but the last of a document cut before a newline that follows a non-space, or, where there is
/// none, as in WikiText's spacing, before such a space.
struct Chunks {
    source: DocumentFile,
    items: Box<dyn Iterator<Item = Result<Item>>>,
    /// Gone when the file has been read.
    judge: Option<Judge>,
    text: String,
    /// Bytes of the file up to the end of the newest part.
    read: u64,
    /// The first part of the next document.
    next: Option<String>,
}

impl Chunks {
    fn chunk(&mut self) -> Result<Option<String>> {
        if let Some(next) = self.next.take() {
            self.text = next;
        }
        while let Some(judge) = &mut self.judge {
            if self.text.len() >= TRAINING_CHUNK {
                if let Some(cut) = last(&self.text, b'\n').or_else(|| last(&self.text, b' ')) {
                    let rest = self.text.split_off(cut);
                    return Ok(Some(std::mem::replace(&mut self.text, rest)));
                }
                self.source.judge_open(self.text.len(), self.read)?;
            }
            match self.items.next().transpose()? {
                None => self.judge.take().expect("just seen").finish().map(drop)?,
                Some(item) => {
                    let Some(part) = judge.count(item)? else { continue };
                    self.read = part.read;
                    if part.begins && !self.text.is_empty() {
                        self.next = Some(part.text);
                        return Ok(Some(std::mem::take(&mut self.text)));
                    }
                    self.text.push_str(&part.text);
                }
            }
        }
        Ok(Some(std::mem::take(&mut self.text)).filter(|text| !text.is_empty()))
    }
}

/// The last place where `space` follows a non-space, in as much of the text as may be without one.
fn last(text: &str, space: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    let ends = (bytes.len().saturating_sub(MAX_UNCUT).max(1)..bytes.len()).rev();
    let mut ends = ends.filter(|&at| bytes[at] == space);
    ends.find(|&at| !text[..at].ends_with(char::is_whitespace))
}
