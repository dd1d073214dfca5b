//! A teacher's likeliest tokens: found in rows of its logits, and learnt from without it.

use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::cross_entropy::{IGNORE, Objective, log_sum_exp, probabilities};
use super::profile::{Phase, scope};

/// What a teacher holds likeliest at each of some rows, and, at the temperature 1, how likely. What is left of 1 is that of all
/// other tokens together.
#[derive(Clone, Copy, Debug)]
pub struct Likely<'a> {
    /// Tokens of a row, 1 or more.
    pub top: usize,
    /// `[N, top]`; those of a row differ, and are below the number of classes.
    pub tokens: &'a [u32],
    /// `[N, top]`: natural logarithms of probabilities, finite and not above 0; of all classes not all of them 0.
    pub ln_p: &'a [f32],
}

impl<'a> Likely<'a> {
    /// Of some of the rows.
    pub fn rows(self, rows: Range<usize>) -> Self {
        let values = rows.start * self.top..rows.end * self.top;
        Self { tokens: &self.tokens[values.clone()], ln_p: &self.ln_p[values], ..self }
    }
}

/// Of each row of `classes` logits, `stride` apart, the `top` largest, the first of equals first: appends which they are to
/// `tokens`, and `ln softmax` of them to `ln_p`.
pub fn likeliest(
    logits: &[f32],
    classes: usize,
    stride: usize,
    top: usize,
    tokens: &mut Vec<u32>,
    ln_p: &mut Vec<f32>,
) {
    let _time = scope(Phase::CrossEntropy);
    assert!(stride >= classes && (1..=classes).contains(&top), "{top} of {classes} classes, {stride} apart");
    assert!(logits.len().is_multiple_of(stride), "{} logits in rows {stride} apart", logits.len());
    let (at, more) = (tokens.len(), logits.len() / stride * top);
    assert_eq!(at, ln_p.len(), "tokens and their probabilities");
    tokens.resize(at + more, 0);
    ln_p.resize(at + more, 0.0);
    let results = tokens[at..].par_chunks_mut(top).zip(ln_p[at..].par_chunks_mut(top));
    logits.par_chunks(stride).zip(results).for_each(|(row, (tokens, ln_p))| {
        let row = &row[..classes];
        let sum = log_sum_exp(row);
        for ((token, ln_p), found) in tokens.iter_mut().zip(ln_p).zip(largest(row, top)) {
            *token = found;
            // Where a token has all, its logit is the sum, to rounding.
            let x = row[found as usize] - sum;
            *ln_p = if x > 0.0 { 0.0 } else { x };
        }
    });
}

/// Where the largest values are, in falling order.
fn largest(row: &[f32], top: usize) -> impl Iterator<Item = u32> {
    // One number whose order is that of the values, and of equal ones the other way round than their places.
    let ranked = |(place, x): (usize, &f32)| {
        let bits = x.to_bits();
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        (ordered as u64) << 32 | !(place as u32) as u64
    };
    let mut all = row.iter().enumerate().map(ranked);
    let mut kept: BinaryHeap<Reverse<u64>> = all.by_ref().take(top).map(Reverse).collect();
    for rank in all {
        if let Some(mut least) = kept.peek_mut().filter(|least| least.0 < rank) {
            *least = Reverse(rank);
        }
    }
    kept.into_sorted_vec().into_iter().map(|Reverse(rank)| !(rank as u32))
}

