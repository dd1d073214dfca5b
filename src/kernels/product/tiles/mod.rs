//! Products on the tile units of processors with AMX, to the precision of `f32` or of operands in bf16; those in bf16 also
//! on AVX-512 BF16, whose dot products of pairs read the same panels ([`unit`]).
//!
//! The units multiply bf16 and add in `f32`. An `f32` is the sum of three bf16 ([`mod@split`]) and a trit is one, so that a
//! product with a ternary matrix takes three passes and loses nothing; one of two dense matrices takes six of nine, and
//! what the other three would add is below the rounding of an `f32`. Sums are those of `f32` in another order, as with
//! every instruction set. A tile instruction does the work of 16 vector ones (32 of 8 bits), so that three passes, or six,
//! are still several times as fast. Operands that are rounded are one part each, and every product takes one pass.
//!
//! - Forward, `y = x Ŵᵀ`: trits of one segment of a group at a time; the scale multiplies its sum.
//! - Forward with inputs in 8 bits: whole numbers, of trits or of packed trits, which each task takes apart itself.
//! - Input gradient, `dx = dy Ŵ`: the sum runs over rows, whose scales differ, so `dy` is scaled while it is split, once
//!   for each group of columns.
//! - Weight gradient and whatever else is dense: [`mod@gemm`].
//! - An output head with its loss and gradients, of rounded operands: [`head`].
//!
//! Tasks are rectangles of the result, packed and multiplied by one thread; each element is summed over `k` in one order.

mod gemm;
mod halves;
mod head;
mod int8;
mod packed;
mod split;
mod trits;
mod unit;

use std::arch::x86_64::*;
use std::ops::Range;

use self::split::{DEPTH, Operand, ROUNDED, Side, WHOLE, lines};
use super::operands::{Output, Sizes, Target, View};
use super::rounding::segments;
use crate::config::Precision;
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::threads;
use crate::kernels::to::To;
use crate::kernels::x86_64::amx::{Accumulators, Line, PANEL, STEP, TILE};
use crate::ternary::TernaryMatrix;

use self::unit::Unit;

pub use gemm::{Laid, Left, gemm};
pub use halves::{gram, multiply_add};
pub use head::loss_and_gradients;
pub use int8::{forward as forward_int8, forward_packed};
pub use trits::fits;

/// Depth of a block by the parts of `A`, 128 at least, which is the most inputs of a segment: a panel of `A` of that depth
/// (24 KiB) stays in the first-level cache while panels of `B` stream past it.
const fn block(parts: usize) -> usize {
    128 * WHOLE / parts
}
/// Rows of a task at most, and columns of one of a dense product: its operands and its part of the result stay in the
/// second-level cache.
const ROWS: usize = 384;
const COLUMNS: usize = 512;
/// Blocks of `A` that are packed together.
const TOGETHER: usize = 4;
/// Columns of `B` packed at a time, of trits.
const SOME_COLUMNS: usize = 256;
/// Multiplications below which packing into tiles costs more than it brings: 32 x 64 x 64 is faster in tiles, 48 x 48 x 48
/// and 32 x 32 x 64 are not.
const SMALL: usize = 1 << 17;

/// Whether a product of these sizes is worth packing into tiles.
pub fn pays(size: Sizes) -> bool {
    let Sizes { m, n, k } = size;
    // A panel of `A` that is not full, or half a step, takes the time of a whole one.
    m >= PANEL && n >= TILE && k > TILE && m * n * k >= SMALL
}

/// What a thread works on.
#[derive(Default)]
struct Scratch {
    a: Aligned<Line>,
    b: Aligned<Line>,
    factors: Aligned<f32>,
    /// One panel times another, where the result does not take whole tiles; sums of some segments.
    square: Aligned<Line>,
    /// Of 8-bit inputs: sums of earlier segments, scaled, and the scales of rows.
    totals: Aligned<Line>,
    row_scales: Aligned<f32>,
}

