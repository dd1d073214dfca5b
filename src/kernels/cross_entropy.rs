//! Soft-max cross-entropy over rows of logits.

use rayon::prelude::*;

use super::elementwise::exp;
use super::isa::kernel;
use super::profile::{Phase, scope};

/// The target of a position that is not scored.
pub const IGNORE: u32 = u32::MAX;

/// Values in a line of the cache, and in a page.
const LINE: usize = 16;
const PAGE: usize = 1024;

/// What a gradient is of: `scale (loss + z_loss (ln Z)²)`, `Z` the sum `sum e^x` that a row's soft-max divides by. The
/// second term (PaLM, arXiv 2204.02311) keeps `ln Z`, which the soft-max does not see, near 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    pub scale: f32,
    pub z_loss: f32,
}

impl Objective {
    /// Of the loss alone.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, z_loss: 0.0 }
    }
}

/// From a row of logits to the next, best: whole lines of the cache, and not a multiple of a page, whose lines would all be
/// wanted at the same place of the cache.
pub fn logits_stride(classes: usize) -> usize {
    let lines = classes.next_multiple_of(LINE);
    if lines.is_multiple_of(PAGE) { lines + LINE } else { lines }
}

/// Appends the index of the largest of each row of `classes` logits, `stride` apart: the first of equals.
pub fn most_likely(logits: &[f32], classes: usize, stride: usize, out: &mut Vec<u32>) {
    let largest = |row: &[f32]| (0..classes).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    out.par_extend(logits.par_chunks(stride).map(|row| largest(&row[..classes]) as u32));
}

/// For each row of `classes` logits, `stride` apart: writes `-ln softmax(row)[target]` to `loss` (0 where the target is
/// [`IGNORE`]) and, if an objective is given, replaces the row by its gradient,
/// `scale * ((1 + 2 z_loss ln Z) softmax - onehot)`.
pub fn cross_entropy(
    logits: &mut [f32],
    classes: usize,
    stride: usize,
    targets: &[u32],
    objective: Option<Objective>,
    loss: &mut [f32],
) {
    let _time = scope(Phase::CrossEntropy);
    let rows = targets.len();
    assert!(stride >= classes, "{classes} classes, rows {stride} apart");
    assert_eq!(logits.len(), rows * stride, "logits of {rows} rows {stride} apart");
    assert_eq!(loss.len(), rows, "losses of {rows} rows");
    logits.par_chunks_mut(stride).zip(targets).zip(loss).for_each(|((row, &target), loss)| {
        let row = &mut row[..classes];
        if target == IGNORE {
            *loss = 0.0;
            if objective.is_some() {
                row.fill(0.0);
            }
            return;
        }
        let at = row[target as usize];
        match objective {
            None => *loss = log_sum_exp(row) - at,
            Some(Objective { scale, z_loss }) => {
                let (lse, factor) = exponentials(row, scale);
                *loss = lse - at;
                multiply(row, factor * (1.0 + 2.0 * z_loss * lse));
                row[target as usize] -= scale;
            }
        }
    });
}

kernel! {
    /// The largest of the values and `least`, and `sum e^(x - largest)`.
    pub(super) fn shifted_sum<S>(row: &[f32], least: f32) -> (f32, f32) {
        let max = maximum(row);
        let max = if max > least { max } else { least };
        let mut sums = [0f32; 16];
        let chunks = row.chunks_exact(16);
        let tail: f32 = chunks.remainder().iter().map(|&x| exp::<S>(x - max)).sum();
        for chunk in chunks {
            for i in 0..16 {
                sums[i] += exp::<S>(chunk[i] - max);
            }
        }
        (max, sums.iter().sum::<f32>() + tail)
    }
}

kernel! {
    /// `factor e^(x - lse)`
    pub(super) fn probabilities<S>(row: &mut [f32], lse: f32, factor: f32) {
        row.iter_mut().for_each(|x| *x = factor * exp::<S>(*x - lse));
    }
}

kernel! {
    fn multiply<S>(row: &mut [f32], factor: f32) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

#[inline(always)]
pub(super) fn maximum(row: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    for chunk in chunks {
        for i in 0..16 {
            tops[i] = if chunk[i] > tops[i] { chunk[i] } else { tops[i] };
        }
    }
    tops.iter().fold(tail, |a, &b| if b > a { b } else { a })
}

/// `ln sum e^x`
pub(super) fn log_sum_exp(row: &[f32]) -> f32 {
    let (max, sum) = shifted_sum(row, f32::NEG_INFINITY);
    max + sum.ln()
}

kernel! {
    /// Replaces the row by `e^(x - max)`; gives `ln sum e^x` and the factor that turns the row into `scale * softmax`.
    fn exponentials<S>(row: &mut [f32], scale: f32) -> (f32, f32) {
        let max = maximum(row);
        let mut sums = [0f32; 16];
        let mut chunks = row.chunks_exact_mut(16);
        for chunk in &mut chunks {
            for i in 0..16 {
                chunk[i] = exp::<S>(chunk[i] - max);
                sums[i] += chunk[i];
            }
        }
        let mut sum = 0.0;
        for x in chunks.into_remainder() {
            *x = exp::<S>(*x - max);
            sum += *x;
        }
        sum += sums.iter().sum::<f32>();
        (max + sum.ln(), scale / sum)
    }
}
