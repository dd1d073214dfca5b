//! AVX-512: 16 lanes, 32 registers, a 14 x 32 tile.

use crate::kernels::simd::{SUMS, Simd};
use half::f16;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx512;

impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const MR: usize = 14;
    const KC: usize = 512;
    const HOLDS_B: bool = false;
    const FMA: bool = true;
    type V = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        // SAFETY: a hint; no address can make it fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [__m512; SUMS]) -> [f32; SUMS] {
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            // Of each in every 128 bits a quarter of its sum.
            let quarters = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
            let whole = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
            std::mem::transmute(whole)
        }
    }
    #[inline(always)]
    unsafe fn bf16(v: __m512) -> __m512 {
        unsafe {
            let bits = _mm512_castps_si512(v);
            let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), last);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
            let kept = _mm512_and_si512(rounded, _mm512_set1_epi32(0xFFFF_0000u32 as i32));
            // Subnormal numbers alone.
            let tiny = _mm512_fpclass_ps_mask::<0x20>(v);
            _mm512_castsi512_ps(_mm512_mask_and_epi32(kept, tiny, bits, _mm512_set1_epi32(i32::MIN)))
        }
    }
    #[inline(always)]
    unsafe fn decode(codes: u32, scale: f32) -> __m512 {
        unsafe {
            let table = _mm512_broadcast_f32x4(_mm_setr_ps(-scale, 0.0, scale, 0.0));
            let shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            // vpermilps reads the low two bits of each lane only.
            _mm512_permutevar_ps(table, _mm512_srlv_epi32(_mm512_set1_epi32(codes as i32), shifts))
        }
    }
    #[inline(always)]
    unsafe fn encode(p: *const f32, half: f32) -> u32 {
        unsafe {
            let w = _mm512_loadu_ps(p);
            let plus = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(w, _mm512_set1_ps(half)) as u32;
            let minus = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(w, _mm512_set1_ps(-half)) as u32;
            _pdep_u32(plus, 0xAAAA_AAAA) | _pdep_u32(!(plus | minus), 0x5555_5555)
        }
    }
    #[inline(always)]
    unsafe fn transpose(src: &[*const f32; 16], dst: *mut f32, dst_stride: usize) {
        unsafe {
            let mut r = [Self::zero(); 16];
            for i in 0..16 {
                r[i] = _mm512_loadu_ps(src[i]);
            }
            // Pairs and quadruples within each 128-bit quarter, then the quarters change places in two rounds.
            let mut t = [Self::zero(); 16];
            for i in 0..16 {
                let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
                t[i] = if i % 2 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) };
            }
            let mut u = [Self::zero(); 16];
            for i in 0..16 {
                let (a, b) = (t[i / 4 * 4 + i % 4 / 2], t[i / 4 * 4 + i % 4 / 2 + 2]);
                u[i] = if i % 2 == 0 { _mm512_shuffle_ps(a, b, 0x44) } else { _mm512_shuffle_ps(a, b, 0xEE) };
            }
            for quarter in 0..4 {
                for j in 0..4 {
                    let (a, b, c, d) = (u[j], u[j + 4], u[j + 8], u[j + 12]);
                    let v = match quarter {
                        0 => _mm512_shuffle_f32x4(
                            _mm512_shuffle_f32x4(a, b, 0x00),
                            _mm512_shuffle_f32x4(c, d, 0x00),
                            0x88,
                        ),
                        1 => _mm512_shuffle_f32x4(
                            _mm512_shuffle_f32x4(a, b, 0x55),
                            _mm512_shuffle_f32x4(c, d, 0x55),
                            0x88,
                        ),
                        2 => _mm512_shuffle_f32x4(
                            _mm512_shuffle_f32x4(a, b, 0xAA),
                            _mm512_shuffle_f32x4(c, d, 0xAA),
                            0x88,
                        ),
                        _ => _mm512_shuffle_f32x4(
                            _mm512_shuffle_f32x4(a, b, 0xFF),
                            _mm512_shuffle_f32x4(c, d, 0xFF),
                            0x88,
                        ),
                    };
                    _mm512_storeu_ps(dst.add((quarter * 4 + j) * dst_stride), v);
                }
            }
        }
    }

    type V16 = __m512i;
    #[inline(always)]
    unsafe fn zero16() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load16(p: *const i16) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store16(p: *mut i16, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn add16(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn sub16(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn widen16(p: *const i16) -> Self::V {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn widen_half(p: *const f16) -> Self::V {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn widen8(p: *const i8) -> Self::V {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
}
