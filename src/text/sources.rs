//! Reading documents from .txt, .jsonl and .parquet files.

use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::files::{self, open_regular, utf8};
use crate::{Error, Result};

/// Longest document: above it the file is not what it claims to be, or needs splitting.
const MAX_DOCUMENT: u64 = 256 << 20;
const MAX_TEXT: u64 = 1 << 30;
/// Size of the pieces of [`training_texts`].
const TRAINING_PIECE: usize = 4 << 20;
const BOM: &[u8] = b"\xEF\xBB\xBF";
const KNOWN: &str = ".txt (also .raw, .tokens), .jsonl or .parquet";

/// How documents lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Paragraphs between blank lines (.txt, and WikiText's .raw and .tokens).
    Text,
    /// A JSON object a line.
    Jsonl,
    /// A row each.
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "txt" | "raw" | "tokens" => Some(Format::Text),
            "jsonl" => Some(Format::Jsonl),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }
}

/// A file of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    pub format: Format,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last change, nanoseconds after 1970.
    pub modified: u128,
}

/// One text, and how many bytes of its file have been read with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub text: String,
    pub read: u64,
}

/// The files that `paths` name: files as given, folders as all .txt, .jsonl and .parquet files under them, sorted by
/// path, hidden ones left out.
///
/// # Errors
/// A path that does not exist, a file of another kind, a folder without any such file.
pub fn list(paths: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = sources.len();
            walk(path, &mut HashSet::new(), &mut sources)?;
            if sources.len() == before {
                return Err(Error::input(path, "folder", "no text files", format!("files {KNOWN}")));
            }
        } else {
            let format = Format::of(path);
            // A missing file is the more useful complaint.
            let source = source(path, format.unwrap_or(Format::Text))?;
            if format.is_none() {
                return Err(Error::input(path, "file name", "another ending", KNOWN));
            }
            sources.push(source);
        }
    }
    Ok(sources)
}

fn walk(dir: &Path, visited: &mut HashSet<PathBuf>, sources: &mut Vec<Source>) -> Result<()> {
    // Links may lead back to a folder above.
    if !visited.insert(fs::canonicalize(dir).map_err(Error::io("open", dir))?) {
        return Ok(());
    }
    let entries: std::io::Result<Vec<PathBuf>> =
        fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    let mut entries = entries.map_err(Error::io("list", dir))?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, visited, sources)?;
        } else if let Some(format) = Format::of(&path) {
            sources.push(source(&path, format)?);
        }
    }
    Ok(())
}

fn source(path: &Path, format: Format) -> Result<Source> {
    let (file, bytes) = open_regular(path)?;
    let meta = file.metadata().map_err(Error::io("read", path))?;
    let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |t| t.as_nanos());
    Ok(Source { path: path.to_path_buf(), format, bytes, modified })
}

impl Source {
    /// The documents in order, read as they are asked for. `field` holds the text of a record. Documents without any
    /// text are passed over; CRLF line ends of text files become LF; a byte order mark is dropped.
    pub fn documents(&self, field: &str) -> Result<Box<dyn Iterator<Item = Result<Document>>>> {
        Ok(match self.format {
            Format::Text => {
                let lines = Lines::open(&self.path)?;
                Box::new(Paragraphs { lines, failed: false })
            }
            Format::Jsonl => {
                let lines = Lines::open(&self.path)?;
                Box::new(Records { lines, field: field.to_string(), line: 0, failed: false })
            }
            #[cfg(feature = "parquet")]
            Format::Parquet => Box::new(super::parquet::documents(&self.path, field)?),
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

/// The texts of files for [`super::BpeTrainer`]: text files with their blank lines, in pieces cut where no word
/// is; records one by one.
pub fn training_texts(sources: Vec<Source>, field: &str) -> impl Iterator<Item = Result<String>> {
    let field = field.to_string();
    sources.into_iter().flat_map(move |source| -> Box<dyn Iterator<Item = Result<String>>> {
        let texts = match source.format {
            Format::Text => Pieces::open(&source.path).map(|p| Box::new(p) as Box<dyn Iterator<Item = _>>),
            _ => source
                .documents(&field)
                .map(|d| Box::new(d.map(|d| Ok(d?.text))) as Box<dyn Iterator<Item = _>>),
        };
        texts.unwrap_or_else(|e| Box::new(std::iter::once(Err(e))))
    })
}

/// A whole text file of at most 1 GiB, as it is.
///
/// # Errors
/// A file that is missing, too large or not UTF-8 (the error tells the offset).
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    files::read_text(path.as_ref(), MAX_TEXT)
}

struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    read: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines> {
        let mut reader = BufReader::with_capacity(1 << 20, open_regular(path)?.0);
        let mut read = 0;
        if reader.fill_buf().map_err(Error::io("read", path))?.starts_with(BOM) {
            reader.consume(BOM.len());
            read = BOM.len() as u64;
        }
        Ok(Lines { path: path.to_path_buf(), reader, read })
    }

    /// Appends the next line and its end (CRLF as LF); `false` at the end of the file. `out` may hold earlier lines.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        let limit = (MAX_DOCUMENT + 1).saturating_sub(out.len() as u64);
        let read = (&mut self.reader).take(limit).read_until(b'\n', out);
        let read = read.map_err(Error::io("read", &self.path))?;
        if out.len() as u64 > MAX_DOCUMENT {
            let wanted = format!("documents of at most {MAX_DOCUMENT} bytes");
            return Err(Error::input(&self.path, format!("byte {}", self.read), "a longer one", wanted));
        }
        self.read += read as u64;
        if out[out.len() - read..].ends_with(b"\r\n") {
            out.truncate(out.len() - 2);
            out.push(b'\n');
        }
        Ok(read > 0)
    }
}

struct Paragraphs {
    lines: Lines,
    failed: bool,
}

impl Paragraphs {
    fn paragraph(&mut self) -> Result<Option<Document>> {
        let mut text = Vec::new();
        let mut offset = self.lines.read;
        loop {
            let start = text.len();
            let more = self.lines.next(&mut text)?;
            if more && !text[start..].trim_ascii().is_empty() {
                continue;
            }
            text.truncate(start);
            if text.last() == Some(&b'\n') {
                text.pop();
            }
            if !text.is_empty() {
                // Offsets are exact for LF files; in CRLF files each line before has lost a byte.
                let text = utf8(&self.lines.path, offset, text)?;
                return Ok(Some(Document { text, read: self.lines.read }));
            }
            if !more {
                return Ok(None);
            }
            offset = self.lines.read;
        }
    }
}

impl Iterator for Paragraphs {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.paragraph().inspect_err(|_| self.failed = true).transpose()
    }
}

