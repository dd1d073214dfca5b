//! Packed trits laid out as tiles of `B`, in 8 bits: a step of a line, four codes of each of 16 rows, is a line of a tile.

use std::arch::x86_64::*;
use std::ops::Range;

use super::trits::steps_int8;
use crate::kernels::lines::Lines;
use crate::kernels::product::packed::apart::take_apart;
use crate::kernels::simd::Simd;
use crate::kernels::x86_64::amx::{Line, PANEL, STEP, TILE};
use crate::kernels::x86_64::{avx512::Avx512, lines::Vnni};
use crate::ternary::{BLOCK_ROWS, PackedMatrix};

const _: () = assert!(BLOCK_ROWS == TILE);

/// The panel of `Wᵀ` from row `first` of `W` on, a multiple of [`PANEL`]: trits of some segments, one after the other, and
/// [`PANEL`] scales of each. Of rows past the last block nothing is written; what stands past the end of a segment are
/// numbers of 8 bits.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c,bmi2,lzcnt,popcnt"
)]
pub fn pack_panel(
    w: &PackedMatrix,
    first: usize,
    segments: Range<usize>,
    trits: &mut [Line],
    scales: &mut [f32],
) {
    let layout = w.layout();
    let ones = _mm512_set1_epi8(1);
    let blocks = (first / BLOCK_ROWS..layout.blocks()).zip([0, TILE]);
    for (block, half) in blocks {
        let bytes = w.block(block);
        let mut begin = 0;
        for (segment, scales) in segments.clone().zip(scales.chunks_exact_mut(PANEL)) {
            let (inputs, at) = layout.segment(segment);
            let lines = &mut trits[begin..begin + STEP * steps_int8(&inputs)];
            begin += lines.len();
            // SAFETY: a block holds the lines and scales of all segments; there are as many lines as the segment has steps.
            unsafe {
                let (to, from) = (lines.as_mut_ptr().add(half), bytes.as_ptr().add(at));
                let put = |step: usize, codes: __m512i| {
                    let line = to.add(step / TILE * STEP + step % TILE);
                    _mm512_store_si512(line.cast(), _mm512_sub_epi8(codes, ones));
                };
                let read = take_apart::<Vnni>(layout.density(), from, 0, inputs.len(), put);
                Avx512::store(scales.as_mut_ptr().add(half), Vnni::scales(from.add(read)));
            }
        }
    }
}
