//! Products of matrices that are kept in bf16.

use rayon::prelude::*;
use std::arch::x86_64::*;

use super::gemm::{Laid, Left};
use super::split::{self, DEPTH, Operand, ROUNDED, Side, lines};
use super::unit::Unit;
use super::{Scratch, block};
use crate::kernels::product::operands::{Target, View};
use crate::kernels::scratch;
use crate::kernels::threads;
use crate::kernels::to::To;
use crate::kernels::x86_64::amx::{Accumulators, PANEL, TILE};

/// `X Xᵀ`, or `Xᵀ X` where that is smaller: what is on and above the diagonal, strip by strip of so many rows.
pub fn gram(x: &[u16], [rows, cols]: [usize; 2], strip: usize, out: &mut [f32]) {
    let (n, k) = (rows.min(cols), rows.max(cols));
    let side = Operand::halves(x, [rows, cols], rows > cols);
    let laid = Laid::of(side, k, n, block(ROUNDED));
    laid.times_above_diagonal(Left::Halves(side), strip, Target { data: out, stride: n, to: To::Set });
}

/// `X := factor X + P X`, or `factor X + X P` where `X` has more rows than columns; `P` is square.
pub fn multiply_add(p: &[f32], factor: f32, x: &mut [u16], [rows, cols]: [usize; 2]) {
    let n = rows.min(cols);
    let (view, depth) = (View::rows(p, n), n.next_multiple_of(DEPTH));
    let left = rows <= cols;
    let laid = if left {
        Laid::of(Operand::halves(x, [rows, cols], true), n, cols, depth)
    } else {
        Laid::of(Operand::b(view, n, n), n, n, depth)
    };
    let p = left.then(|| Operand::a(view, n, n));
    let height = rows.div_ceil(threads::tasks()).next_multiple_of(PANEL);
    let run = |(nth, x): (usize, &mut [u16])| {
        scratch::with(|scratch: &mut Scratch| {
            // SAFETY: this instruction set was found on this machine.
            unsafe { task(p, nth * height, &laid, factor, x, [n, cols], scratch) }
        });
    };
    if threads::count() > 1 {
        x.par_chunks_mut(height * cols).enumerate().for_each(run);
    } else {
        x.chunks_mut(height * cols).enumerate().for_each(run);
    }
}

/// Some rows of `X`, from `first` on: `A` is `P`, or these rows themselves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn task(
    p: Option<Operand<'_>>,
    first: usize,
    b: &Laid,
    factor: f32,
    x: &mut [u16],
    [n, cols]: [usize; 2],
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let unit = unsafe { Unit::current() };
    let (rows, steps) = (x.len() / cols, n.div_ceil(DEPTH));
    let a = scratch.a.first(lines(ROUNDED) * steps);
    let square = scratch.square.first(2 * PANEL).as_mut_ptr();
    let square = Accumulators { at: square.cast(), stride: 4 * PANEL, to: To::Set };
    for i in (0..rows).step_by(PANEL) {
        match p {
            Some(p) => split::pack::<ROUNDED, _>(p, Side::A, first + i, 0, n, None, a),
            None => {
                split::pack::<ROUNDED, _>(Operand::halves(x, [rows, cols], false), Side::A, i, 0, n, None, a)
            }
        }
        for (q, b) in b.lines().chunks_exact(lines(ROUNDED) * steps).enumerate() {
            // SAFETY: both panels hold `steps` steps, and the square 32 rows of 32 values.
            unsafe { unit.times_dense::<ROUNDED>(steps, a, b, square) };
            let len = (cols - q * PANEL).min(PANEL);
            let mask = |from: usize| ((1u32 << len.saturating_sub(from).min(TILE)) - 1) as u16;
            for r in 0..PANEL.min(rows - i) {
                let x = x[(i + r) * cols + q * PANEL..][..len].as_mut_ptr();
                // SAFETY: lanes behind the masks are not touched.
                unsafe {
                    let part = |from: usize| {
                        let x = _mm256_maskz_loadu_epi16(mask(from), x.wrapping_add(from).cast());
                        let x = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)));
                        let sum = _mm512_load_ps(square.at.add(r * PANEL + from));
                        _mm512_fmadd_ps(_mm512_set1_ps(factor), x, sum)
                    };
                    split::narrow_into(part(0), part(TILE), x, len);
                }
            }
        }
    }
}
