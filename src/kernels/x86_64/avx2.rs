//! AVX2 with FMA: 8 lanes, 16 registers, a 6 x 16 tile.

use crate::kernels::simd::{SUMS, Simd};
use half::f16;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx2;

impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const MR: usize = 6;
    const KC: usize = 384;
    const HOLDS_B: bool = true;
    const FMA: bool = true;
    type V = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        // SAFETY: a hint; no address can make it fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [__m256; SUMS]) -> [f32; SUMS] {
        unsafe {
            // Of each in both halves a half of its sum.
            let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let whole = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
            std::mem::transmute(whole)
        }
    }
    #[inline(always)]
    unsafe fn bf16(v: __m256) -> __m256 {
        unsafe {
            let bits = _mm256_castps_si256(v);
            let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), last);
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let kept = _mm256_blendv_epi8(rounded, quiet, nan);
            let kept = _mm256_and_si256(kept, _mm256_set1_epi32(0xFFFF_0000u32 as i32));
            let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX));
            let tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x0080_0000), magnitude);
            let sign = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN));
            _mm256_castsi256_ps(_mm256_blendv_epi8(kept, sign, tiny))
        }
    }
    #[inline(always)]
    unsafe fn decode(codes: u32, scale: f32) -> __m256 {
        unsafe {
            let table = _mm256_setr_ps(-scale, 0.0, scale, 0.0, -scale, 0.0, scale, 0.0);
            let shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
            // vpermilps reads the low two bits of each lane only.
            _mm256_permutevar_ps(table, _mm256_srlv_epi32(_mm256_set1_epi32(codes as i32), shifts))
        }
    }
    #[inline(always)]
    unsafe fn encode(p: *const f32, half: f32) -> u32 {
        unsafe {
            let w = _mm256_loadu_ps(p);
            let plus = _mm256_movemask_ps(_mm256_cmp_ps(w, _mm256_set1_ps(half), _CMP_GT_OQ)) as u32;
            let minus = _mm256_movemask_ps(_mm256_cmp_ps(w, _mm256_set1_ps(-half), _CMP_LT_OQ)) as u32;
            _pdep_u32(plus, 0xAAAA) | _pdep_u32(!(plus | minus), 0x5555)
        }
    }
    #[inline(always)]
    unsafe fn transpose(src: &[*const f32; 16], dst: *mut f32, dst_stride: usize) {
        unsafe {
            let mut r = [Self::zero(); 8];
            for i in 0..8 {
                r[i] = _mm256_loadu_ps(src[i]);
            }
            // Pairs, then quadruples, then halves.
            let mut t = [Self::zero(); 8];
            for i in 0..8 {
                let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
                t[i] = if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) };
            }
            let mut u = [Self::zero(); 8];
            for i in 0..8 {
                let (a, b) = (t[i / 4 * 4 + i % 4 / 2], t[i / 4 * 4 + i % 4 / 2 + 2]);
                u[i] = if i % 2 == 0 { _mm256_shuffle_ps(a, b, 0x44) } else { _mm256_shuffle_ps(a, b, 0xEE) };
            }
            for j in 0..4 {
                _mm256_storeu_ps(dst.add(j * dst_stride), _mm256_permute2f128_ps(u[j], u[j + 4], 0x20));
            }
            for j in 0..4 {
                _mm256_storeu_ps(dst.add((j + 4) * dst_stride), _mm256_permute2f128_ps(u[j], u[j + 4], 0x31));
            }
        }
    }

    type V16 = __m256i;
    #[inline(always)]
    unsafe fn zero16() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn load16(p: *const i16) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store16(p: *mut i16, v: __m256i) {
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn add16(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn sub16(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn widen16(p: *const i16) -> Self::V {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn widen_half(p: *const f16) -> Self::V {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn widen8(p: *const i8) -> Self::V {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(p.cast()))) }
    }
}
