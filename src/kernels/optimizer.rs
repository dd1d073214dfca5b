//! An optimizer's pass over a tensor. Memory traffic is its cost, so it is one pass: a strip of rows is updated,
//! projected, and its gradient set to zero while it is in the cache. A gradient is read as `grad_scale * g`, so that
//! clipping costs no pass of its own.

use rayon::prelude::*;

use super::elementwise::{CHUNK, squares};
use super::isa::kernel;
use super::moments::{self, BLOCK, CodesMut, Moments, MomentsMut};
use super::profile::{Phase, scope};
use super::project::{Trits, project};
use super::simd::{Simd, fma};
use crate::error::Result;
use crate::ternary::{Flips, Grouping, TernaryMatrix, not_finite};

/// Values of a strip, unless a row has more: latents, gradient and two moments (128 KiB) fit the second-level cache.
const STRIP: usize = 1 << 13;

/// A tensor in training.
pub struct Latents<'a> {
    /// For errors.
    pub name: &'a str,
    /// Values of a row.
    pub cols: usize,
    pub value: &'a mut [f32],
    /// Of the same shape.
    pub grad: &'a mut [f32],
    /// The projection, if the tensor has one, to be brought up to date.
    pub ternary: Option<(Grouping, &'a mut TernaryMatrix)>,
}

/// What is done to each value `p` with gradient `g`, which is 0 afterwards. `b` is the momentum.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    AdamW(AdamW),
    /// SGD with momentum, as in PyTorch: `g += wd p; b = mu b + g; p -= lr b`.
    Sgd {
        lr: f32,
        momentum: f32,
        weight_decay: f32,
        grad_scale: f32,
    },
    /// Muon's momentum (Nesterov): `b = mu b + g; p = g + mu b`.
    Momentum {
        momentum: f32,
        grad_scale: f32,
    },
    /// `p = keep p + step g`, without moments; leaves `g`.
    Add {
        keep: f32,
        step: f32,
    },
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101), as in PyTorch:
/// `p -= lr wd p; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr/(1-b1^t) m / (sqrt(v/(1-b2^t)) + eps)`.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    pub grad_scale: f32,
    /// Of this step, counted from 1.
    pub step: u64,
}

/// What a pass needs beside the rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass<'a> {
    /// Sum the squared changes.
    pub measure: bool,
    /// Picks the random numbers that round moments of 8 bits: [`dither_key`](super::dither_key) of step and tensor.
    pub dither: u32,
    /// Where only some rows of a tensor are updated, the first of them.
    pub first_row: usize,
    /// What the absolute means of the groups of all of a ternary tensor are to be, `[rows, groups]`; else they are what
    /// the values have.
    pub means: Option<&'a [f32]>,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Updated {
    /// Trits that changed.
    pub flips: Flips,
    /// Sum of the squared changes of the latents, if it was to be measured.
    pub squares: f64,
}

/// One pass of `rule`: latents and moments are updated, the projection is brought up to date, the gradient becomes 0.
/// The sum of squares is the same for any number of threads.
///
/// # Errors
/// `NotFinite` with the tensor's name when a latent, or a group's mean in f16, is not finite; the projection is then
/// unspecified.
pub fn update(rule: &Rule, latents: Latents<'_>, moments: &mut Moments, pass: Pass<'_>) -> Result<Updated> {
    let _time = scope(Phase::Optimizer);
    let Latents { name, cols, value, grad, mut ternary } = latents;
    assert_eq!(value.len(), grad.len(), "{name}: gradients");
    if value.is_empty() {
        return Ok(Updated::default());
    }
    assert!(value.len().is_multiple_of(cols), "{name}: {} values in rows of {cols}", value.len());
    let rows = value.len() / cols;
    moments.check(name, rule.moments(), rows, cols);
    // A scale of the whole matrix is known after the last row only.
    let by_rows = ternary.as_mut().filter(|(grouping, _)| *grouping != Grouping::Tensor);
    let trits = by_rows.map(|(grouping, out)| Trits::of(name, rows, cols, *grouping, out));
    let trits = match pass.means {
        Some(means) => Some(trits.expect("means are of groups in rows of a projection").held_at(means)),
        None => trits,
    };
    let at = pass.first_row * cols;
    let strip = Strip { at, cols, value: &mut *value, grad, moments: moments.as_mut(), trits };
    let factors = rule.factors();
    let done = in_strips(strip, &|strip| strip.update(rule, factors, pass));
    let mut flips = done.flips;
    match ternary {
        Some((Grouping::Tensor, out)) => flips += project(name, value, Grouping::Tensor, out)?,
        Some((_, out)) if !done.finite => return Err(not_finite(name, value, out)),
        _ => {}
    }
    Ok(Updated { flips, squares: done.squares })
}

