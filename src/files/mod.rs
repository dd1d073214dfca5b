//! Reading files that are not to be trusted, and writing files that appear whole or not at all.

mod atomic;
mod bundle;
mod bytes;
mod lock;
mod mapped;
pub mod path_text;

pub use atomic::{
    DirectoryWriter, FileWriter, IfExists, recover, remove_folder, sweep, write_bytes, write_file,
};
pub use bundle::{Bundle, MAX_FILE};
pub use bytes::Bytes;
pub use lock::{FolderLock, Turn};
pub use mapped::Mapped;

use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// Opens a regular file for reading and gives its size in bytes. A pipe or a device is refused: it could block forever
/// or never end.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let kind = fs::metadata(path).map_err(Error::io("read", path))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a pipe or device" };
        return Err(Error::input(path, "file type", found, "a regular file"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    Ok((file, size))
}

/// The whole of a regular file of at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, size) = open_regular(path)?;
    let too_large = |size| Err(Error::input(path, "file size", size, format!("at most {limit} bytes")));
    if size > limit {
        return too_large(size);
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // It may grow while it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    match bytes.len() as u64 {
        size if size > limit => too_large(size),
        _ => Ok(bytes),
    }
}

/// [`read_limited`] of a UTF-8 text.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    utf8(path, 0, read_limited(path, limit)?)
}

/// The text that `bytes`, which stand at `offset` of the file `path`, hold; the error tells where they are not UTF-8.
pub fn utf8(path: &Path, offset: u64, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let found = format!("the byte 0x{:02x}", e.as_bytes()[at]);
        Error::input(path, format!("byte {}", offset + at as u64), found, "UTF-8 text")
    })
}

/// The text of a JSON file of ours: indented, and its last line ended.
pub fn json_text(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data has a JSON form");
    text.push(b'\n');
    text
}

/// `None` where `read` failed because there is no such file.
pub fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// SHA-256 of the chunks one after the other, lower-case hexadecimal.
pub fn sha256_hex(chunks: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    chunks.into_iter().for_each(|chunk| hash.update(chunk.as_ref()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_standard_one_and_ignores_the_chunks() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(["abc"]), abc);
        assert_eq!(sha256_hex([&b"a"[..], b"", b"bc"]), abc);
    }

    #[test]
    fn limits_and_bytes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, b"ab\xffc").unwrap();
        assert_eq!(read_limited(&path, 4).unwrap(), b"ab\xffc");
        let error = |result: Result<String>| result.unwrap_err().to_string();
        assert!(error(read_text(&path, 3)).ends_with("a.txt: file size: found 4, wanted at most 3 bytes"));
        assert!(
            error(read_text(&path, 4)).ends_with("a.txt: byte 2: found the byte 0xff, wanted UTF-8 text")
        );
        assert!(error(read_text(dir.path(), 4)).contains("file type: found a folder"));
        let absent = dir.path().join("b");
        assert!(error(read_text(&absent, 4)).starts_with("cannot read "));
        assert_eq!(if_there(read_text(&absent, 4)).unwrap(), None);
        assert!(if_there(read_text(&path, 3)).is_err());
    }
}