struct Records {
    lines: Lines,
    field: String,
    line: u64,
    failed: bool,
}

impl Records {
    fn record(&mut self) -> Result<Option<Document>> {
        let mut bytes = Vec::new();
        while self.lines.next(&mut bytes)? {
            self.line += 1;
            let line = bytes.trim_ascii();
            if !line.is_empty() {
                let at = |what: &str| format!("line {}: {what}", self.line);
                let mut record: Map<String, Value> = serde_json::from_slice(line)
                    .map_err(|e| Error::input(&self.lines.path, at("JSON"), e, "an object"))?;
                match record.remove(&self.field) {
                    Some(Value::String(text)) if text.is_empty() => {}
                    Some(Value::String(text)) => return Ok(Some(Document { text, read: self.lines.read })),
                    other => {
                        let found = if other.is_some() { "no text" } else { "no such field" };
                        return Err(Error::input(&self.lines.path, at(&self.field), found, "a string"));
                    }
                }
            }
            bytes.clear();
        }
        Ok(None)
    }
}

impl Iterator for Records {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.record().inspect_err(|_| self.failed = true).transpose()
    }
}

/// A text file in large pieces, each but the last cut before a newline that follows a non-space.
struct Pieces {
    lines: Lines,
    text: Vec<u8>,
    /// Where `text` begins in the file.
    offset: u64,
    failed: bool,
}

impl Pieces {
    fn open(path: &Path) -> Result<Pieces> {
        let lines = Lines::open(path)?;
        Ok(Pieces { offset: lines.read, lines, text: Vec::new(), failed: false })
    }

    fn piece(&mut self) -> Result<Option<String>> {
        loop {
            let start = self.text.len();
            let more = self.lines.next(&mut self.text)?;
            if !more && self.text.is_empty() {
                return Ok(None);
            }
            let line = self.text[start..].strip_suffix(b"\n").unwrap_or_default();
            let cut =
                line.last().filter(|b| !b.is_ascii() || b.is_ascii_graphic()).map(|_| start + line.len());
            let cut = cut.filter(|&cut| cut >= TRAINING_PIECE);
            if let Some(cut) = cut.or((!more).then_some(self.text.len())) {
                let rest = self.text.split_off(cut);
                let piece = std::mem::replace(&mut self.text, rest);
                let piece = utf8(&self.lines.path, self.offset, piece)?;
                self.offset += cut as u64;
                // A space beyond ASCII before the newline would make this a cut inside a run of spaces.
                if more && piece.ends_with(char::is_whitespace) {
                    self.text.splice(..0, piece.into_bytes());
                    self.offset -= cut as u64;
                    continue;
                }
                return Ok(Some(piece));
            }
        }
    }
}

impl Iterator for Pieces {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.piece().inspect_err(|_| self.failed = true).transpose()
    }
}