/// Whole rows of a tensor and of all that a step reads and writes with it.
struct Strip<'a> {
    /// The number of its first value.
    at: usize,
    cols: usize,
    value: &'a mut [f32],
    grad: &'a mut [f32],
    moments: MomentsMut<'a>,
    trits: Option<Trits<'a>>,
}

struct Done {
    flips: Flips,
    finite: bool,
    squares: f64,
}

impl<'a> Strip<'a> {
    fn split_at(self, rows: usize) -> (Strip<'a>, Strip<'a>) {
        let (at, cols) = (self.at, self.cols);
        let (value, value_after) = self.value.split_at_mut(rows * cols);
        let (grad, grad_after) = self.grad.split_at_mut(rows * cols);
        let (moments, moments_after) = self.moments.split_at(rows, cols);
        let (trits, trits_after) = self.trits.map(|t| t.split_at(rows)).unzip();
        (
            Strip { at, cols, value, grad, moments, trits },
            Strip {
                at: at + rows * cols,
                cols,
                value: value_after,
                grad: grad_after,
                moments: moments_after,
                trits: trits_after,
            },
        )
    }

    fn update(mut self, rule: &Rule, factors: Factors, pass: Pass) -> Done {
        let before = pass.measure.then(|| self.value.to_vec());
        match self.moments {
            MomentsMut::F32 { first, second } => {
                apply(rule, factors, self.value, self.grad, first, second);
            }
            MomentsMut::Int8 { first, second } => {
                let place = Place { first_value: self.at, cols: self.cols, dither: pass.dither };
                apply_int8(rule, factors, place, self.value, self.grad, first, second);
            }
        }
        if let Some(trits) = &self.trits {
            trits.hold(self.value);
        }
        let squares = before.map_or(0.0, |mut change| {
            change.iter_mut().zip(&*self.value).for_each(|(c, now)| *c = now - *c);
            squares(&change)
        });
        let (flips, finite) = match &mut self.trits {
            Some(trits) => trits.project(self.value, None),
            None => (Flips::default(), true),
        };
        Done { flips, finite, squares }
    }
}

/// Runs `f` on strips, in parallel. The tree of halves, and with it the order of the sum, depends on the shape alone.
fn in_strips(strip: Strip<'_>, f: &(impl Fn(Strip<'_>) -> Done + Sync)) -> Done {
    let rows = strip.value.len() / strip.cols;
    if rows == 1 || strip.value.len() <= STRIP {
        return f(strip);
    }
    let (a, b) = strip.split_at(rows / 2);
    let (mut a, b) = rayon::join(|| in_strips(a, f), || in_strips(b, f));
    a.flips += b.flips;
    Done { flips: a.flips, finite: a.finite && b.finite, squares: a.squares + b.squares }
}

impl Rule {
    /// Moments of each value.
    fn moments(&self) -> usize {
        match self {
            Rule::AdamW(_) => 2,
            Rule::Sgd { .. } | Rule::Momentum { .. } => 1,
            Rule::Add { .. } => 0,
        }
    }

    /// Of AdamW; zeros of the others, which have none.
    fn factors(&self) -> Factors {
        match self {
            Rule::AdamW(rule) => rule.factors(),
            _ => Factors::default(),
        }
    }
}

impl AdamW {
    pub(super) fn factors(&self) -> Factors {
        let correction = |beta: f32| 1.0 - (beta as f64).powi(self.step.min(i32::MAX as u64) as i32);
        Factors {
            value: (1.0 - self.lr as f64 * self.weight_decay as f64) as f32,
            first: (self.lr as f64 / correction(self.beta1)) as f32,
            second_root: (1.0 / correction(self.beta2).sqrt()) as f32,
        }
    }
}

/// What AdamW multiplies with in a step, decay, learning rate and corrections of the moments together.
#[derive(Clone, Copy, Default)]
pub(super) struct Factors {
    value: f32,
    pub first: f32,
    /// Of the second moment's root.
    pub second_root: f32,
}

/// Where in its tensor a strip is.
#[derive(Clone, Copy)]
struct Place {
    /// The number of its first value.
    first_value: usize,
    /// Values of a row.
    cols: usize,
    /// The key of the random numbers that round its moments.
    dither: u32,
}

kernel! {
    fn apply<S>(
        rule: &Rule,
        factors: Factors,
        values: &mut [f32],
        grads: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        formula::<S, false>(rule, factors, values, grads, first, second);
    }
}

