//! Lines of packed trits taken apart into codes.

use super::AHEAD;
use crate::kernels::lines::Lines;
use crate::kernels::simd::Simd;
use crate::ternary::{Density, LINE_BYTES};

/// Inputs of a step: the codes that a lane holds of them.
pub const STEP: usize = 4;

pub fn steps(segment: usize) -> usize {
    segment.div_ceil(STEP)
}

/// What is done with the codes of a step of a segment.
pub trait Put<C> {
    /// # Safety
    /// As [`Lines`]; the step is one of the segment's.
    unsafe fn put(&mut self, step: usize, codes: C);
}

/// For what is small enough to be inlined; a larger closure would be compiled without the instructions.
impl<C, F: FnMut(usize, C)> Put<C> for F {
    #[inline(always)]
    unsafe fn put(&mut self, step: usize, codes: C) {
        self(step, codes);
    }
}

/// Gives `to` each step of a segment and its codes, of the rows in vector `part` of the block whose lines begin at `from`; the
/// bytes that these take.
///
/// # Safety
/// As [`Lines`]; the lines of a segment of so many inputs are there.
#[inline(always)]
pub unsafe fn take_apart<D: Lines>(
    density: Density,
    from: *const u8,
    part: usize,
    length: usize,
    mut to: impl Put<D::Codes>,
) -> usize {
    // SAFETY: by the caller's word.
    unsafe {
        match density {
            Density::TwoBit => lines_apart::<D, false>(from, part, length, &mut to),
            Density::Base3 => lines_apart::<D, true>(from, part, length, &mut to),
        }
    }
}

/// # Safety
/// As [`take_apart`].
#[inline(always)]
unsafe fn lines_apart<D: Lines, const BASE3: bool>(
    from: *const u8,
    part: usize,
    length: usize,
    to: &mut impl Put<D::Codes>,
) -> usize {
    let width = 4 * D::F::LANES;
    let line = if BASE3 { 20 } else { 16 };
    let (whole, rest) = (length / line, length % line);
    let half = BASE3 && rest > 0 && rest <= line / 2;
    let lines = whole + (rest > 0 && !half) as usize;
    let all = steps(length);
    // SAFETY: by the caller's word.
    unsafe {
        for i in 0..lines {
            let codes = from.add(i * LINE_BYTES + part * width);
            D::F::prefetch(codes.wrapping_add(AHEAD).cast());
            let codes = D::load(codes);
            if BASE3 {
                put_each(D::base3(codes), 5 * i, all, to);
            } else {
                put_each(D::two_bit(codes), 4 * i, all, to);
            }
        }
        if half {
            // Two inputs of each digit: two digits make a step.
            let [a, b, c, d, e] = D::base3(D::load_half(from.add(lines * LINE_BYTES + part * width / 2)));
            put_each([D::join(a, b), D::join(c, d), e], 5 * lines, all, to);
        }
    }
    lines * LINE_BYTES + if half { LINE_BYTES / 2 } else { 0 }
}

/// Gives `to` the steps from `first` on, those of `all` that there are.
///
/// # Safety
/// As [`take_apart`].
#[inline(always)]
unsafe fn put_each<C, const N: usize>(codes: [C; N], first: usize, all: usize, to: &mut impl Put<C>) {
    // Nearly always; one question instead of `N`.
    let whole = first + N <= all;
    for (j, codes) in codes.into_iter().enumerate() {
        if whole || first + j < all {
            // SAFETY: by the caller's word.
            unsafe { to.put(first + j, codes) };
        }
    }
}
