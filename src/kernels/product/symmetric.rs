//! Products that are known to be symmetric, as that of a matrix and its transpose: half is computed, the other half is its
//! mirror.

use super::operands::{Rhs, Target, Threads, View};
use crate::kernels::to::To;

/// Rows computed together, from the diagonal on: fewer leave less to compute below it, more are multiplied faster.
const STRIP: usize = 128;
/// Rows and columns mirrored together: those that are read lie columns apart.
const SQUARE: usize = 32;

/// `C = A B`, `A` `[n, k]`, `B` `[k, n]`, `C` `[n, n]`, of which what is on and above the diagonal is computed.
///
/// ```
/// use ternlm::kernels::{Threads, View, symmetric_gemm};
/// let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let (x, mut c) = (View::rows(&x, 3), [0.0; 4]);
/// symmetric_gemm(2, 3, x, x.t(), &mut c, Threads::All);
/// assert_eq!(c, [14.0, 32.0, 32.0, 77.0]);
/// ```
///
/// # Panics
/// As [`gemm`](super::gemm).
pub fn symmetric_gemm(n: usize, k: usize, a: View<'_>, b: View<'_>, c: &mut [f32], threads: Threads) {
    assert_eq!(c.len(), n * n, "values of [{n}, {n}]");
    for first in (0..n).step_by(STRIP) {
        let rows = STRIP.min(n - first);
        let target = Target { data: &mut c[first * n + first..], stride: n, to: To::Set };
        let (a, b) = (a.from(first, 0), Rhs::Dense(b.from(0, first)));
        super::gemm(rows, n - first, k, a, b, target, threads);
    }
    for i in (0..n).step_by(SQUARE) {
        for j in (0..=i).step_by(SQUARE) {
            for i in i..n.min(i + SQUARE) {
                for j in j..i.min(j + SQUARE) {
                    c[i * n + j] = c[j * n + i];
                }
            }
        }
    }
}
