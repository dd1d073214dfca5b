//! Keys and values as a cache holds them: in f32, in f16, or in 8 bits with a scale for each head of each position.

use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

use super::simd::Simd;
use crate::config::KvFormat;

/// Rows of keys or of values, `[rows, KV, D]`.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    /// A value is its code times the scale of its head, of `[rows, KV]`.
    Int8 {
        codes: &'a [i8],
        scales: &'a [f32],
    },
}

impl<'a> KvRows<'a> {
    /// The same without the first `row` rows and the first `head` heads of the next.
    pub(super) fn skip(self, row: usize, head: usize, heads: usize, dim: usize) -> KvRows<'a> {
        let at = row * heads + head;
        match self {
            KvRows::F32(x) => KvRows::F32(&x[at * dim..]),
            KvRows::F16(x) => KvRows::F16(&x[at * dim..]),
            KvRows::Int8 { codes, scales } => {
                KvRows::Int8 { codes: &codes[at * dim..], scales: &scales[at..] }
            }
        }
    }

    /// Whether these are `rows` rows or more.
    pub(super) fn hold(self, rows: usize, heads: usize, dim: usize) -> bool {
        let (values, scales) = match self {
            KvRows::F32(x) => (x.len(), usize::MAX),
            KvRows::F16(x) => (x.len(), usize::MAX),
            KvRows::Int8 { codes, scales } => (codes.len(), scales.len()),
        };
        values >= rows * heads * dim && scales >= rows * heads
    }
}

/// One stored value, before its scale.
pub(super) trait Stored: Copy {
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    fn wide(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::V {
        unsafe { S::widen_half(p) }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

impl Stored for i8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const i8) -> S::V {
        unsafe { S::widen8(p) }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self as f32
    }
}

/// Rows of keys and values in memory.
#[derive(Clone, Debug)]
pub struct KvMemory {
    values: Values,
    heads: usize,
    dim: usize,
}

#[derive(Clone, Debug)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Int8 { codes: Vec<i8>, scales: Vec<f32> },
}

impl KvMemory {
    /// `rows` rows of `heads` heads of `dim` values.
    pub fn zeros(format: KvFormat, rows: usize, heads: usize, dim: usize) -> Self {
        let len = rows * heads * dim;
        let values = match format {
            KvFormat::F32 => Values::F32(vec![0.0; len]),
            KvFormat::F16 => Values::F16(vec![f16::ZERO; len]),
            KvFormat::Int8 => Values::Int8 { codes: vec![0; len], scales: vec![0.0; rows * heads] },
        };
        Self { values, heads, dim }
    }

    /// Bytes of so many rows.
    pub fn bytes(format: KvFormat, rows: usize, heads: usize, dim: usize) -> usize {
        rows * heads
            * match format {
                KvFormat::F32 => 4 * dim,
                KvFormat::F16 => 2 * dim,
                KvFormat::Int8 => dim + 4,
            }
    }

    /// Rounds whole rows and puts them where row `first` begins. What f16 cannot hold becomes its greatest value.
    pub fn write(&mut self, first: usize, rows: &[f32]) {
        let (width, dim) = (self.heads * self.dim, self.dim);
        assert!(rows.len().is_multiple_of(width), "{} values, in rows of {width}", rows.len());
        let at = first * width..first * width + rows.len();
        match &mut self.values {
            Values::F32(values) => values[at].copy_from_slice(rows),
            Values::F16(values) => {
                const MOST: f32 = 65504.0;
                let mut some = [0f32; 256];
                for (to, from) in values[at].chunks_mut(256).zip(rows.chunks(256)) {
                    let some = &mut some[..from.len()];
                    some.iter_mut().zip(from).for_each(|(some, x)| *some = x.clamp(-MOST, MOST));
                    to.convert_from_f32_slice(some);
                }
            }
            Values::Int8 { codes, scales } => {
                let heads = codes[at].chunks_exact_mut(dim).zip(&mut scales[first * self.heads..]);
                for ((codes, scale), x) in heads.zip(rows.chunks_exact(dim)) {
                    let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                    *scale = most / 127.0;
                    let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
                    codes
                        .iter_mut()
                        .zip(x)
                        .for_each(|(code, x)| *code = (x * inverse).round_ties_even() as i8);
                }
            }
        }
    }

    /// Some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> KvRows<'_> {
        let at = rows.start * self.heads * self.dim..rows.end * self.heads * self.dim;
        match &self.values {
            Values::F32(values) => KvRows::F32(&values[at]),
            Values::F16(values) => KvRows::F16(&values[at]),
            Values::Int8 { codes, scales } => {
                let scales = &scales[rows.start * self.heads..rows.end * self.heads];
                KvRows::Int8 { codes: &codes[at], scales }
            }
        }
    }

    /// Copies what `other`, of the same size and format, holds.
    pub fn copy_from(&mut self, other: &KvMemory) {
        self.clone_from(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_rounded() {
        let x = [1.0, -2.0, 0.1, 1e6, 0.0, 0.0, 254.0, -1.0];
        for (format, bytes) in [(KvFormat::F32, 32), (KvFormat::F16, 16), (KvFormat::Int8, 24)] {
            assert_eq!(KvMemory::bytes(format, 2, 2, 2), bytes);
            let mut memory = KvMemory::zeros(format, 3, 2, 2);
            memory.write(1, &x);
            match memory.rows(1..3) {
                KvRows::F32(y) => assert_eq!(y, x),
                KvRows::F16(y) => {
                    let tenth = f16::from_bits(0x2E66); // 0.0999756, the nearest
                    assert_eq!(y[..3], [f16::ONE, -f16::ONE - f16::ONE, tenth]);
                    assert_eq!(y[3], f16::MAX);
                }
                KvRows::Int8 { codes, scales } => {
                    // Halves go to the even neighbour; each head has its own scale.
                    assert_eq!(codes, [64, -127, 0, 127, 0, 0, 127, 0]);
                    assert_eq!((scales[0], scales[2], scales[3]), (2.0 / 127.0, 0.0, 2.0));
                }
            }
        }
    }
}
