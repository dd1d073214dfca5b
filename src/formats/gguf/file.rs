//! The container: key-values, tensor infos and where the data of each lies, all of it judged before it is used.
//!
//! `"GGUF"`, u32 version, u64 tensors, u64 key-values; the key-values; of each tensor its name, u32 dimensions, u64 each of
//! them (inputs first), u32 type, u64 offset; then, at the next multiple of the alignment, the data, each tensor at such a
//! multiple after the one before.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::types::{BlockType, OLD_Q2_0, Q2_0};
use super::value::{Kind, Value};
use crate::error::{Error, Result};
use crate::files::Mapped;
use crate::formats::{bad_tensor, quoted};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written today; version 2 has the same layout.
pub(super) const VERSION: u32 = 3;
/// What the data of tensors are aligned to, unless [`ALIGNMENT_KEY`] says otherwise.
pub(super) const ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// ggml's own limits.
const MAX_NAME: usize = 64;
const MAX_DIMS: usize = 4;
/// The format's own limit.
const MAX_KEY: usize = 65_535;
/// Larger ones are a damaged or hostile file.
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Lists inside of lists: no writer is known to make any.
const MAX_DEPTH: usize = 3;

/// One tensor, where it lies in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Outermost dimension first, the other way around than in the file.
    pub shape: Vec<usize>,
    pub kind: &'static BlockType,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A mapped GGUF file. It must not be truncated by others while this lives.
pub struct GgufFile {
    path: PathBuf,
    map: Mapped,
    pub version: u32,
    keys: Vec<(String, Kind, Range<usize>)>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GgufFile({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

impl GgufFile {
    /// Whether the file at `path` begins as a GGUF file does.
    pub fn is_one(path: &Path) -> bool {
        Mapped::open(path, 4).is_ok_and(|map| map.starts_with(MAGIC))
    }

    /// Maps the file and judges all of it but the weights.
    ///
    /// # Errors
    /// Another version or byte order; a count, length, offset or dimension that the file cannot hold; a name twice; a type
    /// that is not known; tensors that overlap, lie apart or are not aligned.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path, 24)?;
        let mut reader = Reader { path, all: &map, rest: &map };
        let (version, [tensors, keys]) = reader.header()?;
        let keys = reader.keys(keys)?;
        let alignment = alignment(path, &map, &keys)?;
        let infos = reader.tensors(tensors)?;
        let tensors = placed(path, infos, reader.at(), map.len(), alignment)?;
        Ok(Self { path: path.into(), version, keys, tensors, map })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys and their values, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.keys.iter().filter_map(|(key, kind, range)| Some((&**key, self.value(*kind, range)?)))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let (_, kind, range) = self.keys.iter().find(|(name, ..)| name == key)?;
        self.value(*kind, range)
    }

    fn value(&self, kind: Kind, range: &Range<usize>) -> Option<Value<'_>> {
        Value::read(kind, &mut &self.map[range.clone()])
    }

    /// The tensors by their names in the file, sorted.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.map[tensor.range.clone()]
    }
}

/// What is left to read.
struct Reader<'a> {
    path: &'a Path,
    all: &'a [u8],
    rest: &'a [u8],
}

/// A tensor info as it is written.
struct Info {
    name: String,
    shape: Vec<usize>,
    id: u32,
    /// From the beginning of the data.
    offset: usize,
}

impl<'a> Reader<'a> {
    fn at(&self) -> usize {
        self.all.len() - self.rest.len()
    }

    fn bad(&self, field: impl Into<String>, found: impl fmt::Display, wanted: impl fmt::Display) -> Error {
        Error::input(self.path, field, found, wanted)
    }

    /// The file ends before `field` does.
    fn ends(&self, field: impl Into<String>) -> Error {
        let found = format!("the end of the file after byte {}", self.at());
        self.bad(field, found, "the rest of it")
    }

