//! AVX-512 BF16: panels as tile units take them, multiplied by dot products of pairs (`vdpbf16ps`).
//!
//! A line of a panel of `B` is two rows of it, 16 columns, value by value in turn: what one instruction takes. Of a line of
//! `A`, 32 values along `k`, it takes one pair for all lanes. Subnormal numbers count as zero, as on tiles.

use std::arch::x86_64::*;

use super::amx::{Accumulators, Line, PANEL, STEP, TILE};

/// Rows of `A` at a time: 16 accumulators hide the latency of two dot products a cycle.
const ROWS: usize = 8;

/// `A` times `B`, both in one part: rounded values, or trits.
///
/// # Safety
/// `a` and `b` hold `steps * STEP` lines; `to` 32 rows of 32 values. The machine has AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn times_rounded(steps: usize, a: *const Line, b: *const Line, to: Accumulators) {
    for first in (0..PANEL).step_by(ROWS) {
        // SAFETY: lines of the panels, rows of the result, by the caller's word.
        unsafe {
            let row = |i: usize| to.at.byte_add((first + i) * to.stride);
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            if to.to.adds() {
                for (i, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm512_loadu_ps(row(i)), _mm512_loadu_ps(row(i).add(TILE))];
                }
            }
            for s in 0..steps {
                let (a, b) = (a.add(s * STEP + first).cast::<i32>(), b.add(s * STEP));
                for pair in 0..TILE {
                    let load = |line: usize| as_bf16(_mm512_load_si512(b.add(line).cast()));
                    let (left, right) = (load(pair), load(pair + TILE));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let x = as_bf16(_mm512_set1_epi32(*a.add(i * TILE + pair)));
                        sums[0] = _mm512_dpbf16_ps(sums[0], x, left);
                        sums[1] = _mm512_dpbf16_ps(sums[1], x, right);
                    }
                }
            }
            for (i, [left, right]) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(row(i), left);
                _mm512_storeu_ps(row(i).add(TILE), right);
            }
        }
    }
}

/// The same bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which any are valid.
    unsafe { std::mem::transmute(v) }
}
