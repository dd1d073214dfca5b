//! The three products of a linear layer, for dense and ternary weights.

use std::ops::DerefMut;

use super::operands::{Rhs, Target, Threads, View};
use super::tiles;
pub use super::way::rows_alike;
use super::way::{self, Way};
use super::{dots, gemm, lookup, packed, rounding};
use crate::config::{Inputs, Precision};
use crate::kernels::elementwise::add_assign;
use crate::kernels::matrix::{Matrix, Values};
use crate::kernels::profile::{Phase, scope};
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::to::To;

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

/// `y = x Wᵀ` for several matrices of the same inputs. Where all are packed alike, `x` is rounded or tabulated once, and
/// the threads start once.
pub fn forward_each<'a, Y: DerefMut<Target = [f32]> + 'a>(
    x: &[f32],
    several: impl IntoIterator<Item = (Matrix<'a>, &'a mut Y)>,
) {
    let several: Vec<(Matrix<'a>, &mut [f32])> = several.into_iter().map(|(w, y)| (w, &mut **y)).collect();
    for (w, y) in &several {
        let (inputs, out) = (w.cols(), w.rows());
        assert!(x.len().is_multiple_of(inputs), "{} inputs in rows of {inputs}", x.len());
        assert_eq!(x.len() / inputs * out, y.len(), "rows of {inputs} and of {out}");
    }
    let packed = |(w, _): &(Matrix<'a>, _)| match (way::forward(x.len() / w.cols(), *w), w.values()) {
        (Way::Packed, Values::Packed(p)) => Some((p.cols(), p.grouping(), p.layout().density(), w.inputs())),
        _ => None,
    };
    let first = several.first().and_then(packed);
    if first.is_none() || several.iter().any(|one| packed(one) != first) {
        return several.into_iter().for_each(|(w, y)| forward(x, w, y, To::Set));
    }
    let _time = scope(Phase::Forward);
    let inputs = several[0].0.inputs();
    let products = several.into_iter().filter_map(|(w, data)| match w.values() {
        Values::Packed(p) => Some((p, Target { data, stride: w.rows(), to: To::Set })),
        _ => None,
    });
    packed::forward(x, inputs, products);
}

/// [`forward`] to rows that may stand apart; more of them stay as they are.
pub fn forward_to(x: &[f32], w: Matrix<'_>, y: Target<'_>) {
    let _time = scope(Phase::Forward);
    let (out, inputs, precision) = (w.rows(), w.cols(), w.precision());
    let n = x.len() / inputs;
    assert_eq!(x.len(), n * inputs, "x [{n}, {inputs}]");
    y.check(n, out);
    if n == 0 {
        return;
    }
    let y = Target { data: &mut y.data[..(n - 1) * y.stride + out], ..y };
    let rhs = match (way::forward(n, w), w.values(), w.inputs()) {
        (Way::Packed, Values::Packed(p), _) => return packed::forward(x, w.inputs(), [(p, y)]),
        (Way::Unpacked, Values::Packed(p), inputs) => {
            return packed::each_part(p, |first, rows| {
                let y = Target { data: &mut y.data[first..], ..y };
                forward_to(x, Matrix::ternary(rows, inputs).rounded(precision), y);
            });
        }
        (Way::Dots, ..) => return dots::forward(x, w, y),
        (Way::Tiles, Values::Ternary(t), Inputs::F32) => return tiles::forward(x, t, precision, y),
        (Way::Tiles, Values::Ternary(t), Inputs::Int8) => return tiles::forward_int8(x, t, y),
        (Way::Tiles, Values::Packed(p), _) => return tiles::forward_packed(x, p, y),
        (Way::LookUp, Values::Ternary(t), Inputs::F32) => return lookup::forward(x, t, precision, y),
        (Way::LookUp, Values::Ternary(t), Inputs::Int8) => return lookup::forward_int8(x, t, y),
        (_, Values::Dense { data, .. }, _) => Rhs::Dense(View::rows(data, inputs).rounded(precision).t()),
        (_, Values::Ternary(t), _) => Rhs::TernaryT(t),
        (_, Values::Packed(_), _) => unreachable!("packed weights have a way of their own"),
    };
    gemm(n, out, inputs, View::rows(x, inputs).rounded(precision), rhs, y, Threads::All);
}

/// `dx (+)= dy W` with `dy` `[n, out]`, `dx` `[n, in]`.
pub fn backward_input(dy: &[f32], w: Matrix<'_>, dx: &mut [f32], to: To) {
    assert_eq!(dx.len() / w.cols() * w.rows(), dy.len(), "rows of {} and of {}", w.cols(), w.rows());
    backward_input_from(dy, w.rows(), w, dx, to);
}

/// [`backward_input`] from rows `stride` apart.
pub fn backward_input_from(dy: &[f32], stride: usize, w: Matrix<'_>, dx: &mut [f32], to: To) {
    let _time = scope(Phase::InputGradient);
    let (out, inputs, precision) = (w.rows(), w.cols(), w.precision());
    let n = dx.len() / inputs;
    assert!(dx.len() == n * inputs && stride >= out, "dx [{n}, {inputs}], dy [{n}, {out}], {stride} apart");
    if n == 0 {
        return;
    }
    let dy = &dy[..(n - 1) * stride + out];
    let rhs = match (way::backward_input(n, w), w.values()) {
        (Way::Tiles, Values::Ternary(t)) => return tiles::backward_input(dy, stride, t, precision, dx, to),
        (Way::LookUp, Values::Ternary(t)) => return lookup::backward_input(dy, stride, t, precision, dx, to),
        (_, Values::Dense { data, .. }) => Rhs::Dense(View::rows(data, inputs).rounded(precision)),
        (_, Values::Ternary(t)) => Rhs::Ternary(t),
        (_, Values::Packed(_)) => panic!("packed weights have no gradients: load the model to train"),
    };
    let (dy, dx) = (View::rows(dy, stride).rounded(precision), Target { data: dx, stride: inputs, to });
    gemm(n, inputs, out, dy, rhs, dx, Threads::All);
}

/// `dW += dyᵀ x` with `dy` `[n, out]`, `x` `[n, in]`, `dW` `[out, in]`: the gradient at the weights that the forward
/// pass used. `dy` and `x` are rounded to `precision`.
pub fn backward_weight(
    dy: &[f32],
    x: &[f32],
    dw: &mut [f32],
    [out, inputs]: [usize; 2],
    precision: Precision,
) {
    backward_weight_from(dy, out, x, dw, [out, inputs], precision);
}

/// [`backward_weight`] from rows of `dy` that are `stride` apart.
pub fn backward_weight_from(
    dy: &[f32],
    stride: usize,
    x: &[f32],
    dw: &mut [f32],
    [out, inputs]: [usize; 2],
    precision: Precision,
) {
    SharedInputs::new(x, [out], inputs, precision).backward_weight(dy, stride, dw, out);
}

/// Inputs that several layers share, prepared once for the gradients of all their weights.
pub struct SharedInputs<'a> {
    x: View<'a>,
    n: usize,
    inputs: usize,
    laid: Option<tiles::Laid>,
}