/// As [`distill`](super::distill), forward and at the temperature 1, from what is stored of a teacher: of each row of `classes`
/// logits, `stride` apart, writes `-ln softmax(row)[target]` to `loss` and to `divergence`
/// `Σ p (ln p - ln q) + r (ln r - ln q_r)` over the likeliest tokens, `r` and `q_r` what teacher and student leave to the others;
/// both 0 where the target is [`IGNORE`]. Replaces the row by its gradient of
/// `scale * ((1 - weight) loss + weight divergence + z_loss (ln Z)²)`.
#[allow(clippy::too_many_arguments)]
pub fn distill_likely(
    logits: &mut [f32],
    classes: usize,
    stride: usize,
    targets: &[u32],
    likely: Likely<'_>,
    weight: f32,
    objective: Objective,
    loss: &mut [f32],
    divergence: &mut [f32],
) {
    let _time = scope(Phase::CrossEntropy);
    let (rows, top) = (targets.len(), likely.top);
    assert!(stride >= classes && (1..=classes).contains(&top), "{top} of {classes} classes, {stride} apart");
    assert_eq!(logits.len(), rows * stride, "logits of {rows} rows {stride} apart");
    assert_eq!(
        [likely.tokens.len(), likely.ln_p.len()],
        [rows * top; 2],
        "the {top} likeliest of {rows} rows"
    );
    assert_eq!([loss.len(), divergence.len()], [rows; 2], "losses of {rows} rows");
    let results = loss.par_iter_mut().zip(divergence);
    let given = likely.tokens.par_chunks(top).zip(likely.ln_p.par_chunks(top));
    logits.par_chunks_mut(stride).zip(given).zip(targets).zip(results).for_each(
        |(((row, (tokens, ln_p)), &target), (loss, divergence))| {
            let row = &mut row[..classes];
            if target == IGNORE {
                (*loss, *divergence) = (0.0, 0.0);
                row.fill(0.0);
                return;
            }
            let at = row[target as usize];
            let ln_z;
            (ln_z, *divergence) = learn(row, tokens, ln_p, weight, objective);
            *loss = ln_z - at;
            row[target as usize] -= (1.0 - weight) * objective.scale;
        },
    );
}

/// Replaces a row by its gradient but for the target's part of it; `ln Z` and the divergence.
fn learn(row: &mut [f32], tokens: &[u32], ln_p: &[f32], weight: f32, objective: Objective) -> (f32, f32) {
    let own: Vec<f32> = tokens.iter().map(|&token| row[token as usize]).collect();
    // The sum of the others is added up without the likeliest: what a difference leaves of it may be nothing.
    tokens.iter().for_each(|&token| row[token as usize] = f32::NEG_INFINITY);
    let no_others = tokens.len() == row.len();
    let others = if no_others { f32::NEG_INFINITY } else { log_sum_exp(row) };
    let likeliest = log_sum_exp(&own);
    // `max` and `min` would lose a NaN.
    let (more, less) = if likeliest > others { (likeliest, others) } else { (others, likeliest) };
    let ln_z = more + (less - more).exp().ln_1p();

    // Stored probabilities are rounded: together they may be more than 1, or, of all classes, less.
    let given: f64 = ln_p.iter().map(|&x| (x as f64).exp()).sum();
    let excess = if no_others || given > 1.0 { given.ln() } else { 0.0 };
    let rest = if no_others { 0.0 } else { (1.0 - given).max(0.0) };
    let mut divergence = 0.0;
    if rest > 0.0 {
        divergence += rest * (rest.ln() - (others - ln_z) as f64);
    }
    let Objective { scale, z_loss } = objective;
    let soft = scale * weight;
    let both = scale * (1.0 - weight + 2.0 * z_loss * ln_z) + soft;
    if !no_others {
        // `q (both - soft r / q_r)`, and `q / q_r` is the soft-max among the others alone.
        probabilities(row, others, both * (others - ln_z).exp() - soft * rest as f32);
    }
    for ((&token, own), &ln_p) in tokens.iter().zip(own).zip(ln_p) {
        let (ln_q, ln_p) = (own - ln_z, ln_p as f64 - excess);
        let p = ln_p.exp();
        divergence += p * (ln_p - ln_q as f64);
        row[token as usize] = both * ln_q.exp() - soft * p as f32;
    }
    (ln_z, divergence as f32)
}
