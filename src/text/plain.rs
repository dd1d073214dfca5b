//! Text files: one document, read in chunks.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::items::{BOM, Item, Part};
use crate::files::open_regular;
use crate::{Error, Result};

/// Bytes read at a time; few of them under a fuzzer, whose texts are short.
const CHUNK: usize = if cfg!(fuzzing) { 13 } else { 1 << 20 };

/// A text file in chunks of whole characters.
pub struct Text {
    path: PathBuf,
    file: File,
    /// Read and not given out: the start of a character, or a CR that may be followed by its LF.
    rest: Vec<u8>,
    /// Where `rest` begins in the file.
    offset: u64,
    begun: bool,
    ended: bool,
}

impl Text {
    pub fn open(path: &Path) -> Result<Text> {
        let (file, _) = open_regular(path)?;
        Ok(Text { path: path.into(), file, rest: Vec::new(), offset: 0, begun: false, ended: false })
    }

    pub fn next(&mut self) -> Result<Option<Item>> {
        while !self.ended {
            let read = (&mut self.file).take(CHUNK as u64).read_to_end(&mut self.rest);
            self.ended = read.map_err(Error::io("read", &self.path))? == 0;
            if self.offset == 0 && !self.begun && self.rest.starts_with(BOM) {
                self.rest.drain(..BOM.len());
                self.offset = BOM.len() as u64;
            }
            // A CR waits for what follows it.
            let given = self.rest.len() - (!self.ended && self.rest.ends_with(b"\r")) as usize;
            let whole = match std::str::from_utf8(&self.rest[..given]) {
                Ok(text) => text.len(),
                Err(e) if e.error_len().is_none() && !self.ended => e.valid_up_to(),
                Err(e) => {
                    let at = self.offset + e.valid_up_to() as u64;
                    let found = format!("the byte 0x{:02x}", self.rest[e.valid_up_to()]);
                    return Err(Error::input(&self.path, format!("byte {at}"), found, "UTF-8 text"));
                }
            };
            if whole == 0 {
                continue;
            }
            let rest = self.rest.split_off(whole);
            let bytes = std::mem::replace(&mut self.rest, rest);
            self.offset += whole as u64;
            let text = String::from_utf8(bytes).expect("just checked");
            let text = if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text };
            let begins = !std::mem::replace(&mut self.begun, true);
            return Ok(Some(Item::Part(Part { text, begins, read: self.offset })));
        }
        Ok(None)
    }
}
