//! Gradients added up over a group: in the library's own order, in the order of rank, or in bf16.

use std::ops::Range;

use super::{Group, Values};
use crate::error::Result;
use crate::kernels::{add_in_order, add_in_order_bf16, from_bf16, to_bf16};

/// Values reduced at a time, 16 MiB: for each piece the thread is woken several times on a core that is busy, and larger ones
/// leave the caches.
const PIECE: usize = 1 << 22;

/// In which order and format gradients are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// As the group likes best.
    #[default]
    Fastest,
    /// In the order of rank: the same bits in every run of as many processes.
    InOrder,
    /// In the order of rank, each process's share rounded to bf16 and the sums once more; what that rounds away is added to the
    /// next step's.
    Bf16,
}

/// `len` values in nearly equal parts.
pub fn share(len: usize, size: usize) -> Vec<Range<usize>> {
    let cut = |rank: usize| (len as u128 * rank as u128 / size as u128) as usize;
    (0..size).map(|rank| cut(rank)..cut(rank + 1)).collect()
}

/// A way, and what it keeps from step to step.
#[derive(Debug, Default)]
pub struct Sums {
    way: Way,
    /// Values reduced at a time.
    piece: usize,
    /// Of each block what rounding to bf16 left: of the own gradients, and of the sums of the own part.
    left: Vec<(Vec<u16>, Vec<u16>)>,
    received: Vec<f32>,
    codes: Vec<u16>,
    received_codes: Vec<u16>,
}

impl Sums {
    pub fn new(way: Way) -> Self {
        Self { way, piece: PIECE, ..Self::default() }
    }

    /// Adds up the `values` of block number `block`. With `owned`, the part of each process, the sums are made of the own part
    /// alone; the others are then of no use.
    pub fn reduce(
        &mut self,
        group: &mut dyn Group,
        block: usize,
        values: &mut [f32],
        owned: Option<&[Range<usize>]>,
    ) -> Result<()> {
        let (rank, size) = (group.rank(), group.size());
        if (self.way, owned) == (Way::Fastest, None) {
            return values.chunks_mut(self.piece).try_for_each(|piece| group.sum(piece));
        }
        let equal;
        let parts = match owned {
            Some(parts) => parts,
            None => {
                equal = share(values.len(), size);
                &equal
            }
        };
        if self.way == Way::Bf16 {
            return self.reduce_bf16(group, block, values, parts, owned.is_none());
        }
        for piece in pieces(parts, self.piece) {
            let own = piece[rank].clone();
            self.received.resize(own.len() * size, 0.0);
            group.exchange(Values::F32(values), &piece, Values::F32(&mut self.received))?;
            add_in_order(&self.received, &mut values[own]);
            if owned.is_none() {
                group.gather(Values::F32(values), &piece)?;
            }
        }
        Ok(())
    }

    fn reduce_bf16(
        &mut self,
        group: &mut dyn Group,
        block: usize,
        values: &mut [f32],
        parts: &[Range<usize>],
        gather: bool,
    ) -> Result<()> {
        let (rank, size) = (group.rank(), group.size());
        if self.left.len() <= block {
            self.left.resize_with(block + 1, Default::default);
        }
        let (left, left_of_sums) = &mut self.left[block];
        left.resize(values.len(), 0);
        let (codes, received, first) = (&mut self.codes, &mut self.received_codes, parts[rank].start);
        codes.resize(values.len(), 0);
        to_bf16(values, left, codes);
        for piece in pieces(parts, self.piece) {
            let own = piece[rank].clone();
            received.resize(own.len() * size, 0);
            group.exchange(Values::Bf16(codes), &piece, Values::Bf16(received))?;
            add_in_order_bf16(received, &mut values[own.clone()]);
            if gather {
                left_of_sums.resize(parts[rank].len(), 0);
                let left = &mut left_of_sums[own.start - first..own.end - first];
                to_bf16(&values[own.clone()], left, &mut codes[own]);
                group.gather(Values::Bf16(codes), &piece)?;
            }
        }
        if gather {
            from_bf16(codes, values);
        }
        Ok(())
    }

