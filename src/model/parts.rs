//! In how many parts a batch passes through a model, side by side.
//!
//! Each part is on a thread and has gradients of its own. Sharing out every single operation instead moves half of its
//! operands from core to core, which costs more than adding up gradients at the end.

use super::{Sequences, cross_entropy};

const MOST_PARTS: usize = 16;
/// The most f32 values that gradients and logits of all parts after the first may have together.
const MOST_EXTRA_VALUES: usize = 1 << 25;
/// The fewest tokens of a part, about: what a part costs is its gradients, written and added up once.
const FEWEST_TOKENS: usize = 1024;
/// The same of a small model.
const FEWEST_TOKENS_SMALL: usize = 256;
/// Parameters of the largest small model: its gradients stay in a second-level cache of 2 MiB.
const SMALL_MODEL: usize = 1 << 19;

/// A power of two, at most the number of sequences. Depends on sizes alone, so that sums are the same for any number of
/// threads.
pub(super) fn parts(parameters: usize, vocab: usize, seqs: Sequences) -> usize {
    let extra_values = parameters + cross_entropy::logits_at_once(vocab, seqs.rows());
    let most = MOST_PARTS.min(1 + MOST_EXTRA_VALUES / extra_values).min(seqs.batch);
    let fewest_tokens = if parameters <= SMALL_MODEL { FEWEST_TOKENS_SMALL } else { FEWEST_TOKENS };
    let wanted = seqs.rows() / fewest_tokens;
    largest_power_of_two(wanted.min(most).max(1))
}

/// The largest one that is not above `n`, which is not 0.
fn largest_power_of_two(n: usize) -> usize {
    1 << n.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_from_the_sizes_of_model_and_batch() {
        let batches = [(0, 16), (1, 64), (32, 16), (64, 256), (3, 4096), (16, 1024)];
        let models = [
            ((200_000, 64), [1, 1, 2, 16, 2, 16]),
            ((524_288, 64), [1, 1, 2, 16, 2, 16]),
            ((524_289, 64), [1, 1, 1, 16, 2, 16]),
            ((10_800_000, 65), [1, 1, 1, 4, 2, 4]),
            ((14_650_000, 256), [1, 1, 1, 2, 2, 2]),
            ((75_000_000, 16_384), [1, 1, 1, 1, 1, 1]),
        ];
        for ((parameters, vocab), wanted) in models {
            let found = batches.map(|(batch, len)| parts(parameters, vocab, Sequences::new(batch, len)));
            assert_eq!(found, wanted, "{parameters} parameters, vocabulary {vocab}, batches {batches:?}");
        }
    }
}
