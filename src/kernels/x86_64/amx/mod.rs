//! Products on the tile units of processors with AMX, to the precision of `f32`.
//!
//! The units multiply bf16 and add in `f32`. An `f32` is the sum of three bf16 ([`mod@split`]) and a trit is one, so that a
//! product with a ternary matrix takes three passes and loses nothing; one of two dense matrices takes six of nine, and
//! what the other three would add is below the rounding of an `f32`. Sums are those of `f32` in another order, as with
//! every instruction set. A tile instruction does the work of 16 vector ones (32 of 8 bits), so that three passes, or six,
//! are still several times as fast.
//!
//! - Forward, `y = x Ŵᵀ`: trits of one group at a time; the scale multiplies the group's sum.
//! - Input gradient, `dx = dy Ŵ`: the sum runs over rows, whose scales differ, so `dy` is scaled while it is split, once
//!   for each group of columns.
//! - Weight gradient and whatever else is dense: [`gemm`].
//!
//! Tasks are rectangles of the result, packed and multiplied by one thread; each element is summed over `k` in one order.

mod int8;
mod split;
mod tiles;
mod trits;

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use self::split::{DEPTH, LINES, Operand, Side};
use self::tiles::{Accumulators, Line, PANEL, STEP, TILE, Tiles};
use super::super::gemm::{Output, Target};
use super::super::pack::View;
use super::super::threads;
use super::super::to::To;
use crate::ternary::TernaryMatrix;

pub use int8::forward as forward_int8;
pub use trits::fits;

/// Depth of a block, and the most inputs of a group at a time: a panel of `A` of that depth (24 KiB) stays in the
/// first-level cache while panels of `B` stream past it.
const BLOCK: usize = 128;
/// Rows and columns of a task at most: its operands and its part of the result stay in the second-level cache.
const ROWS: usize = 384;
const COLUMNS: usize = 512;
/// Blocks of `A` that are packed together.
const TOGETHER: usize = 4;
/// Columns of `B` packed at a time, of trits.
const SOME_COLUMNS: usize = 256;
/// Multiplications below which packing into tiles costs more than it brings: 32 x 64 x 64 is faster in tiles, 48 x 48 x 48
/// and 32 x 32 x 64 are not.
const SMALL: usize = 1 << 17;

/// Whether the machine has tiles of bf16 and 8-bit integers and the system lets this process use them.
pub fn available() -> bool {
    let (leaf1, leaf7) = (__cpuid(1), __cpuid_count(7, 0));
    let bit = |register: u32, bit: u32| register >> bit & 1 == 1;
    // XSAVE in use; AMX-BF16, AMX-TILE, AMX-INT8.
    if !(bit(leaf1.ecx, 27) && [22, 24, 25].iter().all(|&b| bit(leaf7.edx, b))) {
        return false;
    }
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: asks for a permission, for all threads of the process; touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether a product of these sizes is worth packing into tiles.
pub fn pays(m: usize, n: usize, k: usize) -> bool {
    // A panel of `A` that is not full, or half a step, takes the time of a whole one.
    m >= PANEL && n >= TILE && k > TILE && m * n * k >= SMALL
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread works on.
#[derive(Default)]
struct Scratch {
    a: Vec<Line>,
    b: Vec<Line>,
    factors: Vec<f32>,
    /// One panel times another, where the result does not take whole tiles; of 8-bit inputs, sums of some pieces.
    square: Vec<Line>,
    /// Of 8-bit inputs: sums of earlier pieces, scaled, and the scales of rows.
    totals: Vec<Line>,
    row_scales: Vec<f32>,
}

/// The first `len` of the values, grown when there are fewer.
fn first<T: Clone>(buffer: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
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
        let mut scratch = SCRATCH.take();
        f(rows, columns, &mut scratch);
        SCRATCH.set(scratch);
    });
}

/// Inputs in pieces of a group, each at most a block.
fn pieces(w: &TernaryMatrix) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    for group in (0..w.cols()).step_by(w.group()) {
        let end = (group + w.group()).min(w.cols());
        out.extend((group..end).step_by(BLOCK).map(|start| start..(start + BLOCK).min(end)));
    }
    out
}

/// Scales of a group of inputs, one for each of the rows.
fn scales_of(w: &TernaryMatrix, rows: Range<usize>, group: usize, to: &mut [f32]) {
    for (row, to) in rows.zip(to) {
        *to = w.scales()[row * w.row_groups() + group];
    }
}

