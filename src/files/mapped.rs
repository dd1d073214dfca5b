//! A regular file that is mapped into memory, read only.

use memmap2::Mmap;
use std::ops::Deref;
use std::path::Path;

use super::open_regular;
use crate::error::{Error, Result};

/// The bytes of a file, which must not be truncated by others while this lives.
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// What is no regular file, or one of fewer than `least` bytes.
    pub fn open(path: &Path, least: u64) -> Result<Self> {
        let (file, size) = open_regular(path)?;
        if size < least {
            return Err(Error::input(path, "file size", size, format!("{least} bytes or more")));
        }
        // SAFETY: the map is only read. Another process that truncates the file while it is mapped would end this one
        // with SIGBUS; ternlm itself never truncates a file, it renames a new one over it.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self(map))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