impl Output {
    /// Asks for the panel of rows below `(row, column)`: its turn comes soon, and it comes from memory.
    #[inline(always)]
    fn fetch_below(&self, row: usize, column: usize) {
        for r in row + PANEL..(row + 2 * PANEL).min(self.rows) {
            let at = self.at(r, column);
            // SAFETY: hints; no address can make them fault.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(at.cast());
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(TILE).cast());
            }
        }
    }
}

/// Calls `f` on rectangles that cover the result, at most `rows` by `columns`, as many as `wanted` or more.
fn each(
    result: Output,
    rows: usize,
    columns: usize,
    wanted: usize,
    f: impl Fn(Range<usize>, Range<usize>, &mut Scratch) + Sync,
) {
    let size = (result.rows, result.columns);
    threads::rectangles(size, (rows, columns), (PANEL, PANEL), wanted, |rows, columns| {
        scratch::with(|scratch| f(rows, columns, scratch));
    });
}

/// Scales of a group of inputs, one for each of the rows.
fn scales_of(w: &TernaryMatrix, rows: Range<usize>, group: usize, to: &mut [f32]) {
    for (row, to) in rows.zip(to) {
        *to = w.scales()[row * w.row_groups() + group];
    }
}

/// `y (+)= x Ŵᵀ`, `x` `[n, in]`, rounded to `precision`, `y` `[n, out]`; `w` [`fits`].
pub fn forward(x: &[f32], w: &TernaryMatrix, precision: Precision, y: Target<'_>) {
    match precision {
        Precision::F32 => forward_of::<WHOLE>(x, w, y),
        Precision::Bf16 => forward_of::<ROUNDED>(x, w, y),
    }
}

