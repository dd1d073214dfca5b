//! Which process updates what, where each keeps the moments of a part of the model alone.

use std::ops::Range;

use crate::model::{Decoder, Gradients, Weight};

/// What a process keeps of the optimizer's state: one part of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub size: usize,
}

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self { rank: 0, size: 1 };
}

/// Rows of weights by process, such that each has about as many values of every block of gradients.
#[derive(Debug)]
pub struct Shards {
    rank: usize,
    /// Of each block of gradients the values of each process; all of them are everybody's where there is nothing.
    pub blocks: Vec<Option<Vec<Range<usize>>>>,
    /// Of each weight the rows of each process.
    rows: Vec<Option<Vec<Range<usize>>>>,
    /// Of each weight the values of each process.
    pub values: Vec<Option<Vec<Range<usize>>>>,
}

/// Rows of a weight as the optimizer sees it, and values of one.
pub fn shape(weight: &Weight) -> [usize; 2] {
    match weight.shape[..] {
        [rows, cols] => [rows, cols],
        _ => [1, weight.len()],
    }
}

impl Shards {
    /// `whole` says which weights are everybody's, and with them the others of their blocks.
    pub fn new(
        decoder: &Decoder,
        grads: &Gradients,
        rank: usize,
        size: usize,
        whole: impl Fn(&Weight) -> bool,
    ) -> Self {
        let lens = grads.lens();
        let mut blocks: Vec<Option<Vec<Range<usize>>>> = vec![Some(Vec::new()); lens.len()];
        let mut cuts: Vec<Vec<usize>> = vec![vec![0]; lens.len()];
        for weight in decoder.weights() {
            let (place, [_, cols]) = (grads.place(weight), shape(weight));
            let cuts = &mut cuts[place.block];
            // The cuts that fall into this weight, at the beginning of a row.
            while cuts.len() < size {
                let at = (lens[place.block] as u128 * cuts.len() as u128 / size as u128) as usize;
                if at >= place.values.end {
                    break;
                }
                let row = at.saturating_sub(place.values.start) / cols;
                cuts.push(place.values.start + row * cols);
            }
            if whole(weight) {
                blocks[place.block] = None;
            }
        }
        for ((block, mut cuts), len) in blocks.iter_mut().zip(cuts).zip(lens) {
            cuts.resize(size, len);
            cuts.push(len);
            if let Some(block) = block {
                *block = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
            }
        }
        let of_weight = |weight: &Weight| {
            let (place, [_, cols]) = (grads.place(weight), shape(weight));
            let inside = |at: usize| at.clamp(place.values.start, place.values.end) - place.values.start;
            let parts = blocks[place.block].as_ref()?.iter();
            Some(parts.map(|part| inside(part.start) / cols..inside(part.end) / cols).collect())
        };
        let rows: Vec<Option<Vec<Range<usize>>>> = decoder.weights().map(of_weight).collect();
        let in_values = |(weight, rows): (&Weight, &Option<Vec<Range<usize>>>)| {
            let [_, cols] = shape(weight);
            rows.as_ref().map(|rows| rows.iter().map(|r| r.start * cols..r.end * cols).collect())
        };
        let values = decoder.weights().zip(&rows).map(in_values).collect();
        Self { rank, blocks, rows, values }
    }

    /// The rows that this process updates, unless that is everybody's.
    pub fn own_rows(&self, weight: &Weight) -> Option<Range<usize>> {
        Some(self.rows[weight.index()].as_ref()?[self.rank].clone())
    }

    /// The rows of each process, unless they are everybody's.
    pub fn rows(&self, weight: &Weight) -> Option<&[Range<usize>]> {
        self.rows[weight.index()].as_deref()
    }

    /// What this process counts of a gradient for a sum over all processes: its own rows; process 0 what is everybody's.
    pub fn counted<'a>(&self, weight: &Weight, grad: &'a [f32]) -> &'a [f32] {
        match &self.values[weight.index()] {
            Some(values) => &grad[values[self.rank].clone()],
            None if self.rank == 0 => grad,
            None => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Recipe, Scope};
    use crate::ternary::Grouping;

    #[test]
    fn every_row_is_somebodys_and_blocks_are_shared_out_evenly() {
        let recipe: Recipe = toml::from_str(include_str!("../../recipes/shakespeare-bytes.toml")).unwrap();
        let decoder = Decoder::new(&recipe.model.unwrap(), Scope::All, Grouping::default());
        let grads = Gradients::zeros(decoder.weights());
        for size in [1, 2, 3, 8, 64] {
            let all: Vec<Shards> =
                (0..size).map(|rank| Shards::new(&decoder, &grads, rank, size, |_| false)).collect();
            for weight in decoder.weights() {
                let mut next = 0;
                for shards in &all {
                    let rows = shards.own_rows(weight).unwrap();
                    assert_eq!(rows.start, next, "{}, {size} processes", weight.name);
                    next = rows.end;
                }
                assert_eq!(next, shape(weight)[0], "{}, {size} processes", weight.name);
            }
            let widest = decoder.weights().map(|w| shape(w)[1]).max().unwrap();
            for (parts, len) in all[0].blocks.iter().zip(grads.lens()) {
                let parts = parts.as_ref().unwrap();
                assert!(parts.iter().all(|p| p.len() <= len / size + 2 * widest), "{parts:?} of {len}");
            }
        }
        let gains = Shards::new(&decoder, &grads, 1, 2, |weight| weight.role.is_projection());
        let projection = decoder.weights().find(|w| w.role.is_projection()).unwrap();
        assert!(gains.own_rows(projection).is_none() && gains.counted(projection, &[1.0]).is_empty());
    }
}
