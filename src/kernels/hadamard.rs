//! Rotations by Hadamard matrices: every value becomes a sum of all, so that none stands out.

use rayon::prelude::*;

use super::isa::kernel;
use crate::random::{GAMMA, splitmix64};

/// The largest block: as many inputs as share a scale.
const BLOCK: usize = 128;

/// `R x = H (d x)` of vectors of a width: random signs `d`, the same for each width, then in blocks of 128, and in powers of two
/// of what is left, the orthogonal Hadamard matrix `H[i, j] = (-1)^popcount(i & j) / sqrt(n)`.
#[derive(Clone, Debug)]
pub struct Hadamard {
    signs: Vec<f32>,
}

impl Hadamard {
    pub fn new(width: usize) -> Self {
        let number = |i: usize| splitmix64((((width as u64) << 32) | i as u64).wrapping_mul(GAMMA));
        Self { signs: (0..width).map(|i| if number(i) & 1 == 0 { 1.0 } else { -1.0 }).collect() }
    }

    /// `d`, 1 or -1 each.
    pub fn signs(&self) -> &[f32] {
        &self.signs
    }

    /// First place and length of each block.
    pub fn blocks(&self) -> Vec<(usize, usize)> {
        let (mut at, mut blocks) = (0, Vec::new());
        while at < self.signs.len() {
            let size = BLOCK.min(1 << (self.signs.len() - at).ilog2());
            blocks.push((at, size));
            at += size;
        }
        blocks
    }

    /// Every row of `x`, `[n, width]`, becomes `R x`.
    pub fn rows(&self, x: &mut [f32]) {
        let blocks = self.blocks();
        assert!(
            x.len().is_multiple_of(self.signs.len()),
            "{} values in rows of {}",
            x.len(),
            self.signs.len()
        );
        x.par_chunks_mut(self.signs.len()).with_min_len(16).for_each(|row| {
            row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
            blocks.iter().for_each(|&(at, size)| turn(&mut row[at..at + size], 1));
        });
    }

    /// `w`, `[width, cols]`, becomes `R w`.
    pub fn columns(&self, w: &mut [f32], cols: usize) {
        assert_eq!(w.len(), self.signs.len() * cols, "values of [{}, {cols}]", self.signs.len());
        for (row, sign) in w.chunks_mut(cols.max(1)).zip(&self.signs) {
            row.iter_mut().for_each(|w| *w *= sign);
        }
        let mut rest = w;
        let mut parts = Vec::new();
        for (_, size) in self.blocks() {
            let (part, after) = rest.split_at_mut(size * cols);
            parts.push(part);
            rest = after;
        }
        parts.into_par_iter().for_each(|part| turn(part, cols));
    }
}

kernel! {
    /// Multiplies a power of two of rows of `cols` values with the Hadamard matrix, in place.
    fn turn<S>(rows: &mut [f32], cols: usize) {
        let count = rows.len() / cols.max(1);
        let mut half = cols;
        while half < rows.len() {
            for pair in rows.chunks_exact_mut(2 * half) {
                let (upper, lower) = pair.split_at_mut(half);
                for (a, b) in upper.iter_mut().zip(lower) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        let factor = (1.0 / (count as f64).sqrt()) as f32;
        rows.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Every row of `w`, `[rows, gain.len()]`, times `gain`.
pub fn scale_columns(w: &mut [f32], gain: &[f32]) {
    assert!(w.len().is_multiple_of(gain.len()), "{} values in rows of {}", w.len(), gain.len());
    w.par_chunks_mut(gain.len()).with_min_len(16).for_each(|row| {
        row.iter_mut().zip(gain).for_each(|(w, g)| *w *= g);
    });
}