    fn array<const N: usize>(&mut self, field: impl Fn() -> String) -> Result<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.ends(field()))?;
        self.rest = rest;
        Ok(*first)
    }

    fn u32(&mut self, field: impl Fn() -> String) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: impl Fn() -> String) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A length or count of things that take `each` bytes at least, which are still to come.
    fn count(&mut self, each: usize, field: impl Fn() -> String) -> Result<usize> {
        let count = self.u64(&field)?;
        self.fits(count, each, field)
    }

    /// Such a number, judged by the bytes that are left.
    fn fits(&self, count: u64, each: usize, field: impl Fn() -> String) -> Result<usize> {
        let most = self.rest.len() / each;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => {
                let wanted = format!("at most {most}, which the {} bytes that follow hold", self.rest.len());
                Err(self.bad(field(), count, wanted))
            }
        }
    }

    /// A text of 1 to `most` bytes.
    fn name(&mut self, most: usize, field: impl Fn() -> String) -> Result<String> {
        let length = self.count(1, || format!("{} length", field()))?;
        if length == 0 || length > most {
            return Err(self.bad(format!("{} length", field()), length, format!("1 to {most} bytes")));
        }
        self.text(length, field).map(String::from)
    }

    /// A text of so many bytes, which [`Reader::count`] has seen.
    fn text(&mut self, length: usize, field: impl Fn() -> String) -> Result<&'a str> {
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        str::from_utf8(bytes)
            .map_err(|why| self.bad(field(), format!("bytes that are no text: {why}"), "UTF-8"))
    }

    /// The version, and how many tensors and keys there are.
    fn header(&mut self) -> Result<(u32, [usize; 2])> {
        let magic: [u8; 4] = self.array(|| "magic".into())?;
        if magic != *MAGIC {
            let found = format!("\"{}\"", magic.escape_ascii());
            return Err(self.bad("magic", found, "\"GGUF\""));
        }
        let version = self.u32(|| "version".into())?;
        if !(2..=VERSION).contains(&version) {
            let found = match version.swap_bytes() {
                1..=VERSION => format!("{}, of a big-endian file", version.swap_bytes()),
                _ => version.to_string(),
            };
            return Err(self.bad("version", found, "2 or 3, little-endian"));
        }
        // A name, no dimensions, type, offset; a name, a type, a byte.
        let tensors = self.u64(|| "tensor count".into())?;
        let keys = self.count(8 + 1 + 4 + 1, || "key count".into())?;
        let tensors = self.fits(tensors, 8 + 1 + 4 + 4 + 8, || "tensor count".into())?;
        Ok((version, [tensors, keys]))
    }

    fn keys(&mut self, count: usize) -> Result<Vec<(String, Kind, Range<usize>)>> {
        let (mut keys, mut seen) = (Vec::new(), HashSet::new());
        for i in 0..count {
            let key = self.name(MAX_KEY, || format!("key {i}"))?;
            let field = || format!("key {}", quoted(&key));
            let kind = self.kind(&field)?;
            let start = self.at();
            self.judge(kind, 0, &field)?;
            if !seen.insert(key.clone()) {
                return Err(self.bad(field(), "it a second time", "every key once"));
            }
            keys.push((key, kind, start..self.at()));
        }
        Ok(keys)
    }

    fn kind(&mut self, field: &dyn Fn() -> String) -> Result<Kind> {
        let id = self.u32(|| format!("{} type", field()))?;
        Kind::by_id(id).ok_or_else(|| self.bad(format!("{} type", field()), id, "a type from 0 to 12"))
    }

    /// Passes over a value that is sound.
    fn judge(&mut self, kind: Kind, depth: usize, field: &dyn Fn() -> String) -> Result<()> {
        match kind {
            Kind::Array => {
                if depth >= MAX_DEPTH {
                    let found = format!("lists inside of lists, {} deep", depth + 1);
                    return Err(self.bad(field(), found, format!("at most {MAX_DEPTH}")));
                }
                let kind = self.kind(&|| format!("{} element", field()))?;
                let len = self.count(kind.least(), || format!("{} length", field()))?;
                match kind.size().filter(|_| kind != Kind::Bool) {
                    // `count` has seen that they are there.
                    Some(size) => self.rest = &self.rest[len * size..],
                    None => {
                        for i in 0..len {
                            self.judge(kind, depth + 1, &|| format!("{}[{i}]", field()))?;
                        }
                    }
                }
                Ok(())
            }
            Kind::String => {
                let length = self.count(1, || format!("{} length", field()))?;
                self.text(length, field).map(drop)
            }
            Kind::Bool => match self.array(field)? {
                [0 | 1] => Ok(()),
                [other] => Err(self.bad(field(), format!("the byte {other}"), "0 or 1, false or true")),
            },
            other => {
                let size = other.size().expect("texts and lists are above");
                self.rest = self.rest.get(size..).ok_or_else(|| self.ends(field()))?;
                Ok(())
            }
        }
    }

    fn tensors(&mut self, count: usize) -> Result<Vec<Info>> {
        let (mut infos, mut seen) = (Vec::new(), HashSet::new());
        for i in 0..count {
            let name = self.name(MAX_NAME, || format!("tensor {i} name"))?;
            let field = |what: &str| format!("tensor {}{what}", quoted(&name));
            if !seen.insert(name.clone()) {
                return Err(self.bad(field(""), "it a second time", "every tensor once"));
            }
            let dims = self.u32(|| field(" dimensions"))? as usize;
            if !(1..=MAX_DIMS).contains(&dims) {
                return Err(self.bad(field(" dimensions"), dims, format!("1 to {MAX_DIMS}")));
            }
            let mut shape = Vec::with_capacity(dims);
            for _ in 0..dims {
                let n = self.u64(|| field(" shape"))?;
                match usize::try_from(n) {
                    Ok(n) if n > 0 => shape.insert(0, n),
                    _ => return Err(self.bad(field(" shape"), n, "1 or more")),
                }
            }
            let id = self.u32(|| field(" type"))?;
            let offset = self.u64(|| field(" offset"))?;
            let offset = usize::try_from(offset)
                .map_err(|_| self.bad(field(" offset"), offset, "an offset inside of the file"))?;
            infos.push(Info { name, shape, id, offset });
        }
        Ok(infos)
    }
}

