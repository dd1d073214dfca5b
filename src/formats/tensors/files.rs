//! The tensors of a model directory, whatever number of files they lie in.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::file::TensorFile;
use super::{FILE_NAME, INDEX_NAME, beside};
use crate::error::{Error, Result};
use crate::files::Bytes;
use crate::formats::json::{self, Fields};
use crate::formats::{bad_tensor, quoted};

/// Memory-mapped tensors by name. The files must not be truncated by others while this lives.
pub struct TensorFiles {
    /// The weights file, or the index.
    source: PathBuf,
    files: Vec<Arc<TensorFile>>,
    /// Tensor name to the position of its file.
    tensors: BTreeMap<String, usize>,
}

/// One tensor, where it lies in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// For error messages.
    pub file: &'a Path,
    /// The name in the file.
    pub name: &'a str,
    /// The type of the stored elements.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Row-major, little-endian, at any alignment.
    pub bytes: &'a [u8],
}

impl fmt::Debug for TensorFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorFiles({}, {} tensors)", self.source.display(), self.tensors.len())
    }
}

impl TensorFiles {
    /// Opens `model.safetensors` in `folder`, or else the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// No weights; a damaged file; an index that names a file outside the folder, an absent file, or a tensor that its
    /// file lacks; a tensor that lies in two files; weights beside these that would make another model: shards that no
    /// index lists or that hold other values than the single file, an adapter.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let names = beside::names(folder);
        beside::refuse_adapters(folder, &names)?;
        let [single, index] = [FILE_NAME, INDEX_NAME].map(|name| folder.join(name));
        let mut shards = None;
        let this = if single.exists() {
            let this = Self::open_file(single)?;
            shards = this.shards_beside(folder, index, &names)?;
            this
        } else if index.exists() {
            Self::open_shards(folder, index)?
        } else {
            return Err(beside::no_weights(folder, &names));
        };
        let listed = this.files.iter().chain(shards.iter().flat_map(|shards| &shards.files));
        let listed: HashSet<_> = listed.filter_map(|file| file.path.file_name()?.to_str()).collect();
        beside::refuse_unlisted(folder, &names, &listed)?;
        Ok(this)
    }

    /// The shards that lie beside this single file, which hold the same tensors. An index whose shards are gone says
    /// nothing.
    fn shards_beside(&self, folder: &Path, index: PathBuf, names: &[String]) -> Result<Option<Self>> {
        if !index.exists() {
            return Ok(None);
        }
        let files = listed_files(&index)?;
        if !files.iter().any(|file| names.contains(file)) {
            return Ok(None);
        }
        let shards = Self::open_shards(folder, index)?;
        let differs = |name: &&str| match (self.tensor(name), shards.tensor(name)) {
            (Ok(a), Ok(b)) => (a.dtype, a.shape, a.bytes) != (b.dtype, b.shape, b.bytes),
            _ => true,
        };
        if let Some(name) = self.names().chain(shards.names()).find(differs) {
            let found = format!("not what {FILE_NAME} holds");
            return Err(bad_tensor(&shards.source, name, "", found, "one set of weights in a folder"));
        }
        Ok(Some(shards))
    }

    /// Opens one safetensors file of any name.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path.as_ref())?;
        let mut this = Self { source: file.path.clone(), files: Vec::new(), tensors: BTreeMap::new() };
        this.add(file)?;
        Ok(this)
    }

    fn open_shards(folder: &Path, index: PathBuf) -> Result<Self> {
        let map = json::read_object(&index)?;
        let top = Fields::new(&index, &map);
        let weights = top.object("weight_map")?;
        let weights = weights.ok_or_else(|| top.bad("weight_map", "nothing", "an object"))?;
        let shard = |name: &str| {
            let wanted = "the name of a file in the same folder";
            let plain = |text: &&str| {
                let mut parts = Path::new(text).components();
                matches!(parts.next(), Some(Component::Normal(part)) if part == *text)
                    && parts.next().is_none()
            };
            weights.need(name, wanted, |value| value.as_str().filter(plain))
        };

        let mut this = Self { source: index.clone(), files: Vec::new(), tensors: BTreeMap::new() };
        let mut opened = HashSet::new();
        for name in weights.map.keys() {
            let file_name = shard(name)?;
            if opened.insert(file_name) {
                let path = folder.join(file_name);
                if !path.exists() {
                    return Err(weights.bad(name, quoted(file_name), "a file that is there"));
                }
                this.add(TensorFile::open(&path)?)?;
            }
        }
        for name in weights.map.keys() {
            let file_name = shard(name)?;
            let found = this.tensors.get(name).map(|&file| this.files[file].path.file_name());
            if found != Some(Some(file_name.as_ref())) {
                return Err(weights.bad(name, quoted(file_name), "a file that holds this tensor"));
            }
        }
        Ok(this)
    }

    fn add(&mut self, file: TensorFile) -> Result<()> {
        for name in file.names() {
            if let Some(other) = self.tensors.insert(name.clone(), self.files.len()) {
                let found = format!("the tensor in {} too", self.files[other].path.display());
                return Err(Error::input(&file.path, quoted(&name), found, "every tensor in one file"));
            }
        }
        self.files.push(Arc::new(file));
        Ok(())
    }

    /// The weights file, or the index.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`, not yet read.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((name, &file)) = self.tensors.get_key_value(name) else {
            return Err(bad_tensor(&self.source, name, "", "nothing", "this tensor"));
        };
        let file = &self.files[file];
        let (dtype, shape, bytes) = file.get(name).expect("the index was built from the files");
        Ok(TensorView { file: &file.path, name, dtype, shape, bytes })
    }

    /// Outermost dimension first.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        self.tensor(name).map(|t| t.shape)
    }

    /// The type of the stored elements.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        self.tensor(name).map(|t| t.dtype)
    }

    /// The stored bytes: row-major, little-endian, at any alignment.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        self.tensor(name).map(|t| t.bytes)
    }

    /// [`TensorFiles::bytes`], which stay mapped as long as somebody holds them.
    pub fn shared(&self, name: &str) -> Result<Bytes> {
        self.tensor(name)?;
        let file = &self.files[self.tensors[name]];
        let range = file.range(name).expect("the index was built from the files");
        Ok(Bytes::of(file.clone(), range))
    }

    /// [`TensorView::read_f32_into`] of the tensor `name`.
    pub fn read_f32_into(&self, name: &str, expected_shape: &[usize], out: &mut [f32]) -> Result<()> {
        self.tensor(name)?.read_f32_into(expected_shape, out)
    }

    /// A text of the (first) file's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files.first()?.metadata(key)
    }
}

