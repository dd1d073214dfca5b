//! Many tokens with inputs rounded to 8 bits: two vectors of rows by a group of tokens at a time.
//!
//! Codes are taken apart once for all tokens, some segments at a time, into the first-level cache, in the order of the
//! inputs; there each pair of vectors meets four inputs of every token of a group. What is computed is what
//! [`integer`](super::integer) computes, in the same order, to the bit. Where registers are few some tokens go a way of their
//! own, [`direct`].

use super::apart::{STEP, steps, take_apart};
use super::interleaved::{Inputs, ROWS, Rounded};
use super::{Columns, Product, direct, each_part_of};
use crate::kernels::isa::lines_kernel;
use crate::kernels::lines::Lines;
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::simd::Simd;
use crate::ternary::{BLOCK_ROWS, Layout, SCALE_BYTES, SEGMENT};

/// Segments that are taken apart at a time.
const SEGMENTS: usize = 4;

/// Codes, scales and sums of the rows at hand.
#[derive(Default)]
struct Panel {
    /// `[steps, ROWS]` vectors.
    codes: Aligned<u32>,
    /// `[SEGMENTS, ROWS]` vectors.
    scales: Aligned<f32>,
    /// Of every token `[ROWS]` vectors.
    totals: Aligned<f32>,
}

/// `y (+)= x̂ Ŵᵀ` for each.
pub fn forward(x: &[f32], several: &[Product<'_>]) {
    let Some(Product { w, .. }) = several.first() else { return };
    let tokens = x.len() / w.cols();
    scratch::with(|rounded: &mut Rounded| {
        let inputs = rounded.fill(x, w.layout());
        let panels = |p: &Product<'_>| (p.w.layout().blocks() * BLOCK_ROWS).div_ceil(panel_rows());
        each_part_of(several, tokens, panels, |Product { w, y }, panel| {
            scratch::with(|scratch: &mut Panel| panel_of(w.layout(), w.bytes(), inputs, panel, scratch, *y));
        });
    });
}

lines_kernel! {
    fn panel_rows<D>() -> usize {
        ROWS * D::F::LANES
    }
}

lines_kernel! {
    /// The columns of `y` that the rows of one panel make, for all tokens.
    fn panel_of<D>(layout: &Layout, bytes: &[u8], x: Inputs<'_>, panel: usize, scratch: &mut Panel, y: Columns) {
        // SAFETY: this instruction set was found on this machine, and the bytes are those of the layout.
        unsafe {
            if x.direct {
                direct::panel_on::<D>(layout, bytes, x, panel, y);
            } else {
                panel_on::<D>(layout, bytes, x, panel, scratch, y);
            }
        }
    }
}

/// # Safety
/// As [`Lines`]; `bytes` are those of the layout, and `x` was rounded for it.
#[inline(always)]
unsafe fn panel_on<D: Lines>(
    layout: &Layout,
    bytes: &[u8],
    x: Inputs<'_>,
    panel: usize,
    scratch: &mut Panel,
    y: Columns,
) {
    let (lanes, padded) = (D::F::LANES, x.scales.len());
    let codes = scratch.codes.first(SEGMENTS * SEGMENT / STEP * ROWS * lanes);
    let scales = scratch.scales.first(SEGMENTS * ROWS * lanes);
    let totals = scratch.totals.first(padded * ROWS * lanes);
    totals.fill(0.0);
    // Past the last block it is taken once more, and what it makes goes nowhere.
    let rows: [usize; ROWS] = std::array::from_fn(|v| (panel * ROWS + v) * lanes);
    let last = layout.blocks() - 1;
    let mut places: [(usize, usize); ROWS] =
        rows.map(|row| ((row / BLOCK_ROWS).min(last) * layout.block_bytes(), row % BLOCK_ROWS / lanes));
    let mut segments = layout.segments().map(|s| s.len());
    let (mut segment, mut step) = (0, 0);
    loop {
        let mut lengths = [0; SEGMENTS];
        let mut count = 0;
        for length in segments.by_ref().take(SEGMENTS) {
            lengths[count] = length;
            count += 1;
        }
        if count == 0 {
            break;
        }
        let mut at = 0;
        for (s, length) in lengths.into_iter().enumerate().take(count) {
            for (v, (from, part)) in places.iter_mut().enumerate() {
                // SAFETY: by the caller's word.
                unsafe {
                    let to = codes.as_mut_ptr().add((at * ROWS + v) * lanes).cast::<u8>();
                    let source = bytes.as_ptr().add(*from);
                    let put = |step: usize, codes: D::Codes| {
                        D::store(to.add(step * ROWS * 4 * lanes), codes);
                    };
                    let read = take_apart::<D>(layout.density(), source, *part, length, put);
                    let row_scales = D::scales(source.add(read + *part * 2 * lanes));
                    D::F::store(scales.as_mut_ptr().add((s * ROWS + v) * lanes), row_scales);
                    *from += read + SCALE_BYTES;
                }
            }
            at += steps(length);
        }
        let some = Segments { first: segment, lengths: &lengths[..count], codes, scales };
        for group in x.groups {
            let words = &x.words[x.steps * group.first + step * group.width..];
            let sums = &x.sums[x.segments * group.first..];
            let totals = &mut totals[group.first * ROWS * lanes..][..group.width * ROWS * lanes];
            // SAFETY: by the caller's word; groups are as wide as one of these.
            unsafe {
                match group.width {
                    4 => add::<D, 4>(some, words, sums, totals),
                    8 => add::<D, 8>(some, words, sums, totals),
                    12 => add::<D, 12>(some, words, sums, totals),
                    width => unreachable!("a group of {width}"),
                }
            }
        }
        segment += count;
        step += at;
    }
    for group in x.groups {
        for t in group.first..group.first + group.tokens {
            // SAFETY: by the caller's word; rows past the end go nowhere.
            unsafe {
                let scale = D::F::splat(x.scales[t]);
                for (v, row) in rows.into_iter().enumerate() {
                    let total = D::F::load(totals.as_ptr().add((t * ROWS + v) * lanes));
                    y.put::<D::F>(t, row, D::F::mul(total, scale));
                }
            }
        }
    }
}

/// Some segments, taken apart.
#[derive(Clone, Copy)]
struct Segments<'a> {
    first: usize,
    lengths: &'a [usize],
    codes: &'a [u32],
    scales: &'a [f32],
}

