//! Which way a product takes: the table of [the folder's door](super).

use super::lookup;
use super::operands::{Rhs, Sizes, View};
use super::tiles;
use crate::config::{Inputs, Precision};
use crate::kernels::isa::Isa;
use crate::kernels::matrix::{Matrix, Values};
use crate::ternary::{PackedMatrix, TernaryMatrix};

/// Fewer rows than this are dot products: packing the weight would cost more than using it.
const FEW_ROWS: usize = 6;

/// From so many rows on, tables that all rows share cost less than tables for each, and unpacking little.
const MANY_ROWS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Packed,
    /// Some rows of packed weights after the other in another form, each its own way.
    Unpacked,
    Dots,
    Tiles,
    LookUp,
    Blocked,
}

/// `x Wᵀ` for `n` rows.
pub fn forward(n: usize, w: Matrix<'_>) -> Way {
    match w.values() {
        Values::Packed(_) if n >= MANY_ROWS && w.inputs() == Inputs::F32 => Way::Unpacked,
        Values::Packed(p) if w.inputs() == Inputs::Int8 && packed_fits_tiles(n, p) => Way::Tiles,
        Values::Packed(_) => Way::Packed,
        // Rounded operands are for training, which has more rows; of those left over few cost little.
        _ if n < FEW_ROWS && (w.precision() == Precision::F32 || w.inputs() == Inputs::Int8) => Way::Dots,
        Values::Ternary(t) if fit_tiles(n, t, w.inputs(), w.precision()) => Way::Tiles,
        Values::Ternary(t) if w.inputs() == Inputs::Int8 || lookup::pays(n, t) => Way::LookUp,
        _ => Way::Blocked,
    }
}

/// Rows up to which `x Wᵀ` gives each the bits that it gives a row alone: all go the way of one, or every way sums integers.
pub fn rows_alike(w: Matrix<'_>) -> usize {
    match w.values() {
        Values::Packed(_) if w.inputs() == Inputs::Int8 => usize::MAX,
        Values::Packed(_) => MANY_ROWS - 1,
        _ => FEW_ROWS - 1,
    }
}

/// `dy W` for `n` rows.
pub fn backward_input(n: usize, w: Matrix<'_>) -> Way {
    match w.values() {
        Values::Ternary(t) if fit_tiles(n, t, Inputs::F32, w.precision()) => Way::Tiles,
        // The blocked product multiplies by decoded weights, with the scales in them; a rounded gradient meets trits.
        Values::Ternary(t) if lookup::pays(n, t) || w.precision() == Precision::Bf16 => Way::LookUp,
        _ => Way::Blocked,
    }
}

/// `dyᵀ x` for `n` rows: tiles, or a product like any other.
pub fn weight_gradient(out: usize, inputs: usize, n: usize, precision: Precision) -> Way {
    if tiles_pay(Sizes { m: out, n: inputs, k: n }, Inputs::F32, precision) {
        Way::Tiles
    } else {
        Way::Blocked
    }
}

/// `A B`, and what [`forward`] and [`backward_input`] call blocked, which with dense values is that.
pub fn gemm(size: Sizes, a: View<'_>, b: Rhs<'_>) -> Way {
    match b {
        Rhs::Dense(b)
            if tiles_pay(size, Inputs::F32, b.precision) && a.is_contiguous() && b.is_contiguous() =>
        {
            Way::Tiles
        }
        _ => Way::Blocked,
    }
}

/// Outputs of a head from which on its logits do not stay in the cache.
const MANY_OUTPUTS: usize = 2048;

/// Whether a head of `n` rows is multiplied and its loss taken in one go: it costs a product more, which is cheap on tiles
/// alone.
pub fn head(n: usize, w: Matrix<'_>, t: &TernaryMatrix) -> bool {
    Isa::current() == Isa::Amx
        && t.rows() >= MANY_OUTPUTS
        && (w.inputs(), w.precision()) == (Inputs::F32, Precision::Bf16)
        && fit_tiles(n, t, w.inputs(), w.precision())
}

fn tiles_pay(size: Sizes, inputs: Inputs, precision: Precision) -> bool {
    let has_unit = match Isa::current() {
        Isa::Amx => true,
        Isa::Bf16 => inputs == Inputs::F32 && precision == Precision::Bf16,
        _ => false,
    };
    has_unit && tiles::pays(size)
}

fn packed_fits_tiles(n: usize, w: &PackedMatrix) -> bool {
    tiles_pay(Sizes { m: n, n: w.rows(), k: w.cols() }, Inputs::Int8, Precision::F32)
}

fn fit_tiles(n: usize, w: &TernaryMatrix, inputs: Inputs, precision: Precision) -> bool {
    tiles_pay(Sizes { m: n, n: w.rows(), k: w.cols() }, inputs, precision) && tiles::fits(w)
}
