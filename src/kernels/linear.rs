//! The three products of a linear layer, for dense and ternary weights.

use rayon::prelude::*;
use std::cell::RefCell;

use super::gemm::{Target, Threads, gemm};
use super::isa::kernel;
use super::lookup;
use super::matrix::{Matrix, Values};
use super::pack::{Rhs, View, decode};
use super::profile::{Phase, scope};
use super::simd::{Simd, fma};
use super::to::To;
#[cfg(target_arch = "x86_64")]
use super::{isa::Isa, x86_64::amx};
use crate::config::Inputs;
use crate::ternary::TernaryMatrix;

/// Fewer rows than this are dot products: packing the weight would cost more than using it.
const FEW_ROWS: usize = 6;

/// `y (+)= x Wᵀ` with `x` `[n, in]`, `y` `[n, out]`.
///
/// ```
/// use ternlm::config::Inputs;
/// use ternlm::kernels::{Matrix, To, linear};
/// use ternlm::ternary::{Grouping, TernaryMatrix};
/// let w = [0.5, -0.5, 0.0, 2.0, 2.0, 2.0]; // [out, in] = [2, 3]
/// let mut y = [0.0; 2];
/// linear::forward(&[1.0, 2.0, 3.0], Matrix::dense(&w, 2, 3), &mut y, To::Set);
/// assert_eq!(y, [-0.5, 12.0]);
///
/// // The same values as trits and scales, added to what is there.
/// let w = TernaryMatrix::from_values(&w, 2, 3, Grouping::default()).unwrap();
/// linear::forward(&[1.0, 2.0, 3.0], Matrix::ternary(&w, Inputs::F32), &mut y, To::Add);
/// assert_eq!(y, [-1.0, 24.0]);
/// ```
pub fn forward(x: &[f32], w: Matrix<'_>, y: &mut [f32], to: To) {
    assert_eq!(x.len() / w.cols() * w.rows(), y.len(), "rows of {} and of {}", w.cols(), w.rows());
    forward_to(x, w, Target { data: y, stride: w.rows(), to });
}

/// [`forward`] to rows that may stand apart; more of them stay as they are.
pub fn forward_to(x: &[f32], w: Matrix<'_>, y: Target<'_>) {
    let _time = scope(Phase::Forward);
    let (out, inputs) = (w.rows(), w.cols());
    let n = x.len() / inputs;
    assert_eq!(x.len(), n * inputs, "x [{n}, {inputs}]");
    y.check(n, out);
    if n == 0 {
        return;
    }
    let y = Target { data: &mut y.data[..(n - 1) * y.stride + out], ..y };
    #[cfg(target_arch = "x86_64")]
    if let Values::Ternary(t) = w.values()
        && on_tiles(n, t)
    {
        return match w.inputs() {
            Inputs::F32 => amx::forward(x, t, y),
            Inputs::Int8 => amx::forward_int8(x, t, y),
        };
    }
    if let (Values::Ternary(t), Inputs::Int8) = (w.values(), w.inputs()) {
        return lookup::int8::forward(x, t, y);
    }
    if n < FEW_ROWS {
        return few_rows(x, w, y);
    }
    let rhs = match w.values() {
        Values::Dense { data, .. } => Rhs::Dense(View::rows(data, inputs).t()),
        Values::Ternary(t) if lookup::pays(n, t) => return lookup::forward(x, t, y),
        Values::Ternary(t) => Rhs::TernaryT(t),
    };
    gemm(n, out, inputs, View::rows(x, inputs), rhs, y, Threads::All);
}

/// Whether the tile units multiply `n` rows with the matrix.
#[cfg(target_arch = "x86_64")]
fn on_tiles(n: usize, w: &TernaryMatrix) -> bool {
    Isa::current() == Isa::Amx && amx::fits(w) && amx::pays(n, w.rows(), w.cols())
}

/// `dx (+)= dy W` with `dy` `[n, out]`, `dx` `[n, in]`.
pub fn backward_input(dy: &[f32], w: Matrix<'_>, dx: &mut [f32], to: To) {
    assert_eq!(dx.len() / w.cols() * w.rows(), dy.len(), "rows of {} and of {}", w.cols(), w.rows());
    backward_input_from(dy, w.rows(), w, dx, to);
}

/// [`backward_input`] from rows `stride` apart.
pub fn backward_input_from(dy: &[f32], stride: usize, w: Matrix<'_>, dx: &mut [f32], to: To) {
    let _time = scope(Phase::InputGradient);
    let (out, inputs) = (w.rows(), w.cols());
    let n = dx.len() / inputs;
    assert!(dx.len() == n * inputs && stride >= out, "dx [{n}, {inputs}], dy [{n}, {out}], {stride} apart");
    if n == 0 {
        return;
    }
    let dy = &dy[..(n - 1) * stride + out];
    #[cfg(target_arch = "x86_64")]
    if let Values::Ternary(t) = w.values()
        && on_tiles(n, t)
    {
        return amx::backward_input(dy, stride, t, dx, to);
    }
    let rhs = match w.values() {
        Values::Dense { data, .. } => Rhs::Dense(View::rows(data, inputs)),
        Values::Ternary(t) if lookup::pays(n, t) => {
            return lookup::backward_input(dy, stride, t, dx, to);
        }
        Values::Ternary(t) => Rhs::Ternary(t),
    };
    gemm(n, inputs, out, View::rows(dy, stride), rhs, Target { data: dx, stride: inputs, to }, Threads::All);
}

