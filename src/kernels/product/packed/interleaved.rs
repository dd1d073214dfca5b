//! Inputs of several tokens rounded to 8 bits and interleaved, a group of tokens at a time: what a vector of codes meets one
//! after the other lies side by side.

use std::ops::Range;

use super::apart::{STEP, steps};
use super::integer::{round_row, sum_of};
use crate::kernels::isa::lines_kernel;
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::team;
use crate::ternary::Layout;

/// Vectors of rows that are computed together.
pub const ROWS: usize = 2;
/// Groups are a multiple of so many tokens wide, and of so many where codes stay in registers.
const UNIT: usize = 4;
const DIRECT_UNIT: usize = 2;
/// Up to so many tokens codes stay in registers, where that is faster at all.
const DIRECTLY: usize = 16;
/// Values of inputs below which another thread does not pay.
const ALONE: usize = 1 << 11;

/// Some tokens whose inputs are interleaved. Those before them are whole groups: what has a place for each token holds
/// theirs from `first` on.
#[derive(Clone, Copy)]
pub struct Group {
    /// The first token, and how many there are.
    pub first: usize,
    pub tokens: usize,
    /// Tokens that there is room for: the rest are zeros.
    pub width: usize,
}

/// Inputs of a product, rounded and interleaved.
#[derive(Default)]
pub struct Rounded {
    groups: Vec<Group>,
    /// Of each group `[steps, width]`, four inputs each; segments begin with a step.
    words: Aligned<u32>,
    /// Of each group `[segments, width]`.
    sums: Vec<i32>,
    /// One for each token that a group has room for.
    scales: Vec<f32>,
}

/// The groups of so many tokens, `most` each; the last is as wide as it must be.
fn groups(tokens: usize, most: usize, unit: usize) -> impl Iterator<Item = Group> {
    (0..tokens).step_by(most).map(move |first| {
        let tokens = most.min(tokens - first);
        Group { first, tokens, width: tokens.next_multiple_of(unit) }
    })
}

/// A rounded row before it is interleaved.
#[derive(Default)]
struct Row(Vec<i8>);

/// Where the tokens of a group go: each to places of its own.
#[derive(Clone, Copy)]
struct Places {
    words: *mut u32,
    sums: *mut i32,
    scales: *mut f32,
}
// SAFETY: a task writes the places of its own tokens.
unsafe impl Send for Places {}
// SAFETY: as above.
unsafe impl Sync for Places {}

impl Rounded {
    pub fn fill<'a>(&'a mut self, x: &[f32], layout: &Layout) -> Inputs<'a> {
        let cols = layout.cols();
        let segments: Vec<_> = layout.segments().collect();
        let all: usize = segments.iter().map(|s| steps(s.len())).sum();
        let tokens = x.len() / cols;
        let direct = tokens <= DIRECTLY && direct_size() > 0;
        let (most, unit) = if direct { (direct_size(), DIRECT_UNIT) } else { (group_size(), UNIT) };
        self.groups.clear();
        self.groups.extend(groups(tokens, most, unit));
        let padded: usize = self.groups.iter().map(|g| g.width).sum();
        let words = self.words.first(all * padded);
        self.sums.resize(segments.len() * padded, 0);
        self.scales.resize(padded, 0.0);
        let places = Places {
            words: words.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
        };
        let groups = &self.groups;
        let run = |t: usize| {
            let group = &groups[t / most];
            let x = (t < tokens).then(|| &x[t * cols..(t + 1) * cols]);
            // SAFETY: of each group there are as many words and sums as were counted above, and no other task has this token.
            unsafe { interleave(x, &segments, all, group, t - group.first, places) }
        };
        let parts = (x.len() / ALONE).min(padded);
        if parts < 2 {
            (0..padded).for_each(run);
        } else {
            team::share(parts, |part| (part * padded / parts..(part + 1) * padded / parts).for_each(run));
        }
        let (steps, segments) = (all, segments.len());
        let (sums, scales) = (&self.sums[..], &self.scales[..]);
        Inputs { groups: &self.groups, direct, steps, words, segments, sums, scales }
    }
}

/// Rounds a token's inputs, zeros where there is none, and puts them at place `t` of its group.
///
/// # Safety
/// There are `steps` words and as many sums as segments for each token of each group, which nobody else touches at this place.
unsafe fn interleave(
    x: Option<&[f32]>,
    segments: &[Range<usize>],
    all: usize,
    group: &Group,
    t: usize,
    places: Places,
) {
    scratch::with(|Row(row): &mut Row| {
        row.resize(segments.last().map_or(0, |s| s.end), 0);
        let scale = match x {
            Some(x) => round_row(x, row),
            None => {
                row.fill(0);
                0.0
            }
        };
        // SAFETY: by the caller's word.
        unsafe {
            *places.scales.add(group.first + t) = scale;
            let sums = places.sums.add(segments.len() * group.first + t);
            let mut to = places.words.add(all * group.first + t);
            for (s, segment) in segments.iter().enumerate() {
                let inputs = &row[segment.clone()];
                *sums.add(s * group.width) = sum_of(inputs);
                let (whole, rest) = inputs.as_chunks::<STEP>();
                for four in whole {
                    *to = u32::from_ne_bytes(four.map(|x| x as u8));
                    to = to.wrapping_add(group.width);
                }
                if !rest.is_empty() {
                    let mut last = [0; STEP];
                    last[..rest.len()].copy_from_slice(rest);
                    *to = u32::from_ne_bytes(last.map(|x| x as u8));
                    to = to.wrapping_add(group.width);
                }
            }
        }
    });
}

/// [`Rounded`] as it is read.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub groups: &'a [Group],
    /// For codes that stay in registers.
    pub direct: bool,
    /// Of a row, and its segments.
    pub steps: usize,
    pub segments: usize,
    pub words: &'a [u32],
    pub sums: &'a [i32],
    pub scales: &'a [f32],
}

lines_kernel! {
    fn group_size<D>() -> usize {
        D::TOKENS
    }
}

lines_kernel! {
    fn direct_size<D>() -> usize {
        D::DIRECT
    }
}
