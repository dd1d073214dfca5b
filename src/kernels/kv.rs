//! Keys and values as a cache holds them: in f32, in f16, or in 8 bits with a scale for each head of each position.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::product::rounding;
use super::simd::Simd;
use crate::config::KvFormat;

/// Positions of a page of keys or values.
pub const PAGE: usize = 128;

/// Keys or values of one head, a row for each position.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    /// A value is its code times the scale of its row.
    Int8 {
        codes: &'a [i8],
        scales: &'a [f32],
    },
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

/// Keys and values of [`PAGE`] positions: sections, one for the keys and one for the values of each layer, head by head, so
/// that attention reads what belongs to a head in one piece.
#[derive(Debug)]
pub struct KvMemory {
    /// `[sections, KV, PAGE, D]`
    values: Values,
    heads: usize,
    dim: usize,
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// Scales are `[sections, KV, PAGE]`.
    Int8 {
        codes: Vec<i8>,
        scales: Vec<f32>,
    },
}

impl KvMemory {
    pub fn zeros(format: KvFormat, sections: usize, heads: usize, dim: usize) -> Self {
        let rows = sections * heads * PAGE;
        let values = match format {
            KvFormat::F32 => Values::F32(vec![0.0; rows * dim]),
            KvFormat::F16 => Values::F16(vec![f16::ZERO; rows * dim]),
            KvFormat::Int8 => Values::Int8 { codes: vec![0; rows * dim], scales: vec![0.0; rows] },
        };
        Self { values, heads, dim }
    }

    /// What [`KvMemory::zeros`] takes.
    pub fn bytes(format: KvFormat, sections: usize, heads: usize, dim: usize) -> usize {
        sections
            * heads
            * PAGE
            * match format {
                KvFormat::F32 => 4 * dim,
                KvFormat::F16 => 2 * dim,
                KvFormat::Int8 => dim + 4,
            }
    }

    /// Rounds rows, `[n, KV, D]`, and puts them at `position` of a section and after. What f16 cannot hold becomes its
    /// greatest value.
    pub fn write(&mut self, section: usize, position: usize, rows: &[f32]) {
        let (heads, dim) = (self.heads, self.dim);
        let count = rows.len() / (heads * dim);
        assert_eq!(rows.len(), count * heads * dim, "values of {heads} heads of {dim}");
        assert!(position + count <= PAGE, "{count} positions from {position} on");
        for (i, x) in rows.chunks_exact(dim).enumerate() {
            let row = (section * heads + i % heads) * PAGE + position + i / heads;
            let at = row * dim..(row + 1) * dim;
            match &mut self.values {
                Values::F32(values) => values[at].copy_from_slice(x),
                Values::F16(values) => {
                    const MOST: f32 = 65504.0;
                    let mut some = [0f32; 64];
                    for (to, from) in values[at].chunks_mut(64).zip(x.chunks(64)) {
                        let some = &mut some[..from.len()];
                        some.iter_mut().zip(from).for_each(|(some, x)| *some = x.clamp(-MOST, MOST));
                        to.convert_from_f32_slice(some);
                    }
                }
                Values::Int8 { codes, scales } => {
                    let scale = rounding::scale_of(x);
                    let inverse = rounding::inverse(scale);
                    scales[row] = scale;
                    let codes = codes[at].iter_mut().zip(x);
                    codes.for_each(|(code, x)| *code = rounding::nearest(x * inverse) as i8);
                }
            }
        }
    }

    /// All positions of a section.
    pub fn section(&self, section: usize) -> KvPage<'_> {
        KvPage { memory: self, first: section * self.heads }
    }

    /// Copies what `other`, of the same size and format, holds.
    pub fn copy_from(&mut self, other: &KvMemory) {
        match (&mut self.values, &other.values) {
            (Values::F32(to), Values::F32(from)) => to.copy_from_slice(from),
            (Values::F16(to), Values::F16(from)) => to.copy_from_slice(from),
            (Values::Int8 { codes, scales }, Values::Int8 { codes: from, scales: from_scales }) => {
                codes.copy_from_slice(from);
                scales.copy_from_slice(from_scales);
            }
            _ => panic!("pages of two formats"),
        }
    }
}

/// The keys, or the values, of one layer at the positions of a page.
#[derive(Clone, Copy, Debug)]
pub struct KvPage<'a> {
    memory: &'a KvMemory,
    /// Its first head among those of all sections.
    first: usize,
}

impl<'a> KvPage<'a> {
    /// Those of a head, `[PAGE, D]`.
    pub fn head(self, kv: usize) -> KvRows<'a> {
        let rows = (self.first + kv) * PAGE..(self.first + kv + 1) * PAGE;
        let at = rows.start * self.memory.dim..rows.end * self.memory.dim;
        match &self.memory.values {
            Values::F32(values) => KvRows::F32(&values[at]),
            Values::F16(values) => KvRows::F16(&values[at]),
            Values::Int8 { codes, scales } => KvRows::Int8 { codes: &codes[at], scales: &scales[rows] },
        }
    }

    pub(super) fn is_of(self, kv_heads: usize, dim: usize) -> bool {
        (self.memory.heads, self.memory.dim) == (kv_heads, dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_rounded_head_by_head() {
        // Two positions of two heads.
        let x = [1.0, -2.0, 0.1, 1e6, 0.0, 0.0, 254.0, -1.0];
        for (format, bytes) in [(KvFormat::F32, 8), (KvFormat::F16, 4), (KvFormat::Int8, 6)] {
            assert_eq!(KvMemory::bytes(format, 3, 2, 2), 3 * 2 * PAGE * bytes);
            let mut memory = KvMemory::zeros(format, 3, 2, 2);
            memory.write(1, 5, &x);
            let [first, second] = [0, 1].map(|head| memory.section(1).head(head));
            match (first, second) {
                (KvRows::F32(a), KvRows::F32(b)) => {
                    assert_eq!(
                        (&a[10..14], &b[10..14]),
                        (&[1.0, -2.0, 0.0, 0.0][..], &[0.1, 1e6, 254.0, -1.0][..])
                    );
                }
                (KvRows::F16(a), KvRows::F16(b)) => {
                    assert_eq!(a[10..12], [f16::ONE, -f16::ONE - f16::ONE]);
                    // 0.0999756, the nearest to a tenth.
                    assert_eq!(b[10..12], [f16::from_bits(0x2E66), f16::MAX]);
                }
                (KvRows::Int8 { codes: a, scales }, KvRows::Int8 { codes: b, scales: others }) => {
                    // Halves go to the even neighbour; each head of each position has its own scale.
                    assert_eq!((&a[10..14], &b[10..14]), (&[64, -127, 0, 0][..], &[0, 127, 127, 0][..]));
                    assert_eq!((scales[5], scales[6], others[6]), (2.0 / 127.0, 0.0, 2.0));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_none_in_8_bits() {
        let mut memory = KvMemory::zeros(KvFormat::Int8, 1, 1, 2);
        memory.write(0, 0, &[f32::NAN, 1.0, 1e-42, -1e-42]);
        let KvRows::Int8 { codes, scales } = memory.section(0).head(0) else { panic!("8 bits") };
        assert!(scales[0].is_nan() && scales[1] < 1e-43, "{scales:?}");
        // Too small to be divided by: zeros.
        assert_eq!(codes[2..4], [0, 0]);
    }
}
