//! Products with a ternary matrix by table look-up: additions in place of multiplications.
//!
//! Three inputs `a b c` of a row meet three trits, and there are only 27 signed sums `±a ±b ±c`. For a *tile* of 16
//! tokens, in the lanes of vectors, all 27 are made once and kept in the first-level cache; every output then pays one
//! load and one addition for three weights, where a dense product pays three fused multiply-adds. Eleven such tables
//! (33 inputs, 19 KiB) make a *chunk*. The sums are those of f32, in another order; the scale multiplies the sum of a
//! chunk, so that a weight is never rounded.
//!
//! - Forward, `y = x Ŵᵀ`: inputs of one group at a time, tables shared by all rows, the scale applied to the sum.
//! - Input gradient, `dx = dy Ŵ`: the sum runs over rows, whose scales differ, so `dy` is scaled while the tables are
//!   made: once for each group of 128 columns, which is what the tables are then used for.
//!
//! Both are a [`Plan`]: which inputs feed a chunk, which outputs look it up, and where each output's trits point
//! ([`plan::Record`]). A plan is packed from the 2-bit codes by all threads and then read by every tile.
//!
//! The idea of tables over low-bit weights is that of T-MAC (Wei et al., arXiv 2407.00088), there with weights in the
//! lanes for one token; here tokens are in the lanes, for training.

mod int8;
mod plan;
mod tables;

use rayon::prelude::*;
use std::ops::Range;

use super::operands::Target;
use crate::config::Precision;
use crate::kernels::isa::kernel;
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::simd::Simd;
use crate::kernels::to::To;
use crate::ternary::TernaryMatrix;
pub use int8::forward as forward_int8;
use plan::{CHUNK, Plan, TABLES};

/// Tokens of a tile: the lanes of one entry of a table.
const TILE: usize = 16;

/// Sixteen values, one for each token of a tile, in a cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Lanes([f32; TILE]);

/// Whether look-ups are worth their tables: enough tokens to share the plan, enough outputs to share the tables.
pub fn pays(n: usize, w: &TernaryMatrix) -> bool {
    n >= 2 * TILE && w.group() >= 64 && w.rows() >= 64
}

/// What a thread works on: tables, inputs and sums of a tile.
#[derive(Default)]
struct Scratch(Aligned<Lanes>);

/// `y (+)= x Ŵᵀ`, `x` `[n, in]`, rounded to `precision`, `y` `[n, out]`.
pub fn forward(x: &[f32], w: &TernaryMatrix, precision: Precision, y: Target<'_>) {
    scratch::with(|plan: &mut Plan| {
        for first in (0..w.rows()).step_by(plan::ROWS) {
            plan.pack_rows(w, first, plan::ROWS.min(w.rows() - first));
            let y = Target { data: &mut y.data[first..], ..y };
            run(plan, x, w.cols(), precision, y);
        }
    });
}

/// `dx (+)= dy Ŵ`, `dy` `[n, out]`, rows `stride` apart and, once scaled, rounded to `precision`, `dx` `[n, in]`.
pub fn backward_input(
    dy: &[f32],
    stride: usize,
    w: &TernaryMatrix,
    precision: Precision,
    dx: &mut [f32],
    to: To,
) {
    scratch::with(|plan: &mut Plan| {
        for first in (0..w.rows()).step_by(plan::INNER) {
            plan.pack_columns(w, first, plan::INNER.min(w.rows() - first));
            let dx = Target { data: &mut *dx, stride: w.cols(), to: to.part(first == 0) };
            run(plan, &dy[first..], stride, precision, dx);
        }
    });
}

/// Every tile of 16 rows of `x` through the plan; its inputs are the first columns of `x`, its outputs those of `y`.
fn run(plan: &Plan, x: &[f32], x_stride: usize, precision: Precision, y: Target<'_>) {
    let Target { data, stride, to } = y;
    let tiles = x.par_chunks(TILE * x_stride).zip(data.par_chunks_mut(TILE * stride));
    tiles.for_each(|(x, y)| {
        scratch::with(|scratch: &mut Scratch| {
            let all = scratch.0.first(CHUNK_ENTRIES + plan.padded() + plan.outputs());
            let (tables, rest) = all.split_at_mut(CHUNK_ENTRIES);
            let (inputs, sums) = rest.split_at_mut(plan.padded());
            tile(plan, x, x_stride, precision, y, stride, to, tables, inputs, sums);
        });
    });
}

