//! One optimizer step over a tensor. `g` is read as `grad_scale * g`, so that clipping costs no pass of its own.

use rayon::prelude::*;

use super::elementwise::CHUNK;
use super::isa::kernel;
use super::profile::{Phase, scope};
use super::simd::fma;

/// What an AdamW step needs beside the tensors.
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

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101), as in PyTorch:
/// `p -= lr wd p; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr/(1-b1^t) m / (sqrt(v/(1-b2^t)) + eps)`.
pub fn adamw(a: &AdamW, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let _time = scope(Phase::Optimizer);
    kernel! {
        fn run<S>(a: &AdamW, c: [f32; 3], p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
            let [keep, step, root] = c;
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * a.grad_scale;
                *m = fma::<S>(a.beta1, *m, (1.0 - a.beta1) * g);
                *v = fma::<S>(a.beta2, *v, (1.0 - a.beta2) * g * g);
                *p = *p * keep - step * *m / fma::<S>(v.sqrt(), root, a.eps);
            }
        }
    }
    assert!(p.len() == g.len() && p.len() == m.len() && p.len() == v.len(), "{} weights", p.len());
    let correction = |beta: f32| 1.0 - (beta as f64).powi(a.step.min(i32::MAX as u64) as i32);
    let constants = [
        (1.0 - a.lr as f64 * a.weight_decay as f64) as f32,
        (a.lr as f64 / correction(a.beta1)) as f32,
        (1.0 / correction(a.beta2).sqrt()) as f32,
    ];
    let state = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(state)
        .for_each(|((p, g), (m, v))| run(a, constants, p, g, m, v));
}

/// SGD with momentum, as in PyTorch: `g += wd p; b = mu b + g; p -= lr b`.
pub fn sgd(
    lr: f32,
    momentum: f32,
    weight_decay: f32,
    grad_scale: f32,
    p: &mut [f32],
    g: &[f32],
    b: &mut [f32],
) {
    let _time = scope(Phase::Optimizer);
    kernel! {
        fn run<S>(c: [f32; 4], p: &mut [f32], g: &[f32], b: &mut [f32]) {
            let [lr, momentum, decay, scale] = c;
            for ((p, g), b) in p.iter_mut().zip(g).zip(b) {
                *b = fma::<S>(momentum, *b, fma::<S>(decay, *p, g * scale));
                *p = fma::<S>(-lr, *b, *p);
            }
        }
    }
    assert!(p.len() == g.len() && p.len() == b.len(), "{} weights", p.len());
    let constants = [lr, momentum, weight_decay, grad_scale];
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(b.par_chunks_mut(CHUNK))
        .for_each(|((p, g), b)| run(constants, p, g, b));
}

/// `out = a * x + b * y`; Muon's momentum, blends and steps.
pub fn blend(a: f32, x: &[f32], b: f32, y: &[f32], out: &mut [f32]) {
    kernel! {
        fn run<S>(a: f32, x: &[f32], b: f32, y: &[f32], out: &mut [f32]) {
            for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
                *o = fma::<S>(a, *x, b * y);
            }
        }
    }
    assert!(x.len() == out.len() && y.len() == out.len(), "{} values", out.len());
    let inputs = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (x, y))| run(a, x, b, y, out));
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
