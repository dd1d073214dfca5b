//! Scales that are parameters of their own. A group of latents is a direction times its absolute mean, and trits are the
//! direction's alone: so a training can learn the mean as a number, and latents are kept at it.

use rayon::prelude::*;

use super::elementwise::exp;
use super::embedding::unpack_row;
use super::isa::kernel;
use super::optimizer::{AdamW, Factors};
use super::profile::{Phase, scope};
use super::project::mean_of;
use super::simd::{dot, fma};
use crate::ternary::TernaryMatrix;

/// Absolute means of a matrix's groups as a training learns them, and the moments of their logarithms; `[rows, groups]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnedScales {
    /// In f32; a matrix has them rounded to f16.
    pub means: Vec<f32>,
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl LearnedScales {
    /// The means of `latents`, `[rows, cols]` in groups of `group`.
    pub fn of(latents: &[f32], cols: usize, group: usize) -> Self {
        let of_row = |row: &[f32]| row.chunks(group).map(|g| mean_of(g) as f32).collect::<Vec<f32>>();
        let means: Vec<f32> = latents.par_chunks(cols.max(1)).flat_map_iter(of_row).collect();
        Self { first: vec![0.0; means.len()], second: vec![0.0; means.len()], means }
    }
}

/// One step of Adam on `ln s` of every group, whose gradient is `sum g ŵ`: `grad` is that by the weights `ŵ`, which are
/// `trits`, or `weights` where products were with these in their place. A mean of 0 stays 0. Leaves the gradient.
pub fn learn_scales(
    rule: &AdamW,
    grad: &[f32],
    trits: &TernaryMatrix,
    weights: Option<&[f32]>,
    scales: &mut LearnedScales,
) {
    kernel! {
        fn of_row<S>(rule: &AdamW, by: Factors, grad: &[f32], row: &[f32], group: usize, scales: [&mut [f32]; 3]) {
            let [means, first, second] = scales;
            let moments = first.iter_mut().zip(second);
            let groups = grad.chunks(group).zip(row.chunks(group));
            for ((grad, row), (mean, (first, second))) in groups.zip(means.iter_mut().zip(moments)) {
                let g = rule.grad_scale * dot::<S>(grad, row);
                *first = fma::<S>(rule.beta1, *first, (1.0 - rule.beta1) * g);
                *second = fma::<S>(rule.beta2, *second, (1.0 - rule.beta2) * g * g);
                let root = fma::<S>(second.sqrt(), by.second_root, rule.eps);
                *mean *= exp::<S>(-by.first * *first / root);
            }
        }
    }
    let _time = scope(Phase::Optimizer);
    let (cols, group, groups) = (trits.cols(), trits.group(), trits.row_groups());
    assert_eq!(grad.len(), trits.rows() * cols, "the gradient of [{}, {cols}]", trits.rows());
    assert!(weights.is_none_or(|w| w.len() == grad.len()), "weights in place of trits");
    assert_eq!(scales.means.len(), trits.rows() * groups, "scales of {groups} groups a row");
    if grad.is_empty() {
        return;
    }
    let by = rule.factors();
    let LearnedScales { means, first, second } = scales;
    let scales = means.par_chunks_mut(groups).zip(first.par_chunks_mut(groups));
    let scales = scales.zip(second.par_chunks_mut(groups));
    grad.par_chunks(cols).zip(scales).enumerate().with_min_len(16).for_each_init(
        || vec![0f32; if weights.is_some() { 0 } else { cols }],
        |unpacked, (row, (grad, ((means, first), second)))| {
            let values = match weights {
                Some(weights) => &weights[row * cols..(row + 1) * cols],
                None => {
                    unpack_row(trits, row, unpacked);
                    &unpacked[..]
                }
            };
            of_row(rule, by, grad, values, group, [means, first, second]);
        },
    );
}
