//! The register tile, written once over [`Simd`].

use crate::kernels::simd::Simd;
use crate::kernels::to::To;

/// Vectors in a row of the tile.
const NV: usize = 2;
/// Rows of the tallest tile, `MR` of AVX-512.
const TALLEST: usize = 14;

/// Columns of the tile.
#[inline(always)]
pub const fn width<S: Simd>() -> usize {
    NV * S::LANES
}

/// `C[i, j] (+)= sum_k a[k * MR + i] * b[k * NR + j]` for `rows` rows, from 1 to `MR`, and all `NR` = [`width`] columns. A
/// short last tile costs no more than its rows.
///
/// # Safety
/// `a` holds `k * MR` values, `b` `k * NR`, and `c` `rows` rows of `NR` at distance `ldc`, which nobody else touches.
#[inline(always)]
pub unsafe fn tile<S: Simd>(
    rows: usize,
    k: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    ldc: usize,
    to: To,
) {
    const { assert!(S::MR <= TALLEST) };
    /// One arm for each height that the instruction set has.
    macro_rules! of_height {
        ($($height:literal)*) => {
            match rows {
                // SAFETY: by the caller's word.
                $($height if const { $height <= S::MR } => unsafe { of::<S, $height>(k, a, b, c, ldc, to) },)*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    of_height!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// Rows of `b` between the one in use and the one asked for: it comes from the second-level cache.
const AHEAD: usize = 8;

/// [`tile`] of `ROWS` rows: `ROWS x NV` accumulators, one row of `b` and one broadcast of `a` live at a time.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn of<S: Simd, const ROWS: usize>(
    k: usize,
    mut a: *const f32,
    mut b: *const f32,
    c: *mut f32,
    ldc: usize,
    to: To,
) {
    unsafe {
        let mut acc = [[S::zero(); NV]; ROWS];
        if to.adds() {
            (0..ROWS).for_each(|i| S::prefetch(c.add(i * ldc)));
        }
        for _ in 0..k {
            let mut row = [S::zero(); NV];
            for (j, v) in row.iter_mut().enumerate() {
                *v = S::load(b.add(j * S::LANES));
                if !S::HOLDS_B {
                    S::prefetch(b.wrapping_add(j * S::LANES + AHEAD * NV * S::LANES));
                }
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*a.add(i));
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = S::fma(x, row[j], *acc);
                }
            }
            a = a.add(S::MR);
            b = b.add(NV * S::LANES);
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, v) in acc.iter().enumerate() {
                let p = c.add(i * ldc + j * S::LANES);
                S::store(p, if to.adds() { S::add(*v, S::load(p)) } else { *v });
            }
        }
    }
}
