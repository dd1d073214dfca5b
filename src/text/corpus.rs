//! A tokenised corpus, kept in a cache and mapped into memory.

use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::sources::{self, Format, Source};
use super::store::{self, Writer};
use super::tokenizer::Tokenizer;
use super::tokens::Tokens;
use crate::config::{DataConfig, Join};
use crate::files::sha256_hex;
use crate::{Error, Result};

/// Text tokenised at once, in bytes.
const BATCH: usize = 8 << 20;
/// What [`Join::Newline`] puts after each document.
const BLANK_LINE: &str = "\n\n";

/// Training and validation tokens.
#[derive(Clone, Debug)]
pub struct Corpus {
    pub train: Tokens,
    /// Empty without validation files when nothing is held out.
    pub val: Tokens,
    /// SHA-256 (hexadecimal) of the training tokens: equal for corpora on which a training goes on as it was.
    pub fingerprint: String,
}

impl From<store::Stored> for Corpus {
    fn from(stored: store::Stored) -> Corpus {
        Corpus { train: stored.train, val: stored.val, fingerprint: stored.sha256 }
    }
}

impl Corpus {
    /// Tokenises the files of `data`, or maps what an earlier call left in `cache` for the same files (path, size,
    /// time of change), tokenizer and settings. Without `data.val` the last `val_fraction` of the documents is held
    /// out: at least one when the fraction is above 0 and there are two.
    ///
    /// `progress(done, total)` is called with bytes of the files as they are tokenised, and not at all when nothing
    /// is. Several processes may open the same corpus at once.
    ///
    /// # Errors
    /// Files that are missing, malformed, without any text or changing while they are read; [`Join::Eos`] with a
    /// tokenizer that has no end-of-text token; a cache folder that cannot be written.
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
        let target = cache.join(key(data, tokenizer, &train, &val));
        if let Some(stored) = store::load(&target, tokenizer.vocab_size()) {
            return Ok(stored.into());
        }

        let total = train.iter().chain(&val).map(|s| s.bytes).sum();
        let mut build = Build {
            writer: Writer::create(&target, tokenizer.vocab_size())?,
            tokenizer,
            field: &data.field,
            join: data.join,
            progress,
            done: 0,
            total,
        };
        build.add(&train, "data.train")?;
        let train_sums = if val.is_empty() {
            let documents = build.writer.sums().documents;
            build.writer.sums_of(documents - held_out(documents, data.val_fraction))?
        } else {
            let sums = build.writer.sums();
            build.add(&val, "data.val")?;
            sums
        };
        if sources::list(&data.train)? != train || sources::list(&data.val)? != val {
            return Err(Error::usage("a text file changed while it was being tokenised: start again"));
        }
        build.writer.publish(&target, train_sums).map(Corpus::from)
    }
}

/// Documents of `documents` that are kept for validation.
fn held_out(documents: u64, fraction: f64) -> u64 {
    if fraction <= 0.0 || documents < 2 {
        return 0;
    }
    ((documents as f64 * fraction).round() as u64).clamp(1, documents - 1)
}

/// Names the cached form of these files: everything that the tokens depend on.
fn key(data: &DataConfig, tokenizer: &Tokenizer, train: &[Source], val: &[Source]) -> String {
    let mut text = format!(
        "{}\n{}\n{:?}\n{:?}\n{:?}\n{}\n",
        store::VERSION,
        tokenizer.fingerprint(),
        tokenizer.eos(),
        data.join,
        data.field,
        data.val_fraction
    );
    for (part, sources) in [("train", train), ("val", val)] {
        for s in sources {
            let path = std::path::absolute(&s.path).unwrap_or_else(|_| s.path.clone());
            writeln!(text, "{part} {path:?} {} {}", s.bytes, s.modified).expect("writing to a String");
        }
    }
    sha256_hex([text])[..32].to_string()
}

struct Build<'a> {
    writer: Writer,
    tokenizer: &'a Tokenizer,
    field: &'a str,
    join: Join,
    progress: &'a dyn Fn(u64, u64),
    /// Bytes of finished files, and of all.
    done: u64,
    total: u64,
}

impl Build<'_> {
    /// Tokenises all documents of `files`; `field` names them in errors.
    fn add(&mut self, files: &[Source], field: &str) -> Result<()> {
        let before = self.writer.sums().tokens;
        for source in files {
            let eos = self.separator(source.format)?;
            let (mut texts, mut size) = (Vec::new(), 0);
            for document in source.documents(self.field)? {
                let mut document = document?;
                if eos.is_none() {
                    document.text.push_str(BLANK_LINE);
                }
                size += document.text.len();
                texts.push(document.text);
                if size >= BATCH {
                    self.encode(&texts, eos)?;
                    (self.progress)(self.done + document.read.min(source.bytes), self.total);
                    texts.clear();
                    size = 0;
                }
            }
            self.encode(&texts, eos)?;
            self.done += source.bytes;
            (self.progress)(self.done, self.total);
        }
        if self.writer.sums().tokens == before {
            let names: Vec<String> = files.iter().map(|s| s.path.display().to_string()).collect();
            return Err(Error::usage(format!("no text in {field}: {}", names.join(", "))));
        }
        Ok(())
    }

    /// The token after each document of such a file; `None`: a blank line.
    fn separator(&self, format: Format) -> Result<Option<u32>> {
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

    fn encode(&mut self, texts: &[String], eos: Option<u32>) -> Result<()> {
        for (mut ids, text) in self.tokenizer.encode_batch(texts)?.into_iter().zip(texts) {
            ids.extend(eos);
            self.writer.push(&ids, text.len() as u64)?;
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
