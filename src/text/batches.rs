//! Which windows of a corpus make up which batch, as pure functions of a cursor.
//!
//! Randomness is SplitMix64's output function over a counter: the n-th draw of a seed needs no earlier one.

use super::tokens::Tokens;
use crate::config::Order;
use crate::random::{GAMMA, splitmix64};
use crate::{Error, Result};

/// Sequences of `seq` tokens. A checkpoint needs to keep nothing but the cursor.
#[derive(Clone, Debug)]
pub struct Batches {
    order: Order,
    /// Tokens of the corpus.
    len: usize,
    seq: usize,
    seed: u64,
}

impl Batches {
    /// Sequences of a corpus of `len` tokens.
    ///
    /// # Errors
    /// A corpus of fewer than `seq + 1` tokens (the last input needs a target).
    pub fn new(order: Order, len: usize, seq: usize, seed: u64) -> Result<Batches> {
        assert!(seq > 0, "a sequence has tokens");
        if len <= seq {
            return Err(Error::usage(format!(
                "data.train: found {len} tokens, wanted {} or more (train.seq + 1): use more text or a smaller train.seq",
                seq.saturating_add(1)
            )));
        }
        Ok(Batches { order, len, seq, seed })
    }

    /// Sequences of one epoch. In [`Order::Epoch`] this is one window less than fits, so that the windows can start
    /// at any phase; in [`Order::Random`] an epoch is only a measure.
    pub fn sequences_per_epoch(&self) -> u64 {
        (((self.len - self.seq) / self.seq) as u64).max(1)
    }

    /// First token of sequence `n`.
    ///
    /// `Random`: uniform over all starts, a function of (seed, n). `Epoch`: windows of `seq` tokens side by side from
    /// a phase in `0..seq` that each epoch draws anew, in an order that each epoch draws anew.
    pub fn start(&self, n: u64) -> usize {
        match self.order {
            Order::Random => below(hash(self.seed, n), self.len - self.seq),
            Order::Epoch => {
                let windows = self.sequences_per_epoch();
                let (epoch, index) = (n / windows, n % windows);
                let key = hash(self.seed, epoch);
                // The last window and its last target must fit.
                let slack = self.len - 1 - windows as usize * self.seq;
                let phase = below(hash(key, u64::MAX), (slack + 1).min(self.seq));
                phase + permute(key, windows, index) as usize * self.seq
            }
        }
    }

    /// The sequences from number `cursor` on, row by row, as many as `inputs` has room for; `targets`, of the same size, are the
    /// tokens after them.
    pub fn fill(&self, cursor: u64, tokens: &Tokens, inputs: &mut [u32], targets: &mut [u32]) {
        assert_eq!(tokens.len(), self.len, "these batches were made for another corpus");
        assert!(inputs.len().is_multiple_of(self.seq), "{} inputs in rows of {}", inputs.len(), self.seq);
        assert_eq!(targets.len(), inputs.len(), "a target for each input");
        let rows = inputs.chunks_exact_mut(self.seq).zip(targets.chunks_exact_mut(self.seq));
        for (n, (input, target)) in (cursor..).zip(rows) {
            let start = self.start(n);
            tokens.read(start, input);
            target[..self.seq - 1].copy_from_slice(&input[1..]);
            tokens.read(start + self.seq, &mut target[self.seq - 1..]);
        }
    }
}

/// A window over validation tokens: `seq` inputs from `start` on, of which the first `seen` were predicted before and the
/// last of which the text may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: usize,
    /// Predictions that an earlier window has made.
    pub seen: usize,
    /// Inputs that have a next token.
    pub len: usize,
}

impl Window {
    /// The tokens that this window predicts.
    pub fn predicted(&self) -> std::ops::Range<usize> {
        self.start + self.seen + 1..self.start + self.len + 1
    }
}

/// Up to `max` (0: all) windows of `seq` inputs, evenly spaced over `len` tokens: together, all predict every token but
/// the first, once. The last one reaches back, so that it is as long as the others where the text is; these are the
/// windows of [`crate::measure::perplexity`] at a stride of the context.
pub fn validation_windows(len: usize, seq: usize, max: usize) -> Vec<Window> {
    assert!(seq > 0, "a sequence has tokens");
    let predictions = len.saturating_sub(1);
    let all = predictions.div_ceil(seq);
    let count = if max == 0 { all } else { all.min(max) };
    let window = |n: usize| {
        let (first, end) = (n * seq, predictions.min((n + 1) * seq));
        let start = end.saturating_sub(seq);
        Window { start, seen: first - start, len: end - start }
    };
    (0..count).map(|i| window((i as u128 * all as u128 / count as u128) as usize)).collect()
}

/// SplitMix64's output function at position `n` of the stream of `seed`.
fn hash(seed: u64, n: u64) -> u64 {
    // The seed is mixed first: neighbouring seeds would otherwise be shifted copies of one stream.
    splitmix64(splitmix64(seed.wrapping_add(GAMMA)).wrapping_add(n.wrapping_mul(GAMMA)))
}

/// Maps 64 random bits to `0..n`; the bias is below n / 2^64.
fn below(random: u64, n: usize) -> usize {
    ((u128::from(random) * n as u128) >> 64) as usize
}

