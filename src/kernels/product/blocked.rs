//! The blocked product: packed panels, a register tile, work split by rectangles of the result.
//!
//! Each element of the result is summed over `k` in one order, whatever the number of threads: the same bits every time.
//! The blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): one panel stays
//! in the first-level cache while those of the other operand stream past it from the second.

use std::ops::Range;

use super::operands::{Output, Rhs, Sizes, Target, View};
use super::pack::{A_SLACK, TOGETHER, pack_a, pack_b};
use super::register_tile::{tile, width};
use crate::kernels::isa::kernel;
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::threads;
use crate::kernels::to::To;

/// Columns of `B` and rows of `A` packed at a time; multiples of every register tile.
const NC: usize = 1024;
const MC: usize = 14 * 6 * 4;
/// Columns of `B` that panels of `A` meet one after the other: at most 256 x 512 x 4 bytes, in a second-level cache.
const SOME_COLUMNS: usize = 256;
/// How the current instruction set cuts a product.
struct Blocking {
    /// Of a register tile.
    rows: usize,
    columns: usize,
    /// Of a block.
    depth: usize,
    /// Panels of `A` that stream past one of `B`; with one, the panel of `A` stays, and those of `B` stream.
    stream: usize,
}

/// Packed operands.
#[derive(Default)]
struct Panels {
    a: Aligned<f32>,
    b: Aligned<f32>,
}

kernel! {
    fn blocking<S>() -> Blocking {
        let stream = if S::HOLDS_B { TOGETHER } else { 1 };
        Blocking { rows: S::MR, columns: width::<S>(), depth: S::KC, stream }
    }
}

kernel! {
    /// Some panels of `A`, `a_stride` apart, against the packed panels of `B`: `rows` rows and `cols` columns of the
    /// result at `c`.
    ///
    /// # Safety
    /// `c` points at `rows` rows of `cols` values, `ldc` apart, that nobody else touches.
    unsafe fn panels_times_block<S>(rows: usize, cols: usize, kc: usize, a: &[f32], a_stride: usize, b: &[f32], c: *mut f32, ldc: usize, to: To) {
        let nr = width::<S>();
        let b_stride = kc.next_multiple_of(16) * nr;
        assert!(a_stride >= kc * S::MR && a.len() >= (rows.div_ceil(S::MR) - 1) * a_stride + kc * S::MR);
        assert!(b.len() >= cols.div_ceil(nr) * b_stride);
        for (p, j) in (0..cols).step_by(nr).enumerate() {
            for (q, i) in (0..rows).step_by(S::MR).enumerate() {
                let rows = S::MR.min(rows - i);
                // SAFETY: the panels are long enough by the assertions; `c` by the caller's word.
                unsafe {
                    let a = a.as_ptr().add(q * a_stride);
                    let b = b.as_ptr().add(p * b_stride);
                    let c = c.add(i * ldc + j);
                    if j + nr <= cols {
                        tile::<S>(rows, kc, a, b, c, ldc, to);
                        continue;
                    }
                    let mut edge = [0f32; 16 * 32];
                    tile::<S>(rows, kc, a, b, edge.as_mut_ptr(), nr, To::Set);
                    for i in 0..rows {
                        for (jj, x) in edge[i * nr..i * nr + cols - j].iter().enumerate() {
                            let p = c.add(i * ldc + jj);
                            *p = if to.adds() { *p + x } else { *x };
                        }
                    }
                }
            }
        }
    }
}

/// `C (+)= A B` as [`gemm`](super::gemm), whose checks have been made; no size is 0. Cut into as many tasks as `wanted`, on
/// this thread alone where that is 1.
pub fn product(size: Sizes, a: View<'_>, b: Rhs<'_>, c: Target<'_>, wanted: usize) {
    let Sizes { m, n, k } = size;
    let Blocking { rows, columns, .. } = blocking();
    let c = Output::new(c, m, n);
    threads::rectangles((m, n), (m, n), (rows, columns), wanted, |rows, columns| {
        scratch::with(|panels| rectangle(k, a, b, rows, columns, c, panels));
    });
}

/// Some rows and columns of the result, on this thread: it packs what it needs for itself, and waits for no other.
fn rectangle(
    k: usize,
    a: View<'_>,
    b: Rhs<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    c: Output,
    panels: &mut Panels,
) {
    let Blocking { rows: mr, columns: nr, depth, .. } = blocking();
    let depth = k.div_ceil(k.div_ceil(depth)).next_multiple_of(16);
    for j0 in columns.clone().step_by(NC) {
        let nc = NC.min(columns.end - j0);
        for k0 in (0..k).step_by(depth) {
            let kc = depth.min(k - k0);
            let c = c.part(k0 == 0);
            let b_stride = kc.next_multiple_of(16) * nr;
            let b_packed = panels.b.first(nc.div_ceil(nr) * b_stride);
            for (p, panel) in b_packed.chunks_mut(b_stride).enumerate() {
                pack_b(b, c.columns, j0 + p * nr, k0, kc, panel);
            }
            for i0 in rows.clone().step_by(MC) {
                let mc = MC.min(rows.end - i0);
                let a_stride = kc * mr + A_SLACK;
                let a_packed = panels.a.first(mc.div_ceil(mr) * a_stride);
                for (p, panels) in a_packed.chunks_mut(TOGETHER * a_stride).enumerate() {
                    pack_a(a, c.rows, i0 + p * TOGETHER * mr, k0, kc, panels, a_stride);
                }
                block(i0..i0 + mc, j0..j0 + nc, kc, a_packed, b_packed, c);
            }
        }
    }
}

/// The packed panels of `A` against those of `B`: these rows and columns of the result.
fn block(rows: Range<usize>, columns: Range<usize>, kc: usize, a: &[f32], b: &[f32], c: Output) {
    let Blocking { rows: mr, columns: nr, stream, .. } = blocking();
    let (a_stride, b_stride) = (kc * mr + A_SLACK, kc.next_multiple_of(16) * nr);
    for j in (0..columns.len()).step_by(SOME_COLUMNS) {
        let width = SOME_COLUMNS.min(columns.len() - j);
        for p in (0..rows.len().div_ceil(mr)).step_by(stream) {
            let row = p * mr;
            let height = (stream * mr).min(rows.len() - row);
            let (a, b) = (&a[p * a_stride..], &b[j / nr * b_stride..]);
            let at = c.at(rows.start + row, columns.start + j);
            // SAFETY: inside this task's rectangle of the result, which is its alone.
            unsafe { panels_times_block(height, width, kc, a, a_stride, b, at, c.stride, c.to) };
        }
    }
}
