//! Sums of codes times inputs on NEON, without and with its dot products of 8-bit integers.

use std::arch::aarch64::*;
use std::arch::asm;

use super::neon::{Neon, choose, from_f16};
use crate::kernels::lines::Lines;

/// What is left of each byte below `power`, which goes into it twice at most, and how often it does.
#[inline(always)]
unsafe fn digit(line: uint8x16_t, power: u8) -> (uint8x16_t, uint8x16_t) {
    unsafe {
        // Comparisons give 0 or -1.
        let (once, twice) = (vcgeq_u8(line, vdupq_n_u8(power)), vcgeq_u8(line, vdupq_n_u8(2 * power)));
        let less = vaddq_u8(once, twice);
        (vmlaq_u8(line, less, vdupq_n_u8(power)), vsubq_u8(vdupq_n_u8(0), less))
    }
}

#[inline(always)]
unsafe fn base3(line: uint8x16_t) -> [uint8x16_t; 5] {
    unsafe {
        let (rest, e) = digit(line, 81);
        let (rest, d) = digit(rest, 27);
        let (rest, c) = digit(rest, 9);
        let (a, b) = digit(rest, 3);
        [a, b, c, d, e]
    }
}

/// `[register][code]` as `[code][register]`.
#[inline(always)]
fn turned<const N: usize>(of: [[uint8x16_t; N]; 2]) -> [[uint8x16_t; 2]; N] {
    std::array::from_fn(|i| [of[0][i], of[1][i]])
}

/// `f` with each register as lanes of 32 bits.
#[inline(always)]
unsafe fn lanes(line: [uint8x16_t; 2], f: impl Fn(uint32x4_t) -> uint32x4_t) -> [uint8x16_t; 2] {
    line.map(|line| unsafe { vreinterpretq_u8_u32(f(vreinterpretq_u32_u8(line))) })
}

/// What does not depend on how products add up.
macro_rules! codes {
    () => {
        type F = Neon;
        type Codes = [uint8x16_t; 2];
        const PAIRS: bool = false;

        #[inline(always)]
        unsafe fn load(p: *const u8) -> Self::Codes {
            unsafe { [vld1q_u8(p), vld1q_u8(p.add(16))] }
        }
        #[inline(always)]
        unsafe fn load_half(p: *const u8) -> Self::Codes {
            unsafe {
                let halves = vreinterpretq_u16_u8(vld1q_u8(p));
                let wide = [vmovl_u16(vget_low_u16(halves)), vmovl_high_u16(halves)];
                wide.map(|wide| vreinterpretq_u8_u32(wide))
            }
        }
        #[inline(always)]
        unsafe fn store(p: *mut u8, codes: Self::Codes) {
            unsafe {
                vst1q_u8(p, codes[0]);
                vst1q_u8(p.add(16), codes[1]);
            }
        }
        #[inline(always)]
        unsafe fn join(a: Self::Codes, b: Self::Codes) -> Self::Codes {
            unsafe {
                let upper = lanes(b, |b| vshlq_n_u32::<16>(b));
                [vorrq_u8(a[0], upper[0]), vorrq_u8(a[1], upper[1])]
            }
        }
        #[inline(always)]
        unsafe fn two_bit(line: Self::Codes) -> [Self::Codes; 4] {
            let codes = |line: uint8x16_t| unsafe {
                let mask = vdupq_n_u8(3);
                [
                    vandq_u8(line, mask),
                    vandq_u8(vshrq_n_u8::<2>(line), mask),
                    vandq_u8(vshrq_n_u8::<4>(line), mask),
                    vshrq_n_u8::<6>(line),
                ]
            };
            turned(line.map(codes))
        }
        #[inline(always)]
        unsafe fn base3(line: Self::Codes) -> [Self::Codes; 5] {
            turned(line.map(|line| unsafe { base3(line) }))
        }
        const IN_PLACE: bool = false;
        #[inline(always)]
        unsafe fn in_place<const BASE3: bool>(_: Self::Codes) -> [Self::Codes; 5] {
            unreachable!("not for this instruction set")
        }
        #[inline(always)]
        unsafe fn sized(_: [Self::Sum; 5]) -> Self::Sum {
            unreachable!("not for this instruction set")
        }
        #[inline(always)]
        unsafe fn base3_as_two_bit(line: Self::Codes) -> [Self::Codes; 2] {
            let codes = |line: uint8x16_t| unsafe {
                let [a, b, c, d, e] = base3(line);
                let low = vorrq_u8(a, vshlq_n_u8::<2>(b));
                let high = vorrq_u8(vshlq_n_u8::<4>(c), vshlq_n_u8::<6>(d));
                let lane = vreinterpretq_u32_u8(e);
                let fifth = vorrq_u32(lane, vshrq_n_u32::<6>(lane));
                [vorrq_u8(low, high), vreinterpretq_u8_u32(fifth)]
            };
            turned(line.map(codes))
        }
        #[inline(always)]
        unsafe fn look_up(table: *const f32, line: Self::Codes) -> [float32x4_t; 2] {
            unsafe {
                let table = vld1q_f32(table);
                line.map(|line| choose(table, vreinterpretq_u32_u8(line)))
            }
        }
        #[inline(always)]
        unsafe fn next(line: Self::Codes) -> Self::Codes {
            unsafe { lanes(line, |line| vshrq_n_u32::<2>(line)) }
        }
        #[inline(always)]
        unsafe fn upper(line: Self::Codes) -> Self::Codes {
            unsafe { lanes(line, |line| vshrq_n_u32::<16>(line)) }
        }
        #[inline(always)]
        unsafe fn scales(p: *const u8) -> [float32x4_t; 2] {
            unsafe { [from_f16(p), from_f16(p.add(8))] }
        }
    };
}

