//! A few tokens with inputs rounded to 8 bits: what [`reference::linear_int8`](crate::kernels::reference::linear_int8) computes, bit for bit,
//! on every instruction set.

use rayon::prelude::*;

use super::{AHEAD, Columns, Prepared, Product, each_block};
use crate::kernels::isa::{kernel, lines_kernel};
use crate::kernels::lines::Lines;
use crate::kernels::product::rounding::{inverse, nearest, scale_of};
use crate::kernels::scratch;
use crate::kernels::simd::Simd;
use crate::ternary::{LINE_BYTES, Layout};

/// Bytes past the end of a token's inputs that a last line may look at; codes of 0 meet them.
const SLACK: usize = 32;

/// Inputs of a product, rounded.
#[derive(Default)]
struct Rounded {
    tokens: usize,
    segments: usize,
    /// From a token to the next in `bytes`.
    stride: usize,
    /// `[tokens, stride]`
    bytes: Vec<i8>,
    /// Sums over the segments, `[tokens, segments]`.
    sums: Vec<i32>,
    /// One for each token.
    scales: Vec<f32>,
}

impl Rounded {
    fn fill(&mut self, x: &[f32], layout: &Layout) {
        self.tokens = x.len() / layout.cols();
        self.segments = layout.segments().len();
        self.stride = (layout.cols() + SLACK).next_multiple_of(64);
        self.bytes.resize(self.tokens * self.stride, 0);
        self.sums.resize(self.tokens * self.segments, 0);
        self.scales.resize(self.tokens, 0.0);
        let rows = x.par_chunks(layout.cols()).zip(self.bytes.par_chunks_mut(self.stride));
        let sums = self.sums.par_chunks_mut(self.segments).zip(self.scales.par_iter_mut());
        rows.zip(sums).with_min_len(8).for_each(|((x, bytes), (sums, scale))| {
            *scale = round_row(x, &mut bytes[..x.len()]);
            for (inputs, sum) in layout.segments().zip(sums) {
                *sum = sum_of(&bytes[inputs]);
            }
        });
    }
}

kernel! {
    /// A row over its scale, which is returned, to the nearest integers.
    pub(super) fn round_row<S>(x: &[f32], to: &mut [i8]) -> f32 {
        let scale = scale_of(x);
        let inverse = inverse(scale);
        for (x, to) in x.iter().zip(to) {
            *to = nearest(x * inverse) as i8;
        }
        scale
    }
}

kernel! {
    pub(super) fn sum_of<S>(x: &[i8]) -> i32 {
        x.iter().map(|x| *x as i32).sum()
    }
}

/// `y (+)= x̂ Ŵᵀ` for each.
pub fn forward(x: &[f32], several: &[Product<'_>]) {
    let Some(Product { w, .. }) = several.first() else { return };
    scratch::with(|rounded: &mut Rounded| {
        rounded.fill(x, w.layout());
        each_block(several, rounded.tokens, |Product { w, y }, block| {
            block_of(w.layout(), w.block(block), rounded, block, *y);
        });
    });
}

lines_kernel! {
    fn block_of<D>(layout: &Layout, bytes: &[u8], x: &Rounded, block: usize, y: Columns) {
        // SAFETY: this instruction set was found on this machine, and the block's bytes are those of its layout, for which
        // the inputs were rounded.
        unsafe { super::block_of::<D, _>(layout, bytes, x, block, y) }
    }
}

impl Prepared for Rounded {
    fn tokens(&self) -> usize {
        self.tokens
    }

    #[inline(always)]
    unsafe fn part_of<D: Lines, const T: usize, const BASE3: bool>(
        &self,
        layout: &Layout,
        bytes: &[u8],
        part: usize,
        first: usize,
    ) -> [<D::F as Simd>::V; T] {
        unsafe {
            let width = 4 * D::F::LANES;
            let line = layout.density().line();
            let mut at = bytes.as_ptr();
            let mut totals = [D::F::zero(); T];
            let mut inputs: [*const i8; T] =
                std::array::from_fn(|t| self.bytes.as_ptr().add((first + t) * self.stride));
            for (s, segment) in layout.segments().enumerate() {
                let mut sums = [[D::zero(); 5]; T];
                let (whole, rest) = (segment.len() / line, segment.len() % line);
                let half = BASE3 && rest > 0 && rest <= line / 2;
                for _ in 0..whole {
                    let codes = at.add(part * width);
                    D::F::prefetch(codes.wrapping_add(AHEAD).cast());
                    add_line::<D, T, BASE3>(D::load(codes), &inputs, 4, &mut sums);
                    at = at.add(LINE_BYTES);
                    inputs.iter_mut().for_each(|x| *x = x.add(line));
                }
                if half {
                    let codes = D::load_half(at.add(part * width / 2));
                    add_line::<D, T, BASE3>(codes, &inputs, 2, &mut sums);
                    at = at.add(LINE_BYTES / 2);
                } else if rest > 0 {
                    add_line::<D, T, BASE3>(D::load(at.add(part * width)), &inputs, 4, &mut sums);
                    at = at.add(LINE_BYTES);
                }
                inputs.iter_mut().for_each(|x| *x = x.add(rest));
                let scales = D::scales(at.add(part * width / 2));
                at = at.add(LINE_BYTES / 2);
                for (t, (total, sums)) in totals.iter_mut().zip(sums).enumerate() {
                    let offset = self.sums[(first + t) * self.segments + s];
                    let sum = if in_place::<D>(T) { D::sized(sums) } else { D::add(sums[0], sums[1]) };
                    let sum = D::total(sum, offset);
                    *total = D::F::add(*total, D::F::mul(scales, sum));
                }
            }
            for (total, scale) in totals.iter_mut().zip(&self.scales[first..]) {
                *total = D::F::mul(*total, D::F::splat(*scale));
            }
            totals
        }
    }
}

/// Whether codes stay in place: five sums for a single token.
#[inline(always)]
const fn in_place<D: Lines>(tokens: usize) -> bool {
    D::IN_PLACE && tokens == 1
}

/// # Safety
/// As [`Prepared::part_of`].
#[inline(always)]
unsafe fn add_line<D: Lines, const T: usize, const BASE3: bool>(
    line: D::Codes,
    inputs: &[*const i8; T],
    apart: usize,
    sums: &mut [[D::Sum; 5]; T],
) {
    unsafe {
        if in_place::<D>(T) {
            let places = if BASE3 { 5 } else { 4 };
            for (i, codes) in D::in_place::<BASE3>(line).into_iter().enumerate().take(places) {
                sums[0][i] = D::dot(sums[0][i], codes, inputs[0].add(apart * i));
            }
        } else if BASE3 {
            add_codes::<D, T, 5>(D::base3(line), inputs, apart, sums);
        } else {
            add_codes::<D, T, 4>(D::two_bit(line), inputs, apart, sums);
        }
    }
}

/// # Safety
/// As [`Prepared::part_of`].
#[inline(always)]
unsafe fn add_codes<D: Lines, const T: usize, const N: usize>(
    codes: [D::Codes; N],
    inputs: &[*const i8; T],
    apart: usize,
    sums: &mut [[D::Sum; 5]; T],
) {
    for (i, codes) in codes.into_iter().enumerate() {
        for t in 0..T {
            let sum = &mut sums[t][i % 2];
            // SAFETY: by the caller's word.
            unsafe { *sum = D::dot(*sum, codes, inputs[t].add(apart * i)) };
        }
    }
}
