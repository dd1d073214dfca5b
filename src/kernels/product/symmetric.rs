//! Products that are known to be symmetric, as that of a matrix and its transpose: half is computed, the other half is its
//! mirror.

use super::operands::{Rhs, Sizes, Target, Threads, View};
use super::tiles;
use super::way::{self, Way};
use crate::config::Precision;
use crate::kernels::isa::kernel;
use crate::kernels::to::To;

/// Rows computed together, from the diagonal on: fewer leave less to compute below it, more are multiplied faster.
pub(super) const STRIP: usize = 128;
/// `C = A B`, `A` `[n, k]`, `B` `[k, n]`, `C` `[n, n]`, of which what is on and above the diagonal is computed.
///
/// ```
/// use ternlm::kernels::{View, symmetric_gemm};
/// let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let (x, mut c) = (View::rows(&x, 3), [0.0; 4]);
/// symmetric_gemm(2, 3, x, x.t(), &mut c);
/// assert_eq!(c, [14.0, 32.0, 32.0, 77.0]);
/// ```
///
/// # Panics
/// As [`gemm`](super::gemm).
pub fn symmetric_gemm(n: usize, k: usize, a: View<'_>, b: View<'_>, c: &mut [f32]) {
    assert_eq!(c.len(), n * n, "values of [{n}, {n}]");
    let whole = Sizes { m: STRIP, n: STRIP, k };
    if b.precision == Precision::Bf16 && n >= STRIP && way::gemm(whole, a, Rhs::Dense(b)) == Way::Tiles {
        assert_eq!(a.precision, b.precision, "the precision of both operands");
        a.check(n, k);
        let target = Target { data: &mut *c, stride: n, to: To::Set };
        tiles::Laid::new(b, k, n).times_above_diagonal(tiles::Left::Dense(a), STRIP, target);
    } else {
        for first in (0..n).step_by(STRIP) {
            let rows = STRIP.min(n - first);
            let target = Target { data: &mut c[first * n + first..], stride: n, to: To::Set };
            let (a, b) = (a.from(first, 0), Rhs::Dense(b.from(0, first)));
            super::gemm(rows, n - first, k, a, b, target, Threads::All);
        }
    }
    mirror(n, c);
}

kernel! {
    /// What is below the diagonal becomes what is above it.
    pub(super) fn mirror<S>(n: usize, c: &mut [f32]) {
        assert_eq!(c.len(), n * n);
        let whole = n / S::LANES * S::LANES;
        for i in (0..n).step_by(S::LANES) {
            for j in (0..i).step_by(S::LANES) {
                if i < whole {
                    let mut src = [c.as_ptr(); 16];
                    for (r, src) in src.iter_mut().enumerate().take(S::LANES) {
                        *src = c[(j + r) * n + i..].as_ptr();
                    }
                    // SAFETY: both squares lie inside the matrix, on either side of its diagonal.
                    unsafe { S::transpose(&src, c.as_mut_ptr().add(i * n + j), n) };
                }
            }
            for i in i..n.min(i + S::LANES) {
                // Of rows that fill no vector, all; of others what the squares left.
                let left = if i < whole { i / S::LANES * S::LANES } else { 0 };
                for j in left..i {
                    c[i * n + j] = c[j * n + i];
                }
            }
        }
    }
}
