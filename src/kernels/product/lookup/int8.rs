//! The forward product with inputs rounded to 8 bits: sums of integers, twice the tokens to a vector.
//!
//! A [segment](SEGMENT) is at most 128 inputs of a group: its sum of 8-bit integers fits 16 bits, so that tables and sums
//! hold 16-bit integers, 32 tokens to a cache line. What is computed is exactly
//! [`reference::linear_int8`](crate::kernels::reference::linear_int8): integer sums, then for each segment
//! `acc += scale * sum`, a rounded product and a rounded sum, in the order of the segments; no instruction set differs.

use rayon::prelude::*;

use super::plan::{self, CHUNK, ENTRIES, Plan, Record, TABLES};
use super::tables::by_vectors;
use super::{CHUNK_ENTRIES, Lanes, TILE, from_lanes, into_lanes};
use crate::kernels::isa::kernel;
use crate::kernels::product::operands::Target;
use crate::kernels::product::rounding::{inverse, nearest, scale_of};
use crate::kernels::reference::SEGMENT;
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::simd::Simd;
use crate::kernels::to::To;
use crate::ternary::TernaryMatrix;

// The largest sum of a segment.
const _: () = assert!(127 * SEGMENT <= i16::MAX as usize);

/// Tokens of a tile.
const TOKENS: usize = 2 * TILE;

/// Thirty-two 16-bit integers, one for each token of a tile, in a cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Lanes16([i16; TOKENS]);

impl Lanes16 {
    const ZERO: Lanes16 = Lanes16([0; TOKENS]);
}

/// Inputs of a product, rounded: tile after tile, token in the lanes.
#[derive(Default)]
struct Rounded {
    /// `[tiles, padded]`
    inputs: Aligned<Lanes16>,
    /// One for each token, as many as the tiles hold.
    scales: Aligned<f32>,
}

/// What a thread works on.
#[derive(Default)]
struct Scratch {
    tables: Aligned<Lanes16>,
    /// Of the segment at hand, one for each output.
    sums: Aligned<Lanes16>,
    /// Over all segments so far: the lower and the upper half of the tokens.
    totals: [Aligned<Lanes>; 2],
}

/// `y (+)= x̂ Ŵᵀ`, `x` `[n, in]`, `y` `[n, out]`.
pub fn forward(x: &[f32], w: &TernaryMatrix, y: Target<'_>) {
    scratch::with(|plan| scratch::with(|rounded| forward_with(plan, rounded, x, w, y)));
}

fn forward_with(plan: &mut Plan, rounded: &mut Rounded, x: &[f32], w: &TernaryMatrix, y: Target<'_>) {
    let (out, inputs) = (w.rows(), w.cols());
    let Target { data: y, stride, to } = y;
    let tiles = (x.len() / inputs).div_ceil(TOKENS);
    for first in (0..out).step_by(plan::ROWS) {
        plan.pack_rows(w, first, plan::ROWS.min(out - first));
        let padded = plan.padded();
        let (inputs_of, scales_of) =
            (rounded.inputs.first(tiles * padded), rounded.scales.first(tiles * TOKENS));
        if first == 0 {
            round(plan, x, inputs, inputs_of, scales_of);
        }
        let plan = &*plan;
        let tiles = inputs_of.par_chunks(padded).zip(scales_of.par_chunks(TOKENS));
        tiles.zip(y.par_chunks_mut(TOKENS * stride)).for_each(|((inputs, scales), y)| {
            scratch::with(|scratch| tile(plan, inputs, scales, &mut y[first..], stride, to, scratch));
        });
    }
}

/// Rows of `x`, `stride` apart, into tiles of the plan's segments.
fn round(plan: &Plan, x: &[f32], stride: usize, inputs: &mut [Lanes16], scales: &mut [f32]) {
    let parts = inputs.par_chunks_mut(plan.padded()).zip(scales.par_chunks_mut(TOKENS));
    x.par_chunks(TOKENS * stride).zip(parts).for_each(|(x, (inputs, scales))| {
        scales.fill(0.0);
        inputs.fill(Lanes16::ZERO);
        for (row, scale) in x.chunks(stride).zip(scales.iter_mut()) {
            *scale = scale_of(row);
        }
        round_tile(plan, x, stride, scales, inputs);
    });
}

kernel! {
    fn round_tile<S>(plan: &Plan, x: &[f32], stride: usize, scales: &[f32], to: &mut [Lanes16]) {
        let mut block = [Lanes::default(); 16];
        for half in 0..2 {
            let rows = (x.len() / stride).saturating_sub(half * TILE).min(TILE);
            if rows == 0 {
                return;
            }
            let x = &x[half * TILE * stride..];
            let inverses: [f32; TILE] = std::array::from_fn(|i| inverse(scales[half * TILE + i]));
            for segment in plan.segments() {
                for start in segment.inputs.clone().step_by(16) {
                    let columns = start..segment.inputs.end.min(start + 16);
                    into_lanes::<S>(x, stride, columns.clone(), &mut block);
                    let at = segment.padded.start + start - segment.inputs.start;
                    for (lanes, to) in block.iter().zip(&mut to[at..at + columns.len()]) {
                        let to = &mut to.0[half * TILE..][..TILE];
                        for i in 0..TILE {
                            to[i] = nearest(lanes.0[i] * inverses[i]);
                        }
                    }
                }
            }
        }
    }
}

