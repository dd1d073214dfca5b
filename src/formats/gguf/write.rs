//! Writing a GGUF file: as a stream, whole or not at all.

use std::path::Path;

use super::file::{ALIGNMENT, MAGIC, VERSION};
use super::types::BlockType;
use super::value::Kind;
use crate::error::{Error, Result};
use crate::files;
use crate::formats::tensors::Progress;

/// A value of the metadata, to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

/// Metadata in the order in which they are written.
pub type Metadata = Vec<(String, Item)>;

/// A tensor to write.
pub struct ToWrite<'a> {
    pub name: String,
    /// Outermost dimension first; rows are whole blocks of `kind`.
    pub shape: Vec<usize>,
    pub kind: &'static BlockType,
    /// Appends the bytes of a row.
    pub row: RowFn<'a>,
}

/// Appends the bytes of a row.
pub type RowFn<'a> = Box<dyn Fn(usize, &mut Vec<u8>) + 'a>;

impl ToWrite<'_> {
    fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    fn row_bytes(&self) -> usize {
        let cols = self.shape[self.shape.len() - 1];
        assert!(cols.is_multiple_of(self.kind.block), "{}: {cols} inputs in {}", self.name, self.kind.name);
        cols / self.kind.block * self.kind.bytes
    }

    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> usize {
        self.rows() * self.row_bytes()
    }
}

/// Writes the file. `progress` is told after each tensor how many bytes of them have been written, and how many there are.
pub fn write(
    path: &Path,
    metadata: &Metadata,
    tensors: &[ToWrite<'_>],
    progress: Progress<'_>,
) -> Result<()> {
    let header = header(metadata, tensors);
    let all = tensors.iter().map(|tensor| tensor.bytes() as u64).sum();
    files::write_file(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io("write", path));
        put(&header)?;
        let (mut done, mut buffer) = (0, Vec::new());
        for tensor in tensors {
            for row in 0..tensor.rows() {
                buffer.clear();
                (tensor.row)(row, &mut buffer);
                assert_eq!(buffer.len(), tensor.row_bytes(), "{}: bytes of row {row}", tensor.name);
                put(&buffer)?;
            }
            put(&[0; ALIGNMENT][..tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes()])?;
            done += tensor.bytes() as u64;
            progress(done, all);
        }
        Ok(())
    })
}

/// All that stands before the data.
fn header(metadata: &Metadata, tensors: &[ToWrite<'_>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, item) in metadata {
        text(key, &mut out);
        item.write(&mut out);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(tensor.kind.id.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Item {
    /// Its kind, then its value.
    fn write(&self, out: &mut Vec<u8>) {
        let mut kind = |kind: Kind| out.extend(kind.id().to_le_bytes());
        let list = |of: Kind, len: usize, out: &mut Vec<u8>| {
            out.extend(of.id().to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Item::U32(n) => {
                kind(Kind::U32);
                out.extend(n.to_le_bytes());
            }
            Item::F32(x) => {
                kind(Kind::F32);
                out.extend(x.to_le_bytes());
            }
            Item::Bool(b) => {
                kind(Kind::Bool);
                out.push(u8::from(*b));
            }
            Item::Text(t) => {
                kind(Kind::String);
                text(t, out);
            }
            Item::Texts(all) => {
                kind(Kind::Array);
                list(Kind::String, all.len(), out);
                all.iter().for_each(|t| text(t, out));
            }
            Item::F32s(all) => {
                kind(Kind::Array);
                list(Kind::F32, all.len(), out);
                all.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            Item::I32s(all) => {
                kind(Kind::Array);
                list(Kind::I32, all.len(), out);
                all.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
        }
    }
}
