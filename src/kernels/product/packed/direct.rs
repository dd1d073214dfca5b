//! Some tokens with inputs rounded to 8 bits, where registers are few: a vector of rows by a group of tokens at a time.
//!
//! With 16 registers the sums of two vectors of rows leave room for four tokens, and codes must be stored for the next four. The
//! sums of one vector and eight tokens leave room for a line, which is taken apart where it is used.

use super::Columns;
use super::apart::{Put, STEP, steps, take_apart};
use super::interleaved::{Group, Inputs, ROWS};
use crate::kernels::lines::Lines;
use crate::kernels::simd::Simd;
use crate::ternary::{BLOCK_ROWS, Layout, SCALE_BYTES};

/// # Safety
/// As [`Lines`]; `bytes` are those of the layout, and `x` was rounded for it.
#[inline(always)]
pub unsafe fn panel_on<D: Lines>(layout: &Layout, bytes: &[u8], x: Inputs<'_>, panel: usize, y: Columns) {
    for v in 0..ROWS {
        let row = (panel * ROWS + v) * D::F::LANES;
        if row / BLOCK_ROWS == layout.blocks() {
            return;
        }
        for group in x.groups {
            // SAFETY: by the caller's word.
            unsafe {
                match group.width {
                    2 => rows_of::<D, 2>(layout, bytes, x, group, row, y),
                    4 => rows_of::<D, 4>(layout, bytes, x, group, row, y),
                    6 => rows_of::<D, 6>(layout, bytes, x, group, row, y),
                    8 => rows_of::<D, 8>(layout, bytes, x, group, row, y),
                    width => unreachable!("a group of {width}"),
                }
            }
        }
    }
}

/// A vector of rows, from `row` on, and the `T` tokens of a group.
///
/// # Safety
/// As [`panel_on`].
#[inline(always)]
unsafe fn rows_of<D: Lines, const T: usize>(
    layout: &Layout,
    bytes: &[u8],
    x: Inputs<'_>,
    group: &Group,
    row: usize,
    y: Columns,
) {
    let part = row % BLOCK_ROWS / D::F::LANES;
    // SAFETY: by the caller's word; groups before this one are full.
    unsafe {
        let mut at = bytes.as_ptr().add(row / BLOCK_ROWS * layout.block_bytes());
        let mut inputs = x.words.as_ptr().add(x.steps * group.first).cast::<i8>();
        let mut offsets = x.sums.as_ptr().add(x.segments * group.first);
        let mut totals = [D::F::zero(); T];
        for segment in layout.segments() {
            let mut sums = Sums::<D, T> { inputs, sums: [D::zero(); T] };
            at = at.add(take_apart::<D>(layout.density(), at, part, segment.len(), &mut sums));
            let scales = D::scales(at.add(part * 2 * D::F::LANES));
            at = at.add(SCALE_BYTES);
            for (t, (total, sum)) in totals.iter_mut().zip(sums.sums).enumerate() {
                *total = D::F::add(*total, D::F::mul(scales, D::total(sum, *offsets.add(t))));
            }
            inputs = inputs.add(steps(segment.len()) * T * STEP);
            offsets = offsets.add(T);
        }
        for (t, total) in totals.into_iter().enumerate().take(group.tokens) {
            let token = group.first + t;
            y.put::<D::F>(token, row, D::F::mul(total, D::F::splat(x.scales[token])));
        }
    }
}

/// Of `T` tokens the sums over a segment.
struct Sums<D: Lines, const T: usize> {
    /// `[steps, T]`, four each.
    inputs: *const i8,
    sums: [D::Sum; T],
}

impl<D: Lines, const T: usize> Put<D::Codes> for &mut Sums<D, T> {
    #[inline(always)]
    unsafe fn put(&mut self, step: usize, codes: D::Codes) {
        for (t, sum) in self.sums.iter_mut().enumerate() {
            // SAFETY: by the caller's word.
            unsafe { *sum = D::in_order(D::dot(*sum, codes, self.inputs.add((step * T + t) * STEP))) };
        }
    }
}
