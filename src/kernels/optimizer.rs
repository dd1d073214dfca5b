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

/// What is done to each value `p` with gradient `g`, which is 0 afterwards.
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
pub struct Pass {
    /// Sum the squared changes.
    pub measure: bool,
    /// Picks the random numbers that round moments of 8 bits: [`dither_key`](super::dither_key) of step and tensor.
    pub dither: u32,
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
pub fn update(rule: &Rule, latents: Latents<'_>, moments: &mut Moments, pass: Pass) -> Result<Updated> {
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
    let strip = Strip { at: 0, cols, value: &mut *value, grad, moments: moments.as_mut(), trits };
    let constants = rule.constants();
    let done = in_strips(strip, &|strip| strip.update(rule, constants, pass));
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

    fn update(mut self, rule: &Rule, constants: [f32; 3], pass: Pass) -> Done {
        let before = pass.measure.then(|| self.value.to_vec());
        match self.moments {
            MomentsMut::F32 { first, second } => {
                apply(rule, constants, self.value, self.grad, first, second);
            }
            MomentsMut::Int8 { first, second } => {
                let place = (pass.dither, self.at, self.cols);
                apply_int8(rule, constants, place, self.value, self.grad, first, second);
            }
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

    /// AdamW's factor of the latent, of the first moment, and of the second moment's root.
    fn constants(&self) -> [f32; 3] {
        let Rule::AdamW(a) = self else { return [0.0; 3] };
        let correction = |beta: f32| 1.0 - (beta as f64).powi(a.step.min(i32::MAX as u64) as i32);
        [
            (1.0 - a.lr as f64 * a.weight_decay as f64) as f32,
            (a.lr as f64 / correction(a.beta1)) as f32,
            (1.0 / correction(a.beta2).sqrt()) as f32,
        ]
    }
}

kernel! {
    fn apply<S>(rule: &Rule, c: [f32; 3], p: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        formula::<S, false>(rule, c, p, g, m, v);
    }
}

kernel! {
    /// [`apply`] block by block, whose moments are f32 in the first-level cache only. `place` is the key of the dither,
    /// the number of the first value, and the length of a row.
    fn apply_int8<S>(
        rule: &Rule,
        c: [f32; 3],
        place: (u32, usize, usize),
        p: &mut [f32],
        g: &mut [f32],
        m: CodesMut<'_, i8>,
        v: CodesMut<'_, u8>,
    ) {
        let ((key, first, cols), (mut m, mut v)) = (place, (m, v));
        let row_blocks = cols.div_ceil(BLOCK);
        let (mut bits, mut m_block, mut v_block) = ([0u32; BLOCK], [0f32; BLOCK], [0f32; BLOCK]);
        for (row, (p, g)) in p.chunks_exact_mut(cols).zip(g.chunks_exact_mut(cols)).enumerate() {
            for (nth, (p, g)) in p.chunks_mut(BLOCK).zip(g.chunks_mut(BLOCK)).enumerate() {
                let (at, block, len) = (row * cols + nth * BLOCK, row * row_blocks + nth, p.len());
                let bits = &mut bits[..len];
                moments::dither(key, first + at, bits);
                let (m_codes, m_scale) = m.block(at, len, block);
                let m_block = &mut m_block[..len];
                moments::decode_first(m_codes, *m_scale, m_block);
                if v.is_empty() {
                    formula::<S, true>(rule, c, p, g, m_block, &mut []);
                } else {
                    let (v_codes, v_scale) = v.block(at, len, block);
                    let v_block = &mut v_block[..len];
                    moments::decode_second(v_codes, *v_scale, v_block);
                    formula::<S, true>(rule, c, p, g, m_block, v_block);
                    moments::encode_second(v_block, bits, v_codes, v_scale);
                }
                moments::encode_first(m_block, bits, m_codes, m_scale);
            }
        }
    }
}

/// `m` is the first moment or the momentum, `v` the second moment, which with `ROOT` leaves as its root; what the rule
/// does not have is empty.
#[inline(always)]
fn formula<S: Simd, const ROOT: bool>(
    rule: &Rule,
    c: [f32; 3],
    p: &mut [f32],
    g: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    match *rule {
        Rule::AdamW(a) => {
            let [keep, step, root] = c;
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                let s = *g * a.grad_scale;
                *g = 0.0;
                *m = fma::<S>(a.beta1, *m, (1.0 - a.beta1) * s);
                let second = fma::<S>(a.beta2, *v, (1.0 - a.beta2) * s * s);
                *v = if ROOT { second.sqrt() } else { second };
                *p = *p * keep - step * *m / fma::<S>(second.sqrt(), root, a.eps);
            }
        }
        Rule::Sgd { lr, momentum, weight_decay, grad_scale } => {
            for ((p, g), b) in p.iter_mut().zip(g).zip(m) {
                *b = fma::<S>(momentum, *b, fma::<S>(weight_decay, *p, *g * grad_scale));
                *g = 0.0;
                *p = fma::<S>(-lr, *b, *p);
            }
        }
        Rule::Momentum { momentum, grad_scale } => {
            for ((p, g), b) in p.iter_mut().zip(g).zip(m) {
                *b = fma::<S>(momentum, *b, grad_scale * *g);
                *p = fma::<S>(grad_scale, *g, momentum * *b);
                *g = 0.0;
            }
        }
        Rule::Add { keep, step } => {
            for (p, g) in p.iter_mut().zip(g) {
                *p = fma::<S>(keep, *p, step * *g);
            }
        }
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
    assert_eq!(x.len(), out.len());
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| run(a, out, b, x));
}
