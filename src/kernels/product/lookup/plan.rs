//! Where each output finds its trits in the tables.

use rayon::prelude::*;
use std::ops::Range;

use super::super::rounding::segments;
use crate::ternary::{CODES_PER_WORD, TernaryMatrix, ZERO_WORD};

/// Trits of one table.
const TRITS: usize = 3;
/// Sums in a table: `3^3`.
pub(super) const ENTRIES: usize = 27;
/// Tables of a chunk.
pub(super) const TABLES: usize = 11;
/// Inputs of a chunk.
pub(super) const CHUNK: usize = TRITS * TABLES;

/// Rows of a forward plan: their sums (64 KiB) stay in the second-level cache.
pub(super) const ROWS: usize = 1024;
/// Rows, summed over, of a plan for the input gradient: as many chunks as fit beside the records.
pub(super) const INNER: usize = 32 * CHUNK;

/// What one output reads of one chunk: for each table the offset, in bytes, of the entry that its three trits choose,
/// and the factor of the sum.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Record {
    /// `TABLES` of them below `ENTRIES * 64`, a multiple of 64; the last is not used.
    offsets: [u16; TABLES + 1],
    scale: f32,
}

const _: () = assert!(size_of::<Record>() == 32);

impl Record {
    const EMPTY: Record = Record { offsets: [0; TABLES + 1], scale: 0.0 };

    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    /// The offsets, four to a word.
    #[inline(always)]
    pub(super) fn words(&self) -> [u64; 3] {
        let o = &self.offsets;
        let word = |i: usize| {
            o[i] as u64 | (o[i + 1] as u64) << 16 | (o[i + 2] as u64) << 32 | (o[i + 3] as u64) << 48
        };
        [word(0), word(4), word(8)]
    }
}

/// Offset of an entry by the three codes, the first in the lowest bits; code 3 does not occur.
static OFFSETS: [u16; 64] = {
    let mut out = [0; 64];
    let mut bits = 0;
    while bits < 64 {
        let (a, b, c) = (bits & 3, bits >> 2 & 3, bits >> 4 & 3);
        if a < 3 && b < 3 && c < 3 {
            out[bits] = (64 * (9 * a + 3 * b + c)) as u16;
        }
        bits += 1;
    }
    out
};

/// Inputs that chunks are cut from: padded with zeros to whole chunks, so that a chunk never spans two groups.
pub(super) struct Segment {
    pub inputs: Range<usize>,
    pub padded: Range<usize>,
}

/// One chunk: made from the inputs at `padded`, looked up by `outputs`.
pub(super) struct Step {
    pub padded: usize,
    pub outputs: Range<usize>,
    /// First of its records, one for each output.
    records: usize,
    /// First of its factors, one for each input; none when the inputs are used as they are.
    factors: Option<usize>,
}

/// A part of a product, packed.
pub(super) struct Plan {
    segments: Vec<Segment>,
    steps: Vec<Step>,
    records: Vec<Record>,
    factors: Vec<f32>,
    outputs: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

impl Plan {
    pub const fn new() -> Self {
        Self { segments: Vec::new(), steps: Vec::new(), records: Vec::new(), factors: Vec::new(), outputs: 0 }
    }
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
    pub fn outputs(&self) -> usize {
        self.outputs
    }
    /// Inputs of all segments, padding counted.
    pub fn padded(&self) -> usize {
        self.segments.last().map_or(0, |s| s.padded.end)
    }
    #[inline(always)]
    pub fn records(&self, step: &Step) -> &[Record] {
        &self.records[step.records..][..step.outputs.len()]
    }
    #[inline(always)]
    pub fn factors(&self, step: &Step) -> Option<&[f32]> {
        step.factors.map(|at| &self.factors[at..][..CHUNK])
    }

    fn clear(&mut self, outputs: usize) {
        self.segments.clear();
        self.steps.clear();
        self.factors.clear();
        self.outputs = outputs;
    }

    /// Adds a segment for `inputs`; its chunks, by their places among the padded inputs.
    fn segment(&mut self, inputs: Range<usize>) -> impl Iterator<Item = usize> + use<> {
        let start = self.padded();
        let padded = start..start + inputs.len().next_multiple_of(CHUNK);
        self.segments.push(Segment { inputs, padded: padded.clone() });
        padded.step_by(CHUNK)
    }

    fn step(&mut self, padded: usize, outputs: Range<usize>, factors: Option<usize>) {
        let records = self.steps.last().map_or(0, |s| s.records + s.outputs.len());
        self.steps.push(Step { padded, outputs, records, factors });
    }

