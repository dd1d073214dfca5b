//! Products with packed matrices: `y = x Ŵᵀ` for one token or many, from the bytes as they are stored.
//!
//! A lane holds four bytes of a row, a vector a *line* of [`Layout`](crate::ternary::Layout). With inputs rounded to 8 bits
//! each line is taken apart into vectors of codes 0, 1, 2, which are multiplied with four inputs that all rows share, in
//! integers; what a code is too large by, the sum of a segment's inputs, is taken away once. With inputs in f32 a few bits of
//! every lane choose from a table of the inputs' signed sums. Either way a block of 16 rows goes through the registers
//! while it is in the first-level cache, for all tokens: weights are read from memory once.

pub mod apart;
mod direct;
mod float;
mod integer;
mod interleaved;
mod panels;

use rayon::prelude::*;

use super::operands::{Output, Target};
use crate::config::Inputs;
use crate::kernels::lines::Lines;
use crate::kernels::scratch;
use crate::kernels::simd::Simd;
use crate::kernels::{team, threads};
use crate::ternary::{BLOCK_ROWS, Density, Grouping, Layout, PackedMatrix, TernaryMatrix, pack_block};

/// From so many tokens on codes are taken apart for all of them.
const MANY: usize = 4;
/// Bytes between the line in use and the one asked for.
const AHEAD: usize = 4096;
/// Bytes of weights below which another thread does not pay.
const ALONE: usize = 1 << 14;
/// Parts of a product for each thread: one that something else slows down does fewer.
const EACH: usize = 4;

/// Rows of weights that are unpacked at a time.
const UNPACKED: usize = 1024;

/// `y (+)= x Ŵᵀ` for one matrix or several of the same inputs, density and grouping: `x` `[n, in]`, rounded to 8 bits or
/// not, `y` `[n, out]`.
pub fn forward<'a>(
    x: &[f32],
    inputs: Inputs,
    several: impl IntoIterator<Item = (&'a PackedMatrix, Target<'a>)>,
) {
    let several = several.into_iter().map(|(w, y)| {
        let y = Columns::new(y, x.len() / w.cols(), w.rows());
        Product { w, y }
    });
    let several: Vec<Product<'_>> = several.collect();
    match inputs {
        Inputs::Int8 if several.first().is_some_and(|p| x.len() >= MANY * p.w.cols()) => {
            panels::forward(x, &several)
        }
        Inputs::Int8 => integer::forward(x, &several),
        Inputs::F32 => float::forward(x, &several),
    }
}

/// A matrix and where its product goes.
#[derive(Clone, Copy)]
struct Product<'a> {
    w: &'a PackedMatrix,
    y: Columns,
}

/// [`PackedMatrix::pack`] on all threads.
pub fn pack(matrix: &TernaryMatrix, grouping: Grouping, density: Density) -> PackedMatrix {
    let layout = Layout::new(matrix.rows(), matrix.cols(), grouping, density);
    assert_eq!(matrix.group(), layout.group(), "inputs that share a scale");
    let mut bytes = vec![0u8; layout.bytes().expect("no larger than the matrix")];
    let blocks = bytes.par_chunks_mut(layout.block_bytes().max(1)).enumerate();
    blocks.for_each(|(block, bytes)| pack_block(matrix, &layout, block, bytes));
    PackedMatrix::from_bytes([matrix.rows(), matrix.cols()], grouping, density, bytes.into())
        .expect("as many bytes as the layout says")
}

/// Some rows of weights.
#[derive(Default)]
struct SomeRows(TernaryMatrix);

/// Calls `f` with some rows of weights after the other, and the number of the first, as another form.
pub fn each_part(w: &PackedMatrix, mut f: impl FnMut(usize, &TernaryMatrix)) {
    scratch::with(|some: &mut SomeRows| {
        for first in (0..w.rows()).step_by(UNPACKED) {
            unpack(w, first, UNPACKED.min(w.rows() - first), &mut some.0);
            f(first, &some.0);
        }
    });
}

/// `count` rows from `first` on as another form.
fn unpack(w: &PackedMatrix, first: usize, count: usize, to: &mut TernaryMatrix) {
    if [to.rows(), to.cols(), to.group()] != [count, w.cols(), w.layout().group()] {
        *to = TernaryMatrix::zeros(count, w.cols(), w.grouping());
    }
    let (row_words, row_groups) = (to.row_words(), to.row_groups());
    let (words, scales) = to.parts_mut();
    let rows = words.par_chunks_mut(row_words).zip(scales.par_chunks_mut(row_groups));
    rows.with_min_len(16).enumerate().for_each(|(row, (words, scales))| {
        w.unpack_row(first + row, words, scales);
    });
}

