//! Guessing the tokens to come, for the model to judge several in one pass (Leviathan et al., arXiv 2211.17192).

use super::sampling::argmax;
use crate::config::KvFormat;
use crate::error::{Error, Result};
use crate::model::{Decoder, KvCache, State};

/// The longest run of last tokens that is looked for, and the shortest that counts.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;
/// Passes without a proposal after single ones were wrong: at first, and at most.
const REST: usize = 8;
const LONGEST_REST: usize = 64;

/// Who proposes tokens, and how many at most in a pass.
#[derive(Clone, Copy, Debug, Default)]
pub enum Speculation<'a> {
    #[default]
    Off,
    /// The text so far: what followed where its last tokens stood before.
    Lookup { most: usize },
    /// A smaller model of the same vocabulary, greedily.
    Draft { decoder: &'a Decoder, most: usize },
}

/// Proposes tokens, and learns from what becomes of them.
pub(super) struct Proposer<'a> {
    pace: Pace,
    draft: Option<Draft<'a>>,
}

impl<'a> Proposer<'a> {
    /// For a model that judges `judged` tokens in a pass at most.
    ///
    /// # Errors
    /// A draft model whose vocabulary is not `vocab` tokens, or that sees the tokens to come.
    pub fn new(speculation: Speculation<'a>, vocab: usize, judged: usize, kv: KvFormat) -> Result<Self> {
        let (most, draft) = match speculation {
            Speculation::Off => (0, None),
            Speculation::Lookup { most } => (most, None),
            Speculation::Draft { decoder, most } => {
                let found = decoder.config.vocab_size;
                if found != vocab || !decoder.config.causal {
                    let what =
                        if found != vocab { format!("of {found} tokens") } else { "not causal".into() };
                    return Err(Error::usage(format!(
                        "the draft model is {what}: wanted a causal one of {vocab} tokens, as the model that it is for"
                    )));
                }
                (most, Some(Draft::new(decoder, kv)))
            }
        };
        Ok(Self { pace: Pace::new(most.min(judged)), draft })
    }

    /// At most `room` tokens that may follow `tokens`.
    pub fn propose(&mut self, tokens: &[u32], room: usize) -> Vec<u32> {
        let count = self.pace.next().min(room);
        match &mut self.draft {
            _ if count == 0 => Vec::new(),
            None => lookup(tokens, count),
            Some(draft) => draft.propose(tokens, count),
        }
    }

    /// What became of a proposal.
    pub fn judged(&mut self, proposed: usize, accepted: usize) {
        self.pace.judged(proposed, accepted);
    }
}

/// How many tokens to propose: one more after all were accepted, half as many after none was. From one it goes to none for
/// some passes, twice as many each time, so that a text that nobody can foretell costs little.
#[derive(Debug)]
struct Pace {
    most: usize,
    count: usize,
    rest: usize,
    resting: usize,
}

impl Pace {
    fn new(most: usize) -> Self {
        Self { most, count: most.min(4), rest: REST, resting: 0 }
    }

    fn next(&mut self) -> usize {
        if self.resting > 0 {
            self.resting -= 1;
            return 0;
        }
        self.count
    }

    fn judged(&mut self, proposed: usize, accepted: usize) {
        if proposed == 0 {
            return;
        }
        if accepted > 0 {
            self.rest = REST;
        }
        if accepted == proposed {
            self.count = (self.count + 1).min(self.most);
        } else if accepted == 0 && self.count == 1 {
            self.resting = self.rest;
            self.rest = (2 * self.rest).min(LONGEST_REST);
        } else if accepted == 0 {
            self.count /= 2;
        }
    }
}