    /// Bytes that a process sends for a block of so many values: those of the others' parts, and its own to each of them.
    pub fn bytes(&self, values: usize, size: usize, gathered: bool) -> u64 {
        let of_a_value = if self.way == Way::Bf16 { 2 } else { 4 };
        let ways = if gathered { 2 } else { 1 };
        ways * of_a_value * (values - values / size) as u64
    }
}

/// [`Group::gather`], a piece at a time.
pub fn gather_in_pieces(group: &mut dyn Group, mut all: Values<'_>, parts: &[Range<usize>]) -> Result<()> {
    pieces(parts, PIECE).try_for_each(|piece| group.gather(all.reborrow(), &piece))
}

/// [`gather_in_pieces`] of bytes, of which there may be more than MPI counts to: each piece by way of a buffer, where its
/// places are small numbers.
pub fn gather_bytes(group: &mut dyn Group, all: &mut [u8], parts: &[Range<usize>]) -> Result<()> {
    let mut buffer = Vec::new();
    pieces(parts, PIECE).try_for_each(|piece| {
        let mut end = 0;
        let mut within = Vec::with_capacity(piece.len());
        for part in &piece {
            within.push(end..end + part.len());
            end += part.len();
        }
        buffer.resize(end, 0);
        let rank = group.rank();
        buffer[within[rank].clone()].copy_from_slice(&all[piece[rank].clone()]);
        group.gather(Values::Bytes(&mut buffer), &within)?;
        for (part, within) in piece.iter().zip(&within) {
            all[part.clone()].copy_from_slice(&buffer[within.clone()]);
        }
        Ok(())
    })
}

