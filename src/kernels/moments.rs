//! What an optimizer remembers of each value of a tensor: f32, or codes of 8 bits with a scale for each block of a row.
//!
//! Blocks are as in Dettmers et al. (arXiv 2110.02861). Codes are rounded at random, such that what they stand for is
//! right in the mean: rounding to the nearest would hold a slow moving average where it is. They are decoded and encoded
//! in the first-level cache and never exist as a tensor of f32. [`reference`](super::reference) defines them.

use std::ops::Range;

use crate::config::MomentFormat;
use crate::random::{GAMMA, splitmix64};

/// Consecutive values of a row that share a scale; a row's end ends a block, so that rows stand alone.
pub const BLOCK: usize = 128;

/// Moving averages, row-major like the tensor; one that the rule does not need is empty.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    F32 {
        /// AdamW's first moment, or the momentum.
        first: Vec<f32>,
        /// AdamW's second moment.
        second: Vec<f32>,
    },
    /// As [`Moments::F32`]; the code `c` of a first moment is `sign(c) (c/127)^2 scale`, that of a second moment
    /// `((c/255)^2 scale)^2`: fine where values are small, and the second in the unit of its root.
    Int8 { first: Codes<i8>, second: Codes<u8> },
}

/// Codes of 8 bits, and for each block the largest size that they stand for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codes<T> {
    /// `[rows, cols]`
    pub codes: Vec<T>,
    /// `[rows, ⌈cols / 128⌉]`
    pub scales: Vec<f32>,
}

impl Default for Moments {
    /// None.
    fn default() -> Self {
        Moments::F32 { first: Vec::new(), second: Vec::new() }
    }
}

impl Moments {
    /// `count` of them (none to two) for each value of a tensor `[rows, cols]`, at zero.
    pub fn zeros(format: MomentFormat, count: usize, rows: usize, cols: usize) -> Self {
        let rows = [count > 0, count > 1].map(|there| if there { rows } else { 0 });
        match format {
            MomentFormat::F32 => {
                let [first, second] = rows.map(|rows| vec![0.0; rows * cols]);
                Moments::F32 { first, second }
            }
            MomentFormat::Int8 => {
                Moments::Int8 { first: Codes::zeros(rows[0], cols), second: Codes::zeros(rows[1], cols) }
            }
        }
    }

    /// Those of some rows of a tensor with rows of `cols` values.
    pub fn rows(&self, rows: Range<usize>, cols: usize) -> Self {
        let values = rows.start * cols..rows.end * cols;
        match self {
            Moments::F32 { first, second } => {
                let of = |all: &[f32]| if all.is_empty() { Vec::new() } else { all[values.clone()].to_vec() };
                Moments::F32 { first: of(first), second: of(second) }
            }
            Moments::Int8 { first, second } => {
                Moments::Int8 { first: first.rows(rows.clone(), cols), second: second.rows(rows, cols) }
            }
        }
    }

    /// Panics unless these are `count` moments of `rows` rows.
    pub(super) fn check(&self, name: &str, count: usize, rows: usize, cols: usize) {
        let rows = [count > 0, count > 1].map(|there| if there { rows } else { 0 });
        let (found, scales) = match self {
            Moments::F32 { first, second } => ([first.len(), second.len()], None),
            Moments::Int8 { first, second } => {
                ([first.codes.len(), second.codes.len()], Some([first.scales.len(), second.scales.len()]))
            }
        };
        assert_eq!(found, rows.map(|rows| rows * cols), "{name}: moments");
        if let Some(scales) = scales {
            assert_eq!(scales, rows.map(|rows| rows * cols.div_ceil(BLOCK)), "{name}: scales of moments");
        }
    }

    pub(super) fn as_mut(&mut self) -> MomentsMut<'_> {
        match self {
            Moments::F32 { first, second } => MomentsMut::F32 { first, second },
            Moments::Int8 { first, second } => {
                MomentsMut::Int8 { first: first.as_mut(), second: second.as_mut() }
            }
        }
    }
}

impl<T: Clone + Default> Codes<T> {
    fn zeros(rows: usize, cols: usize) -> Self {
        let scales = vec![0.0; rows * cols.div_ceil(BLOCK)];
        Self { codes: vec![T::default(); rows * cols], scales }
    }

    fn rows(&self, rows: Range<usize>, cols: usize) -> Self {
        if self.codes.is_empty() {
            return Self::default();
        }
        let blocks = cols.div_ceil(BLOCK);
        Self {
            codes: self.codes[rows.start * cols..rows.end * cols].to_vec(),
            scales: self.scales[rows.start * blocks..rows.end * blocks].to_vec(),
        }
    }

    fn as_mut(&mut self) -> CodesMut<'_, T> {
        CodesMut { codes: &mut self.codes, scales: &mut self.scales }
    }
}

/// Some rows of [`Moments`].
pub(super) enum MomentsMut<'a> {
    F32 { first: &'a mut [f32], second: &'a mut [f32] },
    Int8 { first: CodesMut<'a, i8>, second: CodesMut<'a, u8> },
}

/// Some rows of [`Codes`].
pub(super) struct CodesMut<'a, T> {
    codes: &'a mut [T],
    scales: &'a mut [f32],
}

impl<'a> MomentsMut<'a> {
    pub fn split_at(self, rows: usize, cols: usize) -> (MomentsMut<'a>, MomentsMut<'a>) {
        match self {
            MomentsMut::F32 { first, second } => {
                let (first, first_after) = cut(first, rows * cols);
                let (second, second_after) = cut(second, rows * cols);
                (
                    MomentsMut::F32 { first, second },
                    MomentsMut::F32 { first: first_after, second: second_after },
                )
            }
            MomentsMut::Int8 { first, second } => {
                let (first, first_after) = first.split_at(rows, cols);
                let (second, second_after) = second.split_at(rows, cols);
                (
                    MomentsMut::Int8 { first, second },
                    MomentsMut::Int8 { first: first_after, second: second_after },
                )
            }
        }
    }
}

