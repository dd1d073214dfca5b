//! The forward product with inputs rounded to 8 bits, on the tile units: what
//! [`reference::linear_int8`](crate::kernels::reference::linear_int8) computes, bit for bit.

use std::arch::x86_64::*;
use std::ops::Range;

use super::packed::pack_panel;
use super::trits::{DEPTH_INT8 as DEPTH, steps_int8 as steps, words_of_rows};
use super::{ROWS, SOME_COLUMNS, Scratch, each, scales_of};
use crate::kernels::product::operands::{Output, Target};
use crate::kernels::product::rounding::{inverse, scale_of, segments};
use crate::kernels::reference::SEGMENT;
use crate::kernels::scratch::Aligned;
use crate::kernels::threads;
use crate::kernels::to::To;
use crate::kernels::x86_64::amx::{Accumulators, Line, PANEL, STEP, TILE, Tiles, times_trits_int8};
use crate::ternary::{CODES_PER_WORD, PackedMatrix, TernaryMatrix};

/// Segments whose sums wait for each other in the first-level cache, 4 KiB each.
const SUMS: usize = 4;
// As many as `Sums::finish` tells apart.
const _: () = assert!(SUMS == 4);

/// Weights as a task takes them apart.
#[derive(Clone, Copy)]
enum Weights<'a> {
    Words(&'a TernaryMatrix),
    Packed(&'a PackedMatrix),
}

/// `y (+)= x̂ Ŵᵀ`, `x` `[n, in]`, `y` `[n, out]`; `w` [`fits`](super::fits).
pub fn forward(x: &[f32], w: &TernaryMatrix, y: Target<'_>) {
    product(x, Weights::Words(w), [w.rows(), w.cols()], segments(w).collect(), y);
}

/// The same for packed weights of any groups.
pub fn forward_packed(x: &[f32], w: &PackedMatrix, y: Target<'_>) {
    product(x, Weights::Packed(w), [w.rows(), w.cols()], w.layout().segments().collect(), y);
}

fn product(x: &[f32], w: Weights<'_>, [out, inputs]: [usize; 2], segments: Vec<Range<usize>>, y: Target<'_>) {
    let y = Output::new(y, x.len() / inputs, out);
    // SAFETY: this instruction set was found on this machine.
    each(y, ROWS, out, threads::tasks(), |rows, columns, scratch| unsafe {
        let x = &x[rows.start * inputs..rows.end * inputs];
        task(x, w, &segments, rows, columns, y, scratch)
    });
}

/// What a task has of its rows of `A`, and where its result goes.
struct Task<'a> {
    segments: &'a [Range<usize>],
    /// Panels of so many lines.
    a: &'a [Line],
    panel: usize,
    row_scales: &'a [f32],
    rows: Range<usize>,
    columns: Range<usize>,
    y: Output,
}

/// The rows that `x` holds, and those columns of the result.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn task(
    x: &[f32],
    w: Weights<'_>,
    segments: &[Range<usize>],
    rows: Range<usize>,
    columns: Range<usize>,
    y: Output,
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let tiles = unsafe { Tiles::configure() };
    let (inputs, panels) = (x.len() / rows.len(), rows.len().div_ceil(PANEL));
    let panel = STEP * segments.iter().map(steps).sum::<usize>();
    let Scratch { a, b, factors, square, totals, row_scales } = scratch;
    let a = a.first(panels * panel);
    let row_scales = row_scales.first(rows.len());
    for (x, scale) in x.chunks(inputs).zip(row_scales.iter_mut()) {
        *scale = scale_of(x);
    }
    pack(x, inputs, segments, row_scales, a);
    let task = Task { segments, a, panel, row_scales, rows, columns, y };
    let squares = square.first(SUMS * 2 * PANEL).as_mut_ptr().cast();
    match w {
        Weights::Words(w) => {
            let totals = totals.first(2 * PANEL).as_mut_ptr().cast();
            task.with_words(&tiles, w, b, factors, Buffers { squares, totals });
        }
        Weights::Packed(w) => {
            let totals = totals.first(panels * 2 * PANEL).as_mut_ptr().cast();
            task.with_packed(&tiles, w, b, factors, Buffers { squares, totals });
        }
    }
}

