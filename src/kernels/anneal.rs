//! Weights on the way from their latents to trits.

use rayon::prelude::*;

use super::embedding::unpack_row;
use super::isa::kernel;
use super::profile::{Phase, scope};
use super::simd::fma;
use crate::ternary::TernaryMatrix;

/// `out = (1 - residual) ŵ + residual w`, row-major, where `ŵ` is `matrix` and `w` are `latents`; `residual` from 0 to 1.
pub fn anneal(matrix: &TernaryMatrix, latents: &[f32], residual: f32, out: &mut [f32]) {
    let _time = scope(Phase::Projection);
    let (rows, cols) = (matrix.rows(), matrix.cols());
    assert_eq!([latents.len(), out.len()], [rows * cols; 2], "values of [{rows}, {cols}]");
    if out.is_empty() {
        return;
    }
    let both = out.par_chunks_mut(cols).zip(latents.par_chunks(cols)).with_min_len(16);
    both.enumerate().for_each(|(row, (out, latents))| {
        unpack_row(matrix, row, out);
        mix(out, latents, residual);
    });
}

kernel! {
    fn mix<S>(out: &mut [f32], latents: &[f32], residual: f32) {
        let share = 1.0 - residual;
        for (out, latent) in out.iter_mut().zip(latents) {
            *out = fma::<S>(share, *out, residual * latent);
        }
    }
}
