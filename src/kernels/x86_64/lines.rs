//! Sums of codes times inputs on AVX2, AVX-512 and AVX-512 with VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::avx512::Avx512;
use crate::kernels::lines::Lines;

/// AVX-512 with VNNI, which adds four products in a lane, and VBMI, which looks bytes up.
#[derive(Clone, Copy)]
pub struct Vnni;

/// For the four lower digits of base 3, which are below 81, their codes of two bits each.
static FOUR_DIGITS: [u8; 128] = {
    let mut table = [0; 128];
    let mut digits = 0;
    while digits < 81 {
        let d = [digits % 3, digits / 3 % 3, digits / 9 % 3, digits / 27];
        table[digits] = (d[0] | d[1] << 2 | d[2] << 4 | d[3] << 6) as u8;
        digits += 1;
    }
    table
};

impl Vnni {
    /// Of numbers below 81 the digits as codes of two bits.
    #[inline(always)]
    unsafe fn four_digits(rest: __m512i) -> __m512i {
        unsafe {
            let low = _mm512_loadu_si512(FOUR_DIGITS.as_ptr().cast());
            let high = _mm512_loadu_si512(FOUR_DIGITS.as_ptr().add(64).cast());
            _mm512_permutex2var_epi8(low, rest, high)
        }
    }

    /// The four lower digits as codes of two bits, and the fifth.
    #[inline(always)]
    unsafe fn digits(line: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let (rest, taken) = multiple_512(line, 81);
            // Of 0, 81 and 162 the low two bits are 0, 1 and 2.
            let fifth = _mm512_and_si512(taken, _mm512_set1_epi8(3));
            (Self::four_digits(rest), fifth)
        }
    }
}

impl Lines for Vnni {
    type F = Avx512;
    type Codes = __m512i;
    type Sum = __m512i;
    const TOKENS: usize = 12;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, codes: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), codes) }
    }
    #[inline(always)]
    unsafe fn join(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, _mm512_slli_epi32::<16>(b)) }
    }
    #[inline(always)]
    unsafe fn two_bit(line: __m512i) -> [__m512i; 4] {
        unsafe { Avx512Lines::two_bit(line) }
    }
    #[inline(always)]
    unsafe fn base3(line: __m512i) -> [__m512i; 5] {
        unsafe {
            let (four, fifth) = Self::digits(line);
            let [a, b, c, d] = Self::two_bit(four);
            [a, b, c, d, fifth]
        }
    }
    const IN_PLACE: bool = true;
    #[inline(always)]
    unsafe fn in_place<const BASE3: bool>(line: __m512i) -> [__m512i; 5] {
        unsafe {
            let (four, fifth) = if BASE3 {
                let (rest, taken) = multiple_512(line, 81);
                (Self::four_digits(rest), taken)
            } else {
                (line, _mm512_setzero_si512())
            };
            let place = |mask: i8| _mm512_and_si512(four, _mm512_set1_epi8(mask));
            [place(0x03), place(0x0C), place(0x30), place(0xC0u8 as i8), fifth]
        }
    }
    #[inline(always)]
    unsafe fn sized([a, b, c, d, e]: [__m512i; 5]) -> __m512i {
        unsafe {
            let (b, c, d) = (_mm512_srai_epi32::<2>(b), _mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
            // A multiple of 81 below 2^24: the nearest whole number of its 81st part is exact.
            let e = _mm512_mul_ps(_mm512_cvtepi32_ps(e), _mm512_set1_ps(1.0 / 81.0));
            let four = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
            _mm512_add_epi32(four, _mm512_cvtps_epi32(e))
        }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn total(sum: __m512i, offset: i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(offset))) }
    }
    #[inline(always)]
    unsafe fn base3_as_two_bit(line: __m512i) -> [__m512i; 2] {
        unsafe {
            let (four, fifth) = Self::digits(line);
            [four, _mm512_or_si512(fifth, _mm512_srli_epi32::<6>(fifth))]
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: *const f32, line: __m512i) -> __m512 {
        unsafe { Avx512Lines::look_up(table, line) }
    }
    #[inline(always)]
    unsafe fn next(line: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<4>(line) }
    }
    #[inline(always)]
    unsafe fn upper(line: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<16>(line) }
    }
    #[inline(always)]
    unsafe fn scales(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
}