/// Where sums wait.
#[derive(Clone, Copy)]
struct Buffers {
    /// [`SUMS`] times 32 rows of 32 integers.
    squares: *mut i32,
    /// 32 rows of 32 values; of packed trits, for each panel of rows.
    totals: *mut f32,
}

impl Task<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn with_words(
        &self,
        tiles: &Tiles,
        w: &TernaryMatrix,
        b: &mut Aligned<Line>,
        factors: &mut Aligned<f32>,
        Buffers { squares, totals }: Buffers,
    ) {
        let Task { segments, panel, columns, y, .. } = self;
        for j0 in columns.clone().step_by(SOME_COLUMNS) {
            let some = (columns.end - j0).min(SOME_COLUMNS);
            let across = some.div_ceil(PANEL);
            let b = b.first(across * panel);
            let scales = factors.first(segments.len() * across * PANEL);
            let mut rest = &mut *b;
            for (segment, scales) in segments.iter().zip(scales.chunks_exact_mut(across * PANEL)) {
                let part;
                (part, rest) = rest.split_at_mut(across * STEP * steps(segment));
                pack_trits(w, j0, segment, part);
                scales_of(w, j0..j0 + some, segment.start / w.group(), scales);
            }
            // Row by row of the result: memory is written in long stretches.
            for (p, a) in self.a.chunks_exact(*panel).enumerate() {
                for q in 0..across {
                    let (i, j) = (self.rows.start + p * PANEL, j0 + q * PANEL);
                    y.fetch_below(i, j);
                    let mut sums = Sums {
                        squares,
                        count: 0,
                        scales: scales.as_ptr().wrapping_add(q * PANEL),
                        next_scales: across * PANEL,
                        totals,
                        before: false,
                    };
                    // SAFETY: the panels hold the steps of all segments, each of the squares 32 rows of 32 values, and so do
                    // the totals; there are scales for each segment, and there are as many rows as there are of their
                    // scales.
                    unsafe {
                        add_segments(tiles, segments, a, b, (across, q), &mut sums);
                        let width = (some - q * PANEL).min(PANEL);
                        sums.finish(&self.row_scales[p * PANEL..], width, *y, i, j);
                    }
                }
            }
        }
    }

    /// Lines are taken apart with so little work that a part of a panel of `B` is made when its turn comes, 16 KiB: all rows
    /// meet it in the first-level cache.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn with_packed(
        &self,
        tiles: &Tiles,
        w: &PackedMatrix,
        b: &mut Aligned<Line>,
        factors: &mut Aligned<f32>,
        Buffers { squares, totals }: Buffers,
    ) {
        let Task { segments, panel, columns, y, .. } = self;
        let b = b.first(SUMS * STEP * SEGMENT / DEPTH);
        let scales = factors.first(SUMS * PANEL);
        for j in columns.clone().step_by(PANEL) {
            let width = (columns.end - j).min(PANEL);
            // Of each panel of `A`.
            let mut lines = 0;
            for (number, some) in segments.chunks(SUMS).enumerate() {
                let first = number * SUMS;
                let last = first + some.len() == segments.len();
                // SAFETY: AMX is found only together with these instructions.
                unsafe { pack_panel(w, j, first..first + some.len(), b, scales) };
                for (p, a) in self.a.chunks_exact(*panel).enumerate() {
                    let i = self.rows.start + p * PANEL;
                    let mut sums = Sums {
                        squares,
                        count: 0,
                        scales: scales.as_ptr(),
                        next_scales: PANEL,
                        totals: totals.wrapping_add(p * PANEL * PANEL),
                        before: number > 0,
                    };
                    if last {
                        y.fetch_below(i, j);
                    }
                    // SAFETY: as above, and there are totals for each panel.
                    unsafe {
                        add_segments(tiles, some, &a[lines..], b, (1, 0), &mut sums);
                        if last {
                            sums.finish(&self.row_scales[p * PANEL..], width, *y, i, j);
                        } else {
                            sums.add_up();
                        }
                    }
                }
                lines += STEP * some.iter().map(steps).sum::<usize>();
            }
        }
    }
}

