//! Rows looked up by token, and their gradients added back.

use rayon::prelude::*;

use super::isa::kernel;
use super::matrix::{Matrix, Values};
use super::product::decode;
use super::profile::{Phase, scope};
use crate::ternary::{PackedMatrix, TernaryMatrix};

/// `out[n] = W[tokens[n]]`. Every token must be a row of `w`.
pub fn gather(w: Matrix<'_>, tokens: &[u32], out: &mut [f32]) {
    let _time = scope(Phase::Data);
    let (rows, cols) = (w.rows(), w.cols());
    assert_eq!(out.len(), tokens.len() * cols, "{} tokens of width {cols}", tokens.len());
    out.par_chunks_mut(cols).with_min_len(64).zip(tokens).for_each(|(out, &token)| {
        assert!((token as usize) < rows, "token {token} of a vocabulary of {rows}");
        match w.values() {
            Values::Dense { data, .. } => out.copy_from_slice(&data[token as usize * cols..][..cols]),
            Values::Ternary(t) => unpack_row(t, token as usize, out),
            Values::Packed(p) => unpack_packed(p, token as usize, out),
        }
    });
}

kernel! {
    /// [`TernaryMatrix::unpack_row`], a vector at a time.
    pub fn unpack_row<S>(t: &TernaryMatrix, row: usize, out: &mut [f32]) {
        assert!(row < t.rows(), "row {row} of {}", t.rows());
        assert_eq!(out.len(), t.cols(), "values of a row");
        let whole = out.len() / S::LANES * S::LANES;
        // SAFETY: stores stay below `whole`; the tail goes through `rest`, which holds 16 values.
        unsafe {
            for k in (0..whole).step_by(S::LANES) {
                S::store(out.as_mut_ptr().add(k), decode::<S>(t, row, k));
            }
            if whole < out.len() {
                let mut rest = [0f32; 16];
                S::store(rest.as_mut_ptr(), decode::<S>(t, row, whole));
                let n = out.len() - whole;
                out[whole..].copy_from_slice(&rest[..n]);
            }
        }
    }
}

fn unpack_packed(p: &PackedMatrix, row: usize, out: &mut [f32]) {
    let mut one = TernaryMatrix::zeros(1, p.cols(), p.grouping());
    let (words, scales) = one.parts_mut();
    p.unpack_row(row, words, scales);
    unpack_row(&one, 0, out);
}

/// Backward of [`gather`]: `dW[tokens[n]] += dout[n]`, in the order of the tokens.
pub fn scatter_add(dw: &mut [f32], cols: usize, tokens: &[u32], dout: &[f32]) {
    let _time = scope(Phase::Data);
    assert_eq!(dout.len(), tokens.len() * cols, "{} tokens of width {cols}", tokens.len());
    let rows = dw.len() / cols;
    for (row, &token) in dout.chunks(cols).zip(tokens) {
        assert!((token as usize) < rows, "token {token} of a vocabulary of {rows}");
        super::add_assign(&mut dw[token as usize * cols..][..cols], row);
    }
}
