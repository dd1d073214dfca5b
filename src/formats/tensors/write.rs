//! Writing safetensors as a stream.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;

/// Elements converted at a time.
const BLOCK: usize = 1 << 16;
/// Elements that a row callback is asked for at a time, unless one row has more.
const ROW_BLOCK: usize = 1 << 18;

/// A tensor to write.
pub struct Tensor<'a> {
    /// Unique in the file.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Data<'a>,
}

/// Where a tensor's elements come from and how they are stored. Slices are row-major and hold the whole tensor.
pub enum Data<'a> {
    F32(&'a [f32]),
    /// Rounded to the nearest f16; a number beyond its range is an error.
    F32AsF16(&'a [f32]),
    /// Rounded to the nearest bf16; a number beyond its range is an error.
    F32AsBf16(&'a [f32]),
    F16(&'a [f16]),
    I8(&'a [i8]),
    U8(&'a [u8]),
    U16(&'a [u16]),
    U32(&'a [u32]),
    /// Elements made as they are needed, stored as F32, F16 or BF16.
    Rows {
        dtype: Dtype,
        /// Fills the rows of that range (a row is all but the first dimension), row-major; called once for each row,
        /// in order.
        fill: RowsFn<'a>,
    },
    /// Bytes made as they are needed: row-major, little-endian, as many as the shape and the dtype say.
    Stream {
        dtype: Dtype,
        write: StreamFn<'a>,
    },
}

/// Told how much of a work is done, and how much there is.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

type RowsFn<'a> = Box<dyn Fn(Range<usize>, &mut [f32]) + 'a>;
type StreamFn<'a> = Box<dyn Fn(&mut dyn Write) -> Result<()> + 'a>;

impl Data<'_> {
    /// How the elements are stored.
    pub fn dtype(&self) -> Dtype {
        match self {
            Data::F32(_) => Dtype::F32,
            Data::F16(_) | Data::F32AsF16(_) => Dtype::F16,
            Data::F32AsBf16(_) => Dtype::BF16,
            Data::I8(_) => Dtype::I8,
            Data::U8(_) => Dtype::U8,
            Data::U16(_) => Dtype::U16,
            Data::U32(_) => Dtype::U32,
            Data::Rows { dtype, .. } | Data::Stream { dtype, .. } => *dtype,
        }
    }

    /// Elements held; `None` when they are made on demand.
    fn len(&self) -> Option<usize> {
        Some(match self {
            Data::F32(x) | Data::F32AsF16(x) | Data::F32AsBf16(x) => x.len(),
            Data::F16(x) => x.len(),
            Data::I8(x) => x.len(),
            Data::U8(x) => x.len(),
            Data::U16(x) => x.len(),
            Data::U32(x) => x.len(),
            Data::Rows { .. } | Data::Stream { .. } => return None,
        })
    }
}

/// Writes one safetensors file, whole or not at all. The data lies in the order of the reference implementation: the
/// widest dtype first, then by name, so that every tensor is aligned to its element. The same input gives the same bytes.
///
/// Two tensors of one name, or data that does not fill its shape, is a bug of the caller.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &[Tensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_in_order(path.as_ref(), &by_width(tensors), metadata, 8, &mut |_, _| {})
}

/// The order of [`write_safetensors`].
pub fn by_width<'a, 'b>(tensors: &'b [Tensor<'a>]) -> Vec<&'b Tensor<'a>> {
    let mut order: Vec<&Tensor<'_>> = tensors.iter().collect();
    order.sort_by(|a, b| b.data.dtype().cmp(&a.data.dtype()).then_with(|| a.name.cmp(&b.name)));
    order
}

/// [`write_safetensors`] in the order given, data beginning at a multiple of `alignment` bytes. `progress` is told after each
/// tensor how many bytes of them have been written, and how many there are.
pub fn write_in_order(
    path: &Path,
    order: &[&Tensor<'_>],
    metadata: &BTreeMap<String, String>,
    alignment: usize,
    progress: Progress<'_>,
) -> Result<()> {
    let header = header(order, metadata, alignment);
    let all = order.iter().map(|tensor| tensor.byte_len() as u64).sum();
    files::write_file(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io("write", path));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        let mut done = 0;
        for tensor in order {
            let mut out = Counting { out, written: 0 };
            tensor.write(path, &mut out)?;
            assert_eq!(out.written, tensor.byte_len(), "{}: bytes written", tensor.name);
            done += out.written as u64;
            progress(done, all);
        }
        Ok(())
    })
}

/// The JSON header, padded with spaces so that what follows it and its length begins at a multiple of `alignment`.
fn header(order: &[&Tensor<'_>], metadata: &BTreeMap<String, String>, alignment: usize) -> Vec<u8> {
    let mut json = Map::new();
    if !metadata.is_empty() {
        json.insert("__metadata__".into(), json!(metadata));
    }
    let (mut infos, mut begin) = (Vec::new(), 0);
    for tensor in order {
        let elements: usize = tensor.shape.iter().product();
        if let Some(len) = tensor.data.len() {
            assert_eq!(len, elements, "{}: elements for shape {:?}", tensor.name, tensor.shape);
        }
        let end = begin + tensor.byte_len();
        let info = TensorInfo {
            dtype: tensor.data.dtype(),
            shape: tensor.shape.clone(),
            data_offsets: (begin, end),
        };
        let value = serde_json::to_value(&info).expect("plain data has a JSON form");
        let before: Option<Value> = json.insert(tensor.name.clone(), value);
        assert!(before.is_none() && tensor.name != "__metadata__", "{}: name taken", tensor.name);
        infos.push((tensor.name.clone(), info));
        begin = end;
    }
    Metadata::new(None, infos).expect("a header made by the rules is valid");
    let mut bytes = serde_json::to_vec(&json).expect("plain data has a JSON form");
    bytes.resize((bytes.len() + 8).next_multiple_of(alignment) - 8, b' ');
    bytes
}

impl Tensor<'_> {
    fn byte_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.data.dtype().bitsize() / 8
    }

    fn write(&self, path: &Path, out: &mut dyn Write) -> Result<()> {
        let io = || Error::io("write", path);
        match &self.data {
            Data::F32(x) => little_endian(x, out, |x| x.to_le_bytes()).map_err(io()),
            Data::F32AsF16(x) => self.floats(path, Dtype::F16, x, out),
            Data::F32AsBf16(x) => self.floats(path, Dtype::BF16, x, out),
            Data::F16(x) => little_endian(x, out, |x| x.to_le_bytes()).map_err(io()),
            Data::I8(x) => little_endian(x, out, |x| x.to_le_bytes()).map_err(io()),
            Data::U8(x) => out.write_all(x).map_err(io()),
            Data::U16(x) => little_endian(x, out, |x| x.to_le_bytes()).map_err(io()),
            Data::U32(x) => little_endian(x, out, |x| x.to_le_bytes()).map_err(io()),
            Data::Rows { dtype, fill } => {
                let rows = self.shape.first().copied().unwrap_or(1);
                let cols: usize = self.shape.iter().skip(1).product();
                let step = (ROW_BLOCK / cols.max(1)).max(1);
                let mut block = vec![0.0; step.min(rows) * cols];
                for first in (0..rows).step_by(step) {
                    let range = first..rows.min(first + step);
                    let block = &mut block[..range.len() * cols];
                    fill(range, block);
                    self.floats(path, *dtype, block, out)?;
                }
                Ok(())
            }
            Data::Stream { write, .. } => write(out),
        }
    }

    /// Writes `x` as F32, F16 or BF16.
    fn floats(&self, path: &Path, dtype: Dtype, x: &[f32], out: &mut dyn Write) -> Result<()> {
        let io = || Error::io("write", path);
        for x in x.chunks(BLOCK) {
            let fits = |finite: &mut dyn Iterator<Item = bool>| match x
                .iter()
                .zip(finite)
                .find(|(x, finite)| x.is_finite() && !finite)
            {
                None => Ok(()),
                Some((x, _)) => Err(Error::NotFinite {
                    tensor: self.name.clone(),
                    detail: format!("{x} rounds to infinity in {dtype}"),
                }),
            };
            match dtype {
                Dtype::F32 => little_endian(x, out, |x| x.to_le_bytes()).map_err(io())?,
                Dtype::F16 => {
                    let mut half = vec![f16::ZERO; x.len()];
                    half.convert_from_f32_slice(x);
                    fits(&mut half.iter().map(|h| h.is_finite()))?;
                    little_endian(&half, out, |h| h.to_le_bytes()).map_err(io())?;
                }
                Dtype::BF16 => {
                    let mut half = vec![bf16::ZERO; x.len()];
                    half.convert_from_f32_slice(x);
                    fits(&mut half.iter().map(|h| h.is_finite()))?;
                    little_endian(&half, out, |h| h.to_le_bytes()).map_err(io())?;
                }
                other => panic!("{}: rows are stored as F32, F16 or BF16, not {other}", self.name),
            }
        }
        Ok(())
    }
}

fn little_endian<T: Copy, const N: usize>(
    x: &[T],
    out: &mut dyn Write,
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = vec![0; N * x.len().min(BLOCK)];
    for x in x.chunks(BLOCK) {
        let buffer = &mut buffer[..N * x.len()];
        for (b, &x) in buffer.as_chunks_mut::<N>().0.iter_mut().zip(x) {
            *b = bytes(x);
        }
        out.write_all(buffer)?;
    }
    Ok(())
}

struct Counting<'a> {
    out: &'a mut dyn Write,
    written: usize,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