/// The sums of some segments of a panel of `A` times panel `q` of each `across` of `B`, all but the last ones added up.
///
/// # Safety
/// The panels hold the steps of these segments; as of [`Sums::add_up`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn add_segments(
    tiles: &Tiles,
    segments: &[Range<usize>],
    a: &[Line],
    b: &[Line],
    (across, q): (usize, usize),
    sums: &mut Sums,
) {
    let mut at = 0;
    for (number, segment) in segments.iter().enumerate() {
        let steps = steps(segment);
        let b = &b[across * at + q * STEP * steps..];
        // SAFETY: by the caller's word.
        unsafe {
            let square = sums.squares.add(sums.count * PANEL * PANEL).cast();
            let to = Accumulators { at: square, stride: 4 * PANEL, to: To::Set };
            times_trits_int8(tiles, steps, a[at..].as_ptr(), b.as_ptr(), to);
            sums.count += 1;
            if sums.count == SUMS && number + 1 < segments.len() {
                sums.add_up();
            }
        }
        at += STEP * steps;
    }
}

/// Sums of some segments that wait to be scaled and added up: the more at a time, the less is stored in between.
struct Sums {
    /// Of each segment, 32 rows of 32 integers.
    squares: *mut i32,
    /// Of segments, at most [`SUMS`].
    count: usize,
    /// One for each column; those of the next segment stand `next_scales` further.
    scales: *const f32,
    next_scales: usize,
    /// Of the segments before, if there are any.
    totals: *mut f32,
    before: bool,
}

impl Sums {
    /// To the totals.
    ///
    /// # Safety
    /// Squares and totals are 32 rows of 32 values, and there are 32 scales for each segment.
    #[target_feature(enable = "avx512f")]
    unsafe fn add_up(&mut self) {
        for r in 0..PANEL {
            for half in [0, TILE] {
                // SAFETY: by the caller's word.
                unsafe { _mm512_storeu_ps(self.totals.add(r * PANEL + half), self.row::<SUMS>(r, half)) };
            }
        }
        self.scales = self.scales.wrapping_add(SUMS * self.next_scales);
        (self.count, self.before) = (0, true);
    }

    /// `y[i, j] (+)= row_scale[i] * total[i, j]` from row `i` and column `j` on, 32 rows or as many as there are scales.
    ///
    /// # Safety
    /// As of [`Sums::add_up`]; the rectangle lies in the result, and nobody else touches it.
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&self, row_scales: &[f32], width: usize, y: Output, i: usize, j: usize) {
        // SAFETY: by the caller's word.
        unsafe {
            match self.count {
                1 => self.finish_some::<1>(row_scales, width, y, i, j),
                2 => self.finish_some::<2>(row_scales, width, y, i, j),
                3 => self.finish_some::<3>(row_scales, width, y, i, j),
                _ => self.finish_some::<SUMS>(row_scales, width, y, i, j),
            }
        }
    }

    /// [`Sums::finish`] of `N` segments.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn finish_some<const N: usize>(
        &self,
        row_scales: &[f32],
        width: usize,
        y: Output,
        i: usize,
        j: usize,
    ) {
        for (r, scale) in row_scales.iter().enumerate().take(PANEL) {
            for half in (0..width).step_by(TILE) {
                let mask = (1u32 << (width - half).min(TILE)).wrapping_sub(1) as u16;
                // SAFETY: by the caller's word; lanes behind the mask are not touched.
                unsafe {
                    let to = y.at(i + r, j + half);
                    let mut value = _mm512_mul_ps(self.row::<N>(r, half), _mm512_set1_ps(*scale));
                    if y.to.adds() {
                        value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), value);
                    }
                    if mask == u16::MAX {
                        _mm512_storeu_ps(to, value);
                    } else {
                        _mm512_mask_storeu_ps(to, mask, value);
                    }
                }
            }
        }
    }

    /// The total of a row's 16 columns from `half` on; products and sums rounded each, one after the other.
    ///
    /// # Safety
    /// As of [`Sums::add_up`], and there are `N` segments.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn row<const N: usize>(&self, r: usize, half: usize) -> __m512 {
        let at = r * PANEL + half;
        // SAFETY: by the caller's word.
        unsafe {
            let mut total =
                if self.before { _mm512_loadu_ps(self.totals.add(at)) } else { _mm512_setzero_ps() };
            for segment in 0..N {
                let scale = _mm512_loadu_ps(self.scales.add(segment * self.next_scales + half));
                let sum = _mm512_load_si512(self.squares.add(segment * PANEL * PANEL + at).cast());
                let product = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum));
                total = if segment == 0 && !self.before { product } else { _mm512_add_ps(total, product) };
            }
            total
        }
    }
}