    /// Fills the records of every step in parallel.
    fn fill(&mut self, f: impl Fn(&Step, &mut [Record]) + Sync) {
        let len = self.steps.last().map_or(0, |s| s.records + s.outputs.len());
        if self.records.len() < len {
            self.records.resize(len, Record::EMPTY);
        }
        let mut rest = &mut self.records[..len];
        let mut parts = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let (part, after) = rest.split_at_mut(step.outputs.len());
            parts.push((step, part));
            rest = after;
        }
        parts.into_par_iter().for_each(|(step, part)| f(step, part));
    }

    /// The forward product by rows `first .. first + rows` of `w`, segment by segment.
    pub fn pack_rows(&mut self, w: &TernaryMatrix, first: usize, rows: usize) {
        self.clear(rows);
        let mut columns = Vec::new();
        for inputs in segments(w) {
            let start = inputs.start;
            for (i, chunk) in self.segment(inputs).enumerate() {
                self.step(chunk, 0..rows, None);
                columns.push(start + i * CHUNK);
            }
        }
        let (words, width) = (w.words(), w.row_words());
        let stride = rows;
        self.fill(|step, records| {
            let column = columns[step.records / stride];
            for (r, record) in records.iter_mut().enumerate() {
                let row = &words[(first + r) * width..(first + r + 1) * width];
                let codes = codes_from(row, column);
                for (j, offset) in record.offsets[..TABLES].iter_mut().enumerate() {
                    *offset = OFFSETS[(codes >> (2 * TRITS * j)) as usize & 63];
                }
                record.scale = w.scales()[(first + r) * w.row_groups() + column / w.group()];
            }
        });
    }

    /// The input gradient by rows `first .. first + inner` of `w`: one segment, and for each group of columns a step a
    /// chunk, with the rows' scales as factors.
    pub fn pack_columns(&mut self, w: &TernaryMatrix, first: usize, inner: usize) {
        self.clear(w.cols());
        let chunks: Vec<usize> = self.segment(0..inner).collect();
        for (g, start) in (0..w.cols()).step_by(w.group()).enumerate() {
            let outputs = start..(start + w.group()).min(w.cols());
            for &chunk in &chunks {
                let at = self.factors.len();
                self.factors.extend(
                    (chunk..chunk + CHUNK)
                        .map(|r| if r < inner { w.scales()[(first + r) * w.row_groups() + g] } else { 0.0 }),
                );
                self.step(chunk, outputs.clone(), Some(at));
            }
        }
        let (words, width) = (w.words(), w.row_words());
        self.fill(|step, records| {
            records.iter_mut().for_each(|record| record.scale = 1.0);
            let blocks = step.outputs.start / CODES_PER_WORD..step.outputs.end.div_ceil(CODES_PER_WORD);
            for table in 0..TABLES {
                let row = step.padded + TRITS * table;
                for block in blocks.clone() {
                    let [a, b, c] = [row, row + 1, row + 2]
                        .map(|r| if r < inner { words[(first + r) * width + block] } else { ZERO_WORD });
                    // Every fourth column at a time: six bits of each byte choose the entry.
                    for s in 0..4 {
                        let every_fourth = |w: u32| w >> (2 * s) & 0x0303_0303;
                        let bits = every_fourth(a) | every_fourth(b) << 2 | every_fourth(c) << 4;
                        for (i, byte) in bits.to_le_bytes().into_iter().enumerate() {
                            // Of a word that two groups share, only this group's columns have a record.
                            let column = block * CODES_PER_WORD + 4 * i + s;
                            if let Some(record) = records.get_mut(column.wrapping_sub(step.outputs.start)) {
                                record.offsets[table] = OFFSETS[byte as usize & 63];
                            }
                        }
                    }
                }
            }
        });
    }
}

/// The codes of a row from `column` on, as many as a chunk has; zeros past its end.
#[inline(always)]
fn codes_from(row: &[u32], column: usize) -> u128 {
    let (at, shift) = (column / CODES_PER_WORD, 2 * (column % CODES_PER_WORD));
    let [a, b, c, d] = match row.get(at..at + 4) {
        Some(words) => [words[0], words[1], words[2], words[3]],
        None => std::array::from_fn(|i| row.get(at + i).copied().unwrap_or(ZERO_WORD)),
    };
    (a as u128 | (b as u128) << 32 | (c as u128) << 64 | (d as u128) << 96) >> shift
}