/// `y (+)= x Ŵᵀ`, `x` `[n, in]`, `y` `[n, out]`; `w` [`fits`].
pub fn forward(x: &[f32], w: &TernaryMatrix, y: Target<'_>) {
    let (out, inputs) = (w.rows(), w.cols());
    let n = x.len() / inputs;
    let x = Operand::a(View::rows(x, inputs), n, inputs).expect("rows are contiguous");
    let y = Output::new(y, n, out);
    let pieces = pieces(w);
    // SAFETY: this instruction set was found on this machine.
    each(y, ROWS, out, threads::pieces(), |rows, columns, scratch| unsafe {
        forward_task(x, w, &pieces, rows, columns, y, scratch)
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn forward_task(
    x: Operand<'_>,
    w: &TernaryMatrix,
    pieces: &[Range<usize>],
    rows: Range<usize>,
    columns: Range<usize>,
    y: Output,
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let tiles = unsafe { Tiles::configure() };
    let panels = rows.len().div_ceil(PANEL);
    let square = first(&mut scratch.square, 2 * PANEL, Line::ZERO).as_mut_ptr();
    let square = Accumulators { at: square.cast(), stride: 4 * PANEL, to: To::Set };
    for (block, pieces) in pieces.chunks(TOGETHER).enumerate() {
        let steps: Vec<usize> = pieces.iter().map(|p| p.len().div_ceil(DEPTH)).collect();
        let a = first(&mut scratch.a, panels * LINES * steps.iter().sum::<usize>(), Line::ZERO);
        let mut rest = &mut *a;
        for (piece, steps) in pieces.iter().zip(&steps) {
            let part;
            (part, rest) = rest.split_at_mut(panels * LINES * steps);
            split::pack(x, Side::A, rows.start, piece.start, piece.len(), None, part);
        }
        for j0 in columns.clone().step_by(SOME_COLUMNS) {
            let some = (columns.end - j0).min(SOME_COLUMNS);
            let across = some.div_ceil(PANEL);
            let mut rest = &*a;
            for (at, (piece, &steps)) in pieces.iter().zip(&steps).enumerate() {
                let part;
                (part, rest) = rest.split_at(panels * LINES * steps);
                let b = first(&mut scratch.b, across * STEP * steps, Line::ZERO);
                trits::pack_rows(w, j0, piece.start, piece.len(), b);
                let scales = first(&mut scratch.factors, across * PANEL, 0.0);
                let group = piece.start / w.group();
                scales_of(w, j0..j0 + some, group, scales);
                let to = y.to.part(block + at == 0);
                for (p, a) in part.chunks_exact(LINES * steps).enumerate() {
                    let i = rows.start + p * PANEL;
                    for (q, b) in b.chunks_exact(STEP * steps).enumerate() {
                        let j = j0 + q * PANEL;
                        let (height, width) = ((rows.end - i).min(PANEL), (j0 + some - j).min(PANEL));
                        if block + at == 0 {
                            y.fetch_below(i, j);
                        }
                        // SAFETY: the panels hold `steps` steps, and the square 32 rows of 32 values; the rectangle of
                        // the result is this task's alone.
                        unsafe {
                            tiles::times_trits(&tiles, steps, a.as_ptr(), b.as_ptr(), square);
                            let scales = scales[q * PANEL..].as_ptr();
                            scale_into(square.at, scales, (height, width), y.at(i, j), y.stride, to);
                        }
                    }
                }
            }
        }
    }
}

/// `y[i, j] (+)= scale[j] * square[i, j]` for `size`, rows and columns, of 32 by 32.
///
/// # Safety
/// `square` holds 32 rows of 32 values, `scales` 32 values, and `y` that many rows and columns, `stride` apart.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scale_into(
    square: *const f32,
    scales: *const f32,
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
            let scale = _mm512_loadu_ps(scales.add(half));
            let (mut from, mut at) = (square.add(half), y.wrapping_add(half));
            for _ in 0..size.0 {
                let sum = _mm512_load_ps(from);
                if left == TILE {
                    let value = match to {
                        To::Add => _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(at)),
                        To::Set => _mm512_mul_ps(sum, scale),
                    };
                    _mm512_storeu_ps(at, value);
                } else {
                    let value = match to {
                        To::Add => _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(mask, at)),
                        To::Set => _mm512_mul_ps(sum, scale),
                    };
                    _mm512_mask_storeu_ps(at, mask, value);
                }
                (from, at) = (from.wrapping_add(PANEL), at.wrapping_add(stride));
            }
        }
    }
}

