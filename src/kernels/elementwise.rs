//! Loops over every value on its own, and sums of squares. The compiler vectorises the bodies for each instruction set.

use rayon::prelude::*;

use super::isa::kernel;
use super::profile::{Phase, scope};
use super::simd::{Simd, fma};

/// Values a thread takes at a time. Fixed, so that sums do not depend on the number of threads.
pub(super) const CHUNK: usize = 1 << 14;

/// `e^x` to 2 ulp: `2^n p(r)` with `|r| <= ln 2 / 2` and the Taylor polynomial of degree 7. NaN stays NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = fma::<S>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    // ln 2 in two parts, so that the reduction is exact.
    let r = fma::<S>(n, -0.693_359_4, x);
    let r = fma::<S>(n, 2.121_944_4e-4, r);
    let p = fma::<S>(1.0 / 5040.0, r, 1.0 / 720.0);
    let p = fma::<S>(p, r, 1.0 / 120.0);
    let p = fma::<S>(p, r, 1.0 / 24.0);
    let p = fma::<S>(p, r, 1.0 / 6.0);
    let p = fma::<S>(p, r, 0.5);
    let p = fma::<S>(p, r, 1.0);
    let p = fma::<S>(p, r, 1.0);
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// `1 / (1 + e^-x)`; 0 below -104, where that is 0 in f32.
#[inline(always)]
fn sigmoid<S: Simd>(x: f32) -> f32 {
    let s = 1.0 / (1.0 + exp::<S>(-x));
    // What is left where `exp` stops is small until it is multiplied with an x of 1e30.
    if x < -104.0 { 0.0 } else { s }
}

/// Runs `f` on matching chunks of a slice that is written and one that is read, in parallel when long.
fn zip(out: &mut [f32], x: &[f32], f: fn(&mut [f32], &[f32])) {
    assert_eq!(out.len(), x.len(), "values written and read");
    if out.len() <= 2 * CHUNK {
        return f(out, x);
    }
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(o, x)| f(o, x));
}

/// As [`zip`], with two slices that are read.
fn zip2(out: &mut [f32], a: &[f32], b: &[f32], f: fn(&mut [f32], &[f32], &[f32])) {
    assert_eq!([a.len(), b.len()], [out.len(); 2], "values read for {}", out.len());
    if out.len() <= 2 * CHUNK {
        return f(out, a, b);
    }
    out.par_chunks_mut(CHUNK)
        .zip(a.par_chunks(CHUNK))
        .zip(b.par_chunks(CHUNK))
        .for_each(|((o, a), b)| f(o, a, b));
}

type Gated = fn(&[f32], &[f32], &mut [f32], &mut [f32]);

/// Runs `f` on matching chunks of gate, up projection and their gradients, in parallel.
fn zip_gated(gate: &[f32], up: &[f32], d: &mut [f32], dgate: &mut [f32], f: Gated) {
    assert_eq!([up.len(), d.len(), dgate.len()], [gate.len(); 3], "up, d and dgate of {} gates", gate.len());
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    let gradients = d.par_chunks_mut(CHUNK).zip(dgate.par_chunks_mut(CHUNK));
    inputs.zip(gradients).for_each(|((g, u), (d, dg))| f(g, u, d, dg));
}

/// `out = x`
pub fn copy(out: &mut [f32], x: &[f32]) {
    let _time = scope(Phase::Elementwise);
    zip(out, x, |out, x| out.copy_from_slice(x));
}

/// `out += x`
pub fn add_assign(out: &mut [f32], x: &[f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(out: &mut [f32], x: &[f32]) {
            for (o, x) in out.iter_mut().zip(x) {
                *o += x;
            }
        }
    }
    zip(out, x, run);
}

/// `out += x; x = 0`: a gradient added to another.
pub fn absorb(out: &mut [f32], x: &mut [f32]) {
    let _time = scope(Phase::WeightGradient);
    kernel! {
        fn run<S>(out: &mut [f32], x: &mut [f32]) {
            for (o, x) in out.iter_mut().zip(x) {
                *o += *x;
                *x = 0.0;
            }
        }
    }
    assert_eq!(out.len(), x.len(), "values added to and taken from");
    if out.len() <= 2 * CHUNK {
        return run(out, x);
    }
    out.par_chunks_mut(CHUNK).zip(x.par_chunks_mut(CHUNK)).for_each(|(out, x)| run(out, x));
}

/// SwiGLU's gate: `out = silu(gate) * up`.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(out: &mut [f32], gate: &[f32], up: &[f32]) {
            for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                *o = g * sigmoid::<S>(*g) * u;
            }
        }
    }
    zip2(out, gate, up, run);
}

