//! Reading with a size limit and writing atomically.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// The whole of a regular file of at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::input(path, "size", format!("more than {limit} bytes"), "a smaller file"));
    }
    Ok(bytes)
}

/// Opens a file; a pipe or a device is an error, because it could block for ever.
pub fn open_regular(path: &Path) -> Result<File> {
    let meta = fs::metadata(path).map_err(Error::io("open", path))?;
    if !meta.is_file() {
        let found = if meta.is_dir() { "a folder" } else { "a special file" };
        return Err(Error::input(path, "file type", found, "a regular file"));
    }
    File::open(path).map_err(Error::io("open", path))
}

/// A name beside `path` that no other thread or process uses.
pub fn sibling(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{n}.tmp", std::process::id()))
}

/// Replaces `path` by `bytes`: readers see the old file or the new one, never a part.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = sibling(path);
    let write = || -> Result<()> {
        let mut file = File::create(&temp).map_err(Error::io("create", &temp))?;
        file.write_all(bytes).map_err(Error::io("write", &temp))?;
        file.sync_all().map_err(Error::io("write", &temp))?;
        fs::rename(&temp, path).map_err(Error::io("replace", path))
    };
    write().inspect_err(|_| drop(fs::remove_file(&temp)))
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