fn alignment(path: &Path, file: &[u8], keys: &[(String, Kind, Range<usize>)]) -> Result<usize> {
    let Some((_, kind, range)) = keys.iter().find(|(key, ..)| key == ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT);
    };
    let value = Value::read(*kind, &mut &file[range.clone()]);
    let number = value.and_then(|value| value.as_u64());
    match number.filter(|n| n.is_power_of_two() && *n <= MAX_ALIGNMENT) {
        Some(alignment) => Ok(alignment as usize),
        None => {
            let found = value.map_or("nothing".into(), |value| value.to_string());
            Err(Error::input(path, ALIGNMENT_KEY, found, format!("a power of 2, at most {MAX_ALIGNMENT}")))
        }
    }
}

/// The tensors at their places: one after the other, each aligned, with no more between and after them than that needs.
/// `begin` is where the infos end, `end` where the file does.
fn placed(
    path: &Path,
    mut infos: Vec<Info>,
    begin: usize,
    end: usize,
    alignment: usize,
) -> Result<BTreeMap<String, TensorInfo>> {
    if infos.is_empty() {
        return Ok(BTreeMap::new());
    }
    let begin = begin.next_multiple_of(alignment);
    let Some(data) = end.checked_sub(begin) else {
        return Err(Error::input(path, "data", "nothing", format!("tensors from byte {begin} on")));
    };
    if let Some(info) = infos.iter().find(|info| info.offset > data) {
        let wanted = format!("at most the data's {data} bytes");
        return Err(bad_tensor(path, &info.name, "offset", info.offset, wanted));
    }
    infos.sort_by_key(|info| info.offset);
    // How much room each has: up to the next one.
    let ends: Vec<usize> = infos.iter().skip(1).map(|info| info.offset).chain([data]).collect();
    let fits = |old: bool| {
        let fits = |info: &Info, end: usize| {
            let bytes = byte_len(type_of(path, info, old).ok()?, &info.shape)?;
            end.checked_sub(info.offset)?.checked_sub(bytes).filter(|&left| left < alignment)
        };
        infos
            .iter()
            .zip(&ends)
            .filter(|(info, _)| info.id == Q2_0)
            .all(|(info, &end)| fits(info, end).is_some())
    };
    // The same number has stood for blocks of 64 and of 128: those of a file are alike, and its sizes tell.
    let old = infos.iter().any(|info| info.id == Q2_0) && !fits(false) && fits(true);
    let mut tensors = BTreeMap::new();
    for (i, (info, room_end)) in infos.into_iter().zip(ends).enumerate() {
        let kind = type_of(path, &info, old)?;
        let Info { name, shape, offset, .. } = info;
        let bad = |part: &str, found: String, wanted: String| bad_tensor(path, &name, part, found, wanted);
        let cols = shape[shape.len() - 1];
        if !cols.is_multiple_of(kind.block) {
            let found = format!("{shape:?} of {}", kind.name);
            return Err(bad("shape", found, format!("rows of a multiple of {}", kind.block)));
        }
        let Some(bytes) = byte_len(kind, &shape) else {
            return Err(bad("shape", format!("{shape:?}"), "weights that 64 bits count".into()));
        };
        if !offset.is_multiple_of(alignment) || (i == 0 && offset != 0) {
            let wanted = if i == 0 { "0 for the first".into() } else { format!("a multiple of {alignment}") };
            return Err(bad("offset", offset.to_string(), wanted));
        }
        let room = room_end.saturating_sub(offset);
        if bytes > room || room - bytes >= alignment {
            let found = format!("{bytes} bytes of {} for {shape:?}", kind.name);
            let wanted = format!("what fills the {room} bytes from its offset to the next, or to the end");
            return Err(bad("size", found, wanted));
        }
        let start = begin + offset;
        tensors.insert(name, TensorInfo { shape, kind, range: start..start + bytes });
    }
    Ok(tensors)
}

/// `old`: whether the number of `Q2_0` means blocks of 128.
fn type_of(path: &Path, info: &Info, old: bool) -> Result<&'static BlockType> {
    let kind = BlockType::by_id(info.id)
        .ok_or_else(|| bad_tensor(path, &info.name, "type", info.id, "a type that ggml has"))?;
    Ok(if old && info.id == Q2_0 { &OLD_Q2_0 } else { kind })
}

/// Bytes of a tensor of whole blocks.
fn byte_len(kind: &BlockType, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n))?;
    (elements / kind.block).checked_mul(kind.bytes)
}