/// Panels of rows, rounded to 8 bits, segments one after the other within a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pack(x: &[f32], stride: usize, segments: &[Range<usize>], scales: &[f32], to: &mut [Line]) {
    let panel = to.len() / scales.len().div_ceil(PANEL);
    for (p, panel) in to.chunks_exact_mut(panel).enumerate() {
        let parts = segments.iter().flat_map(|s| s.clone().step_by(DEPTH).map(|k| k..(k + DEPTH).min(s.end)));
        for (columns, lines) in parts.zip(panel.chunks_exact_mut(STEP)) {
            for (r, line) in lines.iter_mut().enumerate() {
                let row = p * PANEL + r;
                match scales.get(row) {
                    Some(scale) => {
                        let values = &x[row * stride + columns.start..row * stride + columns.end];
                        round(values, *scale, line);
                    }
                    None => *line = Line::ZERO,
                }
            }
        }
    }
}

/// At most 64 values of a row over its scale, in 8 bits; zeros past their end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn round(values: &[f32], scale: f32, line: &mut Line) {
    let inverse = _mm512_set1_ps(inverse(scale));
    for quarter in 0..4 {
        let rest = values.len().saturating_sub(16 * quarter).min(16);
        let mask = ((1u32 << rest) - 1) as u16;
        // SAFETY: masked loads touch nothing past the values; a line has four times 16 bytes.
        unsafe {
            let x = _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(16 * quarter));
            let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
            let to = line.0.as_mut_ptr().add(4 * quarter).cast();
            _mm_store_si128(to, _mm512_cvtepi32_epi8(rounded));
        }
    }
}

/// Panels of `Wᵀ` from row `first` of `W` on, as many as `to` holds, of the columns in `segment`: four neighbours along `k`
/// in a lane.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pack_trits(w: &TernaryMatrix, first: usize, segment: &Range<usize>, to: &mut [Line]) {
    let steps = steps(segment);
    let (begin, end) = (segment.start / CODES_PER_WORD, segment.end.div_ceil(CODES_PER_WORD));
    // Byte `i` of each lane, four times.
    let lanes = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C));
    let mut bytes = [lanes; 4];
    for (i, bytes) in bytes.iter_mut().enumerate() {
        *bytes = _mm512_add_epi8(lanes, _mm512_set1_epi8(i as i8));
    }
    for (p, panel) in to.chunks_exact_mut(steps * STEP).enumerate() {
        for (t, tile) in panel.chunks_exact_mut(TILE).enumerate() {
            let (s, half) = (t / 2, t % 2);
            let row = first + p * PANEL + half * TILE;
            for (i, lines) in tile.chunks_exact_mut(4).enumerate() {
                write_trits(words_of_rows(w, row, begin + 4 * s + i, end), bytes, lines);
            }
        }
    }
}

/// The codes of 16 words as trits, four neighbours along `k` to a lane of a line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn write_trits(words: __m512i, bytes: [__m512i; 4], lines: &mut [Line]) {
    let (ones, minus_ones) = (_mm512_set1_epi8(1), _mm512_set1_epi8(-1));
    // Of a byte of four codes, in each of four bytes: both bits of one code, and the upper one.
    let both = _mm512_set1_epi32(0xC030_0C03u32 as i32);
    let upper = _mm512_set1_epi32(0x8020_0802u32 as i32);
    for (line, byte) in lines.iter_mut().zip(bytes) {
        let codes = _mm512_shuffle_epi8(words, byte);
        let plus = _mm512_test_epi8_mask(codes, upper);
        let minus = _mm512_testn_epi8_mask(codes, both);
        let v = _mm512_mask_mov_epi8(_mm512_maskz_mov_epi8(plus, ones), minus, minus_ones);
        // SAFETY: a line has 64 bytes, aligned.
        unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), v) };
    }
}