/// Backward of [`silu_mul`]: `dgate = silu'(gate) * up * d`, and `d`, the gradient by the output, becomes that by `up`,
/// `silu(gate) * d`.
pub fn silu_mul_backward(gate: &[f32], up: &[f32], d: &mut [f32], dgate: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(gate: &[f32], up: &[f32], d: &mut [f32], dgate: &mut [f32]) {
            for ((g, u), (d, dg)) in gate.iter().zip(up).zip(d.iter_mut().zip(dgate)) {
                let s = sigmoid::<S>(*g);
                *dg = s * fma::<S>(*g, 1.0 - s, 1.0) * u * *d;
                *d *= g * s;
            }
        }
    }
    zip_gated(gate, up, d, dgate, run);
}

/// `sqrt(2 / pi)` and the cubic term of GELU's tanh form.
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

/// GELU, tanh form: `out = x * sigmoid(2 u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`.
pub fn gelu(x: &[f32], out: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(out: &mut [f32], x: &[f32]) {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = x * sigmoid::<S>(2.0 * GELU.0 * x * fma::<S>(GELU.1 * x, x, 1.0));
            }
        }
    }
    zip(out, x, run);
}

/// Backward of [`gelu`]: `d`, the gradient by the output, becomes that by `x`, `gelu'(x) * d`.
pub fn gelu_backward(x: &[f32], d: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(d: &mut [f32], x: &[f32]) {
            for (d, &x) in d.iter_mut().zip(x) {
                // Out there the slope is 0 or 1, and the cube of x leaves f32 in the end.
                let x = if x < -100.0 { -100.0 } else { x };
                let x = if x > 100.0 { 100.0 } else { x };
                let s = sigmoid::<S>(2.0 * GELU.0 * x * fma::<S>(GELU.1 * x, x, 1.0));
                let slope = 2.0 * GELU.0 * fma::<S>(3.0 * GELU.1 * x, x, 1.0);
                *d *= s * fma::<S>(x * slope, 1.0 - s, 1.0);
            }
        }
    }
    zip(d, x, run);
}

/// ReLU²: `out = max(0, x)^2`.
pub fn relu2(x: &[f32], out: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(out: &mut [f32], x: &[f32]) {
            for (o, &x) in out.iter_mut().zip(x) {
                let r = if x < 0.0 { 0.0 } else { x };
                *o = r * r;
            }
        }
    }
    zip(out, x, run);
}

/// Backward of [`relu2`]: `d`, the gradient by the output, becomes that by `x`, `2 max(0, x) * d`.
pub fn relu2_backward(x: &[f32], d: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(d: &mut [f32], x: &[f32]) {
            for (d, &x) in d.iter_mut().zip(x) {
                *d *= 2.0 * if x < 0.0 { 0.0 } else { x };
            }
        }
    }
    zip(d, x, run);
}

/// The gate of BitNet's feed-forward network: `out = max(0, gate)^2 * up`.
pub fn relu2_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(out: &mut [f32], gate: &[f32], up: &[f32]) {
            for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                let r = if *g < 0.0 { 0.0 } else { *g };
                *o = r * r * u;
            }
        }
    }
    zip2(out, gate, up, run);
}

/// Backward of [`relu2_mul`]: `dgate = 2 max(0, gate) * up * d`, and `d`, the gradient by the output, becomes that by
/// `up`, `max(0, gate)^2 * d`.
pub fn relu2_mul_backward(gate: &[f32], up: &[f32], d: &mut [f32], dgate: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(gate: &[f32], up: &[f32], d: &mut [f32], dgate: &mut [f32]) {
            for ((g, u), (d, dg)) in gate.iter().zip(up).zip(d.iter_mut().zip(dgate)) {
                let r = if *g < 0.0 { 0.0 } else { *g };
                *dg = 2.0 * r * u * *d;
                *d *= r * r;
            }
        }
    }
    zip_gated(gate, up, d, dgate, run);
}

/// `sum x^2` in f64, the same for any number of threads.
pub fn sum_squares(x: &[f32]) -> f64 {
    let partial: Vec<f64> = x.par_chunks(CHUNK).map(squares).collect();
    partial.iter().sum()
}

kernel! {
    /// `sum x^2` in f64, on this thread.
    pub(super) fn squares<S>(x: &[f32]) -> f64 {
        let mut sums = [0f64; 8];
        let chunks = x.chunks_exact(8);
        let tail: f64 = chunks.remainder().iter().map(|&v| v as f64 * v as f64).sum();
        for chunk in chunks {
            for i in 0..8 {
                sums[i] += chunk[i] as f64 * chunk[i] as f64;
            }
        }
        sums.iter().sum::<f64>() + tail
    }
}

/// Whether every value is finite.
pub fn all_finite(x: &[f32]) -> bool {
    x.par_chunks(CHUNK).all(|chunk| chunk.iter().fold(true, |ok, v| ok & v.is_finite()))
}

/// Zeros, written by the threads that will use them.
pub fn fill_zero(x: &mut [f32]) {
    x.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0.0));
}
