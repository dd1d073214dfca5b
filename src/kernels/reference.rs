//! What each kernel means: plain loops in f64, slow on purpose; nothing but tests calls them. The sizes that a meaning
//! depends on are here too, for the kernels.

use super::{Distillation, IGNORE};
use crate::config::Direction;
use crate::random::{GAMMA, splitmix64};
use crate::ternary::TernaryMatrix;

/// `C = A B`, `[m, k] [k, n]`, row-major.
pub fn matmul(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
        }
    }
    c
}

/// The nearest bf16, ties to even: what operands of products are with `train.precision = "bf16"`. Subnormal numbers are
/// zero, as the units that multiply bf16 take them for; NaN stays NaN, and what no bf16 can hold becomes infinite.
pub fn bf16(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { half::bf16::from_f32(x).to_f32() }
}

/// `dx = dy Ŵ` with operands in bf16, `dy` `[n, out]`: the sum runs over rows, whose scales differ, so each gradient is
/// multiplied by the scale in f32, then rounded, and meets a trit.
pub fn input_gradient_bf16(dy: &[f32], w: &TernaryMatrix) -> Vec<f64> {
    let mut dx = Vec::new();
    for dy in dy.chunks(w.rows()) {
        for i in 0..w.cols() {
            let term = |(o, dy): (usize, &f32)| bf16(dy * w.scale(o, i)) as f64 * w.trit(o, i) as f64;
            dx.push(dy.iter().enumerate().map(term).sum());
        }
    }
    dx
}

/// `y = x Wᵀ + bias`, `x` `[n, inputs]`, `w` `[out, inputs]`.
pub fn linear(x: &[f64], w: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
    let out = w.len() / inputs;
    let mut y = Vec::with_capacity(x.len() / inputs * out);
    for x in x.chunks(inputs) {
        for (o, w) in w.chunks(inputs).enumerate() {
            y.push(x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + bias.map_or(0.0, |b| b[o]));
        }
    }
    y
}

/// Rows of `gain.len()` values over their root mean square.
pub fn rms_norm(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(gain.len()) {
        let inv = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / gain.len() as f64 + eps).sqrt();
        y.extend(row.iter().zip(gain).map(|(x, g)| x * inv * g));
    }
    y
}

/// Rotation of `[n, heads, D]` in halves, times `factor`; row `r` at position `r % seq`, `frequencies` `[D / 2]`.
pub fn rope(x: &[f64], heads: usize, frequencies: &[f32], factor: f64, seq: usize) -> Vec<f64> {
    let half = frequencies.len();
    let mut y = x.to_vec();
    for (r, row) in y.chunks_mut(heads * 2 * half).enumerate() {
        for head in row.chunks_mut(2 * half) {
            for i in 0..half {
                let angle = (r % seq) as f64 * frequencies[i] as f64;
                let (a, b) = (head[i], head[i + half]);
                head[i] = factor * (a * angle.cos() - b * angle.sin());
                head[i + half] = factor * (b * angle.cos() + a * angle.sin());
            }
        }
    }
    y
}

/// Shapes of the attention of equal sequences: queries `[batch, queries, heads, dim]`, keys and values `[batch, keys, kv_heads, dim]`.
/// When `causal`, query `i` stands at key position `keys - queries + i` and sees no key after it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub causal: bool,
}

/// Attention with the whole score matrix written out.
pub fn attention(shape: &AttentionShape, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let s = shape;
    let mut out = vec![0.0; q.len()];
    for b in 0..s.batch {
        for i in 0..s.queries {
            for h in 0..s.heads {
                let kv = h / (s.heads / s.kv_heads);
                let q_at = ((b * s.queries + i) * s.heads + h) * s.dim;
                let k_at = |j: usize| ((b * s.keys + j) * s.kv_heads + kv) * s.dim;
                let seen = if s.causal { s.keys - s.queries + i + 1 } else { s.keys };
                let scores: Vec<f64> = (0..seen)
                    .map(|j| {
                        (0..s.dim).map(|d| q[q_at + d] * k[k_at(j) + d]).sum::<f64>() / (s.dim as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                for (j, score) in scores.iter().enumerate() {
                    for d in 0..s.dim {
                        out[q_at + d] += (score - max).exp() / sum * v[k_at(j) + d];
                    }
                }
            }
        }
    }
    out
}

/// `x / (1 + e^-x)`
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// GELU, tanh form.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// `max(0, x)^2`
pub fn relu2(x: f64) -> f64 {
    x.max(0.0).powi(2)
}

/// `-ln softmax(logits)[target]`
pub fn cross_entropy(logits: &[f64], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - logits[target]
}

/// `(ln Z)²`, `Z` the sum that the soft-max divides by.
pub fn z_loss(logits: &[f64]) -> f64 {
    logits.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2)
}

/// What a student learns of its teacher at a position, from the logits of both: cross-entropy, divergence at the temperature,
/// and `(1 - weight) CE + weight T² KL`, which is minimised.
pub fn distill(student: &[f64], teacher: &[f64], target: usize, how: Distillation) -> [f64; 3] {
    let (weight, t) = (how.weight as f64, how.temperature as f64);
    // ln softmax(x / T)
    let soft = |x: &[f64]| -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|x| x / t).collect();
        (0..x.len()).map(|class| -cross_entropy(&x, class)).collect()
    };
    let (of, from) = match how.direction {
        Direction::Forward => (soft(teacher), soft(student)),
        Direction::Reverse => (soft(student), soft(teacher)),
    };
    let divergence = of.iter().zip(&from).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
    let loss = cross_entropy(student, target);
    [loss, divergence, (1.0 - weight) * loss + weight * t * t * divergence]
}

