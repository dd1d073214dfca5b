//! The door of tiles on processors that have none: they never pay.

use super::operands::{Head, Sizes, Target, View};
use crate::config::Precision;
use crate::kernels::to::To;
use crate::ternary::{PackedMatrix, TernaryMatrix};

const NONE: &str = "there are no tiles here";

pub fn pays(_: Sizes) -> bool {
    false
}

pub fn fits(_: &TernaryMatrix) -> bool {
    false
}

pub fn forward(_: &[f32], _: &TernaryMatrix, _: Precision, _: Target<'_>) {
    unreachable!("{NONE}");
}

pub fn forward_int8(_: &[f32], _: &TernaryMatrix, _: Target<'_>) {
    unreachable!("{NONE}");
}

pub fn forward_packed(_: &[f32], _: &PackedMatrix, _: Target<'_>) {
    unreachable!("{NONE}");
}

pub fn backward_input(_: &[f32], _: usize, _: &TernaryMatrix, _: Precision, _: &mut [f32], _: To) {
    unreachable!("{NONE}");
}

pub fn gemm(_: Sizes, _: View<'_>, _: View<'_>, _: Target<'_>, _: usize) {
    unreachable!("{NONE}");
}

pub fn gram(_: &[u16], _: [usize; 2], _: usize, _: &mut [f32]) {
    unreachable!("{NONE}");
}

pub fn multiply_add(_: &[f32], _: f32, _: &mut [u16], _: [usize; 2]) {
    unreachable!("{NONE}");
}

pub fn loss_and_gradients(_: Head<'_>) {
    unreachable!("{NONE}");
}

pub struct Laid;

pub enum Left<'a> {
    #[expect(dead_code, reason = "nothing is multiplied here")]
    Dense(View<'a>),
}

impl Laid {
    pub fn new(_: View<'_>, _: usize, _: usize) -> Self {
        unreachable!("{NONE}");
    }

    pub fn times(&self, _: Left<'_>, _: usize, _: Target<'_>) {
        unreachable!("{NONE}");
    }

    pub fn times_above_diagonal(&self, _: Left<'_>, _: usize, _: Target<'_>) {
        unreachable!("{NONE}");
    }
}
