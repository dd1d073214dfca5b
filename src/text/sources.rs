//! Which files a corpus is made of.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::files::open_regular;
use crate::{Error, Result};

const KNOWN: &str = ".txt (also .raw, .tokens), .jsonl or .parquet";

/// Text without a place to cut, above which it is none, and a hundred times its size too much for the memory.
pub(super) const MAX_UNCUT: usize = 32 << 20;
/// What is wanted in place of [`uncut`].
pub(super) const WORDS: &str = "words or lines";

pub(super) fn uncut() -> String {
    format!("{MAX_UNCUT} bytes without a place to cut them")
}

/// How documents lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One document (.txt, and WikiText's .raw and .tokens).
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
pub struct DocumentFile {
    pub path: PathBuf,
    pub format: Format,
    /// Size in bytes.
    pub bytes: u64,
    /// What else tells this content from a later one of the same path and size: the time of the last change
    /// (nanoseconds after 1970), and on Unix the inode and the time of its last change, which no program can set, elsewhere
    /// that of the file's creation.
    pub version: [i128; 3],
}

impl DocumentFile {
    /// Refuses a file of which `open` bytes, the last of the first `read` ones, wait for a place to cut, where that is too much.
    pub(super) fn judge_open(&self, open: usize, read: u64) -> Result<()> {
        match open > MAX_UNCUT {
            true => Err(Error::input(&self.path, format!("byte {read}"), uncut(), WORDS)),
            false => Ok(()),
        }
    }
}

/// The files that `paths` name: files as given, folders as all .txt, .jsonl and .parquet files under them, sorted by
/// path. Left out are hidden ones, and under a folder what a program wrote: runs and model directories (whose vocabularies
/// are .txt files).
///
/// # Errors
/// A path that does not exist, a file of another kind, a folder without any such file.
pub fn list(paths: &[PathBuf]) -> Result<Vec<DocumentFile>> {
    list_files(paths, None)
}

/// [`list`], with a file of any other name as a text.
pub fn list_any(paths: &[PathBuf]) -> Result<Vec<DocumentFile>> {
    list_files(paths, Some(Format::Text))
}

fn list_files(paths: &[PathBuf], unknown: Option<Format>) -> Result<Vec<DocumentFile>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = sources.len();
            walk(path, &mut HashSet::new(), &mut sources)?;
            if sources.len() == before {
                return Err(Error::input(path, "folder", "no text files", format!("files {KNOWN}")));
            }
        } else {
            let format = Format::of(path).or(unknown);
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

fn walk(dir: &Path, visited: &mut HashSet<PathBuf>, sources: &mut Vec<DocumentFile>) -> Result<()> {
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
            if is_output(&path) {
                tracing::info!("{}: a run or a model, not read as text", path.display());
                continue;
            }
            walk(&path, visited, sources)?;
        } else if let Some(format) = Format::of(&path) {
            sources.push(source(&path, format)?);
        }
    }
    Ok(())
}

/// Whether a folder is a run of ours or a model directory.
fn is_output(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    has("recipe.toml") && (has("metrics.jsonl") || dir.join("checkpoints").is_dir())
        || has("config.json") && (has("model.safetensors") || has("model.safetensors.index.json"))
}

fn source(path: &Path, format: Format) -> Result<DocumentFile> {
    let (file, bytes) = open_regular(path)?;
    let meta = file.metadata().map_err(Error::io("read", path))?;
    let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |t| t.as_nanos() as i128);
    #[cfg(unix)]
    let version = {
        use std::os::unix::fs::MetadataExt;
        let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        [modified, changed, meta.ino().into()]
    };
    #[cfg(not(unix))]
    let version = {
        let created = meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        [modified, created.map_or(0, |t| t.as_nanos() as i128), 0]
    };
    Ok(DocumentFile { path: path.to_path_buf(), format, bytes, version })
}