/// Every processor: products in 16 bits.
#[derive(Clone, Copy)]
pub struct NeonLines;

impl Lines for NeonLines {
    codes!();
    /// Each byte's products in 16 bits, two rows in a register: a segment of 128 inputs adds up to less than 2^13.
    type Sum = [int16x8_t; 4];
    const TOKENS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        unsafe { [vdupq_n_s16(0); 4] }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Sum, codes: Self::Codes, x: *const i8) -> Self::Sum {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            let [a, b] = codes.map(|codes| vreinterpretq_s8_u8(codes));
            [
                vmlal_s8(sum[0], vget_low_s8(a), vget_low_s8(x)),
                vmlal_high_s8(sum[1], a, x),
                vmlal_s8(sum[2], vget_low_s8(b), vget_low_s8(x)),
                vmlal_high_s8(sum[3], b, x),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum {
        std::array::from_fn(|i| unsafe { vaddq_s16(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn total(sum: Self::Sum, offset: i32) -> [float32x4_t; 2] {
        let four = |low: int16x8_t, high: int16x8_t| unsafe {
            // Pairs still fit in 16 bits.
            let sum = vpaddlq_s16(vpaddq_s16(low, high));
            vcvtq_f32_s32(vsubq_s32(sum, vdupq_n_s32(offset)))
        };
        [four(sum[0], sum[1]), four(sum[2], sum[3])]
    }
}

/// With `sdot`, which adds four products in a lane.
#[derive(Clone, Copy)]
pub struct DotLines;

impl Lines for DotLines {
    codes!();
    type Sum = [int32x4_t; 2];
    const TOKENS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        unsafe { [vdupq_n_s32(0); 2] }
    }
    #[inline(always)]
    unsafe fn dot(mut sum: Self::Sum, codes: Self::Codes, x: *const i8) -> Self::Sum {
        unsafe {
            let x = vdupq_n_s32(x.cast::<i32>().read_unaligned());
            for (sum, codes) in sum.iter_mut().zip(codes) {
                // The intrinsic is not in stable Rust.
                asm!(
                    "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
                    sum = inout(vreg) *sum,
                    codes = in(vreg) codes,
                    x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum {
        std::array::from_fn(|i| unsafe { vaddq_s32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn total(sum: Self::Sum, offset: i32) -> [float32x4_t; 2] {
        sum.map(|sum| unsafe { vcvtq_f32_s32(vsubq_s32(sum, vdupq_n_s32(offset))) })
    }
}
