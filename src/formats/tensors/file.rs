//! One mapped safetensors file with a header that has been judged.

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::Mapped;
use crate::formats::{bad_tensor, quoted};

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;

pub(super) struct TensorFile {
    pub path: PathBuf,
    map: Mapped,
    /// Where the data begins in `map`.
    start: usize,
    header: Metadata,
}

impl TensorFile {
    /// Maps the file and judges its header.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path, 8)?;
        let (start, header) = parse_header(path, &map)?;
        Ok(Self { path: path.to_path_buf(), map, start, header })
    }

    /// In the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    pub fn get(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let info = self.header.info(name)?;
        let (begin, end) = info.data_offsets;
        Some((info.dtype, &info.shape, &self.map[self.start + begin..self.start + end]))
    }

    /// Where a tensor's bytes stand in the file.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        let (begin, end) = self.header.info(name)?.data_offsets;
        Some(self.start + begin..self.start + end)
    }

    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }
}

impl AsRef<[u8]> for TensorFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// Returns where the data begins, and the header; every range in it lies in the data.
fn parse_header(path: &Path, file: &[u8]) -> Result<(usize, Metadata)> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(Error::input(path, "file size", file.len(), "8 bytes or more"));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        let wanted = format!("at most the {} bytes that follow, and {MAX_HEADER}", rest.len());
        return Err(Error::input(path, "header length", length, wanted));
    }
    let (header, data) = rest.split_at(length as usize);
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| Error::input(path, "header", error, "a JSON object of tensors"))?;

    let mut tensors: Vec<_> = header.tensors.into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut covered = 0;
    for (name, info) in &tensors {
        let bad =
            |part: &str, found: String, wanted: String| Err(bad_tensor(path, name, part, found, wanted));
        let (begin, end) = info.data_offsets;
        if begin != covered || end < begin || end > data.len() {
            let wanted = format!("a range from {covered} (no gap, no overlap) to at most {}", data.len());
            return bad("data_offsets", format!("{begin}..{end}"), wanted);
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        if bits != (end - begin).checked_mul(8) {
            return bad(
                "shape",
                format!("{:?} of {}", info.shape, info.dtype),
                format!("{} bytes", end - begin),
            );
        }
        covered = end;
    }
    if covered != data.len() {
        return Err(Error::input(path, "data", format!("{} bytes", data.len()), format!("{covered} bytes")));
    }
    let header = Metadata::new(header.metadata, tensors)
        .map_err(|error| Error::input(path, "header", error, "a valid safetensors header"))?;
    Ok((8 + length as usize, header))
}

/// A header as written, except that a tensor named twice is refused.
struct Header {
    metadata: Option<HashMap<String, String>>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<Header, A::Error> {
        let (mut metadata, mut tensors) = (None, BTreeMap::new());
        while let Some(name) = input.next_key::<String>()? {
            let in_tensor = |error: A::Error| A::Error::custom(format!("{}: {error}", quoted(&name)));
            let twice = if name == "__metadata__" {
                metadata.replace(input.next_value().map_err(in_tensor)?).is_some()
            } else {
                let info = input.next_value().map_err(in_tensor)?;
                tensors.insert(name.clone(), info).is_some()
            };
            if twice {
                return Err(A::Error::custom(format!("{} twice", quoted(&name))));
            }
        }
        Ok(Header { metadata, tensors })
    }
}
