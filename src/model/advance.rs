//! A model that runs: tokens after what caches hold, and their logits.

use std::ops::Range;

use super::block::Keep;
use super::cache::{KvCache, KvPool};
use super::sequences::{Rows, Sequences};
use super::{Decoder, State, Workspace};
use crate::config::KvFormat;
use crate::kernels::{self, Buffer, To};

/// The next tokens of a sequence, after what its cache holds.
pub struct Span<'a> {
    pub tokens: &'a [u32],
    /// Has room for the tokens ([`KvCache::reserve`]), or its pool has.
    pub cache: &'a mut KvCache,
    pub wanted: Wanted,
}

/// Tokens of a long prompt that go through the model together: bounds the memory that it takes.
pub const PIECE: usize = 512;

/// After which tokens of a span logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    None,
    Last,
    All,
}

impl Decoder {
    /// Logits of every position, `[N, V]`: for tests and small models.
    pub fn logits(&self, tokens: &[u32], seqs: Sequences, state: &mut State) -> Vec<f32> {
        let h = self.hidden(tokens, &seqs.into(), &mut state.pass, None, Keep::Everything, None);
        let logits = self.logits_of(&h, std::slice::from_ref(&(0..tokens.len())), &mut state.pass.ws);
        state.pass.ws.give(h);
        logits
    }

    /// An empty cache for one sequence, with a pool of its own.
    pub fn cache(&self, format: KvFormat) -> KvCache {
        KvPool::new(&self.config, format, self.config.max_positions).sequence()
    }

    /// Appends `tokens` to the cached sequence; the logits after the last of them, `[V]`.
    pub fn step(&self, tokens: &[u32], cache: &mut KvCache, state: &mut State) -> Vec<f32> {
        self.advance(&mut [Span { tokens, cache, wanted: Wanted::Last }], state)
    }

    /// Tokens of a span up to which each gets the bits, of logits, keys and values, that it gets in a pass of its own
    /// (`tests/speculation.rs`): fewer than attention over a cache takes in the way of one, and no more than the products
    /// with any matrix.
    pub fn rows_alike(&self) -> usize {
        self.tokens_alike().min(kernels::QUERIES_ALIKE)
    }

    /// Tokens of a pass, of whatever spans, up to which products give each the bits that they give it alone; `usize::MAX`
    /// where every matrix is packed and takes inputs of 8 bits. Attention looks at one span after the other, so up to here a
    /// span has the bits that it has in a pass of its own.
    pub fn tokens_alike(&self) -> usize {
        let matrices = self.weights().filter(|weight| weight.role.is_matrix());
        matrices.map(|weight| kernels::linear::rows_alike(weight.matrix())).min().unwrap_or(1)
    }

    /// [`Decoder::step`] with many tokens, [`PIECE`] at a time; logits are made after the last of them alone.
    pub fn read(&self, tokens: &[u32], cache: &mut KvCache, state: &mut State) -> Vec<f32> {
        let (first, last) = tokens.split_at((tokens.len() - 1) / PIECE * PIECE);
        for tokens in first.chunks(PIECE) {
            self.advance(&mut [Span { tokens, cache, wanted: Wanted::None }], state);
        }
        self.step(last, cache, state)
    }

    /// Appends the tokens of each span to its sequence, all in one pass; the wanted logits, `[rows, V]`, in the order of the
    /// spans and their tokens.
    ///
    /// # Panics
    /// A span without tokens, positions that the model does not have, a pool without pages for them.
    pub fn advance(&self, spans: &mut [Span<'_>], state: &mut State) -> Vec<f32> {
        let (h, wanted) = self.pass(spans, state);
        let logits = self.logits_of(&h, &wanted, &mut state.pass.ws);
        state.pass.ws.give(h);
        logits
    }

    /// As [`Decoder::advance`], but of the wanted rows what the output head would be given: the last hidden states, after
    /// the final norm, `[rows, C]`.
    pub fn hidden_states(&self, spans: &mut [Span<'_>], state: &mut State) -> Vec<f32> {
        let (h, wanted) = self.pass(spans, state);
        let some = self.some_rows(&h, &wanted, &mut state.pass.ws);
        let states = some.to_vec();
        state.pass.ws.give(some);
        state.pass.ws.give(h);
        states
    }

    /// Appends the tokens of each span to its sequence; all rows through the final norm, and which of them are wanted.
    fn pass(&self, spans: &mut [Span<'_>], state: &mut State) -> (Buffer, Vec<Range<usize>>) {
        let rows = Rows::new(spans.iter().map(|span| (span.cache.len(), span.tokens.len())));
        let mut wanted = Vec::new();
        let mut first = 0;
        for span in spans.iter_mut() {
            let (count, start) = (span.tokens.len(), span.cache.len());
            assert!(count > 0, "a span needs a token");
            let most = self.config.max_positions;
            assert!(start + count <= most, "positions up to {}, of {most}", start + count);
            assert!(span.cache.reserve(count), "the pool has no pages for {count} more positions");
            match span.wanted {
                Wanted::None => {}
                Wanted::Last => wanted.push(first + count - 1..first + count),
                Wanted::All => wanted.push(first..first + count),
            }
            first += count;
        }
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let mut caches: Vec<&mut KvCache> = spans.iter_mut().map(|span| &mut *span.cache).collect();
        let h = self.hidden(&tokens, &rows, &mut state.pass, Some(&mut caches), Keep::Nothing, None);
        caches.iter_mut().zip(&rows.spans).for_each(|(cache, count)| cache.advance(*count));
        (h, wanted)
    }

    /// The logits of some rows of `h`, `[rows, V]`.
    fn logits_of(&self, h: &Buffer, wanted: &[Range<usize>], ws: &mut Workspace) -> Vec<f32> {
        let count = wanted.iter().map(Range::len).sum::<usize>();
        let mut logits = vec![0.0; count * self.config.vocab_size];
        if count == 0 {
            return logits;
        }
        let some = self.some_rows(h, wanted, ws);
        kernels::linear::forward(&some, self.head().matrix(), &mut logits, To::Set);
        ws.give(some);
        logits
    }

    /// Some rows of `h`, one after the other.
    fn some_rows(&self, h: &Buffer, wanted: &[Range<usize>], ws: &mut Workspace) -> Buffer {
        let width = self.config.hidden_size;
        let mut some = ws.take(wanted.iter().map(Range::len).sum::<usize>() * width);
        let mut at = 0;
        for rows in wanted {
            kernels::copy(some.rows_mut(width, at..at + rows.len()), h.rows(width, rows.clone()));
            at += rows.len();
        }
        some
    }
}