/// Entries of the tables of a chunk.
const CHUNK_ENTRIES: usize = TABLES * plan::ENTRIES;

kernel! {
    /// One tile: inputs into lanes, chunk after chunk, sums back into rows. The last row of `x` and `y` may be short.
    fn tile<S>(plan: &Plan, x: &[f32], x_stride: usize, precision: Precision, y: &mut [f32], y_stride: usize,
        to: To, tables: &mut [Lanes], inputs: &mut [Lanes], sums: &mut [Lanes]) {
        for segment in plan.segments() {
            let to = &mut inputs[segment.padded.clone()];
            into_lanes::<S>(x, x_stride, segment.inputs.clone(), to);
            to[segment.inputs.len()..].fill(Lanes::default());
        }
        let outputs = plan.outputs();
        if to.adds() {
            into_lanes::<S>(y, y_stride, 0..outputs, sums);
        } else {
            sums.fill(Lanes::default());
        }
        for step in plan.steps() {
            tables::build::<S>(&inputs[step.padded..][..CHUNK], plan.factors(step), precision, tables);
            tables::look_up_all::<S>(plan.records(step), tables, &mut sums[step.outputs.clone()]);
        }
        from_lanes::<S>(sums, y, y_stride);
    }
}

/// Zeros in place of rows past the end.
static ZEROS: Lanes = Lanes([0.0; TILE]);

/// `to[j][i] = x[i * stride + columns.start + j]` for up to 16 rows, rows past the end of `x` zero.
#[inline(always)]
fn into_lanes<S: Simd>(x: &[f32], stride: usize, columns: Range<usize>, to: &mut [Lanes]) {
    let rows = rows_of(x.len(), stride, columns.end);
    let whole = columns.len() / S::LANES * S::LANES;
    for j in (0..whole).step_by(S::LANES) {
        for i in (0..TILE).step_by(S::LANES) {
            let mut src = [ZEROS.0.as_ptr(); 16];
            for (k, p) in src.iter_mut().enumerate().take(rows.saturating_sub(i).min(S::LANES)) {
                *p = x[(i + k) * stride + columns.start + j..][..S::LANES].as_ptr();
            }
            let to = &mut to[j..j + S::LANES];
            // SAFETY: every source holds LANES values; `to` holds LANES entries of 16 values.
            unsafe { S::transpose(&src, to.as_mut_ptr().cast::<f32>().add(i), TILE) };
        }
    }
    for j in whole..columns.len() {
        to[j] = Lanes::default();
        for i in 0..rows {
            to[j].0[i] = x[i * stride + columns.start + j];
        }
    }
}

/// Mirror of [`into_lanes`]: `y[i * stride + j] = from[j][i]`.
#[inline(always)]
fn from_lanes<S: Simd>(from: &[Lanes], y: &mut [f32], stride: usize) {
    let rows = rows_of(y.len(), stride, from.len());
    let whole = from.len() / S::LANES * S::LANES;
    let mut square = [Lanes::default(); 16];
    for j in (0..whole).step_by(S::LANES) {
        for i in (0..rows).step_by(S::LANES) {
            let mut src = [ZEROS.0.as_ptr(); 16];
            for (p, lanes) in src.iter_mut().zip(&from[j..j + S::LANES]) {
                *p = lanes.0[i..i + S::LANES].as_ptr();
            }
            if i + S::LANES <= rows {
                let to = &mut y[i * stride + j..];
                assert!(to.len() >= (S::LANES - 1) * stride + S::LANES);
                // SAFETY: LANES rows of LANES values, the last of which ends inside `to`.
                unsafe { S::transpose(&src, to.as_mut_ptr(), stride) };
                continue;
            }
            // SAFETY: `square` holds 16 rows of 16 values.
            unsafe { S::transpose(&src, square.as_mut_ptr().cast(), TILE) };
            for k in i..rows {
                y[k * stride + j..][..S::LANES].copy_from_slice(&square[k - i].0[..S::LANES]);
            }
        }
    }
    for j in whole..from.len() {
        for i in 0..rows {
            y[i * stride + j] = from[j].0[i];
        }
    }
}

/// Rows, up to 16, of which a slice that begins inside the first holds `width` values.
#[inline(always)]
fn rows_of(len: usize, stride: usize, width: usize) -> usize {
    if len < width { 0 } else { ((len - width) / stride + 1).min(TILE) }
}
