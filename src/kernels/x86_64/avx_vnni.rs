//! AVX2 with AVX-VNNI, of processors without AVX-512: dot products of 8-bit integers into 32 bits, 8 lanes. The rest is
//! AVX2's.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::lines::Avx2Lines;
use crate::kernels::lines::Lines;

#[derive(Clone, Copy)]
pub struct AvxVnniLines;

/// What AVX2 does.
macro_rules! as_avx2 {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) -> $out {
                unsafe { Avx2Lines::$name($($arg),*) }
            }
        )*
    };
}

impl Lines for AvxVnniLines {
    type F = Avx2;
    type Codes = __m256i;
    type Sum = __m256i;
    const TOKENS: usize = Avx2Lines::TOKENS;
    const PAIRS: bool = Avx2Lines::PAIRS;
    const IN_PLACE: bool = false;

    as_avx2! {
        load(p: *const u8) -> __m256i;
        load_half(p: *const u8) -> __m256i;
        store(p: *mut u8, codes: __m256i) -> ();
        join(a: __m256i, b: __m256i) -> __m256i;
        two_bit(line: __m256i) -> [__m256i; 4];
        base3(line: __m256i) -> [__m256i; 5];
        zero() -> __m256i;
        base3_as_two_bit(line: __m256i) -> [__m256i; 2];
        look_up(table: *const f32, line: __m256i) -> __m256;
        next(line: __m256i) -> __m256i;
        upper(line: __m256i) -> __m256i;
        scales(p: *const u8) -> __m256;
    }
    #[inline(always)]
    unsafe fn in_place<const BASE3: bool>(_: __m256i) -> [__m256i; 5] {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn sized(_: [__m256i; 5]) -> __m256i {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn dot(sum: __m256i, codes: __m256i, x: *const i8) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(sum, codes, _mm256_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn total(sum: __m256i, offset: i32) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(offset))) }
    }
}
