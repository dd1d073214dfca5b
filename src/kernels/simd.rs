//! The few vector operations that the matrix kernels are written in. Element-wise kernels are plain loops instead, which
//! the compiler vectorises inside of `kernel!`.

use half::f16;

/// Vectors that [`Simd::sums`] adds up together.
pub const SUMS: usize = 4;

/// One instruction set's vector of `f32`.
///
/// # Safety
/// The methods are safe to call only inside a function compiled for the instruction set, which the `kernel!` macro
/// sees to; pointers must be valid for what the method says it touches.
pub trait Simd: Copy + 'static {
    /// `f32`s in a vector.
    const LANES: usize;
    /// Vector registers.
    const REGISTERS: usize;
    /// Rows of a register tile, which is two vectors wide.
    const MR: usize;
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
    /// The sum of each; what one is does not depend on the others.
    #[inline(always)]
    unsafe fn sums(v: [Self::V; SUMS]) -> [f32; SUMS] {
        unsafe { v.map(|v| Self::sum(v)) }
    }
    /// [`nearest_bf16`] of each.
    unsafe fn bf16(v: Self::V) -> Self::V;
    /// `scale * (code - 1)` for the `LANES` two-bit codes in the low bits of `codes`.
    unsafe fn decode(codes: u32, scale: f32) -> Self::V;
    /// The two-bit codes of `LANES` latents: 0 below `-half`, 2 above `half`, else 1.
    unsafe fn encode(p: *const f32, half: f32) -> u32;
    /// `dst[j * dst_stride + i] = src[i][j]` for a square of `LANES` by `LANES`; writes `LANES` values from each
    /// `dst + j * dst_stride`, `j` ascending.
    unsafe fn transpose(src: &[*const f32; 16], dst: *mut f32, dst_stride: usize);

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
    /// `LANES` values of half precision as `f32`.
    unsafe fn widen_half(p: *const f16) -> Self::V;
    /// `LANES` 8-bit integers as `f32`.
    unsafe fn widen8(p: *const i8) -> Self::V;
}

/// The nearest bf16: [`reference::bf16`](super::reference::bf16) to the bit, in operations that vectors have.
#[inline(always)]
pub fn nearest_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7FFF_FFFF;
    // Half of the last place that stays, or a little less where that place is even.
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let rounded = if magnitude > 0x7F80_0000 { bits | 0x0040_0000 } else { rounded };
    let rounded = if magnitude < 0x0080_0000 { bits & 0x8000_0000 } else { rounded };
    f32::from_bits(rounded & 0xFFFF_0000)
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `sum a[i] * b[i]`, in 16 partial sums.
#[inline(always)]
pub fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..16 {
            sums[i] = fma::<S>(a[i], b[i], sums[i]);
        }
    }
    sums.iter().sum::<f32>() + tail
}
