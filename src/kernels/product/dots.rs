//! The product for a few rows of `x`: the weight is read in its own order, once for each row of `x`, and not packed.

use rayon::prelude::*;
use std::ops::Range;

use super::operands::Target;
use super::pack::decode;
use super::rounding::{integers, segments};
use crate::config::Inputs;
use crate::kernels::isa::kernel;
use crate::kernels::matrix::{Matrix, Values};
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::simd::dot;
use crate::kernels::to::To;
use crate::ternary::{CODES_PER_WORD, TernaryMatrix};

/// Where a row of inputs is rounded.
#[derive(Default)]
struct Rounded {
    row: Aligned<f32>,
    padded: Aligned<f32>,
    segments: Vec<Range<usize>>,
}

/// A row of inputs over its scale, in whole numbers.
struct Integers<'a> {
    segments: &'a [Range<usize>],
    /// Each segment padded with zeros to whole words of codes.
    padded: &'a [f32],
    scale: f32,
}

/// `y (+)= x Wᵀ`, `x` `[n, in]`, `y` `[n, out]`.
pub fn forward(x: &[f32], w: Matrix<'_>, y: Target<'_>) {
    let (out, to) = (w.rows(), y.to);
    if out == 0 {
        return;
    }
    let block = if out * w.cols() < 1 << 16 { out } else { 64 };
    for (x, y) in x.chunks(w.cols()).zip(y.data.chunks_mut(y.stride)) {
        let blocks = y[..out].par_chunks_mut(block).enumerate();
        match (w.values(), w.inputs()) {
            (Values::Dense { data, cols, .. }, _) => {
                blocks.for_each(|(b, y)| dense_dots(x, &data[b * block * cols..], y, to))
            }
            (Values::Ternary(t), Inputs::F32) => {
                blocks.for_each(|(b, y)| ternary_dots(x, t, b * block, y, to))
            }
            (Values::Packed(_), _) => unreachable!("packed weights have a way of their own"),
            (Values::Ternary(t), Inputs::Int8) => scratch::with(|rounded: &mut Rounded| {
                let x = rounded.fill(x, t);
                blocks.for_each(|(b, y)| int8_dots(&x, t, b * block, y, to));
            }),
        }
    }
}

impl Rounded {
    fn fill(&mut self, x: &[f32], w: &TernaryMatrix) -> Integers<'_> {
        let row = self.row.first(x.len());
        let scale = integers(x, row);
        self.segments.clear();
        self.segments.extend(segments(w));
        let padded = self.padded.first(self.segments.iter().map(padded_len).sum());
        let mut rest = &mut *padded;
        for segment in &self.segments {
            let to;
            (to, rest) = rest.split_at_mut(padded_len(segment));
            to[..segment.len()].copy_from_slice(&row[segment.clone()]);
            to[segment.len()..].fill(0.0);
        }
        Integers { segments: &self.segments, padded, scale }
    }
}

#[inline(always)]
fn padded_len(segment: &Range<usize>) -> usize {
    segment.len().next_multiple_of(CODES_PER_WORD)
}

kernel! {
    /// `y[r] (+)= x . w[r]`
    fn dense_dots<S>(x: &[f32], w: &[f32], y: &mut [f32], to: To) {
        for (w, y) in w.chunks_exact(x.len()).zip(y) {
            let sum = dot::<S>(x, w);
            *y = if to.adds() { *y + sum } else { sum };
        }
    }
}

kernel! {
    /// `y[r] (+)= x . w[row0 + r]`
    fn ternary_dots<S>(x: &[f32], w: &TernaryMatrix, row0: usize, y: &mut [f32], to: To) {
        let whole = x.len() / S::LANES * S::LANES;
        let mut tail = [0f32; 16];
        tail[..x.len() - whole].copy_from_slice(&x[whole..]);
        for (r, y) in y.iter_mut().enumerate() {
            // SAFETY: the loads stay below `whole <= x.len()`, or read the 16 values of `tail`.
            let sum = unsafe {
                let mut sum = S::zero();
                for k in (0..whole).step_by(S::LANES) {
                    sum = S::fma(S::load(x.as_ptr().add(k)), decode::<S>(w, row0 + r, k), sum);
                }
                if whole < x.len() {
                    sum = S::fma(S::load(tail.as_ptr()), decode::<S>(w, row0 + r, whole), sum);
                }
                S::sum(sum)
            };
            *y = if to.adds() { *y + sum } else { sum };
        }
    }
}

kernel! {
    /// `y[r] (+)= x . w[row0 + r]`: what
    /// [`reference::linear_int8`](crate::kernels::reference::linear_int8) computes, bit for bit. The sum of a segment is
    /// below 2^24, so that an f32 holds it exactly, in whatever order; its product and the sum of these are rounded each.
    fn int8_dots<S>(x: &Integers<'_>, w: &TernaryMatrix, row0: usize, y: &mut [f32], to: To) {
        for (r, y) in y.iter_mut().enumerate() {
            let row = row0 + r;
            let words = &w.words()[row * w.row_words()..][..w.row_words()];
            let scales = &w.scales()[row * w.row_groups()..][..w.row_groups()];
            let mut total = 0f32;
            let mut rest = x.padded;
            for segment in x.segments {
                let inputs;
                (inputs, rest) = rest.split_at(padded_len(segment));
                let vectors = inputs.chunks_exact(S::LANES).zip(segment.clone().step_by(S::LANES));
                // SAFETY: each chunk has LANES values. Codes past the segment's end meet zeros.
                let sum = unsafe {
                    let mut sum = S::zero();
                    for (x, k) in vectors {
                        sum = S::fma(S::load(x.as_ptr()), S::decode(codes_at(words, k), 1.0), sum);
                    }
                    S::sum(sum)
                };
                total += scales[segment.start / w.group()] * sum;
            }
            let sum = total * x.scale;
            *y = if to.adds() { *y + sum } else { sum };
        }
    }
}

/// The codes of a row from column `k` on, as many as a word holds; past its end any.
#[inline(always)]
fn codes_at(words: &[u32], k: usize) -> u32 {
    let (at, shift) = (k / CODES_PER_WORD, 2 * (k % CODES_PER_WORD));
    let low = words[at] >> shift;
    match words.get(at + 1) {
        Some(next) if shift > 0 => low | next << (32 - shift),
        _ => low,
    }
}