fn forward_of<const PARTS: usize>(x: &[f32], w: &TernaryMatrix, y: Target<'_>) {
    let (out, inputs) = (w.rows(), w.cols());
    let n = x.len() / inputs;
    let x = Operand::a(View::rows(x, inputs), n, inputs);
    let y = Output::new(y, n, out);
    let segments: Vec<_> = segments(w).collect();
    // SAFETY: this instruction set was found on this machine.
    each(y, ROWS, out, threads::tasks(), |rows, columns, scratch| unsafe {
        forward_task::<PARTS>(x, w, &segments, rows, columns, y, scratch)
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn forward_task<const PARTS: usize>(
    x: Operand<'_>,
    w: &TernaryMatrix,
    segments: &[Range<usize>],
    rows: Range<usize>,
    columns: Range<usize>,
    y: Output,
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let unit = unsafe { Unit::current() };
    let Scratch { a, b, factors, square, .. } = scratch;
    let panels = rows.len().div_ceil(PANEL);
    let squares = square.first(SUMMED * 2 * PANEL).as_mut_ptr().cast();
    for (block, segments) in segments.chunks(TOGETHER).enumerate() {
        let steps =
            |segments: &[Range<usize>]| segments.iter().map(|s| s.len().div_ceil(DEPTH)).sum::<usize>();
        let a = a.first(panels * lines(PARTS) * steps(segments));
        let mut rest = &mut *a;
        for segment in segments {
            let part;
            (part, rest) = rest.split_at_mut(panels * lines(PARTS) * segment.len().div_ceil(DEPTH));
            split::pack::<PARTS, _>(x, Side::A, rows.start, segment.start, segment.len(), None, part);
        }
        for j0 in columns.clone().step_by(SOME_COLUMNS) {
            let some = (columns.end - j0).min(SOME_COLUMNS);
            let across = some.div_ceil(PANEL);
            let mut rest = &*a;
            for (at, segments) in segments.chunks(summed(PARTS)).enumerate() {
                let a;
                (a, rest) = rest.split_at(panels * lines(PARTS) * steps(segments));
                let b = b.first(across * STEP * steps(segments));
                let scales = factors.first(segments.len() * across * PANEL);
                let mut to = &mut *b;
                for (segment, scales) in segments.iter().zip(scales.chunks_exact_mut(across * PANEL)) {
                    let part;
                    (part, to) = to.split_at_mut(across * STEP * segment.len().div_ceil(DEPTH));
                    trits::pack_rows(w, j0, segment.start, segment.len(), part);
                    scales_of(w, j0..j0 + some, segment.start / w.group(), scales);
                }
                let first = block + at == 0;
                let part = Part { rows: rows.clone(), columns: j0..j0 + some, first };
                scaled_panels::<PARTS>(&unit, (a, b), segments, scales, squares, y.part(first), part);
            }
        }
    }
}

/// Of a result, what some panels of `A` times some of `B` add to it.
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Whether it is the first of a sum.
    first: bool,
}

/// Every panel of `A` times every panel of `B`, trits, and times the scales of its columns: the sum over some segments, of
/// which both hold all panels one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn scaled_panels<const PARTS: usize>(
    unit: &Unit,
    (a, b): (&[Line], &[Line]),
    segments: &[Range<usize>],
    scales: &[f32],
    squares: *mut f32,
    y: Output,
    part: Part,
) {
    let Part { rows, columns, first } = part;
    let (panels, across) = (rows.len().div_ceil(PANEL), columns.len().div_ceil(PANEL));
    for p in 0..panels {
        let i = rows.start + p * PANEL;
        for q in 0..across {
            let j = columns.start + q * PANEL;
            let size = ((rows.end - i).min(PANEL), (columns.end - j).min(PANEL));
            if first {
                y.fetch_below(i, j);
            }
            // SAFETY: the panels hold the steps of their segment, a square has 32 rows of 32 values; the rectangle of the
            // result is this task's alone.
            unsafe {
                sums_of_segments::<PARTS>(unit, (a, p, panels), (b, q, across), segments, squares);
                let mut factors = [std::ptr::null(); SUMMED];
                for (nth, factors) in factors.iter_mut().enumerate().take(segments.len()) {
                    *factors = scales[(nth * across + q) * PANEL..].as_ptr();
                }
                scale_into(squares, &factors[..segments.len()], size, y.at(i, j), y.stride, y.to);
            }
        }
    }
}

/// One panel of `A` times one of `B`, trits, of each of some segments: the panel `p` of `panels` and `q` of `across`.
///
/// # Safety
/// `a` and `b` hold the panels of all segments, one segment after the other; `squares` a square for each.
#[inline(always)]
unsafe fn sums_of_segments<const PARTS: usize>(
    unit: &Unit,
    (a, p, panels): (&[Line], usize, usize),
    (b, q, across): (&[Line], usize, usize),
    segments: &[Range<usize>],
    squares: *mut f32,
) {
    let mut before = 0;
    for (nth, segment) in segments.iter().enumerate() {
        let steps = segment.len().div_ceil(DEPTH);
        let a = &a[lines(PARTS) * (panels * before + p * steps)..][..lines(PARTS) * steps];
        let b = &b[STEP * (across * before + q * steps)..][..STEP * steps];
        // SAFETY: by the caller's word.
        unsafe { unit.times_trits::<PARTS>(steps, a, b, square(squares, nth)) };
        before += steps;
    }
}

/// Squares of 32 by 32 sums, one for each of some segments, that are scaled and added up in one pass.
const SUMMED: usize = 4;

/// Segments whose sums wait for one another: their panels of `A` stay in the first-level cache together.
const fn summed(parts: usize) -> usize {
    if parts == ROUNDED { SUMMED } else { 1 }
}

/// Values of a square.
const SQUARE: usize = PANEL * PANEL;

/// Where the sums of segment `nth` go.
///
/// # Safety
/// `squares` has room for as many squares.
#[inline(always)]
unsafe fn square(squares: *mut f32, nth: usize) -> Accumulators {
    // SAFETY: by the caller's word.
    Accumulators { at: unsafe { squares.add(nth * SQUARE) }, stride: 4 * PANEL, to: To::Set }
}

/// `y[i, j] (+)=` the sum of `scale[j] * square[i, j]` over some squares, for `size`, rows and columns, of 32 by 32.
///
/// # Safety
/// `squares` holds as many squares as there are `scales`, one after the other, each of which points at 32 values; `y` has
/// that many rows and columns, `stride` apart.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scale_into(
    squares: *const f32,
    scales: &[*const f32],
    size: (usize, usize),
    y: *mut f32,
    stride: usize,
    to: To,
) {
    // SAFETY: by the caller's word.
    unsafe {
        match *scales {
            [a] => scale_some(squares, [a], size, y, stride, to),
            [a, b] => scale_some(squares, [a, b], size, y, stride, to),
            [a, b, c] => scale_some(squares, [a, b, c], size, y, stride, to),
            [a, b, c, d] => scale_some(squares, [a, b, c, d], size, y, stride, to),
            _ => unreachable!("one to {SUMMED} squares"),
        }
    }
}