/// The code of a digit by the low four bits of digit times 27, 9 and 3, for a shuffle of bytes.
const CODES_OF: [[i8; 16]; 3] = {
    let mut tables = [[0; 16]; 3];
    let powers = [27, 9, 3];
    let mut i = 0;
    while i < 3 {
        tables[i][powers[i] % 16] = 1;
        tables[i][2 * powers[i] % 16] = 2;
        i += 1;
    }
    tables
};

/// What of each byte is left below `power`, which goes into it twice at most, and what was taken away.
#[inline(always)]
unsafe fn multiple_512(line: __m512i, power: i8) -> (__m512i, __m512i) {
    unsafe {
        let power = _mm512_set1_epi8(power);
        // Below the power the difference wraps around and is the larger one.
        let once = _mm512_min_epu8(line, _mm512_sub_epi8(line, power));
        let rest = _mm512_min_epu8(once, _mm512_sub_epi8(once, power));
        (rest, _mm512_sub_epi8(line, rest))
    }
}

/// What of each byte is left below `power`, which goes into it twice at most, and what was taken away.
#[inline(always)]
unsafe fn multiple_256(line: __m256i, power: i8) -> (__m256i, __m256i) {
    unsafe {
        let power = _mm256_set1_epi8(power);
        // Below the power the difference wraps around and is the larger one.
        let once = _mm256_min_epu8(line, _mm256_sub_epi8(line, power));
        let rest = _mm256_min_epu8(once, _mm256_sub_epi8(once, power));
        (rest, _mm256_sub_epi8(line, rest))
    }
}

/// AVX-512 BW: pairs of products in 16 bits.
#[derive(Clone, Copy)]
pub struct Avx512Lines;

impl Lines for Avx512Lines {
    type F = Avx512;
    type Codes = __m512i;
    /// Sums of two neighbouring bytes' products, in 16 bits: a segment of 128 inputs adds up to less than 2^14.
    type Sum = __m512i;
    const TOKENS: usize = 12;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, codes: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), codes) }
    }
    #[inline(always)]
    unsafe fn join(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, _mm512_slli_epi32::<16>(b)) }
    }
    #[inline(always)]
    unsafe fn two_bit(line: __m512i) -> [__m512i; 4] {
        unsafe {
            let mask = _mm512_set1_epi8(3);
            // What comes from the neighbouring byte is above the mask.
            [
                _mm512_and_si512(line, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(line), mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask),
                _mm512_and_si512(_mm512_srli_epi16::<6>(line), mask),
            ]
        }
    }
    #[inline(always)]
    unsafe fn base3(line: __m512i) -> [__m512i; 5] {
        unsafe {
            let (rest, e) = multiple_512(line, 81);
            let (rest, d) = multiple_512(rest, 27);
            let (rest, c) = multiple_512(rest, 9);
            let (rest, b) = multiple_512(rest, 3);
            let code = |of: __m512i, table: &[i8; 16]| {
                _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), of)
            };
            // Of 0, 81 and 162 the low two bits are 0, 1 and 2.
            let e = _mm512_and_si512(e, _mm512_set1_epi8(3));
            [rest, code(b, &CODES_OF[2]), code(c, &CODES_OF[1]), code(d, &CODES_OF[0]), e]
        }
    }
    const IN_PLACE: bool = false;
    #[inline(always)]
    unsafe fn in_place<const BASE3: bool>(_: __m512i) -> [__m512i; 5] {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn sized(_: [__m512i; 5]) -> __m512i {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, x))
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn total(sum: __m512i, offset: i32) -> __m512 {
        unsafe {
            let sum = _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(offset)))
        }
    }
    #[inline(always)]
    unsafe fn base3_as_two_bit(line: __m512i) -> [__m512i; 2] {
        unsafe {
            let [a, b, c, d, e] = Self::base3(line);
            // Codes are in the low bits of bytes: shifts stay inside of these.
            let low = _mm512_or_si512(a, _mm512_slli_epi16::<2>(b));
            let high = _mm512_or_si512(_mm512_slli_epi16::<4>(c), _mm512_slli_epi16::<6>(d));
            [_mm512_or_si512(low, high), _mm512_or_si512(e, _mm512_srli_epi32::<6>(e))]
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: *const f32, line: __m512i) -> __m512 {
        // The index is the low four bits of each lane.
        unsafe { _mm512_permutexvar_ps(line, _mm512_loadu_ps(table)) }
    }
    #[inline(always)]
    unsafe fn next(line: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<4>(line) }
    }
    #[inline(always)]
    unsafe fn upper(line: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<16>(line) }
    }
    #[inline(always)]
    unsafe fn scales(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
}