/// `count` tokens that followed the longest match of the last tokens, the latest among equals; none without a match. Past
/// the end of the text what was proposed itself is repeated.
fn lookup(tokens: &[u32], count: usize) -> Vec<u32> {
    let (mut best, mut from) = (SHORTEST - 1, 0);
    for end in (SHORTEST..tokens.len()).rev() {
        let (before, last) = (tokens[..end].iter().rev(), tokens.iter().rev());
        let same = before.zip(last).take(LONGEST).take_while(|(a, b)| a == b).count();
        if same > best {
            (best, from) = (same, end);
        }
        if best == LONGEST {
            break;
        }
    }
    if best < SHORTEST {
        return Vec::new();
    }
    let period = tokens.len() - from;
    (0..count).map(|i| tokens[from + i % period]).collect()
}

/// A model that proposes, and what it has read.
struct Draft<'a> {
    decoder: &'a Decoder,
    cache: KvCache,
    state: State,
    /// The tokens in the cache.
    read: Vec<u32>,
}

impl<'a> Draft<'a> {
    fn new(decoder: &'a Decoder, kv: KvFormat) -> Self {
        Self { decoder, cache: decoder.cache(kv), state: State::default(), read: Vec::new() }
    }

    /// Fewer where its positions end.
    fn propose(&mut self, tokens: &[u32], count: usize) -> Vec<u32> {
        let mut proposed = Vec::new();
        if tokens.is_empty() || tokens.len() > self.decoder.config.max_positions {
            return proposed;
        }
        let same = self.read.iter().zip(tokens).take_while(|(a, b)| a == b).count().min(tokens.len() - 1);
        self.cache.truncate(same);
        self.read.truncate(same);
        let mut logits = self.decoder.read(&tokens[same..], &mut self.cache, &mut self.state);
        self.read.extend(&tokens[same..]);
        loop {
            let token = argmax(&logits) as u32;
            proposed.push(token);
            if proposed.len() == count || self.read.len() == self.decoder.config.max_positions {
                return proposed;
            }
            logits = self.decoder.step(&[token], &mut self.cache, &mut self.state);
            self.read.push(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_continues_the_longest_latest_match() {
        let cases: [(&[u32], usize, &[u32]); 11] = [
            (&[], 3, &[]),
            (&[1], 3, &[]),
            (&[1, 2], 3, &[]),
            // One token alone is no match.
            (&[5, 1, 5], 3, &[]),
            (&[1, 2, 3, 4, 5, 1, 2], 3, &[3, 4, 5]),
            (&[1, 2, 3, 4, 5, 1, 2], 1, &[3]),
            // The later of two matches of two tokens.
            (&[1, 2, 3, 9, 1, 2, 4, 9, 1, 2], 2, &[4, 9]),
            // Three tokens before two, though earlier.
            (&[7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2], 2, &[3, 9]),
            // No more than four count: the later one, though the earlier is longer.
            (&[8, 1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 6, 8, 1, 2, 3, 4], 1, &[6]),
            // A text that goes round is taken further round.
            (&[1, 2, 3, 1, 2, 3, 1, 2], 5, &[3, 1, 2, 3, 1]),
            (&[4, 4, 4], 4, &[4, 4, 4, 4]),
        ];
        for (tokens, count, wanted) in cases {
            assert_eq!(lookup(tokens, count), wanted, "{count} after {tokens:?}");
        }
    }

    #[test]
    fn the_pace_follows_what_is_accepted() {
        let mut pace = Pace::new(6);
        let mut counts = Vec::new();
        for accepted in [4, 5, 6, 3, 0, 0, 0] {
            let count = pace.next();
            counts.push(count);
            pace.judged(count, accepted);
        }
        assert_eq!(counts, [4, 5, 6, 6, 6, 3, 1]);
        // Passes until the next proposal, which is wrong again.
        let mut rests = || {
            let rest = (0..).take_while(|_| pace.next() == 0).count();
            pace.judged(1, 0);
            rest
        };
        assert_eq!([rests(), rests(), rests(), rests(), rests()], [8, 16, 32, 64, 64]);
        assert_eq!(Pace::new(0).next(), 0);
        // Where nothing was proposed, nothing is learnt.
        let mut pace = Pace::new(3);
        pace.judged(0, 0);
        assert_eq!(pace.next(), 3);
    }
}