/// # Safety
/// As [`scale_into`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scale_some<const N: usize>(
    squares: *const f32,
    scales: [*const f32; N],
    size: (usize, usize),
    y: *mut f32,
    stride: usize,
    to: To,
) {
    for half in [0, TILE] {
        let left = size.1.saturating_sub(half).min(TILE);
        let mask = (1u32 << left).wrapping_sub(1) as u16;
        // SAFETY: by the caller's word; lanes behind the mask are not touched.
        unsafe {
            let mut factors = [_mm512_setzero_ps(); N];
            for (factor, scales) in factors.iter_mut().zip(scales) {
                *factor = _mm512_loadu_ps(scales.add(half));
            }
            let (mut from, mut at) = (squares.add(half), y.wrapping_add(half));
            for _ in 0..size.0 {
                let mut sum = match to {
                    To::Add if left == TILE => _mm512_loadu_ps(at),
                    To::Add => _mm512_maskz_loadu_ps(mask, at),
                    To::Set => _mm512_setzero_ps(),
                };
                for (nth, factor) in factors.iter().enumerate() {
                    sum = _mm512_fmadd_ps(_mm512_load_ps(from.wrapping_add(nth * SQUARE)), *factor, sum);
                }
                if left == TILE {
                    _mm512_storeu_ps(at, sum);
                } else {
                    _mm512_mask_storeu_ps(at, mask, sum);
                }
                (from, at) = (from.wrapping_add(PANEL), at.wrapping_add(stride));
            }
        }
    }
}

/// `dx (+)= dy Ŵ`, `dy` `[n, out]`, rows `stride` apart and, once scaled, rounded to `precision`, `dx` `[n, in]`; `w`
/// [`fits`].
pub fn backward_input(
    dy: &[f32],
    stride: usize,
    w: &TernaryMatrix,
    precision: Precision,
    dx: &mut [f32],
    to: To,
) {
    match precision {
        Precision::F32 => backward_input_of::<WHOLE>(dy, stride, w, dx, to),
        Precision::Bf16 => backward_input_of::<ROUNDED>(dy, stride, w, dx, to),
    }
}