/// `dx (+)= dy Ŵ`, `dy` `[n, out]`, rows `stride` apart, `dx` `[n, in]`; `w` [`fits`].
pub fn backward_input(dy: &[f32], stride: usize, w: &TernaryMatrix, dx: &mut [f32], to: To) {
    let (out, inputs) = (w.rows(), w.cols());
    let n = dx.len() / inputs;
    let dy = Operand::a(View::rows(dy, stride), n, out).expect("rows are contiguous");
    let dx = Output::new(Target { data: dx, stride: inputs, to }, n, inputs);
    // SAFETY: this instruction set was found on this machine.
    each(dx, ROWS, inputs, threads::pieces(), |rows, columns, scratch| unsafe {
        backward_input_task(dy, w, rows, columns, dx, scratch)
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn backward_input_task(
    dy: Operand<'_>,
    w: &TernaryMatrix,
    rows: Range<usize>,
    columns: Range<usize>,
    dx: Output,
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let tiles = unsafe { Tiles::configure() };
    let a = first(&mut scratch.a, LINES * BLOCK / DEPTH, Line::ZERO);
    for k0 in (0..w.rows()).step_by(BLOCK) {
        let kc = (w.rows() - k0).min(BLOCK);
        let steps = kc.div_ceil(DEPTH);
        let a = &mut a[..LINES * steps];
        let to = dx.to.part(k0 == 0);
        for group in columns.start / w.group()..columns.end.div_ceil(w.group()) {
            let scales = first(&mut scratch.factors, kc, 0.0);
            scales_of(w, k0..k0 + kc, group, scales);
            let start = (group * w.group()).max(columns.start);
            let end = ((group + 1) * w.group()).min(columns.end);
            let b = first(&mut scratch.b, (end - start).div_ceil(PANEL) * STEP * steps, Line::ZERO);
            trits::pack_columns(w, start, end, k0, kc, b);
            for i in rows.clone().step_by(PANEL) {
                split::pack(dy, Side::A, i, k0, kc, Some(scales), a);
                for (q, b) in b.chunks_exact(STEP * steps).enumerate() {
                    let j = start + q * PANEL;
                    let size = ((rows.end - i).min(PANEL), (end - j).min(PANEL));
                    if k0 == 0 {
                        dx.fetch_below(i, j);
                    }
                    // SAFETY: the panels hold `steps` steps; the rectangle of the result is this task's alone.
                    unsafe {
                        into(dx, i, j, size, to, &mut scratch.square, |to| {
                            tiles::times_trits(&tiles, steps, a.as_ptr(), b.as_ptr(), to)
                        });
                    }
                }
            }
        }
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
    to: To,
    square: &mut Vec<Line>,
    kernel: impl Fn(Accumulators),
) {
    let at = result.at(i, j);
    if size == (PANEL, PANEL) {
        return kernel(Accumulators { at, stride: 4 * result.stride, to });
    }
    let square = first(square, 2 * PANEL, Line::ZERO).as_mut_ptr().cast::<f32>();
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

/// `C (+)= A B` as [`gemm`](super::super::gemm::gemm), whose checks have been made; false, and nothing done, when an
/// operand is not contiguous in either direction. Cut into as many tasks as `wanted`, on this thread alone where that is 1.
pub fn gemm(m: usize, n: usize, k: usize, a: View<'_>, b: View<'_>, c: Target<'_>, wanted: usize) -> bool {
    let (Some(a), Some(b)) = (Operand::a(a, m, k), Operand::b(b, k, n)) else { return false };
    let c = Output::new(c, m, n);
    // SAFETY: this instruction set was found on this machine.
    let task = |rows: Range<usize>, columns: Range<usize>, scratch: &mut Scratch| unsafe {
        gemm_task(a, b, k, rows, columns, c, scratch)
    };
    each(c, ROWS, COLUMNS, wanted, task);
    true
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn gemm_task(
    a: Operand<'_>,
    b: Operand<'_>,
    k: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    c: Output,
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let tiles = unsafe { Tiles::configure() };
    for k0 in (0..k).step_by(BLOCK) {
        let kc = (k - k0).min(BLOCK);
        let steps = kc.div_ceil(DEPTH);
        let to = c.to.part(k0 == 0);
        let b_packed = first(&mut scratch.b, columns.len().div_ceil(PANEL) * LINES * steps, Line::ZERO);
        split::pack(b, Side::B, columns.start, k0, kc, None, b_packed);
        let a_packed = first(&mut scratch.a, LINES * steps, Line::ZERO);
        for i in rows.clone().step_by(PANEL) {
            split::pack(a, Side::A, i, k0, kc, None, a_packed);
            for (q, b) in b_packed.chunks_exact(LINES * steps).enumerate() {
                let j = columns.start + q * PANEL;
                let size = ((rows.end - i).min(PANEL), (columns.end - j).min(PANEL));
                if k0 == 0 {
                    c.fetch_below(i, j);
                }
                // SAFETY: the panels hold `steps` steps; the rectangle of the result is this task's alone.
                unsafe {
                    into(c, i, j, size, to, &mut scratch.square, |to| {
                        tiles::times_dense(&tiles, steps, a_packed.as_ptr(), b.as_ptr(), to)
                    });
                }
            }
        }
    }
}
