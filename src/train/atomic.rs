//! Files that are either the old one or the whole new one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `bytes` to a sibling file, brings it to the disk and renames it to `path`.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = sibling(path);
    let written = File::create(&temp).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let result = written
        .map_err(Error::io("write", &temp))
        .and_then(|()| fs::rename(&temp, path).map_err(Error::io("replace", path)));
    if result.is_err() {
        let _ = fs::remove_file(&temp);
    }
    result
}

fn sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}