fn backward_input_of<const PARTS: usize>(
    dy: &[f32],
    stride: usize,
    w: &TernaryMatrix,
    dx: &mut [f32],
    to: To,
) {
    let (out, inputs) = (w.rows(), w.cols());
    let n = dx.len() / inputs;
    let dy = Operand::a(View::rows(dy, stride), n, out);
    let dx = Output::new(Target { data: dx, stride: inputs, to }, n, inputs);
    // SAFETY: this instruction set was found on this machine.
    each(dx, ROWS, inputs, threads::tasks(), |rows, columns, scratch| unsafe {
        backward_input_task::<PARTS>(dy, w, rows, columns, dx, scratch)
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn backward_input_task<const PARTS: usize>(
    dy: Operand<'_>,
    w: &TernaryMatrix,
    rows: Range<usize>,
    columns: Range<usize>,
    dx: Output,
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let unit = unsafe { Unit::current() };
    let Scratch { a, b, factors, square, .. } = scratch;
    let a = a.first(lines(PARTS) * block(PARTS) / DEPTH);
    for k0 in (0..w.rows()).step_by(block(PARTS)) {
        let kc = (w.rows() - k0).min(block(PARTS));
        let steps = kc.div_ceil(DEPTH);
        let a = &mut a[..lines(PARTS) * steps];
        let dx = dx.part(k0 == 0);
        for group in columns.start / w.group()..columns.end.div_ceil(w.group()) {
            let scales = factors.first(kc);
            scales_of(w, k0..k0 + kc, group, scales);
            let start = (group * w.group()).max(columns.start);
            let end = ((group + 1) * w.group()).min(columns.end);
            let b = b.first((end - start).div_ceil(PANEL) * STEP * steps);
            trits::pack_columns(w, start, end, k0, kc, b);
            for i in rows.clone().step_by(PANEL) {
                split::pack::<PARTS, _>(dy, Side::A, i, k0, kc, Some(scales), a);
                let part = Part { rows: i..rows.end, columns: start..end, first: k0 == 0 };
                // SAFETY: the panels hold `steps` steps; the rectangle of the result is this task's alone.
                unsafe {
                    panel_times(STEP * steps, b, dx, part, square, |b, to| {
                        unit.times_trits::<PARTS>(steps, a, b, to)
                    });
                }
            }
        }
    }
}

/// One panel of `A`, the first of the part's rows, times every panel of `B`, of `len` lines each.
///
/// # Safety
/// `kernel` may be called with these panels; the part lies inside the result, and nobody else touches it.
#[inline(always)]
unsafe fn panel_times(
    len: usize,
    b: &[Line],
    result: Output,
    part: Part,
    square: &mut Aligned<Line>,
    kernel: impl Fn(&[Line], Accumulators),
) {
    let i = part.rows.start;
    for (q, b) in b.chunks_exact(len).enumerate() {
        let j = part.columns.start + q * PANEL;
        let size = (part.rows.len().min(PANEL), (part.columns.end - j).min(PANEL));
        if part.first {
            result.fetch_below(i, j);
        }
        // SAFETY: by the caller's word.
        unsafe { into(result, i, j, size, square, |to| kernel(b, to)) };
    }
}

/// Runs a kernel into `size`, rows and columns, of the result at `(i, j)`: there, when that takes whole tiles, or by way
/// of `square`.
///
/// # Safety
/// The rectangle lies inside the result, and nobody else touches it.
#[inline(always)]
unsafe fn into(
    result: Output,
    i: usize,
    j: usize,
    size: (usize, usize),
    square: &mut Aligned<Line>,
    kernel: impl Fn(Accumulators),
) {
    let (at, to) = (result.at(i, j), result.to);
    if size == (PANEL, PANEL) {
        return kernel(Accumulators { at, stride: 4 * result.stride, to });
    }
    let square = square.first(2 * PANEL).as_mut_ptr().cast::<f32>();
    let copy = |out: bool| {
        for r in 0..size.0 {
            // SAFETY: inside the rectangle, and inside 32 rows of 32 values.
            unsafe {
                let (here, there) = (square.add(r * PANEL), at.add(r * result.stride));
                let (from, to) = if out { (here, there) } else { (there, here) };
                to.copy_from_nonoverlapping(from, size.1);
            }
        }
    };
    // The same sum in the same order as above: where whole tiles end depends on how the work is shared out.
    if to.adds() {
        copy(false);
    }
    kernel(Accumulators { at: square, stride: 4 * PANEL, to });
    copy(true);
}