/// `dW += dyᵀ x` with `dy` `[n, out]`, `x` `[n, in]`, `dW` `[out, in]`: the gradient at the weights that the forward
/// pass used.
pub fn backward_weight(dy: &[f32], x: &[f32], dw: &mut [f32], out: usize, inputs: usize) {
    assert_eq!(x.len() / inputs * out, dy.len(), "rows of {inputs} and of {out}");
    backward_weight_from(dy, out, x, dw, out, inputs);
}

/// [`backward_weight`] from rows of `dy` that are `stride` apart.
pub fn backward_weight_from(dy: &[f32], stride: usize, x: &[f32], dw: &mut [f32], out: usize, inputs: usize) {
    let _time = scope(Phase::WeightGradient);
    let n = x.len() / inputs;
    assert_eq!((x.len(), dw.len()), (n * inputs, out * inputs), "x [{n}, {inputs}], dW [{out}, {inputs}]");
    assert!(stride >= out, "rows of {out}, {stride} apart");
    let target = Target { data: dw, stride: inputs, to: To::Add };
    gemm(out, inputs, n, View::rows(dy, stride).t(), Rhs::Dense(View::rows(x, inputs)), target, Threads::All);
}

/// Calls `f` with `x` as [`forward`] by `w` uses it, which is where the gradient by the weights is taken: rounded to 8
/// bits, or as it is. The straight-through estimator passes gradients by the rounded inputs on to the inputs.
pub fn as_used<R>(x: &[f32], w: Matrix<'_>, f: impl FnOnce(&[f32]) -> R) -> R {
    thread_local! {
        static ROUNDED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    if w.inputs() == Inputs::F32 {
        return f(x);
    }
    let mut rounded = ROUNDED.take();
    rounded.resize(rounded.len().max(x.len()), 0.0);
    {
        let _time = scope(Phase::Elementwise);
        lookup::int8::round(x, w.cols(), &mut rounded[..x.len()]);
    }
    let out = f(&rounded[..x.len()]);
    ROUNDED.set(rounded);
    out
}

/// Every row of `y` gets `bias` added.
pub fn add_bias(bias: &[f32], y: &mut [f32]) {
    for row in y.chunks_mut(bias.len()) {
        super::add_assign(row, bias);
    }
}

/// `db += sum of the rows of dy`
pub fn backward_bias(dy: &[f32], db: &mut [f32]) {
    for row in dy.chunks(db.len()) {
        super::add_assign(db, row);
    }
}

/// The product for a few rows of `x`: the weight is read in its own order, once for each row of `x`, and not packed.
fn few_rows(x: &[f32], w: Matrix<'_>, y: Target<'_>) {
    let (out, inputs, to) = (w.rows(), w.cols(), y.to);
    if out == 0 {
        return;
    }
    let block = if out * inputs < 1 << 16 { out } else { 64 };
    for (x, y) in x.chunks(inputs).zip(y.data.chunks_mut(y.stride)) {
        y[..out].par_chunks_mut(block).enumerate().for_each(|(b, y)| match w.values() {
            Values::Dense { data, .. } => dense_dots(x, &data[b * block * inputs..], y, to),
            Values::Ternary(t) => ternary_dots(x, t, b * block, y, to),
        });
    }
}

kernel! {
    /// `y[r] (+)= x . w[r]`
    fn dense_dots<S>(x: &[f32], w: &[f32], y: &mut [f32], to: To) {
        for (w, y) in w.chunks_exact(x.len()).zip(y) {
            let sum = dot::<S>(x, w);
            *y = if to.adds() { *y + sum } else { sum };
        }
    }
}

kernel! {
    /// `y[r] (+)= x . w[row0 + r]`
    fn ternary_dots<S>(x: &[f32], w: &TernaryMatrix, row0: usize, y: &mut [f32], to: To) {
        let whole = x.len() / S::LANES * S::LANES;
        let mut tail = [0f32; 16];
        tail[..x.len() - whole].copy_from_slice(&x[whole..]);
        for (r, y) in y.iter_mut().enumerate() {
            // SAFETY: the loads stay below `whole <= x.len()`, or read the 16 values of `tail`.
            let sum = unsafe {
                let mut sum = S::zero();
                for k in (0..whole).step_by(S::LANES) {
                    sum = S::fma(S::load(x.as_ptr().add(k)), decode::<S>(w, row0 + r, k), sum);
                }
                if whole < x.len() {
                    sum = S::fma(S::load(tail.as_ptr()), decode::<S>(w, row0 + r, whole), sum);
                }
                S::sum(sum)
            };
            *y = if to.adds() { *y + sum } else { sum };
        }
    }
}

/// `sum a[i] * b[i]`, in 16 partial sums.
#[inline(always)]
pub(super) fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..16 {
            sums[i] = fma::<S>(a[i], b[i], sums[i]);
        }
    }
    sums.iter().sum::<f32>() + tail
}
