//! The vector of machines without a hand-written one: four lanes, which every 64-bit target has in hardware.

use super::simd::Simd;

#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    const LANES: usize = 4;
    const MR: usize = 4;
    const KC: usize = 256;
    const HOLDS_B: bool = true;
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| super::simd::fma::<Self>(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    unsafe fn decode(codes: u32, scale: f32) -> [f32; 4] {
        let table = [-scale, 0.0, scale, 0.0];
        std::array::from_fn(|i| table[(codes >> (2 * i)) as usize & 3])
    }
    #[inline(always)]
    unsafe fn encode(p: *const f32, half: f32) -> u32 {
        let w = unsafe { Self::load(p) };
        (0..4).fold(0, |codes, i| codes | (1 + (w[i] > half) as u32 - (w[i] < -half) as u32) << (2 * i))
    }
    #[inline(always)]
    unsafe fn transpose(src: &[*const f32; 16], dst: *mut f32, dst_stride: usize) {
        for j in 0..4 {
            for (i, row) in src.iter().take(4).enumerate() {
                unsafe { *dst.add(j * dst_stride + i) = *row.add(j) };
            }
        }
    }

    type V16 = [i16; 8];
    #[inline(always)]
    unsafe fn zero16() -> [i16; 8] {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load16(p: *const i16) -> [i16; 8] {
        unsafe { p.cast::<[i16; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store16(p: *mut i16, v: [i16; 8]) {
        unsafe { p.cast::<[i16; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add16(a: [i16; 8], b: [i16; 8]) -> [i16; 8] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn sub16(a: [i16; 8], b: [i16; 8]) -> [i16; 8] {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn widen16(p: *const i16) -> Self::V {
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() } as f32)
    }
}