/// No instruction, but the compiler does not see that.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pinned(mut sum: __m256i) -> __m256i {
    unsafe { asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags)) };
    sum
}

/// AVX2: pairs of products in 16 bits.
#[derive(Clone, Copy)]
pub struct Avx2Lines;

impl Lines for Avx2Lines {
    type F = Avx2;
    type Codes = __m256i;
    /// Sums of two neighbouring bytes' products, in 16 bits: a segment of 128 inputs adds up to less than 2^14.
    type Sum = __m256i;
    const TOKENS: usize = 4;
    const DIRECT: usize = 8;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> __m256i {
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, codes: __m256i) {
        unsafe { _mm256_storeu_si256(p.cast(), codes) }
    }
    #[inline(always)]
    unsafe fn join(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, _mm256_slli_epi32::<16>(b)) }
    }
    #[inline(always)]
    unsafe fn two_bit(line: __m256i) -> [__m256i; 4] {
        unsafe {
            let mask = _mm256_set1_epi8(3);
            // What comes from the neighbouring byte is above the mask.
            [
                _mm256_and_si256(line, mask),
                _mm256_and_si256(_mm256_srli_epi16::<2>(line), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(line), mask),
                _mm256_and_si256(_mm256_srli_epi16::<6>(line), mask),
            ]
        }
    }
    #[inline(always)]
    unsafe fn base3(line: __m256i) -> [__m256i; 5] {
        unsafe {
            let (rest, e) = multiple_256(line, 81);
            let (rest, d) = multiple_256(rest, 27);
            let (rest, c) = multiple_256(rest, 9);
            let (rest, b) = multiple_256(rest, 3);
            let code = |of: __m256i, table: &[i8; 16]| {
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), of)
            };
            // Of 0, 81 and 162 the low two bits are 0, 1 and 2.
            let e = _mm256_and_si256(e, _mm256_set1_epi8(3));
            [rest, code(b, &CODES_OF[2]), code(c, &CODES_OF[1]), code(d, &CODES_OF[0]), e]
        }
    }
    const IN_PLACE: bool = false;
    #[inline(always)]
    unsafe fn in_place<const BASE3: bool>(_: __m256i) -> [__m256i; 5] {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn sized(_: [__m256i; 5]) -> __m256i {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m256i, codes: __m256i, x: *const i8) -> __m256i {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x))
        }
    }
    #[inline(always)]
    unsafe fn in_order(sum: __m256i) -> __m256i {
        unsafe { pinned(sum) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn total(sum: __m256i, offset: i32) -> __m256 {
        unsafe {
            let sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(offset)))
        }
    }
    #[inline(always)]
    unsafe fn base3_as_two_bit(line: __m256i) -> [__m256i; 2] {
        unsafe {
            let [a, b, c, d, e] = Self::base3(line);
            // Codes are in the low bits of bytes: shifts stay inside of these.
            let low = _mm256_or_si256(a, _mm256_slli_epi16::<2>(b));
            let high = _mm256_or_si256(_mm256_slli_epi16::<4>(c), _mm256_slli_epi16::<6>(d));
            [_mm256_or_si256(low, high), _mm256_or_si256(e, _mm256_srli_epi32::<6>(e))]
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: *const f32, line: __m256i) -> __m256 {
        // The index is the low two bits of each lane.
        unsafe { _mm256_permutevar_ps(_mm256_broadcast_ps(&table.cast::<__m128>().read_unaligned()), line) }
    }
    #[inline(always)]
    unsafe fn next(line: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi32::<2>(line) }
    }
    #[inline(always)]
    unsafe fn upper(line: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi32::<16>(line) }
    }
    #[inline(always)]
    unsafe fn scales(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
}
