//! NEON: two registers of four lanes at a time, of 32; a 6 x 16 tile.

use half::f16;
use std::arch::aarch64::*;
use std::arch::asm;

use crate::kernels::simd::Simd;

#[derive(Clone, Copy)]
pub struct Neon;

/// Does `f` with each of the two registers.
#[inline(always)]
fn each<A: Copy, B: Copy, R>(a: [A; 2], b: [B; 2], f: impl Fn(A, B) -> R) -> [R; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Of four values in `table` those that the low two bits of the lanes name.
#[inline(always)]
pub(super) unsafe fn choose(table: float32x4_t, lanes: uint32x4_t) -> float32x4_t {
    unsafe {
        // The four bytes of a value stand one after the other: code c is at bytes 4 c to 4 c + 3.
        let code = vandq_u32(lanes, vdupq_n_u32(3));
        let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), code, vdupq_n_u32(0x0404_0404));
        let chosen = vqtbl1q_u8(vreinterpretq_u8_f32(table), vreinterpretq_u8_u32(bytes));
        vreinterpretq_f32_u8(chosen)
    }
}

/// Four f16 as f32; of a processor without arithmetic in f16, too.
#[inline(always)]
pub(super) unsafe fn from_f16(p: *const u8) -> float32x4_t {
    unsafe {
        let halves = vld1_u8(p);
        let floats: float32x4_t;
        asm!(
            "fcvtl {floats:v}.4s, {halves:v}.4h",
            floats = lateout(vreg) floats,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
        floats
    }
}

/// `r[j][i] = rows[i][j]`.
#[inline(always)]
unsafe fn transpose4(rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    unsafe {
        let [a, b, c, d] = rows;
        let pairs = [vtrn1q_f32(a, b), vtrn2q_f32(a, b), vtrn1q_f32(c, d), vtrn2q_f32(c, d)];
        let [p, q, r, s] = pairs.map(|v| vreinterpretq_f64_f32(v));
        let whole = [vtrn1q_f64(p, r), vtrn1q_f64(q, s), vtrn2q_f64(p, r), vtrn2q_f64(q, s)];
        whole.map(|v| vreinterpretq_f32_f64(v))
    }
}

impl Simd for Neon {
    const LANES: usize = 8;
    // 32, and a `V` takes two.
    const REGISTERS: usize = 16;
    const MR: usize = 6;
    const KC: usize = 384;
    const HOLDS_B: bool = true;
    const FMA: bool = true;
    type V = [float32x4_t; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        unsafe { [vdupq_n_f32(0.0); 2] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
        }
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        // SAFETY: a hint; no address can make it fault.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn bf16(v: Self::V) -> Self::V {
        v.map(|v| unsafe {
            let bits = vreinterpretq_u32_f32(v);
            let last = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), last);
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            let magnitude = vandq_u32(bits, vdupq_n_u32(0x7FFF_FFFF));
            let kept = vbslq_u32(vcgtq_u32(magnitude, vdupq_n_u32(0x7F80_0000)), quiet, rounded);
            let sign = vandq_u32(bits, vdupq_n_u32(0x8000_0000));
            let kept = vbslq_u32(vcltq_u32(magnitude, vdupq_n_u32(0x0080_0000)), sign, kept);
            vreinterpretq_f32_u32(vandq_u32(kept, vdupq_n_u32(0xFFFF_0000)))
        })
    }
    #[inline(always)]
    unsafe fn decode(codes: u32, scale: f32) -> Self::V {
        unsafe {
            let table = vld1q_f32([-scale, 0.0, scale, 0.0].as_ptr());
            // A shift to the left by less than 0 is one to the right.
            let shifts = [vld1q_s32([0, -2, -4, -6].as_ptr()), vld1q_s32([-8, -10, -12, -14].as_ptr())];
            shifts.map(|shifts| choose(table, vshlq_u32(vdupq_n_u32(codes), shifts)))
        }
    }
    #[inline(always)]
    unsafe fn encode(p: *const f32, half: f32) -> u32 {
        unsafe {
            let shifts = vld1q_s32([0, 2, 4, 6].as_ptr());
            let four = |w: float32x4_t| {
                // Comparisons give 0 or -1.
                let plus = vcgtq_f32(w, vdupq_n_f32(half));
                let minus = vcltq_f32(w, vdupq_n_f32(-half));
                let codes = vaddq_u32(vsubq_u32(vdupq_n_u32(1), plus), minus);
                vaddvq_u32(vshlq_u32(codes, shifts))
            };
            let [low, high] = Self::load(p);
            four(low) | four(high) << 8
        }
    }
    #[inline(always)]
    unsafe fn transpose(src: &[*const f32; 16], dst: *mut f32, dst_stride: usize) {
        unsafe {
            // Left and right halves of the upper four rows, then of the lower ones.
            let square =
                |row: usize, col: usize| transpose4([0, 1, 2, 3].map(|i| vld1q_f32(src[row + i].add(col))));
            for col in [0, 4] {
                let (upper, lower) = (square(0, col), square(4, col));
                for j in 0..4 {
                    Self::store(dst.add((col + j) * dst_stride), [upper[j], lower[j]]);
                }
            }
        }
    }

    type V16 = [int16x8_t; 2];
    #[inline(always)]
    unsafe fn zero16() -> Self::V16 {
        unsafe { [vdupq_n_s16(0); 2] }
    }
    #[inline(always)]
    unsafe fn load16(p: *const i16) -> Self::V16 {
        unsafe { [vld1q_s16(p), vld1q_s16(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store16(p: *mut i16, v: Self::V16) {
        unsafe {
            vst1q_s16(p, v[0]);
            vst1q_s16(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn add16(a: Self::V16, b: Self::V16) -> Self::V16 {
        each(a, b, |a, b| unsafe { vaddq_s16(a, b) })
    }
    #[inline(always)]
    unsafe fn sub16(a: Self::V16, b: Self::V16) -> Self::V16 {
        each(a, b, |a, b| unsafe { vsubq_s16(a, b) })
    }
    #[inline(always)]
    unsafe fn widen16(p: *const i16) -> Self::V {
        unsafe {
            let v = vld1q_s16(p);
            [vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)].map(|v| vcvtq_f32_s32(v))
        }
    }
    #[inline(always)]
    unsafe fn widen_half(p: *const f16) -> Self::V {
        unsafe { [from_f16(p.cast()), from_f16(p.add(4).cast())] }
    }
    #[inline(always)]
    unsafe fn widen8(p: *const i8) -> Self::V {
        unsafe {
            let v = vmovl_s8(vld1_s8(p));
            [vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)].map(|v| vcvtq_f32_s32(v))
        }
    }
}
