//! An output head together with the loss over its outputs: both passes in one product, where no logits are kept.

pub use super::operands::Head;
use super::{tiles, way};
use crate::config::{Inputs, Precision};
use crate::kernels::cross_entropy::IGNORE;
use crate::kernels::matrix::{Matrix, Values};
use crate::ternary::TernaryMatrix;

/// The weights of a head whose loss is best made with it, for `n` rows.
pub fn with_loss(n: usize, w: Matrix<'_>) -> Option<&TernaryMatrix> {
    match w.values() {
        Values::Ternary(t) if way::head(n, w, t) => Some(t),
        _ => None,
    }
}

/// The losses of a head that [`with_loss`] has given, and the gradients of what [`Objective`] says.
///
/// # Panics
/// When [`with_loss`] has not given it, a slice is not as long as `n`, `in` and `out` say, or a target is not below `out`.
pub fn loss_and_gradients(head: Head<'_>) {
    let (n, out, inputs) = (head.targets.len(), head.w.rows(), head.w.cols());
    let w = Matrix::ternary(head.w, Inputs::F32).rounded(Precision::Bf16);
    assert!(way::head(n, w, head.w), "{n} rows of a head [{out}, {inputs}]: its logits come first here");
    assert_eq!((head.x.len(), head.dx.len()), (n * inputs, n * inputs), "x and dx [{n}, {inputs}]");
    assert_eq!((head.losses.len(), head.dw.len()), (n, out * inputs), "losses [{n}], dW [{out}, {inputs}]");
    let known = |target: &u32| *target == IGNORE || (*target as usize) < out;
    assert!(head.targets.iter().all(known), "targets below {out}");
    tiles::loss_and_gradients(head);
}
