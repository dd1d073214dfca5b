//! Trits laid out as tiles of `B`: −1, 0 and +1 in bf16, or in 8 bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::split::DEPTH;
use crate::kernels::x86_64::amx::{Line, PANEL, STEP, TILE};
use crate::ternary::{CODES_PER_WORD, TernaryMatrix, ZERO_WORD};

/// Values of `k` in a step of 8 bits.
pub const DEPTH_INT8: usize = 64;

/// Steps of 8 bits that a segment takes.
pub fn steps_int8(segment: &Range<usize>) -> usize {
    segment.len().div_ceil(DEPTH_INT8)
}

/// A bf16 of the code's trit.
const fn bf16(code: usize) -> u32 {
    [0xBF80, 0, 0x3F80, 0][code]
}

/// Two codes, the first in the lower bits, as two neighbours along `k`.
static PAIRS: Line = {
    let mut out = [0; 16];
    let mut bits = 0;
    while bits < 16 {
        out[bits] = bf16(bits & 3) | bf16(bits >> 2) << 16;
        bits += 1;
    }
    Line(out)
};

/// Whether groups begin and end at words of codes.
pub fn fits(w: &TernaryMatrix) -> bool {
    w.group().is_multiple_of(CODES_PER_WORD) || w.row_groups() == 1
}

/// The word at `index` of a row; the trit 0 past the ends.
#[inline]
fn word(w: &TernaryMatrix, row: usize, index: usize, end: usize) -> u32 {
    if row < w.rows() && index < end { w.words()[row * w.row_words() + index] } else { ZERO_WORD }
}

/// The words at `index` of 16 rows from `row` on.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn words_of_rows(w: &TernaryMatrix, row: usize, index: usize, end: usize) -> __m512i {
    if row + TILE <= w.rows() && index < end {
        let at = row * w.row_words() + index;
        let stride = _mm512_set1_epi32(w.row_words() as i32);
        let offsets = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            stride,
        );
        // SAFETY: sixteen words, the last in the last of these rows of the matrix.
        return unsafe { _mm512_i32gather_epi32::<4>(offsets, w.words().as_ptr().add(at).cast()) };
    }
    let mut words = [ZERO_WORD; TILE];
    words.iter_mut().enumerate().for_each(|(r, to)| *to = word(w, row + r, index, end));
    // SAFETY: sixteen words.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Panels of `Wᵀ` from row `first` of `W` on, as many as `to` holds, of the columns `k0 .. k0 + kc`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn pack_rows(w: &TernaryMatrix, first: usize, k0: usize, kc: usize, to: &mut [Line]) {
    let steps = kc.div_ceil(DEPTH);
    let (begin, end) = (k0 / CODES_PER_WORD, (k0 + kc).div_ceil(CODES_PER_WORD));
    // SAFETY: 64 bytes, aligned.
    let pairs = unsafe { _mm512_load_si512(PAIRS.0.as_ptr().cast()) };
    for (p, panel) in to.chunks_exact_mut(steps * STEP).enumerate() {
        for (t, tile) in panel.chunks_exact_mut(TILE).enumerate() {
            let (s, half) = (t / 2, t % 2);
            let row = first + p * PANEL + half * TILE;
            for (i, lines) in tile.chunks_exact_mut(8).enumerate() {
                write_pairs(words_of_rows(w, row, begin + 2 * s + i, end), pairs, lines);
            }
        }
    }
}

/// The pairs of codes of 16 words, two neighbours along `k` to a line.
#[inline]
#[target_feature(enable = "avx512f")]
fn write_pairs(mut words: __m512i, pairs: __m512i, lines: &mut [Line]) {
    for line in lines {
        // The index is the low four bits of each lane.
        let v = _mm512_permutexvar_epi32(words, pairs);
        // SAFETY: a line has 64 bytes, aligned.
        unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), v) };
        words = _mm512_srli_epi32::<4>(words);
    }
}

/// Panels of `W` from column `first` on, a multiple of 16, as many as `to` holds, of the rows `k0 .. k0 + kc`; columns
/// from `end` on are zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn pack_columns(w: &TernaryMatrix, first: usize, end: usize, k0: usize, kc: usize, to: &mut [Line]) {
    let steps = kc.div_ceil(DEPTH);
    let (end_word, end_row) = (end.div_ceil(CODES_PER_WORD), k0 + kc);
    // SAFETY: 64 bytes, aligned.
    let pairs = unsafe { _mm512_load_si512(PAIRS.0.as_ptr().cast()) };
    let shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (p, panel) in to.chunks_exact_mut(steps * STEP).enumerate() {
        for (t, tile) in panel.chunks_exact_mut(TILE).enumerate() {
            let (s, half) = (t / 2, t % 2);
            let index = (first + p * PANEL) / CODES_PER_WORD + half;
            for (i, line) in tile.iter_mut().enumerate() {
                let row = k0 + s * DEPTH + 2 * i;
                let word = |r: usize| {
                    if r < end_row { word(w, r, index, end_word) as i32 } else { ZERO_WORD as i32 }
                };
                let upper = _mm512_srlv_epi32(_mm512_set1_epi32(word(row)), shifts);
                let lower = _mm512_srlv_epi32(_mm512_set1_epi32(word(row + 1)), shifts);
                let low = _mm512_and_si512(upper, _mm512_set1_epi32(3));
                let codes = _mm512_or_si512(low, _mm512_slli_epi32::<2>(lower));
                let v = _mm512_permutexvar_epi32(codes, pairs);
                // SAFETY: a line has 64 bytes, aligned.
                unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), v) };
            }
        }
    }
}
