//! Operands of the matrix product copied into the order in which the register tile reads them.
//!
//! A panel of `A` holds `MR` rows, `k` by `k`; a panel of `B` holds `NR` columns, `k` by `k`. Rows and columns past the
//! edge are zeros. A ternary operand is decoded on the way, so that it costs a sixteenth of the memory traffic; a dense one
//! is rounded while it is in the cache.

use super::operands::{Rhs, View};
use super::register_tile::width;
use crate::config::Precision;
use crate::kernels::isa::kernel;
use crate::kernels::simd::{Simd, nearest_bf16};
use crate::ternary::{CODES_PER_WORD, TernaryMatrix};

/// Zeros for rows past the edge.
static ZEROS: [f32; 16] = [0.0; 16];

/// Space between two panels of `A`: the last transposed store reaches past the panel's end.
pub const A_SLACK: usize = 16;

/// Panels of `A` packed in one call, and streamed past one panel of `B`: of a transposed operand, a row holds a few values
/// of each.
pub const TOGETHER: usize = 16;

/// Rounds values that have just been packed.
#[inline(always)]
fn round<S: Simd>(precision: Precision, values: &mut [f32]) {
    if precision == Precision::F32 {
        return;
    }
    let mut vectors = values.chunks_exact_mut(S::LANES);
    for vector in &mut vectors {
        // SAFETY: a chunk holds LANES values.
        unsafe { S::store(vector.as_mut_ptr(), S::bf16(S::load(vector.as_ptr()))) };
    }
    for x in vectors.into_remainder() {
        *x = nearest_bf16(*x);
    }
}

kernel! {
    /// Panels of `A`, `stride` apart in `dst`, as many as it holds: rows from `i0` on, columns `k0 .. k0 + kc`.
    /// A panel has `kc * MR + A_SLACK` values.
    pub fn pack_a<S>(a: View<'_>, m: usize, i0: usize, k0: usize, kc: usize, dst: &mut [f32], stride: usize) {
        let panels = dst.len() / stride;
        assert!(stride >= kc * S::MR + A_SLACK && i0 + (panels - 1) * S::MR < m);
        a.check(m, k0 + kc);
        let out = dst.as_mut_ptr();
        // SAFETY: panels are long enough by the assertion; every read is of an element of the view, whose extent has been
        // checked, or of ZEROS.
        unsafe {
            if a.cs == 1 {
                let whole = kc / S::LANES * S::LANES;
                for p in 0..panels {
                    let (i0, out) = (i0 + p * S::MR, out.add(p * stride));
                    let rows = (m - i0).min(S::MR);
                    for k in (0..whole).step_by(S::LANES) {
                        let mut src = [ZEROS.as_ptr(); 16];
                        for (i, p) in src.iter_mut().enumerate().take(rows) {
                            *p = a.at(i0 + i, k0 + k);
                        }
                        S::transpose(&src, out.add(k * S::MR), S::MR);
                    }
                    for k in whole..kc {
                        for i in 0..S::MR {
                            *out.add(k * S::MR + i) = if i < rows { *a.at(i0 + i, k0 + k) } else { 0.0 };
                        }
                    }
                    round::<S>(a.precision, std::slice::from_raw_parts_mut(out, kc * S::MR));
                }
                return;
            }
            for k in 0..kc {
                for p in 0..panels {
                    let (i0, out) = (i0 + p * S::MR, out.add(p * stride + k * S::MR));
                    if a.rs == 1 && i0 + S::LANES <= m {
                        S::store(out, S::load(a.at(i0, k0 + k)));
                    } else {
                        for i in 0..S::MR {
                            *out.add(i) = if i0 + i < m { *a.at(i0 + i, k0 + k) } else { 0.0 };
                        }
                    }
                }
            }
        }
        for panel in dst.chunks_exact_mut(stride) {
            round::<S>(a.precision, &mut panel[..kc * S::MR]);
        }
    }
}

