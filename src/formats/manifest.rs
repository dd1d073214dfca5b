//! `ternary.json` beside the weights: what the trainer says it stored, tensor by tensor, for others to check.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

use super::json::{self, Fields, as_size, as_type};
use super::{Form, any_of, quoted};
use crate::error::Result;
use crate::files::{self, Bundle};
use crate::ternary::Grouping;

/// The manifest's name in a model directory.
pub const FILE_NAME: &str = "ternary.json";
/// The only version of the format so far.
pub const FORMAT: u32 = 1;

/// Everything stored in one model directory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the ternary tensors hold.
    pub form: Form,
    /// Inputs that share a scale.
    pub group: Grouping,
    /// By tensor name.
    pub tensors: BTreeMap<String, Entry>,
}

/// One stored tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Absent for a tensor that is not ternary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ternary: Option<TernaryEntry>,
    /// SHA-256 of the tensor's bytes in the file, lower-case hexadecimal.
    pub stored_sha256: String,
}

/// What a matrix is after projection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TernaryEntry {
    /// Inputs that share a scale.
    pub group_size: usize,
    /// Scales of the matrix.
    pub groups: u64,
    /// Weights that are −s; with `zero` and `plus` as many as the matrix has elements.
    pub minus: u64,
    /// Weights that are 0.
    pub zero: u64,
    /// Weights that are +s.
    pub plus: u64,
    /// Groups whose scale is 0.
    pub dead_groups: u64,
    /// SHA-256 of the 2-bit codes, then the f16 scales, little-endian; lower-case hexadecimal.
    pub digest: String,
}

impl Manifest {
    /// Reads `ternary.json` among `files`.
    ///
    /// # Errors
    /// Besides damaged JSON: an unknown field or version, counts that do not add up to the shape, a digest that is none.
    pub fn read(files: &Bundle) -> Result<Self> {
        let file = files.path_of(FILE_NAME);
        let map = json::parse_object(&file, &files.need(FILE_NAME, json::MAX_BYTES)?)?;
        let top = Fields::new(&file, &map);
        top.only(&["format", "form", "group", "tensors"])?;
        let wanted = format!("{FORMAT}");
        top.need("format", &wanted, |v| v.as_u64().filter(|&n| n == u64::from(FORMAT)))?;
        let tensors = top.object("tensors")?.ok_or_else(|| top.bad("tensors", "nothing", "an object"))?;
        let entry = |name: &String| -> Result<_> {
            let fields = tensors.object(name)?;
            let fields = fields.ok_or_else(|| tensors.bad(name, "nothing", "an object"))?;
            Ok((name.clone(), Entry::parse(&fields)?))
        };
        Ok(Self {
            format: FORMAT,
            form: top.need("form", &any_of(Form::ALL), as_type)?,
            group: top.need("group", "a number, 1 or more, or \"tensor\"", as_type)?,
            tensors: tensors.map.keys().map(entry).collect::<Result<_>>()?,
        })
    }

    /// Writes `ternary.json` into `folder`.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        files::write_bytes(folder.as_ref().join(FILE_NAME), &self.text())
    }

    /// The text of `ternary.json`.
    pub fn text(&self) -> Vec<u8> {
        files::json_text(self)
    }
}

impl Entry {
    fn parse(f: &Fields<'_>) -> Result<Self> {
        f.only(&["shape", "ternary", "stored_sha256"])?;
        let shape: Vec<usize> = f.need("shape", "a list of sizes", as_sizes)?;
        let elements = shape.iter().try_fold(1_u64, |n, &size| n.checked_mul(size as u64));
        let Some(elements) = elements else {
            return Err(f.bad("shape", format!("{shape:?}"), "fewer than 2^64 elements"));
        };
        let ternary = match f.object("ternary")? {
            Some(fields) => Some(TernaryEntry::parse(&fields, elements)?),
            None => None,
        };
        Ok(Self { shape, ternary, stored_sha256: sha256_field(f, "stored_sha256")? })
    }
}

impl TernaryEntry {
    fn parse(f: &Fields<'_>, elements: u64) -> Result<Self> {
        f.only(&["group_size", "groups", "minus", "zero", "plus", "dead_groups", "digest"])?;
        let count = |key| f.need(key, "a whole number, 0 or more", Value::as_u64);
        let entry = Self {
            group_size: f.need("group_size", "1 or more", |v| as_size(v).filter(|&n| n > 0))?,
            groups: count("groups")?,
            minus: count("minus")?,
            zero: count("zero")?,
            plus: count("plus")?,
            dead_groups: count("dead_groups")?,
            digest: sha256_field(f, "digest")?,
        };
        let total = entry.minus.checked_add(entry.zero).and_then(|n| n.checked_add(entry.plus));
        if total != Some(elements) {
            let found = format!("{} + {} + {}", entry.minus, entry.zero, entry.plus);
            return Err(f.bad("minus + zero + plus", found, format!("the shape's {elements} elements")));
        }
        if entry.groups > elements {
            return Err(f.bad("groups", entry.groups, format!("at most the shape's {elements} elements")));
        }
        if entry.dead_groups > entry.groups {
            return Err(f.bad("dead_groups", entry.dead_groups, format!("at most {} groups", entry.groups)));
        }
        Ok(entry)
    }
}

fn as_sizes(value: &Value) -> Option<Vec<usize>> {
    value.as_array()?.iter().map(as_size).collect()
}

fn sha256_field(f: &Fields<'_>, key: &str) -> Result<String> {
    let text = f.text(key)?;
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    match text.len() == 64 && text.bytes().all(hex) {
        true => Ok(text.into()),
        false => Err(f.bad(key, quoted(text), "64 lower-case hexadecimal digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sha256_hex;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let ternary = TernaryEntry {
            group_size: 128,
            groups: 4,
            minus: 100,
            zero: 200,
            plus: 212,
            dead_groups: 1,
            digest: sha256_hex(["x"]),
        };
        let matrix = Entry { shape: vec![2, 256], ternary: Some(ternary), stored_sha256: sha256_hex(["y"]) };
        let norm = Entry { shape: vec![256], ternary: None, stored_sha256: sha256_hex(["z"]) };
        for group in [Grouping::Size(128), Grouping::Tensor] {
            let tensors = [("model.a\"\n".to_string(), matrix.clone()), ("b".into(), norm.clone())];
            let manifest = Manifest { format: FORMAT, form: Form::Unpacked, group, tensors: tensors.into() };
            manifest.write(dir.path()).unwrap();
            assert_eq!(Manifest::read(&Bundle::folder(dir.path())).unwrap(), manifest);
        }
    }
}