kernel! {
    fn tile<S>(plan: &Plan, inputs: &[Lanes16], scales: &[f32], y: &mut [f32], stride: usize, to: To,
        scratch: &mut Scratch) {
        let outputs = plan.outputs();
        let (tables, sums) = (scratch.tables.first(CHUNK_ENTRIES), scratch.sums.first(outputs));
        let mut totals = scratch.totals.each_mut().map(|totals| totals.first(outputs));
        totals.iter_mut().for_each(|totals| totals.fill(Lanes::default()));
        let mut segments = plan.segments().iter();
        let mut end = 0;
        for step in plan.steps() {
            if step.padded == end {
                end = segments.next().map_or(0, |s| s.padded.end);
                sums.fill(Lanes16::ZERO);
            }
            build::<S>(&inputs[step.padded..][..CHUNK], tables);
            let records = plan.records(step);
            look_up_all::<S>(records, tables, sums);
            if step.padded + CHUNK == end {
                add_segment::<S>(records, sums, &mut totals);
            }
        }
        let stop = [TILE, TOKENS].map(|rows| (rows * stride).min(y.len()));
        let halves = [0..stop[0], stop[0]..stop[1]];
        for (half, (range, totals)) in halves.into_iter().zip(totals).enumerate() {
            let y = &mut y[range];
            if y.is_empty() {
                return;
            }
            for lanes in totals.iter_mut() {
                for (x, scale) in lanes.0.iter_mut().zip(&scales[half * TILE..]) {
                    *x *= scale;
                }
            }
            if to.adds() {
                let mut before = vec![Lanes::default(); outputs];
                into_lanes::<S>(y, stride, 0..outputs, &mut before);
                for (lanes, before) in totals.iter_mut().zip(&before) {
                    for (x, before) in lanes.0.iter_mut().zip(before.0) {
                        *x += before;
                    }
                }
            }
            from_lanes::<S>(totals, y, stride);
        }
    }
}

/// As [`tables::build`](super::tables::build), in integers.
#[inline(always)]
fn build<S: Simd>(inputs: &[Lanes16], tables: &mut [Lanes16]) {
    assert!(inputs.len() == CHUNK && tables.len() == CHUNK_ENTRIES);
    for (q, table) in tables.chunks_exact_mut(ENTRIES).enumerate() {
        for v in (0..TOKENS).step_by(2 * S::LANES) {
            // SAFETY: entries hold 32 values, `v + 2 LANES <= 32`, and the table has 27 of them.
            unsafe {
                let input = |i: usize| S::load16(inputs[3 * q + i].0.as_ptr().add(v));
                let (zero, a, b, c) = (S::zero16(), input(0), input(1), input(2));
                let out = table.as_mut_ptr().cast::<i16>().add(v);
                for (i, x) in [S::sub16(zero, a), zero, a].into_iter().enumerate() {
                    for (j, y) in [S::sub16(x, b), x, S::add16(x, b)].into_iter().enumerate() {
                        let entry = out.add((9 * i + 3 * j) * TOKENS);
                        S::store16(entry, S::sub16(y, c));
                        S::store16(entry.add(TOKENS), y);
                        S::store16(entry.add(2 * TOKENS), S::add16(y, c));
                    }
                }
            }
        }
    }
}

/// `sums[r] += sum over the tables of the entry that r chooses`
#[inline(always)]
fn look_up_all<S: Simd>(records: &[Record], tables: &[Lanes16], sums: &mut [Lanes16]) {
    assert!(tables.len() == CHUNK_ENTRIES && records.len() == sums.len());
    // SAFETY: a record's offsets lie inside a table, and there are as many sums as records.
    unsafe { by_vectors!(look_up16::<S>(records, tables.as_ptr().cast(), sums.as_mut_ptr().cast())) }
}

/// [`look_up_all`] with `V` vectors to an entry.
///
/// # Safety
/// As `look_up` of [`tables`](super::tables), with 32 integers to an entry; `2 * V * LANES` is 32.
#[inline(always)]
unsafe fn look_up16<S: Simd, const V: usize>(records: &[Record], tables: *const i16, sums: *mut i16) {
    assert!(2 * V * S::LANES == TOKENS);
    unsafe {
        for (r, record) in records.iter().enumerate() {
            let words = record.words();
            let to = sums.add(r * TOKENS);
            let mut sum = [S::zero16(); V];
            for (v, sum) in sum.iter_mut().enumerate() {
                *sum = S::load16(to.add(2 * v * S::LANES));
            }
            for q in 0..TABLES {
                let offset = (words[q / 4] >> (16 * (q % 4))) as u16;
                let from = tables.add(q * ENTRIES * TOKENS).byte_add(offset as usize);
                for (v, sum) in sum.iter_mut().enumerate() {
                    *sum = S::add16(*sum, S::load16(from.add(2 * v * S::LANES)));
                }
            }
            for (v, sum) in sum.into_iter().enumerate() {
                S::store16(to.add(2 * v * S::LANES), sum);
            }
        }
    }
}

/// `totals[r] += scale of r * sums[r]`, product and sum rounded each.
#[inline(always)]
fn add_segment<S: Simd>(records: &[Record], sums: &[Lanes16], totals: &mut [&mut [Lanes]; 2]) {
    for (half, totals) in totals.iter_mut().enumerate() {
        for ((record, sums), total) in records.iter().zip(sums).zip(&mut **totals) {
            for v in (0..TILE).step_by(S::LANES) {
                // SAFETY: LANES of the 16 totals, and of the 16 sums of this half.
                unsafe {
                    let sum = S::widen16(sums.0.as_ptr().add(half * TILE + v));
                    let to = total.0.as_mut_ptr().add(v);
                    S::store(to, S::add(S::load(to), S::mul(S::splat(record.scale()), sum)));
                }
            }
        }
    }
}