/// Calls `f` with every block of rows of every matrix, on all threads.
fn each_block(several: &[Product<'_>], tokens: usize, f: impl Fn(&Product<'_>, usize) + Sync) {
    each_part_of(several, tokens, |p| p.w.layout().blocks(), f);
}

/// Calls `f` with each of `count` parts of every matrix, on all threads.
fn each_part_of(
    several: &[Product<'_>],
    tokens: usize,
    count: impl Fn(&Product<'_>) -> usize + Sync,
    f: impl Fn(&Product<'_>, usize) + Sync,
) {
    let all: usize = several.iter().map(&count).sum();
    let bytes: usize = several.iter().map(|p| p.w.bytes().len()).sum::<usize>() * tokens;
    let parts = (EACH * threads::count()).min(bytes / ALONE).min(all).max(1);
    let run = |part: usize| {
        let (first, end) = (part * all / parts, (part + 1) * all / parts);
        let mut before = 0;
        for product in several {
            let count = count(product);
            let own = first.saturating_sub(before).min(count)..end.saturating_sub(before).min(count);
            own.for_each(|one| f(product, one));
            before += count;
        }
    };
    if parts < 2 { run(0) } else { team::share(parts, run) }
}

/// Inputs of a few tokens, as lines of codes meet them.
trait Prepared {
    fn tokens(&self) -> usize;

    /// Of some rows of a block, a lane for each, the products with `T` tokens from `first` on.
    ///
    /// # Safety
    /// As [`Lines`]; `bytes` are a block of the layout for which the inputs were prepared.
    unsafe fn part_of<D: Lines, const T: usize, const BASE3: bool>(
        &self,
        layout: &Layout,
        bytes: &[u8],
        part: usize,
        first: usize,
    ) -> [<D::F as Simd>::V; T];
}

/// The columns of `y` that one block of rows makes, for all tokens.
///
/// # Safety
/// As [`Prepared::part_of`].
#[inline(always)]
unsafe fn block_of<D: Lines, X: Prepared>(layout: &Layout, bytes: &[u8], x: &X, block: usize, y: Columns) {
    for first in (0..x.tokens()).step_by(2) {
        // SAFETY: by the caller's word.
        unsafe {
            match x.tokens() - first {
                1 => tokens_of::<D, X, 1>(layout, bytes, x, first, block, y),
                _ => tokens_of::<D, X, 2>(layout, bytes, x, first, block, y),
            }
        }
    }
}

/// `T` tokens from `first` on.
///
/// # Safety
/// As [`Prepared::part_of`].
#[inline(always)]
unsafe fn tokens_of<D: Lines, X: Prepared, const T: usize>(
    layout: &Layout,
    bytes: &[u8],
    x: &X,
    first: usize,
    block: usize,
    y: Columns,
) {
    let lanes = D::F::LANES;
    // SAFETY: by the caller's word.
    unsafe {
        for part in 0..BLOCK_ROWS / lanes {
            let totals = match layout.density() {
                Density::TwoBit => x.part_of::<D, T, false>(layout, bytes, part, first),
                Density::Base3 => x.part_of::<D, T, true>(layout, bytes, part, first),
            };
            for (t, total) in totals.into_iter().enumerate() {
                y.put::<D::F>(first + t, block * BLOCK_ROWS + part * lanes, total);
            }
        }
    }
}

/// The columns of a result that a block of rows makes.
#[derive(Clone, Copy)]
struct Columns(Output);

impl Columns {
    fn new(y: Target<'_>, tokens: usize, rows: usize) -> Self {
        Self(Output::new(y, tokens, rows))
    }

    /// Writes the values of `S::LANES` rows of weights from `row` on; those past the end go nowhere.
    ///
    /// # Safety
    /// As [`Simd`]; nobody else touches these columns.
    #[inline(always)]
    unsafe fn put<S: Simd>(self, token: usize, row: usize, values: S::V) {
        unsafe {
            let to = self.0.at(token, row);
            if row + S::LANES <= self.0.columns {
                S::store(to, if self.0.to.adds() { S::add(S::load(to), values) } else { values });
                return;
            }
            let mut some = [0f32; BLOCK_ROWS];
            S::store(some.as_mut_ptr(), values);
            for (i, value) in some.into_iter().enumerate().take(self.0.columns.saturating_sub(row)) {
                let to = to.add(i);
                *to = if self.0.to.adds() { *to + value } else { value };
            }
        }
    }
}