kernel! {
    /// [`apply`] block by block, whose moments are f32 in the first-level cache only.
    fn apply_int8<S>(
        rule: &Rule,
        factors: Factors,
        place: Place,
        values: &mut [f32],
        grads: &mut [f32],
        first: CodesMut<'_, i8>,
        second: CodesMut<'_, u8>,
    ) {
        let Place { first_value, cols, dither } = place;
        let (mut first_codes, mut second_codes) = (first, second);
        let row_blocks = cols.div_ceil(BLOCK);
        let (mut bits, mut first, mut second) = ([0u32; BLOCK], [0f32; BLOCK], [0f32; BLOCK]);
        for (row, (values, grads)) in values.chunks_exact_mut(cols).zip(grads.chunks_exact_mut(cols)).enumerate() {
            for (nth, (values, grads)) in values.chunks_mut(BLOCK).zip(grads.chunks_mut(BLOCK)).enumerate() {
                let (at, block, len) = (row * cols + nth * BLOCK, row * row_blocks + nth, values.len());
                let bits = &mut bits[..len];
                moments::dither(dither, first_value + at, bits);
                let (codes, scale) = first_codes.block(at, len, block);
                let first = &mut first[..len];
                moments::decode_first(codes, *scale, first);
                if second_codes.is_empty() {
                    formula::<S, true>(rule, factors, values, grads, first, &mut []);
                } else {
                    let (codes, scale) = second_codes.block(at, len, block);
                    let second = &mut second[..len];
                    moments::decode_second(codes, *scale, second);
                    formula::<S, true>(rule, factors, values, grads, first, second);
                    moments::encode_second(second, bits, codes, scale);
                }
                moments::encode_first(first, bits, codes, scale);
            }
        }
    }
}

/// `first` is the first moment or the momentum, `second` the second moment, which with `ROOT` leaves as its root; what
/// the rule does not have is empty.
#[inline(always)]
fn formula<S: Simd, const ROOT: bool>(
    rule: &Rule,
    factors: Factors,
    values: &mut [f32],
    grads: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    match *rule {
        Rule::AdamW(a) => {
            for (((value, grad), first), second) in values.iter_mut().zip(grads).zip(first).zip(second) {
                let scaled = *grad * a.grad_scale;
                *grad = 0.0;
                *first = fma::<S>(a.beta1, *first, (1.0 - a.beta1) * scaled);
                let moved = fma::<S>(a.beta2, *second, (1.0 - a.beta2) * scaled * scaled);
                *second = if ROOT { moved.sqrt() } else { moved };
                let root = fma::<S>(moved.sqrt(), factors.second_root, a.eps);
                *value = *value * factors.value - factors.first * *first / root;
            }
        }
        Rule::Sgd { lr, momentum, weight_decay, grad_scale } => {
            for ((value, grad), gathered) in values.iter_mut().zip(grads).zip(first) {
                *gathered = fma::<S>(momentum, *gathered, fma::<S>(weight_decay, *value, *grad * grad_scale));
                *grad = 0.0;
                *value = fma::<S>(-lr, *gathered, *value);
            }
        }
        Rule::Momentum { momentum, grad_scale } => {
            for ((value, grad), gathered) in values.iter_mut().zip(grads).zip(first) {
                *gathered = fma::<S>(momentum, *gathered, grad_scale * *grad);
                *value = fma::<S>(grad_scale, *grad, momentum * *gathered);
                *grad = 0.0;
            }
        }
        Rule::Add { keep, step } => {
            for (value, grad) in values.iter_mut().zip(grads) {
                *value = fma::<S>(keep, *value, step * *grad);
            }
        }
    }
}

/// Keeps of an update what has the sign of the gradient, times all over kept: `u φ / mean(φ)` with `φ` 1 where `u g > 0`, else 0
/// (arXiv 2411.16085).
pub fn cautious(update: &mut [f32], grad: &[f32]) {
    kernel! {
        fn keep<S>(update: &mut [f32], grad: &[f32]) -> usize {
            let mut kept = 0;
            for (u, g) in update.iter_mut().zip(grad) {
                let agrees = *u * g > 0.0;
                *u = if agrees { *u } else { 0.0 };
                kept += agrees as usize;
            }
            kept
        }
    }
    assert_eq!(update.len(), grad.len(), "an update and its gradient");
    let kept: usize = update.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).map(|(u, g)| keep(u, g)).sum();
    if kept > 0 {
        let factor = update.len() as f32 / kept as f32;
        update.par_chunks_mut(CHUNK).for_each(|u| u.iter_mut().for_each(|u| *u *= factor));
    }
}

/// `out = a * out + b * x`
pub fn scale_add(a: f32, out: &mut [f32], b: f32, x: &[f32]) {
    kernel! {
        fn run<S>(a: f32, out: &mut [f32], b: f32, x: &[f32]) {
            for (o, x) in out.iter_mut().zip(x) {
                *o = fma::<S>(a, *o, b * x);
            }
        }
    }
    assert_eq!(x.len(), out.len(), "values read and written");
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| run(a, out, b, x));
}