/// Rows of a model and of its teacher whose relations are compared, head by head: `[batch, len, heads, dim]`, heads of the
/// teacher `teacher_dim` wide. When `causal`, a position relates to itself and those before it.
#[derive(Clone, Copy, Debug)]
pub struct RelationShape {
    pub batch: usize,
    pub len: usize,
    pub heads: usize,
    pub dim: usize,
    pub teacher_dim: usize,
    pub causal: bool,
}

/// `KL(P | Q)`, summed over the rows whose target is not [`IGNORE`], the mean of the heads: `P` of the teacher and `Q` of the
/// student are rows of the soft-max of `A Aᵀ / sqrt(dim)`.
pub fn relations(shape: &RelationShape, student: &[f64], teacher: &[f64], targets: &[u32]) -> f64 {
    let s = shape;
    let mut sum = 0.0;
    for (row, _) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
        let (b, i) = (row / s.len, row % s.len);
        let seen = if s.causal { i + 1 } else { s.len };
        for head in 0..s.heads {
            let ln_softmax = |a: &[f64], dim: usize| -> Vec<f64> {
                let at = |j: usize| &a[((b * s.len + j) * s.heads + head) * dim..][..dim];
                let dot = |j: usize| at(i).iter().zip(at(j)).map(|(x, y)| x * y).sum::<f64>();
                let scores: Vec<f64> = (0..seen).map(|j| dot(j) / (dim as f64).sqrt()).collect();
                let ln_z = cross_entropy(&scores, 0) + scores[0];
                scores.iter().map(|x| x - ln_z).collect()
            };
            let (p, q) = (ln_softmax(teacher, s.teacher_dim), ln_softmax(student, s.dim));
            sum += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        }
    }
    sum / s.heads as f64
}

/// [`distill`], forward and at the temperature 1, where of the teacher's distribution the natural logarithms `ln_p` of some
/// probabilities are known, those of `tokens`, and of the others their sum, which is what is left of 1. Where rounding made them
/// more than 1, or there are no others, they count relative to each other.
pub fn distill_likely(student: &[f64], tokens: &[u32], ln_p: &[f64], target: usize, weight: f64) -> [f64; 3] {
    let ln_q: Vec<f64> = (0..student.len()).map(|class| -cross_entropy(student, class)).collect();
    let given: f64 = ln_p.iter().map(|x| x.exp()).sum();
    let mut divergence = 0.0;
    let relative = given > 1.0 || tokens.len() == student.len();
    for (&token, ln_p) in tokens.iter().zip(ln_p) {
        let ln_p = if relative { ln_p - given.ln() } else { *ln_p };
        divergence += ln_p.exp() * (ln_p - ln_q[token as usize]);
    }
    if !relative && given < 1.0 {
        let others = (0..student.len()).filter(|class| !tokens.contains(&(*class as u32)));
        let q: f64 = others.map(|class| ln_q[class].exp()).sum();
        divergence += (1.0 - given) * ((1.0 - given).ln() - q.ln());
    }
    let loss = -ln_q[target];
    [loss, divergence, (1.0 - weight) * loss + weight * divergence]
}

