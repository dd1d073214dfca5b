//! The few vector operations that the matrix kernels are written in. Element-wise kernels are plain loops instead, which
//! the compiler vectorises inside [`kernel!`](super::isa::kernel).

use super::lookup::Record;
use super::to::To;

/// One instruction set's vector of `f32`.
///
/// # Safety
/// The methods are safe to call only inside a function compiled for the instruction set, which the `kernel!` macro
/// sees to; pointers must be valid for what the method says it touches.
pub trait Simd: Copy + 'static {
    /// `f32`s in a vector.
    const LANES: usize;
    /// Rows of a register tile.
    const MR: usize;
    /// Vectors in a row of a register tile.
    const NV: usize;
    /// Depth of a block of a product.
    const KC: usize;
    /// Whether a panel of `B` stays in the first-level cache while those of `A` stream past it, or the other way round.
    const HOLDS_B: bool;
    /// Whether `a * b + c` is one instruction; without it `mul_add` is a slow library call.
    const FMA: bool;
    type V: Copy;

    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `LANES` values.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes `LANES` values.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Asks for the cache line at `p`, which need not be valid.
    #[inline(always)]
    fn prefetch(p: *const f32) {
        let _ = p;
    }
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn sum(v: Self::V) -> f32;
    /// `scale * (code - 1)` for the `LANES` two-bit codes in the low bits of `codes`.
    unsafe fn decode(codes: u32, scale: f32) -> Self::V;
    /// The two-bit codes of `LANES` latents: 0 below `-half`, 2 above `half`, else 1.
    unsafe fn encode(p: *const f32, half: f32) -> u32;
    /// `dst[j * dst_stride + i] = src[i][j]` for a square of `LANES` by `LANES`; writes `LANES` values from each
    /// `dst + j * dst_stride`, `j` ascending.
    unsafe fn transpose(src: &[*const f32; 16], dst: *mut f32, dst_stride: usize);
    /// `C[i, j] (+)= sum_k a[k * MR + i] * b[k * NR + j]` for `rows <= MR` rows and all `NR = NV * LANES` columns.
    unsafe fn tile(rows: usize, k: usize, a: *const f32, b: *const f32, c: *mut f32, ldc: usize, to: To);
    /// [`lookup::look_up`](super::lookup::look_up) with as many vectors as an entry of 16 values has.
    unsafe fn look_up(records: &[Record], tables: *const f32, sums: *mut f32);

    /// `2 * LANES` 16-bit integers.
    type V16: Copy;
    unsafe fn zero16() -> Self::V16;
    unsafe fn load16(p: *const i16) -> Self::V16;
    unsafe fn store16(p: *mut i16, v: Self::V16);
    /// Sums and differences wrap around.
    unsafe fn add16(a: Self::V16, b: Self::V16) -> Self::V16;
    unsafe fn sub16(a: Self::V16, b: Self::V16) -> Self::V16;
    /// `LANES` 16-bit integers as `f32`.
    unsafe fn widen16(p: *const i16) -> Self::V;
    /// [`look_up16`](super::lookup::int8::look_up16) with as many vectors as an entry of 32 integers has.
    unsafe fn look_up16(records: &[Record], tables: *const i16, sums: *mut i16);
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Rows of `b` between the one in use and the one asked for: it comes from the second-level cache.
const AHEAD: usize = 8;

/// The register tile, written once: `MR x NV` accumulators, one row of `b` and one broadcast of `a` live at a time.
///
/// # Safety
/// `a` holds `k * STRIDE` values, `b` `k * NV * LANES`, and `c` `MR` rows of `NV * LANES` at distance `ldc`.
#[inline(always)]
pub unsafe fn micro<S: Simd, const MR: usize, const NV: usize>(
    stride: usize,
    k: usize,
    mut a: *const f32,
    mut b: *const f32,
    c: *mut f32,
    ldc: usize,
    to: To,
) {
    unsafe {
        let mut acc = [[S::zero(); NV]; MR];
        if to.adds() {
            (0..MR).for_each(|i| S::prefetch(c.add(i * ldc)));
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
            a = a.add(stride);
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

/// Picks the tile of `rows` rows, so that a short last tile costs no more than its rows.
macro_rules! tile_of {
    ($S:ty, $nv:literal, $full:literal; $($rows:literal)*; $n:expr, $k:expr, $a:expr, $b:expr, $c:expr, $ldc:expr, $add:expr) => {
        match $n {
            $($rows => $crate::kernels::simd::micro::<$S, $rows, $nv>($full, $k, $a, $b, $c, $ldc, $add),)*
            _ => $crate::kernels::simd::micro::<$S, $full, $nv>($full, $k, $a, $b, $c, $ldc, $add),
        }
    };
}
pub(crate) use tile_of;