/// Adds what some segments make of a group of `T` tokens to their totals.
///
/// # Safety
/// As [`panel_on`].
#[inline(always)]
unsafe fn add<D: Lines, const T: usize>(some: Segments<'_>, words: &[u32], sums: &[i32], totals: &mut [f32]) {
    let lanes = D::F::LANES;
    let (mut codes, mut inputs) = (some.codes.as_ptr().cast::<u8>(), words.as_ptr().cast::<i8>());
    // SAFETY: by the caller's word.
    unsafe {
        for (s, length) in some.lengths.iter().enumerate() {
            let mut products = [[D::zero(); ROWS]; T];
            for _ in 0..steps(*length) {
                let rows: [D::Codes; ROWS] = std::array::from_fn(|v| D::load(codes.add(v * 4 * lanes)));
                for (t, products) in products.iter_mut().enumerate() {
                    for (product, codes) in products.iter_mut().zip(rows) {
                        *product = D::dot(*product, codes, inputs.add(STEP * t));
                    }
                }
                codes = codes.add(ROWS * 4 * lanes);
                inputs = inputs.add(STEP * T);
            }
            let sums = sums.as_ptr().add((some.first + s) * T);
            for (t, products) in products.into_iter().enumerate() {
                for (v, product) in products.into_iter().enumerate() {
                    let scale = D::F::load(some.scales.as_ptr().add((s * ROWS + v) * lanes));
                    let total = totals.as_mut_ptr().add((t * ROWS + v) * lanes);
                    let product = D::F::mul(scale, D::total(product, *sums.add(t)));
                    D::F::store(total, D::F::add(D::F::load(total), product));
                }
            }
        }
    }
}