/// Parts cut into pieces that are exchanged one after the other.
fn pieces(parts: &[Range<usize>], values: usize) -> impl Iterator<Item = Vec<Range<usize>>> {
    let step = (values / parts.len()).max(1);
    let rounds = parts.iter().map(|part| part.len().div_ceil(step)).max().unwrap_or(0);
    let at = move |part: &Range<usize>, round: usize| part.end.min(part.start + round * step);
    (0..rounds).map(move |round| parts.iter().map(|part| at(part, round)..at(part, round + 1)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::threads;
    use super::*;
    use crate::kernels::reference;

    /// What each of `size` threads has after `steps` reductions of the values `of(rank, step)`, the last one.
    fn reduced(
        size: usize,
        way: Way,
        owned: Option<&[Range<usize>]>,
        steps: usize,
        of: impl Fn(usize, usize) -> Vec<f32> + Sync,
    ) -> Vec<Vec<Vec<f32>>> {
        let run = |mut group: super::super::Thread| {
            let mut sums = Sums { piece: 10_000, ..Sums::new(way) };
            let all = (0..steps)
                .map(|step| {
                    let mut values = of(group.rank(), step);
                    sums.reduce(&mut group, 0, &mut values, owned).unwrap();
                    values
                })
                .collect();
            group.finish().unwrap();
            all
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = threads(size).into_iter().map(|group| scope.spawn(|| run(group))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Values whose sum depends on the order.
    fn values(rank: usize, len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 37 + rank * 101) as f32 * 0.618).sin() * 10f32.powi((i + rank) as i32 % 5))
            .collect()
    }

    #[test]
    fn sums_in_order_are_those_of_the_definition_to_the_bit() {
        for (size, len) in [(1, 5), (2, 7), (3, 100_003), (4, 3), (3, 0)] {
            let mut wanted = vec![0.0; len];
            for rank in 0..size {
                let part = values(rank, len);
                wanted.iter_mut().zip(&part).for_each(|(w, x)| *w = if rank == 0 { *x } else { *w + x });
            }
            for all in reduced(size, Way::InOrder, None, 1, |rank, _| values(rank, len)) {
                assert_eq!(all[0], wanted, "{size} processes, {len} values");
            }
            // Parts that are not equal, the last one without values.
            let mut cuts: Vec<usize> = (0..size).map(|rank| len * rank * rank / (size * size)).collect();
            cuts.push(len);
            let owned: Vec<Range<usize>> = cuts.windows(2).map(|c| c[0]..c[1]).collect();
            let found = reduced(size, Way::InOrder, Some(&owned), 1, |rank, _| values(rank, len));
            for (part, all) in owned.iter().zip(&found) {
                assert_eq!(all[0][part.clone()], wanted[part.clone()], "{size} processes, {owned:?}");
            }
            let fastest = reduced(size, Way::Fastest, None, 1, |rank, _| values(rank, len));
            assert!(fastest.iter().all(|all| all == &fastest[0]));
            for (x, w) in fastest[0][0].iter().zip(&wanted) {
                assert!((x - w).abs() <= 1e-5 * 2e4, "{x} instead of {w}");
            }
        }
    }

    #[test]
    fn bf16_loses_nothing_over_many_steps() {
        let (size, len, steps) = (3, 50_001, 64);
        let of = |rank: usize, _| values(rank, len);
        let found = reduced(size, Way::Bf16, None, steps, of);
        assert!(found.iter().all(|all| all == &found[0]), "the same on all");
        let mut worst: f64 = 0.0;
        for i in 0..len {
            let exact: f64 = (0..size).map(|rank| values(rank, len)[i] as f64).sum();
            if i > 100 {
                break;
            }
            let largest = (0..size).map(|rank| values(rank, len)[i].abs()).fold(0.0, f32::max) as f64;
            let mean = found[0].iter().map(|step| step[i] as f64).sum::<f64>() / steps as f64;
            worst = worst.max((mean - exact).abs() / largest);
        }
        // A bf16 is off by 2^-9; what all steps but the last left is in the sums.
        assert!(worst < 2f64.powi(-9) * 4.0 / steps as f64 * 4.0, "off by {worst} of the largest");
        let once = &reduced(size, Way::Bf16, None, 1, of)[0][0];
        assert!(once.iter().all(|x| reference::bf16(*x) == *x), "sums are bf16");
    }

    #[test]
    fn bytes_are_gathered_in_pieces_that_are_smaller_than_their_places() {
        // Parts that are not equal, one of them empty, of more than a piece.
        let lens = [PIECE, 5, 0, 2 * PIECE / 3];
        let len: usize = lens.iter().sum();
        let parts: Vec<Range<usize>> = lens
            .iter()
            .scan(0, |end, len| Some((*end, *end += len).0))
            .zip(lens)
            .map(|(s, l)| s..s + l)
            .collect();
        let byte = |at: usize| (at * 31 % 251) as u8 + 1;
        std::thread::scope(|scope| {
            for mut group in threads(lens.len()) {
                let parts = &parts;
                scope.spawn(move || {
                    let own = parts[group.rank()].clone();
                    let mut all: Vec<u8> = (0..len).map(|at| byte(at) * own.contains(&at) as u8).collect();
                    gather_bytes(&mut group, &mut all, parts).unwrap();
                    assert!(all.iter().enumerate().all(|(at, found)| *found == byte(at)), "{own:?}");
                    group.finish().unwrap();
                });
            }
        });
    }

    #[test]
    fn a_thread_that_goes_away_ends_the_others() {
        let mut ends = threads(3);
        let gone = ends.pop().unwrap();
        let texts: Vec<String> = std::thread::scope(|scope| {
            let waiting: Vec<_> = ends
                .into_iter()
                .map(|mut end| scope.spawn(move || end.barrier().unwrap_err().to_string()))
                .collect();
            drop(gone);
            waiting.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(texts, ["process 2 of 3 is gone", "process 2 of 3 is gone"]);
    }
}
