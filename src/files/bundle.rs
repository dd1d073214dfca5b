//! The small files that belong together (configuration, tokenizer, manifest), wherever they lie.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{if_there, read_limited, utf8};
use crate::error::{Error, Result};

/// The largest file that is read of those that may hold a vocabulary: published ones are below 40 MB.
pub const MAX_FILE: u64 = 256 << 20;

/// Files by name: those of a folder, or those that one file holds. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The folder, or the file that holds the others.
    place: PathBuf,
    /// What that file holds; `None`: `place` is a folder.
    held: Option<Arc<BTreeMap<String, Vec<u8>>>>,
}

impl Bundle {
    /// The files of a folder, each read when it is asked for.
    pub fn folder(dir: impl Into<PathBuf>) -> Self {
        Self { place: dir.into(), held: None }
    }

    /// The files that `file` holds.
    pub fn within(file: impl Into<PathBuf>, held: BTreeMap<String, Vec<u8>>) -> Self {
        Self { place: file.into(), held: Some(Arc::new(held)) }
    }

    /// The folder, or the file that holds the others.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// What error messages call the file `name`: `DIR/config.json`, or `model.tern: config.json`.
    pub fn path_of(&self, name: &str) -> PathBuf {
        match self.held {
            None => self.place.join(name),
            Some(_) => {
                let mut path = self.place.clone().into_os_string();
                path.push(": ");
                path.push(name);
                path.into()
            }
        }
    }

    /// Whether there is a file `name`.
    pub fn contains(&self, name: &str) -> bool {
        match &self.held {
            None => self.place.join(name).is_file(),
            Some(held) => held.contains_key(name),
        }
    }

    /// The whole of the file `name`, at most `limit` bytes.
    ///
    /// # Errors
    /// No such file, one that is too large, or what is no regular file.
    pub fn need(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.path_of(name);
        let Some(held) = &self.held else { return read_limited(&path, limit) };
        match held.get(name) {
            None => Err(Error::io("read", path)(io::ErrorKind::NotFound.into())),
            Some(bytes) if bytes.len() as u64 > limit => {
                Err(Error::input(path, "file size", bytes.len(), format!("at most {limit} bytes")))
            }
            Some(bytes) => Ok(bytes.clone()),
        }
    }

    /// [`Bundle::need`], or `None` where there is no such file.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        if_there(self.need(name, limit))
    }

    /// [`Bundle::read`] of a UTF-8 text.
    pub fn read_text(&self, name: &str, limit: u64) -> Result<Option<String>> {
        self.read(name, limit)?.map(|bytes| utf8(&self.path_of(name), 0, bytes)).transpose()
    }

    /// Names and sizes in bytes, in no order.
    pub fn list(&self) -> Result<Vec<(OsString, u64)>> {
        if let Some(held) = &self.held {
            return Ok(held.iter().map(|(name, bytes)| (name.into(), bytes.len() as u64)).collect());
        }
        let mut files = Vec::new();
        let mut list = || {
            for entry in fs::read_dir(&self.place)? {
                let entry = entry?;
                let meta = fs::metadata(entry.path())?;
                if meta.is_file() {
                    files.push((entry.file_name(), meta.len()));
                }
            }
            Ok(())
        };
        list().map_err(Error::io("list", &self.place))?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_a_file_with_the_same_files_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("a.json", "{}"), ("b.txt", "text")];
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        fs::create_dir(dir.path().join("folder")).unwrap();
        let held = files.map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())).into();
        let (folder, file) = (Bundle::folder(dir.path()), Bundle::within("x/model.tern", held));
        for bundle in [&folder, &file] {
            assert!(bundle.contains("a.json") && !bundle.contains("c") && !bundle.contains("folder"));
            assert_eq!(bundle.read("a.json", 2).unwrap().as_deref(), Some(&b"{}"[..]));
            assert_eq!(bundle.read_text("b.txt", 4).unwrap().as_deref(), Some("text"));
            assert_eq!(bundle.read("c", 4).unwrap(), None);
            let mut list = bundle.list().unwrap();
            list.sort();
            assert_eq!(list, [("a.json".into(), 2), ("b.txt".into(), 4)]);
        }
        let error = |bundle: &Bundle, name| bundle.need(name, 3).unwrap_err().to_string();
        assert_eq!(error(&file, "b.txt"), "x/model.tern: b.txt: file size: found 4, wanted at most 3 bytes");
        assert!(error(&folder, "b.txt").ends_with("b.txt: file size: found 4, wanted at most 3 bytes"));
        assert!(error(&file, "c").starts_with("cannot read x/model.tern: c: "));
        assert!(error(&folder, "c").starts_with("cannot read "));
        let bad = Bundle::within("m", [("t".to_string(), b"a\xff".to_vec())].into());
        assert!(
            bad.read_text("t", 9).unwrap_err().to_string().starts_with("m: t: byte 1: found the byte 0xff")
        );
    }
}
