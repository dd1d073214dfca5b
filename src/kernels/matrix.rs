//! The weight of a layer: its values, and what it and its inputs are rounded to.

use crate::config::{Inputs, Precision};
use crate::ternary::{PackedMatrix, TernaryMatrix};

/// The values of a matrix, `[rows, cols]` = `[out, in]`.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// Row-major.
    Dense {
        data: &'a [f32],
        rows: usize,
        cols: usize,
    },
    Ternary(&'a TernaryMatrix),
    /// Ternary, in the order in which products read it.
    Packed(&'a PackedMatrix),
}

impl Values<'_> {
    /// What inputs are in a product with values of this form, where `asked` is what a ternary one shall meet: a dense one
    /// always meets f32.
    fn partner(self, asked: Inputs) -> Inputs {
        match self {
            Values::Dense { .. } => Inputs::F32,
            Values::Ternary(_) | Values::Packed(_) => asked,
        }
    }
}

/// The weight of a linear layer, or an embedding.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: Values<'a>,
    inputs: Inputs,
    precision: Precision,
}

impl<'a> Matrix<'a> {
    /// `inputs`: what those of a product are rounded to if the values are ternary.
    ///
    /// # Panics
    /// When dense values are not as many as the sizes say.
    pub fn new(values: Values<'a>, inputs: Inputs) -> Self {
        if let Values::Dense { data, rows, cols } = values {
            assert_eq!(data.len(), rows * cols, "values of [{rows}, {cols}]");
        }
        Self { values, inputs: values.partner(inputs), precision: Precision::F32 }
    }

    pub fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(Values::Dense { data, rows, cols }, Inputs::F32)
    }

    pub fn ternary(values: &'a TernaryMatrix, inputs: Inputs) -> Self {
        Self::new(Values::Ternary(values), inputs)
    }

    pub fn packed(values: &'a PackedMatrix, inputs: Inputs) -> Self {
        Self::new(Values::Packed(values), inputs)
    }

    /// The same, in products whose operands are rounded so. Inputs in 8 bits stay these; trits are exact in every precision.
    pub fn rounded(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    pub fn values(&self) -> Values<'a> {
        self.values
    }

    pub fn inputs(&self) -> Inputs {
        self.inputs
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn rows(&self) -> usize {
        match self.values {
            Values::Dense { rows, .. } => rows,
            Values::Ternary(t) => t.rows(),
            Values::Packed(p) => p.rows(),
        }
    }

    pub fn cols(&self) -> usize {
        match self.values {
            Values::Dense { cols, .. } => cols,
            Values::Ternary(t) => t.cols(),
            Values::Packed(p) => p.cols(),
        }
    }
}