impl<'a, T> CodesMut<'a, T> {
    fn split_at(self, rows: usize, cols: usize) -> (CodesMut<'a, T>, CodesMut<'a, T>) {
        let (codes, codes_after) = cut(self.codes, rows * cols);
        let (scales, scales_after) = cut(self.scales, rows * cols.div_ceil(BLOCK));
        (CodesMut { codes, scales }, CodesMut { codes: codes_after, scales: scales_after })
    }

    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// `len` codes from value `at` on, and scale number `block` with them.
    #[inline(always)]
    pub fn block(&mut self, at: usize, len: usize, block: usize) -> (&mut [T], &mut f32) {
        (&mut self.codes[at..at + len], &mut self.scales[block])
    }
}

/// [`slice::split_at_mut`]; nothing is cut into nothing twice.
fn cut<T>(x: &mut [T], at: usize) -> (&mut [T], &mut [T]) {
    let at = if x.is_empty() { 0 } else { at };
    x.split_at_mut(at)
}

/// The key of the random numbers that round the moments of tensor number `tensor` in step `step`: what makes a resumed
/// training, and one on any number of threads, draw the same ones.
pub fn dither_key(step: u64, tensor: usize) -> u32 {
    splitmix64(step.wrapping_mul(GAMMA) ^ (tensor as u64).wrapping_mul(0xD1B5_4A32_D192_ED03)) as u32
}

/// The random bits of the values from `at` on, row-major in the tensor. The first moment is rounded by the high 24, the
/// second by the low 24.
#[inline(always)]
pub(super) fn dither(key: u32, at: usize, out: &mut [u32]) {
    for (i, out) in out.iter_mut().enumerate() {
        // Wellons' hash of 32 bits, "lowbias32", of a counter.
        let x = (at as u32).wrapping_add(i as u32).wrapping_mul(0x9E37_79B9).wrapping_add(key);
        let x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        let x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        *out = x ^ (x >> 16);
    }
}

/// In [0, 1), from 24 bits.
#[inline(always)]
fn uniform(bits: u32) -> f32 {
    bits as i32 as f32 * (1.0 / (1 << 24) as f32)
}

/// Squares of the largest codes.
const FIRST: f32 = 127.0 * 127.0;
const SECOND: f32 = 255.0 * 255.0;

#[inline(always)]
pub(super) fn decode_first(codes: &[i8], scale: f32, out: &mut [f32]) {
    let unit = scale / FIRST;
    for (x, &c) in out.iter_mut().zip(codes) {
        let c = c as f32;
        *x = c * c.abs() * unit;
    }
}

#[inline(always)]
pub(super) fn decode_second(codes: &[u8], scale: f32, out: &mut [f32]) {
    let unit = scale / SECOND;
    for (x, &c) in out.iter_mut().zip(codes) {
        let c = c as f32;
        let root = c * c * unit;
        *x = root * root;
    }
}

#[inline(always)]
pub(super) fn encode_first(x: &[f32], bits: &[u32], codes: &mut [i8], scale: &mut f32) {
    *scale = largest(x);
    let inverse = inverse(FIRST, *scale);
    for ((c, &x), &bits) in codes.iter_mut().zip(x).zip(bits) {
        let t = x.abs() * inverse;
        let (code, k) = floor_root(t);
        // Up with the probability that makes the mean of c^2 be t.
        let up = uniform(bits >> 8) * (2.0 * k + 1.0) < t - k * k;
        let size = (code + up as u32).min(127) as i32;
        *c = (if x < 0.0 { -size } else { size }) as i8;
    }
}

/// From the roots of the moments.
#[inline(always)]
pub(super) fn encode_second(roots: &[f32], bits: &[u32], codes: &mut [u8], scale: &mut f32) {
    *scale = largest(roots);
    let inverse = inverse(SECOND, *scale);
    for ((c, &root), &bits) in codes.iter_mut().zip(roots).zip(bits) {
        let t = root * inverse;
        let (code, k) = floor_root(t);
        let fourth = |k: f32| {
            let square = k * k;
            square * square
        };
        // Up with the probability that makes the mean of c^4 be t^2; never from above 0 to 0, which is divided by.
        let up = uniform(bits & 0xFF_FFFF) * (fourth(k + 1.0) - fourth(k)) < t * t - fourth(k);
        *c = (code + up as u32).min(255).max((root > 0.0) as u32) as u8;
    }
}

/// The whole part of the root of `t`, at most 2^16, as an integer and as f32. One less where the root is whole and odd,
/// to be rounded up with certainty.
#[inline(always)]
fn floor_root(t: f32) -> (u32, f32) {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, to be read in the low bits
    let shifted = (t.sqrt() - 0.5) + MAGIC;
    (shifted.to_bits() & 0x1FF, shifted - MAGIC)
}

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    const LANES: usize = 16;
    let larger = |a: f32, x: f32| if x.abs() > a { x.abs() } else { a };
    let mut max = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder().iter().fold(0f32, |a, x| larger(a, *x));
    for chunk in chunks {
        for i in 0..LANES {
            max[i] = larger(max[i], chunk[i]);
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            max[i] = larger(max[i], max[i + half]);
        }
    }
    larger(max[0], tail)
}

/// `a / scale`, or 0 where that is not finite: a block of zeros, or of numbers too small to count.
#[inline(always)]
fn inverse(a: f32, scale: f32) -> f32 {
    let inverse = a / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}