/// Whether dropout sets a value to zero: 16 bits of a random number below `rate`. Seed, sequence, place in the model and position
/// pick a stream of numbers, each of which serves four columns.
pub fn dropped(seed: u64, [sequence, place, position]: [u64; 3], column: usize, rate: f32) -> bool {
    let number = |stream: u64, n: u64| splitmix64(stream.wrapping_add(GAMMA.wrapping_mul(n + 1)));
    let row = number(number(number(seed, sequence), place), position);
    let bits = number(row, column as u64 / 4) >> (16 * (column % 4)) & 0xFFFF;
    (bits as f64) < (65_536.0 * rate as f64).round()
}

/// What one scale of [`linear_int8`] multiplies is the sum of at most as many products, all of one group.
pub use crate::ternary::SEGMENT;

/// `y = x̂ Ŵᵀ` with inputs rounded to 8 bits, `[n, out]`: exact integers in segments of a group, then f32, each operation rounded on its own. Every instruction set gives these bits.
pub fn linear_int8(x: &[f32], w: &TernaryMatrix) -> Vec<f32> {
    let mut y = Vec::new();
    for row in x.chunks(w.cols()) {
        let scale = row.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
        let inverse = if (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
        let rounded: Vec<i32> = row.iter().map(|x| (x * inverse).round_ties_even() as i32).collect();
        for out in 0..w.rows() {
            let mut total = 0f32;
            for group in (0..w.cols()).step_by(w.group()) {
                let end = (group + w.group()).min(w.cols());
                for start in (group..end).step_by(SEGMENT) {
                    let inputs = start..end.min(start + SEGMENT);
                    let sum: i32 = inputs.map(|k| w.trit(out, k) as i32 * rounded[k]).sum();
                    total += w.scale(out, start) * sum as f32;
                }
            }
            y.push(total * scale);
        }
    }
    y
}

/// The random number of value `at` of a tensor, row-major.
fn random(key: u32, at: usize) -> u32 {
    let mut x = (at as u32).wrapping_mul(0x9E37_79B9).wrapping_add(key);
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// The largest code whose `powers` are not above `t`, or the next one with the probability that makes the mean be `t`.
fn round_code(t: f32, power: impl Fn(f32) -> f32, random: u32, max: u32) -> u32 {
    let below = (0..max).rev().find(|c| power(*c as f32) <= t).unwrap_or(0);
    let (low, high) = (power(below as f32), power(below as f32 + 1.0));
    below + (random as f32 / (1 << 24) as f32 * (high - low) < t - low) as u32
}

/// Codes and scale of a block of first moments, which begins at value `at` of the tensor. Each operation is rounded to
/// f32 on its own; every instruction set gives these bits.
pub fn encode_first_moments(x: &[f32], key: u32, at: usize) -> (Vec<i8>, f32) {
    let scale = x.iter().fold(0f32, |a, x| a.max(x.abs()));
    let inverse = if (16129.0 / scale).is_finite() { 16129.0 / scale } else { 0.0 };
    let code = |(i, x): (usize, &f32)| {
        let size = round_code(x.abs() * inverse, |c| c * c, random(key, at + i) >> 8, 127) as i8;
        if *x < 0.0 { -size } else { size }
    };
    (x.iter().enumerate().map(code).collect(), scale)
}

/// What [`encode_first_moments`] gave stands for: `sign(c) (c / 127)^2 scale`.
pub fn decode_first_moments(codes: &[i8], scale: f32) -> Vec<f32> {
    codes.iter().map(|&c| c as f32 * (c as f32).abs() * (scale / 16129.0)).collect()
}

/// As [`encode_first_moments`]. The scale is that of the roots, and what is above 0 never gets the code of 0.
pub fn encode_second_moments(x: &[f32], key: u32, at: usize) -> (Vec<u8>, f32) {
    let scale = x.iter().fold(0f32, |a, x| a.max(x.sqrt()));
    let inverse = if (65025.0 / scale).is_finite() { 65025.0 / scale } else { 0.0 };
    let code = |(i, x): (usize, &f32)| {
        let t = x.sqrt() * inverse;
        let low_bits = random(key, at + i) & 0xFF_FFFF;
        let code = round_code(t * t, |c| (c * c) * (c * c), low_bits, 255) as u8;
        if *x > 0.0 { code.max(1) } else { code }
    };
    (x.iter().enumerate().map(code).collect(), scale)
}

/// What [`encode_second_moments`] gave stands for: `((c / 255)^2 scale)^2`.
pub fn decode_second_moments(codes: &[u8], scale: f32) -> Vec<f32> {
    let root = |c: &u8| *c as f32 * *c as f32 * (scale / 65025.0);
    codes.iter().map(|c| root(c) * root(c)).collect()
}