kernel! {
    /// One panel of `B`: columns `j0 ..`, at most `NR`, of the rows `k0 .. k0 + kc`; `n` columns in all.
    /// `dst` must hold `kc` rounded up to 16, times `NR` values.
    pub fn pack_b<S>(b: Rhs<'_>, n: usize, j0: usize, k0: usize, kc: usize, dst: &mut [f32]) {
        let nr = width::<S>();
        let vectors = nr / S::LANES;
        assert!(dst.len() >= kc.next_multiple_of(16) * nr);
        if let Rhs::Dense(view) = b {
            view.check(k0 + kc, n);
        }
        let out = dst.as_mut_ptr();
        // SAFETY: as in `pack_a`; a transposed store writes rows below `kc` rounded up to 16, all `NR` wide.
        unsafe {
            match b {
                Rhs::Dense(b) if b.cs == 1 => {
                    let cols = (n - j0).min(nr);
                    for k in 0..kc {
                        if cols == nr {
                            for v in 0..vectors {
                                S::store(out.add(k * nr + v * S::LANES), S::load(b.at(k0 + k, j0 + v * S::LANES)));
                            }
                        } else {
                            for j in 0..nr {
                                *out.add(k * nr + j) = if j < cols { *b.at(k0 + k, j0 + j) } else { 0.0 };
                            }
                        }
                    }
                }
                Rhs::Dense(b) => {
                    let whole = if b.rs == 1 { kc / S::LANES * S::LANES } else { 0 };
                    for v in 0..vectors {
                        let first = j0 + v * S::LANES;
                        for k in (0..whole).step_by(S::LANES) {
                            let mut src = [ZEROS.as_ptr(); 16];
                            for (j, p) in src.iter_mut().enumerate().take(S::LANES) {
                                if first + j < n {
                                    *p = b.at(k0 + k, first + j);
                                }
                            }
                            S::transpose(&src, out.add(k * nr + v * S::LANES), nr);
                        }
                        for k in whole..kc {
                            for j in 0..S::LANES {
                                let p = out.add(k * nr + v * S::LANES + j);
                                *p = if first + j < n { *b.at(k0 + k, first + j) } else { 0.0 };
                            }
                        }
                    }
                }
                Rhs::Ternary(t) => {
                    for k in 0..kc {
                        for v in 0..vectors {
                            let w = decode::<S>(t, k0 + k, j0 + v * S::LANES);
                            S::store(out.add(k * nr + v * S::LANES), w);
                        }
                    }
                }
                Rhs::TernaryT(t) => {
                    let mut square = [0f32; 256];
                    let square = square.as_mut_ptr();
                    let src: [*const f32; 16] = std::array::from_fn(|i| square.add(16 * i).cast_const());
                    for v in 0..vectors {
                        for k in (0..kc).step_by(S::LANES) {
                            for i in 0..S::LANES {
                                let row = j0 + v * S::LANES + i;
                                let w = if row < n { decode::<S>(t, row, k0 + k) } else { S::zero() };
                                S::store(square.add(16 * i), w);
                            }
                            S::transpose(&src, out.add(k * nr + v * S::LANES), nr);
                        }
                    }
                }
            }
        }
        if let Rhs::Dense(b) = b {
            round::<S>(b.precision, &mut dst[..kc * nr]);
        }
    }
}

/// `LANES` weights of a row from column `col`, a multiple of `LANES`; zeros past the end of the row.
///
/// # Safety
/// As the methods of [`Simd`].
#[inline(always)]
pub unsafe fn decode<S: Simd>(t: &TernaryMatrix, row: usize, col: usize) -> S::V {
    unsafe {
        if col >= t.cols() {
            return S::zero();
        }
        let word = t.words()[row * t.row_words() + col / CODES_PER_WORD];
        let codes = word >> (2 * (col % CODES_PER_WORD));
        let scales = &t.scales()[row * t.row_groups()..];
        let group = t.group();
        if group.is_multiple_of(S::LANES) || col / group == (col + S::LANES - 1) / group {
            return S::decode(codes, scales[col / group]);
        }
        // A vector that spans two groups.
        let mut w = [0f32; 16];
        for (i, w) in w.iter_mut().enumerate().take(S::LANES.min(t.cols() - col)) {
            *w = scales[(col + i) / group] * ((codes >> (2 * i) & 3) as f32 - 1.0);
        }
        S::load(w.as_ptr())
    }
}
