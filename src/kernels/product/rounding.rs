//! Inputs rounded to 8 bits: each row of `x` has one scale, its largest magnitude over 127 (per-token absmax, as in BitNet
//! b1.58, arXiv 2402.17764).

use rayon::prelude::*;
use std::ops::Range;

use crate::kernels::isa::kernel;
use crate::kernels::reference::SEGMENT;
use crate::ternary::TernaryMatrix;

/// The inputs of a row of `w` in segments: each in one group, and at most [`SEGMENT`] long.
pub fn segments(w: &TernaryMatrix) -> impl Iterator<Item = Range<usize>> + use<> {
    let (cols, group) = (w.cols(), w.group());
    (0..cols).step_by(group).flat_map(move |first| {
        let end = (first + group).min(cols);
        (first..end).step_by(SEGMENT).map(move |start| start..end.min(start + SEGMENT))
    })
}

kernel! {
    /// Largest magnitude over 127; not finite where a value is not.
    pub fn scale_of<S>(row: &[f32]) -> f32 {
        // As bits, NaN is the largest: it is not lost.
        let largest = row.iter().fold(0u32, |top, x| top.max(x.to_bits() & 0x7FFF_FFFF));
        f32::from_bits(largest) / 127.0
    }
}

/// To the nearest integer, ties to even, as the low bits of the result: for magnitudes up to 127, which is what a row
/// divided by its scale has.
#[inline(always)]
pub fn nearest(x: f32) -> i16 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + MAGIC).to_bits() as i16
}

#[inline(always)]
pub fn inverse(scale: f32) -> f32 {
    if (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 }
}

kernel! {
    /// `out = x / scale` for one row, in whole numbers; the scale.
    pub fn integers<S>(x: &[f32], out: &mut [f32]) -> f32 {
        let scale = scale_of(x);
        let inverse = inverse(scale);
        for (out, x) in out.iter_mut().zip(x) {
            *out = nearest(x * inverse) as f32;
        }
        scale
    }
}

/// `out = x̂`: each row of `x`, of `cols` values, rounded; what the gradient by the weights is taken at.
pub fn round(x: &[f32], cols: usize, out: &mut [f32]) {
    kernel! {
        fn run<S>(x: &[f32], out: &mut [f32]) {
            let scale = integers(x, out);
            out.iter_mut().for_each(|out| *out *= scale);
        }
    }
    x.par_chunks(cols).zip(out.par_chunks_mut(cols)).with_min_len(16).for_each(|(x, out)| run(x, out));
}