/// Where a permutation of `0..n`, drawn by `key`, puts `index`: a Feistel network on the next even power of two,
/// repeated until the result lies in range (at most 4 times on average).
fn permute(key: u64, n: u64, index: u64) -> u64 {
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = index;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..6u64 {
            (left, right) = (right, left ^ (hash(key ^ (round << 56), right) & mask));
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn tokens(len: usize) -> Tokens {
        Tokens::from_ids(&(0..len as u32).collect::<Vec<_>>(), 1, len as u64)
    }

    proptest! {
        #[test]
        fn a_permutation_hits_everything_once(key: u64, n in 1u64..3000) {
            let hit: HashSet<u64> = (0..n).map(|i| permute(key, n, i)).collect();
            prop_assert_eq!(hit.len() as u64, n);
            prop_assert!(hit.iter().all(|&x| x < n));
        }

        #[test]
        fn windows_fit_and_targets_follow(
            seed: u64, seq in 1usize..40, extra in 1usize..300, batch in 1usize..5, cursor in 0u64..1 << 40, epoch: bool,
        ) {
            let order = if epoch { Order::Epoch } else { Order::Random };
            let tokens = tokens(seq + extra);
            let batches = Batches::new(order, tokens.len(), seq, seed).unwrap();
            let (mut inputs, mut targets) = (vec![0; batch * seq], vec![0; batch * seq]);
            batches.fill(cursor, &tokens, &mut inputs, &mut targets);
            for (input, target) in inputs.iter().zip(&targets) {
                prop_assert_eq!(input + 1, *target);
            }
        }

        #[test]
        fn an_epoch_visits_disjoint_windows_once(seed: u64, seq in 1usize..20, len in 1usize..2000, epoch in 0u64..9) {
            prop_assume!(len > seq);
            let batches = Batches::new(Order::Epoch, len, seq, seed).unwrap();
            let n = batches.sequences_per_epoch();
            let mut starts: Vec<usize> = (epoch * n..(epoch + 1) * n).map(|i| batches.start(i)).collect();
            starts.sort();
            prop_assert!(starts[0] < seq);
            prop_assert!(starts.windows(2).all(|w| w[1] == w[0] + seq));
            prop_assert!(starts[starts.len() - 1] + seq < len);
            // Not more than one window and a phase is missed.
            prop_assert!(n as usize * seq + 2 * seq > len - 1);
        }

        #[test]
        fn validation_windows_predict_every_token_once(len in 0usize..5000, seq in 1usize..60, max in 0usize..80) {
            let windows = validation_windows(len, seq, max);
            let all = len.saturating_sub(1).div_ceil(seq);
            prop_assert_eq!(windows.len(), if max == 0 { all } else { all.min(max) });
            for w in &windows {
                prop_assert!(w.start + w.len < len && w.seen < w.len && w.len <= seq);
                // As long as the others, unless the text is shorter.
                prop_assert!(w.len == seq || w.start == 0);
            }
            prop_assert!(windows.windows(2).all(|w| w[0].predicted().end <= w[1].predicted().start));
            if max == 0 {
                let predicted: Vec<usize> = windows.iter().flat_map(|w| w.predicted()).collect();
                prop_assert_eq!(predicted, (1..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn resuming_at_a_cursor_gives_the_same_batches() {
        let tokens = tokens(1000);
        for order in [Order::Random, Order::Epoch] {
            let draw = |cursor: u64| {
                let batches = Batches::new(order, 1000, 16, 7).unwrap();
                let (mut inputs, mut targets) = (vec![0; 64], vec![0; 64]);
                batches.fill(cursor, &tokens, &mut inputs, &mut targets);
                (inputs, targets)
            };
            let first: Vec<_> = (0..50).map(|i| draw(i * 4)).collect();
            let resumed: Vec<_> = (25..50).map(|i| draw(i * 4)).collect();
            assert_eq!(first[25..], resumed[..]);
            assert_ne!(first[0], first[1]);
        }
    }

    #[test]
    fn random_starts_reach_all_places_evenly() {
        let batches = Batches::new(Order::Random, 110, 10, 3).unwrap();
        let mut hits = [0; 100];
        (0..100_000).for_each(|n| hits[batches.start(n)] += 1);
        // 1000 expected, standard deviation 31.
        assert!(hits.iter().all(|&h| (800..1200).contains(&h)), "{hits:?}");
        let other = Batches::new(Order::Random, 110, 10, 4).unwrap();
        let same = (0..1000).filter(|&n| batches.start(n) == other.start(n)).count();
        assert!(same < 50, "seeds 3 and 4 agree {same} times of 1000");
    }

    #[test]
    fn epochs_differ_in_order_and_phase() {
        let batches = Batches::new(Order::Epoch, 100_001, 100, 1).unwrap();
        let n = batches.sequences_per_epoch();
        let epoch = |e: u64| (e * n..(e + 1) * n).map(|i| batches.start(i)).collect::<Vec<_>>();
        let phases: HashSet<usize> = (0..50).map(|e| epoch(e)[0] % 100).collect();
        assert!(phases.len() > 25, "{} phases in 50 epochs", phases.len());
        let windows = |e: u64| epoch(e).iter().map(|s| s / 100).collect::<Vec<_>>();
        let fixed = windows(0).iter().zip(windows(1)).filter(|(a, b)| **a == *b).count();
        assert!(fixed < 12, "{fixed} of {n} windows in the same place");
        let rising = windows(0).windows(2).filter(|w| w[1] > w[0]).count() as f64 / n as f64;
        assert!((0.4..0.6).contains(&rising), "{rising}");
    }

    #[test]
    fn a_corpus_too_short_is_an_error() {
        assert!(Batches::new(Order::Random, 17, 16, 0).is_ok());
        let error = Batches::new(Order::Epoch, 16, 16, 0).unwrap_err().to_string();
        assert!(error.contains("16 tokens") && error.contains("17"), "{error}");
    }
}
