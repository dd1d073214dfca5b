//! Where training sequences come from. Sequence number `n` is a function of the seed and `n` alone, so the cursor that a
//! checkpoint keeps is one number.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::{Recipe, Task};
use crate::error::Result;
use crate::kernels::IGNORE;
use crate::text::{Batches, Corpus, Tokens, validation_windows};

/// Sequences of one length, for training and for validation.
pub enum Source {
    Synthetic(Synthetic),
    Text { corpus: Box<Corpus>, batches: Batches, seq: usize },
}

/// Random tokens to be reproduced: in place ([`Task::Copy`]), or after a separator ([`Task::Recall`]).
#[derive(Clone, Copy, Debug)]
pub struct Synthetic {
    pub task: Task,
    /// Random tokens of a sequence.
    pub tokens: usize,
    /// For [`Task::Recall`] the last token is the separator.
    pub vocab: usize,
    pub seed: u64,
}

impl Synthetic {
    /// Tokens of an input: recall reads the random tokens, the separator, and all but the last once more.
    pub fn seq(&self) -> usize {
        match self.task {
            Task::Recall => 2 * self.tokens,
            _ => self.tokens,
        }
    }

    /// Sequence `n`; held-out sequences are those of another stream.
    fn fill(&self, n: u64, held_out: bool, inputs: &mut [u32], targets: &mut [u32]) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(2 * n + held_out as u64);
        let random = self.vocab as u32 - (self.task == Task::Recall) as u32;
        let (first, rest) = inputs.split_at_mut(self.tokens);
        // 64 random bits a token: the bias of the remainder is below 2^-32.
        first.iter_mut().for_each(|t| *t = (rng.next_u64() % random as u64) as u32);
        match self.task {
            Task::Recall => {
                rest[0] = self.vocab as u32 - 1;
                rest[1..].copy_from_slice(&first[..self.tokens - 1]);
                targets[..self.tokens].fill(IGNORE);
                targets[self.tokens..].copy_from_slice(first);
            }
            _ => targets.copy_from_slice(first),
        }
    }

    /// `count` sequences from number `first` on, one after the other.
    pub fn batch(&self, first: u64, held_out: bool, inputs: &mut [u32], targets: &mut [u32]) {
        let rows = inputs.chunks_mut(self.seq()).zip(targets.chunks_mut(self.seq()));
        for (n, (inputs, targets)) in (first..).zip(rows) {
            self.fill(n, held_out, inputs, targets);
        }
    }
}

impl Source {
    /// The synthetic source of a recipe with a vocabulary of `vocab` tokens.
    pub fn synthetic(recipe: &Recipe, vocab: usize) -> Self {
        let (tokens, seed) = (recipe.data.sequence, recipe.seed);
        Source::Synthetic(Synthetic { task: recipe.task, tokens, vocab, seed })
    }

    /// Windows of a tokenised text.
    ///
    /// # Errors
    /// A text shorter than one window.
    pub fn text(recipe: &Recipe, corpus: Corpus) -> Result<Self> {
        let seq = recipe.train.seq;
        let batches = Batches::new(recipe.data.order, corpus.train.len(), seq, recipe.seed)?;
        Ok(Source::Text { corpus: Box::new(corpus), batches, seq })
    }

    /// Tokens of a sequence (`T`).
    pub fn seq(&self) -> usize {
        match self {
            Source::Synthetic(s) => s.seq(),
            Source::Text { seq, .. } => *seq,
        }
    }

    /// What tells the text that is trained on from others.
    pub fn fingerprint(&self) -> Option<&str> {
        match self {
            Source::Text { corpus, .. } => Some(&corpus.fingerprint),
            Source::Synthetic(_) => None,
        }
    }

    /// The sequences from number `cursor` on: as many as the slices hold.
    pub fn fill(&self, cursor: u64, inputs: &mut [u32], targets: &mut [u32]) {
        match self {
            Source::Synthetic(s) => s.batch(cursor, false, inputs, targets),
            Source::Text { corpus, batches, .. } => batches.fill(cursor, &corpus.train, inputs, targets),
        }
    }

    /// Where in the text sequence number `n` begins; nowhere of a synthetic task.
    pub fn start(&self, n: u64) -> Option<usize> {
        match self {
            Source::Text { batches, .. } => Some(batches.start(n)),
            Source::Synthetic(_) => None,
        }
    }

    /// The validation part of a text.
    pub fn validation(&self) -> Option<&Tokens> {
        match self {
            Source::Text { corpus, .. } => Some(&corpus.val),
            Source::Synthetic(_) => None,
        }
    }

    /// Calls `f(inputs, targets, sequences)` on held-out batches of at most `batch` sequences; `max` sequences in all,
    /// 0 for every one (256 of a synthetic task).
    pub fn each_validation(&self, batch: usize, max: usize, mut f: impl FnMut(&[u32], &[u32], usize)) {
        let seq = self.seq();
        let (mut inputs, mut targets) = (vec![0; batch * seq], vec![0; batch * seq]);
        match self {
            Source::Synthetic(s) => {
                let count = if max == 0 { 256 } else { max };
                for first in (0..count).step_by(batch) {
                    let n = batch.min(count - first);
                    s.batch(first as u64, true, &mut inputs[..n * seq], &mut targets[..n * seq]);
                    f(&inputs[..n * seq], &targets[..n * seq], n);
                }
            }
            Source::Text { corpus, .. } => {
                let mut ids = vec![0; seq + 1];
                for windows in validation_windows(corpus.val.len(), seq, max).chunks(batch) {
                    let rows = inputs.chunks_mut(seq).zip(targets.chunks_mut(seq));
                    for (w, (inputs, targets)) in windows.iter().zip(rows) {
                        corpus.val.read(w.start, &mut ids[..w.len + 1]);
                        inputs.fill(0);
                        inputs[..w.len].copy_from_slice(&ids[..w.len]);
                        targets.fill(IGNORE);
                        targets[w.seen..w.len].copy_from_slice(&ids[w.seen + 1..w.len + 1]);
                    }
                    let n = windows.len() * seq;
                    f(&inputs[..n], &targets[..n], windows.len());
                }
            }
        }
    }

    /// Bytes of text that the tokens stand for which such a validation predicts; none of a synthetic task.
    pub fn validation_bytes(&self, max: usize) -> Option<u64> {
        let val = self.validation()?;
        let windows = validation_windows(val.len(), self.seq(), max);
        windows.iter().map(|w| val.text_bytes_of(w.predicted())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_asks_for_the_tokens_after_the_separator() {
        let s = Synthetic { task: Task::Recall, tokens: 4, vocab: 10, seed: 3 };
        let (mut inputs, mut targets) = (vec![0; 16], vec![0; 16]);
        s.batch(5, false, &mut inputs, &mut targets);
        assert_eq!((inputs[4], inputs[12]), (9, 9));
        assert_eq!(inputs[..3], inputs[5..8]);
        assert_eq!(targets[..4], [IGNORE; 4]);
        assert_eq!(targets[4..8], inputs[..4]);
        assert!(inputs[..4].iter().all(|t| *t < 9), "the separator is not a random token");
        let mut again = (vec![0; 8], vec![0; 8]);
        s.batch(6, false, &mut again.0, &mut again.1);
        assert_eq!(again.0, inputs[8..], "a sequence depends on its number alone");
        s.batch(6, true, &mut again.0, &mut again.1);
        assert_ne!(again.0, inputs[8..], "held-out sequences are others");
    }
}
