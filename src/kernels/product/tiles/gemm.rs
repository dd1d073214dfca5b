//! Products of two dense matrices on tiles.

use rayon::prelude::*;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use super::split::{self, DEPTH, Element, Operand, ROUNDED, Side, WHOLE, lines};
use super::unit::Unit;
use super::{COLUMNS, Part, ROWS, Scratch, block, each, panel_times};
use crate::config::Precision;
use crate::kernels::product::operands::{Output, Sizes, Target, View};
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::threads;
use crate::kernels::x86_64::amx::{Line, PANEL};

/// `C (+)= A B` as [`gemm`](crate::kernels::gemm), whose checks have been made; both operands are contiguous. Cut into as
/// many tasks as `wanted`, on this thread alone where that is 1.
pub fn gemm(size: Sizes, a: View<'_>, b: View<'_>, c: Target<'_>, wanted: usize) {
    match a.precision {
        Precision::F32 => gemm_of::<WHOLE>(size, a, b, c, wanted),
        Precision::Bf16 => gemm_of::<ROUNDED>(size, a, b, c, wanted),
    }
}

fn gemm_of<const PARTS: usize>(size: Sizes, a: View<'_>, b: View<'_>, c: Target<'_>, wanted: usize) {
    let Sizes { m, n, k } = size;
    let (a, b) = (Operand::a(a, m, k), Operand::b(b, k, n));
    let c = Output::new(c, m, n);
    // SAFETY: this instruction set was found on this machine.
    let task = |rows: Range<usize>, columns: Range<usize>, scratch: &mut Scratch| unsafe {
        gemm_task::<PARTS>(a, b, k, rows, columns, c, scratch)
    };
    each(c, ROWS, COLUMNS, wanted, task);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn gemm_task<const PARTS: usize>(
    a: Operand<'_>,
    b: Operand<'_>,
    k: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    c: Output,
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let unit = unsafe { Unit::current() };
    for k0 in (0..k).step_by(block(PARTS)) {
        let kc = (k - k0).min(block(PARTS));
        let steps = kc.div_ceil(DEPTH);
        let c = c.part(k0 == 0);
        let b_packed = scratch.b.first(columns.len().div_ceil(PANEL) * lines(PARTS) * steps);
        split::pack::<PARTS, _>(b, Side::B, columns.start, k0, kc, None, b_packed);
        let a_packed = scratch.a.first(lines(PARTS) * steps);
        for i in rows.clone().step_by(PANEL) {
            split::pack::<PARTS, _>(a, Side::A, i, k0, kc, None, a_packed);
            let part = Part { rows: i..rows.end, columns: columns.clone(), first: k0 == 0 };
            // SAFETY: the panels hold `steps` steps; the rectangle of the result is this task's alone.
            unsafe {
                panel_times(lines(PARTS) * steps, b_packed, c, part, &mut scratch.square, |b, to| {
                    unit.times_dense::<PARTS>(steps, a_packed, b, to)
                });
            }
        }
    }
}

/// `B` of a product, rounded to bf16 and laid out once for all products and tasks that multiply by it. In three parts that is no
/// faster: PERFORMANCE.md.
pub struct Laid {
    kept: Kept,
    k: usize,
    n: usize,
    /// Of a block, whole steps.
    depth: usize,
}

/// Blocks along `k`, in each the panels of all columns.
#[derive(Default)]
struct Kept(Aligned<Line>);

impl Drop for Laid {
    fn drop(&mut self) {
        scratch::give(std::mem::take(&mut self.kept));
    }
}

/// Asks for a line, into the second-level cache.
#[inline(always)]
fn fetch_line(line: &Line) {
    // SAFETY: a hint.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(line).cast()) };
}

/// `A` of such a product.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// As it lies in memory.
    Dense(View<'a>),
    /// Rounded before, as it lies in memory.
    Halves(Operand<'a, u16>),
    /// Laid out too: blocks along `k`, so many lines apart, in each the panels of all rows.
    Laid(&'a [Line], usize),
}

impl Laid {
    /// `B` is `[k, n]` and contiguous.
    pub fn new(b: View<'_>, k: usize, n: usize) -> Self {
        Self::of(Operand::b(b, k, n), k, n, block(ROUNDED))
    }

    /// [`Laid::new`] in blocks of `depth`.
    pub fn of<T: Element>(b: Operand<'_, T>, k: usize, n: usize, depth: usize) -> Self {
        let across = n.div_ceil(PANEL) * lines(ROUNDED);
        let mut kept: Kept = scratch::take();
        let all = kept.0.first(across * k.div_ceil(DEPTH));
        let blocks = all.chunks_mut(across * depth / DEPTH).zip((0..k).step_by(depth));
        // SAFETY: this instruction set was found on this machine.
        let run = |(to, k0): (&mut [Line], usize)| unsafe {
            split::pack::<ROUNDED, _>(b, Side::B, 0, k0, depth.min(k - k0), None, to);
        };
        if threads::count() > 1 {
            blocks.par_bridge().for_each(run)
        } else {
            blocks.for_each(run)
        }
        Self { kept, k, n, depth }
    }

    /// The panels of all columns, block by block.
    pub fn lines(&self) -> &[Line] {
        self.kept.0.as_slice(self.n.div_ceil(PANEL) * lines(ROUNDED) * self.k.div_ceil(DEPTH))
    }

    /// Steps of the block at `k0`.
    fn steps(&self, k0: usize) -> usize {
        self.depth.min(self.k - k0).div_ceil(DEPTH)
    }

    /// `C (+)= A B`, `A` `[m, k]`.
    pub fn times(&self, a: Left<'_>, m: usize, c: Target<'_>) {
        let c = Output::new(c, m, self.n);
        // A panel of `A` is packed once for all columns of its task: those are cut last.
        threads::rectangles(
            (m, self.n),
            (ROWS, COLUMNS),
            (PANEL, COLUMNS),
            threads::tasks(),
            |rows, columns| {
                scratch::with(|scratch| {
                    // SAFETY: this instruction set was found on this machine.
                    unsafe { self.task(a, rows, columns, c, scratch) }
                });
            },
        );
    }

    /// As [`Laid::times`], strips of the rows from their place on the diagonal on.
    pub fn times_above_diagonal(&self, a: Left<'_>, strip: usize, c: Target<'_>) {
        let c = Output::new(c, self.n, self.n);
        let strips = (0..self.n).step_by(strip);
        let run = |first: usize| {
            let rows = first..self.n.min(first + strip);
            // SAFETY: this instruction set was found on this machine.
            scratch::with(|scratch| unsafe { self.task(a, rows, first..self.n, c, scratch) });
        };
        if threads::count() > 1 { strips.par_bridge().for_each(run) } else { strips.for_each(run) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn task(&self, a: Left<'_>, rows: Range<usize>, columns: Range<usize>, c: Output, scratch: &mut Scratch) {
        // SAFETY: this instruction set was found on this machine.
        let unit = unsafe { Unit::current() };
        let Scratch { a: packed, square, .. } = scratch;
        for (block, k0) in (0..self.k).step_by(self.depth).enumerate() {
            let (c, steps) = (c.part(k0 == 0), self.steps(k0));
            let panel = lines(ROUNDED) * steps;
            let b = self.n.div_ceil(PANEL) * lines(ROUNDED) * (k0 / DEPTH) + columns.start / PANEL * panel;
            let b = &self.lines()[b..b + columns.len().div_ceil(PANEL) * panel];
            for i in rows.clone().step_by(PANEL) {
                let kc = self.depth.min(self.k - k0);
                // What another thread has laid out is in its cache: the next panel is asked for while this one is used.
                let mut next: &[Line] = &[];
                let a = match a {
                    Left::Laid(a, stride) => {
                        let a = &a[block * stride..];
                        if i + PANEL < rows.end {
                            next = &a[(i / PANEL + 1) * panel..][..panel];
                        }
                        &a[i / PANEL * panel..][..panel]
                    }
                    Left::Halves(a) => {
                        let packed = packed.first(panel);
                        split::pack::<ROUNDED, _>(a, Side::A, i, k0, kc, None, packed);
                        packed
                    }
                    Left::Dense(a) => {
                        let (a, packed) = (Operand::a(a, c.rows, self.k), packed.first(panel));
                        split::pack::<ROUNDED, _>(a, Side::A, i, k0, kc, None, packed);
                        packed
                    }
                };
                let (asked, some) = (Cell::new(0), next.len().div_ceil(columns.len().div_ceil(PANEL)));
                let part = Part { rows: i..rows.end, columns: columns.clone(), first: k0 == 0 };
                // SAFETY: the panels hold `steps` steps; the rectangle of the result is this task's alone.
                unsafe {
                    panel_times(panel, b, c, part, square, |b, to| {
                        next.iter().skip(asked.replace(asked.get() + some)).take(some).for_each(fetch_line);
                        unit.times_dense::<ROUNDED>(steps, a, b, to)
                    });
                }
            }
        }
    }
}
