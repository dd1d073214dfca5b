//! Trits chosen by what they do to a layer's outputs on inputs that were seen: column by column, what a weight is off by is
//! made up for by the weights after it (GPTQ, Frantar et al., arXiv 2210.17323), with the scales of the number contract.

use rayon::prelude::*;

use super::elementwise::add_assign;
use super::isa::kernel;
use super::product::{View, symmetric_gemm};
use super::profile::{Phase, scope};
use super::project::mean_of;
use super::simd::dot;
use crate::ternary::{scale_of, trit_of};

/// Added to the diagonal of `XᵀX`, as a share of its mean, for inputs that were hardly seen.
const DAMPING: f64 = 0.01;

/// What a layer's inputs have in common: sums of their products, `XᵀX`, `[inputs, inputs]`.
#[derive(Clone, Debug)]
pub struct InputProducts {
    inputs: usize,
    sums: Vec<f32>,
}

impl InputProducts {
    pub fn zeros(inputs: usize) -> Self {
        Self { inputs, sums: vec![0.0; inputs * inputs] }
    }

    /// Adds those of `x`, `[n, inputs]`.
    pub fn add(&mut self, x: &[f32]) {
        let _time = scope(Phase::Projection);
        let (n, inputs) = (x.len() / self.inputs, self.inputs);
        assert_eq!(x.len(), n * inputs, "inputs in rows of {inputs}");
        let mut sums = vec![0.0; self.sums.len()];
        let x = View::rows(x, inputs);
        symmetric_gemm(inputs, n, x.t(), x, &mut sums);
        add_assign(&mut self.sums, &sums);
    }

    /// `Rᵀ` of `XᵀX + d I = R Rᵀ` with `R` upper triangular: row `j` has what errors of the inputs up to `j` do to the `j`-th of
    /// as many independent outputs. None where a sum is not finite.
    fn factor(&self) -> Option<Vec<f32>> {
        let n = self.inputs;
        let mean = (0..n).map(|i| self.sums[i * (n + 1)] as f64).sum::<f64>() / n as f64;
        if !super::all_finite(&self.sums) || !mean.is_finite() {
            return None;
        }
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        // Cholesky's factor `L` of the matrix with its rows and columns in the opposite order is `R` in that order.
        let at = |i: usize, j: usize| self.sums[(n - 1 - i) * n + n - 1 - j] as f64;
        let mut l = vec![0f64; n * n];
        for j in 0..n {
            let (above, below) = l.split_at_mut((j + 1) * n);
            let row = &mut above[j * n..];
            let (before, own) = row.split_at_mut(j);
            let pivot = (at(j, j) + damping - dot64(before, before)).max(damping * 1e-6).sqrt();
            own[0] = pivot;
            let column = below.par_chunks_mut(n).with_min_len(32).enumerate();
            column.for_each(|(i, row)| row[j] = (at(i + j + 1, j) - dot64(&row[..j], before)) / pivot);
        }
        let mut factor = vec![0f32; n * n];
        factor.par_chunks_mut(n).enumerate().for_each(|(j, row)| {
            for (i, value) in row[..=j].iter_mut().enumerate() {
                *value = l[(n - 1 - i) * n + n - 1 - j] as f32;
            }
        });
        Some(factor)
    }
}

kernel! {
    fn dot64<S>(a: &[f64], b: &[f64]) -> f64 {
        let mut sums = [0f64; 16];
        let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
        let tail: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
        for (a, b) in a.zip(b) {
            for i in 0..16 {
                sums[i] += a[i] * b[i];
            }
        }
        sums.iter().sum::<f64>() + tail
    }
}

/// Replaces each of `several` weights, `[rows, inputs]`, by latents whose projection in groups of `group` keeps its outputs on
/// these inputs: in each group `s` is the absolute mean of what its weights would have to be by now, in f16. False where a
/// sum of the inputs is not finite; the weights are then as they were.
pub fn calibrate(inputs: &InputProducts, group: usize, several: &mut [&mut [f32]]) -> bool {
    let _time = scope(Phase::Projection);
    let n = inputs.inputs;
    let Some(factor) = inputs.factor() else { return false };
    for weights in several {
        assert!(weights.len().is_multiple_of(n), "weights in rows of {n}");
        let rows = weights.par_chunks_mut(n);
        rows.for_each_init(|| vec![0f32; 3 * n], |scratch, row| calibrate_row(row, &factor, group, scratch));
    }
    true
}

kernel! {
    /// One row, in place. An error `e` is a weight less what it becomes; the outputs' errors are `e R`.
    fn calibrate_row<S>(row: &mut [f32], factor: &[f32], group: usize, scratch: &mut [f32]) {
        let n = row.len();
        let (errors, scratch) = scratch.split_at_mut(n);
        let (free, sums) = scratch.split_at_mut(n);
        for from in (0..n).step_by(group) {
            let to = n.min(from + group);
            // With errors before the group as they are, it would make up for them best like this.
            for j in from..to {
                let column = &factor[j * n..=j * n + j];
                sums[j] = dot::<S>(&errors[..from], &column[..from]);
                free[j] = -(sums[j] + dot::<S>(&free[from..j], &column[from..j])) / column[j];
            }
            for j in from..to {
                free[j] = row[j] - free[j];
            }
            let scale = scale_of(mean_of(&free[from..to]) * (to - from) as f64, to - from);
            for j in from..to {
                let column = &factor[j * n..=j * n + j];
                let wanted = row[j] + (sums[j] + dot::<S>(&errors[from..j], &column[from..j])) / column[j];
                errors[j] = row[j] - scale * trit_of(wanted, scale) as f32;
                free[j] = wanted;
            }
            row[from..to].copy_from_slice(&free[from..to]);
            bring_mean(&mut row[from..to], scale);
        }
    }
}

/// Moves latents on their side of `scale / 2` until their absolute mean is `scale`; zeros where none is above. A group without a
/// scale stays as it is, for the projection to name.
#[inline(always)]
fn bring_mean(group: &mut [f32], scale: f32) {
    if !scale.is_finite() {
        return;
    }
    let half = 0.5 * scale;
    let (mut below, mut above, mut count) = (0f64, 0f64, 0usize);
    for w in &*group {
        if w.abs() > half {
            above += (w.abs() - half) as f64;
            count += 1;
        } else {
            below += w.abs() as f64;
        }
    }
    if count == 0 {
        return group.fill(0.0);
    }
    let wanted = group.len() as f64 * scale as f64 - count as f64 * half as f64 - below;
    let factor = (wanted / above) as f32;
    for w in group.iter_mut().filter(|w| w.abs() > half) {
        *w = (half + factor * (w.abs() - half)).max(half.next_up()).copysign(*w);
    }
}