/// The files that an index names, whether they are good or not.
fn listed_files(index: &Path) -> Result<HashSet<String>> {
    let map = json::read_object(index)?;
    let weights = Fields::new(index, &map).object("weight_map")?;
    let files = weights.iter().flat_map(|weights| weights.map.values());
    Ok(files.filter_map(|file| file.as_str().map(String::from)).collect())
}

impl<'a> TensorView<'a> {
    /// Whether `other` has the same shape and, as f32, the same values.
    ///
    /// # Errors
    /// A dtype that is not read.
    pub fn same_values(&self, other: &TensorView<'_>) -> Result<bool> {
        if self.shape != other.shape {
            return Ok(false);
        }
        if self.dtype == other.dtype {
            return Ok(self.bytes == other.bytes);
        }
        let read = |view: &TensorView<'_>| {
            let mut values = vec![0.0; view.shape.iter().product()];
            view.read_f32_into(view.shape, &mut values).map(|()| values)
        };
        Ok(read(self)? == read(other)?)
    }

    /// Reads F32, F16 or BF16 as f32, exactly; in parallel when it is large. `out` is row-major and holds exactly
    /// `expected_shape`.
    ///
    /// # Errors
    /// Another shape or another dtype in the file.
    pub fn read_f32_into(&self, expected_shape: &[usize], out: &mut [f32]) -> Result<()> {
        assert_eq!(
            out.len(),
            expected_shape.iter().product::<usize>(),
            "{}: out for {expected_shape:?}",
            self.name
        );
        self.judge_shape(expected_shape)?;
        match self.dtype {
            Dtype::F32 => blocks::<4>(self.bytes, out, |bytes, out| {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }),
            Dtype::BF16 => blocks::<2>(self.bytes, out, |bytes, out| {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }),
            Dtype::F16 => blocks::<2>(self.bytes, out, |bytes, out| {
                // Through an aligned piece, which converts with the processor's own instructions.
                let mut piece = [f16::ZERO; 512];
                for (out, bytes) in out.chunks_mut(512).zip(bytes.chunks(1024)) {
                    for (h, b) in piece.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *h = f16::from_le_bytes(*b);
                    }
                    piece[..out.len()].convert_to_f32_slice(out);
                }
            }),
            other => return Err(self.bad("", format!("dtype {other}"), "F32, F16 or BF16")),
        }
        Ok(())
    }

    /// The stored bytes of a tensor of this type and shape.
    ///
    /// # Errors
    /// Another shape or another dtype in the file.
    pub fn bytes_of(&self, dtype: Dtype, expected_shape: &[usize]) -> Result<&'a [u8]> {
        self.judge_shape(expected_shape)?;
        match self.dtype == dtype {
            true => Ok(self.bytes),
            false => Err(self.bad("", format!("dtype {}", self.dtype), dtype)),
        }
    }

    fn judge_shape(&self, expected: &[usize]) -> Result<()> {
        match self.shape == expected {
            true => Ok(()),
            false => Err(self.bad("", format!("shape {:?}", self.shape), format!("{expected:?}"))),
        }
    }

    /// [`bad_tensor`] of this one.
    pub(in crate::formats) fn bad(
        &self,
        part: &str,
        found: impl fmt::Display,
        wanted: impl fmt::Display,
    ) -> Error {
        bad_tensor(self.file, self.name, part, found, wanted)
    }
}

/// Applies `read` to matching blocks of `WIDTH`-byte elements and of `out`.
fn blocks<const WIDTH: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn(&[u8], &mut [f32]) + Sync) {
    const BLOCK: usize = 1 << 16;
    assert_eq!(bytes.len(), WIDTH * out.len());
    if out.len() <= BLOCK {
        return read(bytes, out);
    }
    out.par_chunks_mut(BLOCK).zip(bytes.par_chunks(WIDTH * BLOCK)).for_each(|(out, bytes)| read(bytes, out));
}