impl<'a> SharedInputs<'a> {
    /// `x` is `[n, in]`, and is rounded to `precision`, as the gradients by the outputs are; `outs` are the numbers of outputs
    /// of the layers.
    pub fn new(
        x: &'a [f32],
        outs: impl IntoIterator<Item = usize>,
        inputs: usize,
        precision: Precision,
    ) -> Self {
        let _time = scope(Phase::WeightGradient);
        let n = x.len() / inputs;
        assert_eq!(x.len(), n * inputs, "x [{n}, {inputs}]");
        let view = View::rows(x, inputs).rounded(precision);
        // In three parts it is no faster: PERFORMANCE.md.
        let mut outs = outs.into_iter().peekable();
        let laid = precision == Precision::Bf16
            && outs.peek().is_some()
            && outs.all(|out| way::weight_gradient(out, inputs, n, precision) == Way::Tiles);
        Self { x: view, n, inputs, laid: laid.then(|| tiles::Laid::new(view, n, inputs)) }
    }

    /// [`backward_weight_from`] with these inputs.
    pub fn backward_weight(&self, dy: &[f32], stride: usize, dw: &mut [f32], out: usize) {
        let _time = scope(Phase::WeightGradient);
        let Self { x, n, inputs, ref laid } = *self;
        assert_eq!(dw.len(), out * inputs, "dW [{out}, {inputs}]");
        assert!(stride >= out, "rows of {out}, {stride} apart");
        let (dy, target) = (
            View::rows(dy, stride).rounded(x.precision).t(),
            Target { data: dw, stride: inputs, to: To::Add },
        );
        dy.check(out, n);
        match laid {
            Some(laid) => laid.times(tiles::Left::Dense(dy), out, target),
            None => gemm(out, inputs, n, dy, Rhs::Dense(x), target, Threads::All),
        }
    }
}

/// Calls `f` with `x` as [`forward`] by `w` uses it, which is where the gradient by the weights is taken: rounded to 8
/// bits, or as it is. The straight-through estimator passes gradients by the rounded inputs on to the inputs.
pub fn as_used<R>(x: &[f32], w: Matrix<'_>, f: impl FnOnce(&[f32]) -> R) -> R {
    if w.inputs() == Inputs::F32 {
        return f(x);
    }
    scratch::with(|rounded: &mut Rounded| {
        let rounded = rounded.0.first(x.len());
        {
            let _time = scope(Phase::Elementwise);
            rounding::round(x, w.cols(), rounded);
        }
        f(rounded)
    })
}

/// All inputs of a layer, rounded.
#[derive(Default)]
struct Rounded(Aligned<f32>);

/// Every row of `y` gets `bias` added.
pub fn add_bias(bias: &[f32], y: &mut [f32]) {
    for row in y.chunks_mut(bias.len()) {
        add_assign(row, bias);
    }
}

/// `db += sum of the rows of dy`
pub fn backward_bias(dy: &[f32], db: &mut [f32]) {
    for row in dy.chunks(db.len()) {
        add_assign(db, row);
    }
}
