//! A tokenised corpus, kept in a cache and mapped into memory.

use std::collections::HashSet;
use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::corpus_cache::{self, Opened, Writer};
use super::documents::PassedOver;
use super::encode::{EncodedSegment, Encoder};
use super::sources::{self, DocumentFile};
use super::tokenizer::Tokenizer;
use crate::config::DataConfig;
use crate::files::sha256_hex;
use crate::{Error, Result};

pub use super::corpus_cache::Corpus;

impl Corpus {
    /// Tokenises the files of `data`, or maps what an earlier call left in `cache` for the same files (path, size, times
    /// of change, inode), tokenizer and settings. Without `data.val` the last `val_fraction` of the tokens is held out:
    /// cut at the end of a document where one is near, else inside of one.
    ///
    /// `progress(done, total)` is called with bytes of the files as they are tokenised, and not at all when nothing
    /// is. Several processes may open the same corpus at once: one tokenises it, the others wait.
    ///
    /// # Errors
    /// Files that are missing, malformed, without any text or changing while they are read; [`Join::Eos`] with a
    /// tokenizer that has no end-of-text token; a cache folder that cannot be written.
    ///
    /// [`Join::Eos`]: crate::config::Join::Eos
    pub fn open(
        data: &DataConfig,
        tokenizer: &Tokenizer,
        cache: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Corpus> {
        if data.train.is_empty() {
            return Err(Error::usage("no training text: data.train names no files"));
        }
        let train = sources::list(&data.train)?;
        let val = sources::list(&data.val)?;
        for path in files_that_are_twice(&train, &val) {
            tracing::warn!(
                "{} is trained on more than once, or held out as well as trained on",
                path.display()
            );
        }
        let target = cache.join(key(data, tokenizer, &train, &val));
        let writer = match corpus_cache::open(&target, tokenizer.vocab_size())? {
            Opened::Stored(corpus) => return Ok(corpus),
            Opened::Missing(writer) => writer,
        };
        let total = train.iter().chain(&val).map(|s| s.bytes).sum();
        let mut build =
            Build { writer, tokenizer, data, passed_over: PassedOver::default(), progress, done: 0, total };
        build.add(&train, "data.train")?;
        let train_sums = if val.is_empty() {
            let held_out = held_out(build.writer.sums().tokens, data.val_fraction);
            build.writer.split(held_out)?
        } else {
            let sums = build.writer.sums();
            build.add(&val, "data.val")?;
            sums
        };
        if sources::list(&data.train)? != train || sources::list(&data.val)? != val {
            return Err(Error::usage("a text file changed while it was being tokenised: start again"));
        }
        build.writer.publish(&target, train_sums, build.passed_over)
    }
}

/// Files, by the place they lie in, that stand before in one of the lists.
fn files_that_are_twice<'a>(train: &'a [DocumentFile], val: &'a [DocumentFile]) -> Vec<&'a Path> {
    let mut seen = HashSet::new();
    let all = train.iter().chain(val).map(|file| &*file.path);
    all.filter(|path| path.canonicalize().is_ok_and(|place| !seen.insert(place))).collect()
}

/// Tokens of `tokens` that are kept for validation.
fn held_out(tokens: u64, fraction: f64) -> u64 {
    if fraction <= 0.0 || tokens < 2 {
        return 0;
    }
    ((tokens as f64 * fraction).round() as u64).clamp(1, tokens - 1)
}

/// Names the cached form of these files: everything that the tokens depend on.
fn key(data: &DataConfig, tokenizer: &Tokenizer, train: &[DocumentFile], val: &[DocumentFile]) -> String {
    let mut text = format!(
        "{}\n{}\n{:?}\n{:?}\n{:?}\n{}\n",
        corpus_cache::VERSION,
        tokenizer.fingerprint(),
        tokenizer.eos(),
        data.join,
        data.field,
        data.val_fraction
    );
    for (part, sources) in [("train", train), ("val", val)] {
        for s in sources {
            let path = std::path::absolute(&s.path).unwrap_or_else(|_| s.path.clone());
            writeln!(text, "{part} {path:?} {} {:?}", s.bytes, s.version).expect("writing to a String");
        }
    }
    sha256_hex([text])[..32].to_string()
}

struct Build<'a> {
    writer: Writer,
    tokenizer: &'a Tokenizer,
    data: &'a DataConfig,
    passed_over: PassedOver,
    progress: &'a dyn Fn(u64, u64),
    /// Bytes of finished files, and of all.
    done: u64,
    total: u64,
}

impl Build<'_> {
    /// Tokenises all documents of `files`; `field` names them in errors.
    fn add(&mut self, files: &[DocumentFile], field: &str) -> Result<()> {
        let writer = &mut self.writer;
        let mut sink = |tokens: EncodedSegment<'_>| match tokens {
            EncodedSegment::Text(encoded) => writer.push(encoded),
            EncodedSegment::Between(ids) => writer.push_between(ids),
            EncodedSegment::DocumentEnd => writer.end_document(),
        };
        let mut encoder = Encoder::new(self.tokenizer, self.data.join, &mut sink);
        for source in files {
            let (done, total) = (self.done, self.total);
            let progress = |read: u64| (self.progress)(done + read, total);
            self.passed_over += encoder.file(source, &self.data.field, &progress)?;
            self.done += source.bytes;
            (self.progress)(self.done, total);
        }
        if !encoder.finish()? {
            let names: Vec<String> = files.iter().map(|s| s.path.display().to_string()).collect();
            return Err(Error::usage(format!("no text in {field}: {}", names.join(", "))));
        }
        Ok(())
    }
}

/// Where tokenised corpora are kept unless told otherwise: `TERNLM_CACHE`, else `XDG_CACHE_HOME/ternlm`, else
/// `HOME/.cache/ternlm`, else a folder for temporary files.
pub fn default_cache_dir() -> PathBuf {
    cache_dir(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

fn cache_dir(var: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    var("TERNLM_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("ternlm")))
        .or_else(|| Some(var("HOME")?.join(".cache").join("ternlm")))
        .unwrap_or_else(|| env::temp_dir().join("ternlm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_held_out_part_leaves_something_on_both_sides() {
        assert_eq!(held_out(0, 0.1), 0);
        assert_eq!(held_out(1, 0.9), 0);
        assert_eq!(held_out(2, 0.001), 1);
        assert_eq!(held_out(2, 0.999), 1);
        assert_eq!(held_out(957, 0.1), 96);
        assert_eq!(held_out(957, 0.0), 0);
    }

    #[test]
    fn the_cache_folder_follows_the_environment() {
        let with = |vars: &'static [(&str, &str)]| {
            cache_dir(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)))
        };
        assert_eq!(with(&[("TERNLM_CACHE", "/c"), ("HOME", "/h")]), Path::new("/c"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Path::new("/x/ternlm"));
        assert_eq!(with(&[("HOME", "/h")]), Path::new("/h/.cache/ternlm"));
        assert!(with(&[]).ends_with("ternlm"));
    }
}
