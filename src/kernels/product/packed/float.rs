//! Inputs in f32: each line chooses from tables of signed sums of the inputs.
//!
//! Where a look-up takes two codes, a table has 16 entries of which nine are used: the signed sums of two inputs. Where it
//! takes one, four of which three are.

use rayon::prelude::*;

use super::{AHEAD, Columns, Prepared, Product, each_block};
use crate::kernels::isa::lines_kernel;
use crate::kernels::lines::Lines;
use crate::kernels::scratch;
use crate::kernels::simd::Simd;
use crate::ternary::{Density, LINE_BYTES, Layout};

/// Tables of some tokens.
#[derive(Default)]
struct Tables {
    tokens: usize,
    /// Values of a token's tables.
    stride: usize,
    values: Vec<f32>,
}

impl Tables {
    fn fill(&mut self, x: &[f32], layout: &Layout) {
        self.tokens = x.len() / layout.cols();
        self.stride = stride_of(layout);
        self.values.resize(self.tokens * self.stride, 0.0);
        x.par_chunks(layout.cols())
            .zip(self.values.par_chunks_mut(self.stride))
            .for_each(|(x, tables)| fill_row(layout, x, tables));
    }
}

/// Inputs of a line, in the order in which its look-ups take them: by twos where `pairs`.
fn order(density: Density, half: bool) -> impl Iterator<Item = usize> {
    let width = if half { 2 } else { 4 };
    let digits = move |j: usize, digits: std::ops::Range<usize>| digits.map(move |d| j + width * d);
    // Byte after byte the four codes of two bits, then the fifths.
    let four = (0..4).flat_map(move |j| digits(j, 0..4));
    let fifth = (density == Density::Base3).then(|| (0..4).flat_map(move |j| digits(j, 4..5)));
    four.chain(fifth.into_iter().flatten())
}

lines_kernel! {
    fn stride_of<D>(layout: &Layout) -> usize {
        let lines: usize = layout.segments().map(|s| s.len().div_ceil(layout.density().line())).sum();
        lines * layout.density().line() * if D::PAIRS { 8 } else { 4 }
    }
}

lines_kernel! {
    fn fill_row<D>(layout: &Layout, x: &[f32], tables: &mut [f32]) {
        let line = layout.density().line();
        let mut tables = tables.chunks_exact_mut(line * if D::PAIRS { 8 } else { 4 });
        for segment in layout.segments() {
            let x = &x[segment];
            for start in (0..x.len()).step_by(line) {
                let table = tables.next().expect("as many as lines");
                let rest = x.len() - start;
                let half = layout.density() == Density::Base3 && rest <= line / 2;
                // Past the end, and in the upper bytes of half a line, codes are 0.
                let width = if half { 2 } else { 4 };
                let input = |at: usize, byte: usize| match byte < width && at < rest {
                    true => x[start + at],
                    false => 0.0,
                };
                let mut places = order(layout.density(), half).enumerate().map(|(i, at)| {
                    input(at, if i < 16 { i / 4 } else { i - 16 })
                });
                // Not a number times 0 is none.
                let signed = |code: usize, x: f32| [-x, 0.0 * x, x, 0.0][code];
                if D::PAIRS {
                    for entries in table.chunks_exact_mut(16) {
                        let [a, b] = [(); 2].map(|_| places.next().unwrap_or(0.0));
                        for (i, entry) in entries.iter_mut().enumerate() {
                            *entry = signed(i % 4, a) + signed(i / 4, b);
                        }
                    }
                } else {
                    for entries in table.chunks_exact_mut(4) {
                        let a = places.next().unwrap_or(0.0);
                        entries.iter_mut().enumerate().for_each(|(i, entry)| *entry = signed(i, a));
                    }
                }
            }
        }
    }
}

/// `y (+)= x Ŵᵀ` for each.
pub fn forward(x: &[f32], several: &[Product<'_>]) {
    let Some(Product { w, .. }) = several.first() else { return };
    scratch::with(|tables: &mut Tables| {
        tables.fill(x, w.layout());
        each_block(several, tables.tokens, |Product { w, y }, block| {
            block_of(w.layout(), w.block(block), tables, block, *y);
        });
    });
}

lines_kernel! {
    fn block_of<D>(layout: &Layout, bytes: &[u8], x: &Tables, block: usize, y: Columns) {
        // SAFETY: this instruction set was found on this machine, and the block's bytes are those of its layout, for which
        // the tables were made.
        unsafe { super::block_of::<D, _>(layout, bytes, x, block, y) }
    }
}

impl Prepared for Tables {
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
            let size = line * if D::PAIRS { 8 } else { 4 };
            let mut at = bytes.as_ptr();
            let mut totals = [D::F::zero(); T];
            let mut tables: [*const f32; T] =
                std::array::from_fn(|t| self.values.as_ptr().add((first + t) * self.stride));
            for segment in layout.segments() {
                let mut sums = [[D::F::zero(); 4]; T];
                let lines = segment.len().div_ceil(line);
                let half = BASE3 && (1..=line / 2).contains(&(segment.len() % line));
                for i in 0..lines {
                    let codes = if half && i + 1 == lines {
                        let codes = D::load_half(at.add(part * width / 2));
                        at = at.add(LINE_BYTES / 2);
                        codes
                    } else {
                        let codes = at.add(part * width);
                        D::F::prefetch(codes.wrapping_add(AHEAD).cast());
                        at = at.add(LINE_BYTES);
                        D::load(codes)
                    };
                    add_line::<D, T, BASE3>(codes, &tables, &mut sums);
                    tables.iter_mut().for_each(|table| *table = table.add(size));
                }
                let scales = D::scales(at.add(part * width / 2));
                at = at.add(LINE_BYTES / 2);
                for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
                    let sum = D::F::add(D::F::add(a, b), D::F::add(c, d));
                    *total = D::F::fma(scales, sum, *total);
                }
            }
            totals
        }
    }
}

/// # Safety
/// As [`Prepared::part_of`].
#[inline(always)]
unsafe fn add_line<D: Lines, const T: usize, const BASE3: bool>(
    line: D::Codes,
    tables: &[*const f32; T],
    sums: &mut [[<D::F as Simd>::V; 4]; T],
) {
    unsafe {
        let (all, few) = if D::PAIRS { (8, 1) } else { (16, 2) };
        if BASE3 {
            let [four, fifth] = D::base3_as_two_bit(line);
            look_up::<D, T>(four, 0, all, tables, sums);
            look_up::<D, T>(fifth, all, few, tables, sums);
            look_up::<D, T>(D::upper(fifth), all + few, few, tables, sums);
        } else {
            look_up::<D, T>(line, 0, all, tables, sums);
        }
    }
}

/// Adds what the codes choose from `count` tables, from table `first` of the line on.
///
/// # Safety
/// As [`Prepared::part_of`].
#[inline(always)]
unsafe fn look_up<D: Lines, const T: usize>(
    mut codes: D::Codes,
    first: usize,
    count: usize,
    tables: &[*const f32; T],
    sums: &mut [[<D::F as Simd>::V; 4]; T],
) {
    unsafe {
        let entries = if D::PAIRS { 16 } else { 4 };
        for i in 0..count {
            for t in 0..T {
                let entry = D::look_up(tables[t].add((first + i) * entries), codes);
                sums[t][i % 4] = D::F::add(sums[t][i % 4], entry);
            }
            codes = D::next(codes);
        }
    }
}
