//! The one thread that computes: it takes prompts from the queue, reads them in chunks, and makes a token of every answer in
//! each pass.
//!
//! **The same bits as alone.** A chunk ends where a multiple of its size does, whatever runs besides. Where products give
//! every row the bits that it has alone ([`Decoder::tokens_alike`]: packed weights, inputs of 8 bits) chunks and answers share
//! a pass; with other weights a chunk is a pass of its own, and answers share one up to as many as are alike. Kept
//! prefixes are whole chunks of prompts, never what was made token by token. So an answer depends on its prompt, its settings
//! and its seed alone.

mod making;
mod prefixes;
mod reading;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::options::Options;
use super::queue::{Event, Failure, Metrics, Queue, stays};
use crate::kernels;
use crate::model::{Decoder, KvCache, KvPool, Span, State, Wanted};
use crate::text::Tokenizer;
use making::Making;
use prefixes::Prefixes;
use reading::Reading;

pub struct Engine<'a> {
    decoder: &'a Decoder,
    tokenizer: Tokenizer,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    pool: KvPool,
    state: State,
    prefixes: Prefixes,
    /// In the order of their turns.
    reading: Vec<Reading>,
    /// Prompts so far.
    admitted: u64,
    making: Vec<Making>,
    context: usize,
    parallel: usize,
    chunk: usize,
}

/// Which tokens of which prompt are read next.
struct Chunk {
    reading: usize,
    tokens: Range<usize>,
}

impl<'a> Engine<'a> {
    pub fn new(
        decoder: &'a Decoder,
        tokenizer: &Tokenizer,
        options: &Options,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let context = options.context.min(decoder.config.max_positions);
        // A page more for each: answers to one prompt share its last page until they write to it.
        let each = context.next_multiple_of(kernels::PAGE) + kernels::PAGE;
        let pool = KvPool::new(&decoder.config, options.kv, options.parallel * each);
        metrics.page_bytes.set(pool.page_bytes());
        Self {
            decoder,
            tokenizer: tokenizer.clone(),
            queue,
            metrics,
            pool,
            state: State::default(),
            prefixes: Prefixes::new(options.chunk),
            reading: Vec::new(),
            admitted: 0,
            making: Vec::new(),
            context,
            parallel: options.parallel,
            chunk: options.chunk,
        }
    }

    /// Computes until the queue ends.
    pub fn run(mut self) {
        loop {
            if let Some(why) = self.queue.ended() {
                let all = self.reading.iter().map(|r| &r.job.events);
                for events in all.chain(self.making.iter().map(|m| &m.events)) {
                    let _ = events.send(Event::Failed(Failure::ShuttingDown(why.clone())));
                }
                return;
            }
            self.drop_gone();
            self.admit();
            self.measure();
            if self.reading.is_empty() && self.making.is_empty() {
                self.queue.wait();
            } else {
                self.step();
            }
        }
    }

    /// Frees the places of clients that went away, and of requests whose time is over.
    fn drop_gone(&mut self) {
        let now = Instant::now();
        self.reading.retain(|r| stays(&r.job.events, r.job.deadline, now));
        self.making.retain(|m| !m.ended && stays(&m.events, m.deadline, now));
    }

    fn admit(&mut self) {
        loop {
            let taken = self.making.len() + self.reading.iter().map(|r| r.job.sequences()).sum::<usize>();
            let free = self.parallel.saturating_sub(taken);
            let Some(job) = self.queue.pop(|job| job.sequences() <= free) else { return };
            self.reading.push(Reading::new(job, self.admitted, self.pool.sequence()));
            self.admitted += 1;
        }
    }

    fn measure(&self) {
        self.metrics.running.set(self.making.len() + self.reading.len());
        self.metrics.pages.set(self.pool.in_use());
    }

    /// A token of every answer, and as many tokens of prompts as a chunk has.
    fn step(&mut self) {
        let alike = self.decoder.tokens_alike();
        let chosen = self.choose();
        let served: Vec<usize> = chosen.iter().map(|chunk| chunk.reading).collect();
        let (embedded, chunks): (Vec<Chunk>, Vec<Chunk>) =
            chosen.into_iter().partition(|chunk| self.reading[chunk.reading].embeds());
        let making = self.making.len();
        if alike == usize::MAX {
            self.pass(0..making, &chunks);
        } else {
            for first in (0..making).step_by(alike) {
                self.pass(first..making.min(first + alike), &[]);
            }
            chunks.iter().for_each(|chunk| self.pass(0..0, std::slice::from_ref(chunk)));
        }
        embedded.iter().for_each(|chunk| self.embed(chunk));
        self.rotate(&served);
        let read: Vec<Reading> = self.reading.extract_if(.., |r| r.is_done()).collect();
        for done in read {
            done.finish(&self.tokenizer, self.context, &mut self.making);
        }
        self.making.retain(|m| !m.ended);
    }

    /// The next chunks of prompts, in turn. One that an older prompt is about to compute is left to it.
    fn choose(&mut self) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut left = self.chunk;
        for i in 0..self.reading.len() {
            let r = &mut self.reading[i];
            if r.may_share() {
                // The last token goes through the model in any case: its logits are wanted.
                let most = r.job.prompt.len() - 1;
                if let Some(cache) = self.prefixes.longest(&r.job.prompt[..most], r.cache.len()) {
                    self.metrics.prompt_shared.add(cache.len() - r.cache.len());
                    r.shared += cache.len() - r.cache.len();
                    r.cache = cache;
                }
            }
            let r = &self.reading[i];
            let start = r.cache.len();
            let end = ((start / self.chunk + 1) * self.chunk).min(r.job.prompt.len());
            let alike = |other: &Reading| {
                !other.embeds()
                    && other.number < r.number
                    && other.cache.len() <= start
                    && other.job.prompt.get(..end) == Some(&r.job.prompt[..end])
            };
            if r.may_share() && end < r.job.prompt.len() && self.reading.iter().any(alike) {
                continue;
            }
            if end - start > left && !chunks.is_empty() {
                break;
            }
            left = left.saturating_sub(end - start);
            chunks.push(Chunk { reading: i, tokens: start..end });
        }
        chunks
    }

    /// Lets those whose turn it was wait for the others: a short prompt is not kept waiting by a long one.
    fn rotate(&mut self, served: &[usize]) {
        let mut at = 0..;
        let (last, first): (Vec<Reading>, Vec<Reading>) =
            self.reading.drain(..).partition(|_| at.next().is_some_and(|i| served.contains(&i)));
        self.reading.extend(first.into_iter().chain(last));
    }

    /// One pass through the model: a token of each of some answers, and some chunks.
    fn pass(&mut self, making: Range<usize>, chunks: &[Chunk]) {
        let making_rows = making.len();
        let rows = making_rows + chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>();
        if rows == 0 {
            return;
        }
        let start = Instant::now();
        let Self { decoder, state, prefixes, reading, metrics, .. } = self;
        let mut spans: Vec<Span<'_>> = self.making[making.clone()].iter_mut().map(Making::next).collect();
        // Chunks are in the order of their prompts.
        spans.extend(reading.iter_mut().enumerate().filter_map(|(i, r)| {
            let chunk = chunks.iter().find(|chunk| chunk.reading == i)?;
            Some(r.next(chunk.tokens.clone()))
        }));
        spans.iter_mut().for_each(|span| reserve(span.cache, span.tokens.len(), prefixes, metrics));
        let mut logits = decoder.advance(&mut spans, state);
        let vocab = decoder.config.vocab_size;
        metrics.passes.add(1);
        metrics.rows.add(rows);
        let (of_answers, mut of_chunks) = logits.split_at_mut(making.len() * vocab);
        metrics.made.add(making.len());
        // Rows of logits are long, and a choice among them is many operations.
        let answers = self.making[making].iter_mut().zip(of_answers.chunks_exact_mut(vocab));
        kernels::share_each(answers, |(m, logits)| m.take(logits));
        for chunk in chunks {
            let r = &mut reading[chunk.reading];
            let own = r.wanted_rows(&chunk.tokens) * vocab;
            let (own, rest) = std::mem::take(&mut of_chunks).split_at_mut(own);
            of_chunks = rest;
            r.read(&chunk.tokens, own, vocab);
            metrics.prompt_computed.add(chunk.tokens.len());
            prefixes.keep(&r.job.prompt[..r.cache.len()], &r.cache);
            if r.is_done() && !r.embeds() {
                metrics.first_token.saw(r.job.arrived.elapsed());
                metrics.made.add(r.job.sequences());
            }
        }
        metrics.pass.saw(start.elapsed());
        tracing::debug!(
            "{rows} rows in {} µs, {} of them of prompts",
            start.elapsed().as_micros(),
            rows - making_rows
        );
    }

    /// A pass for hidden states.
    fn embed(&mut self, chunk: &Chunk) {
        let r = &mut self.reading[chunk.reading];
        reserve(&mut r.cache, chunk.tokens.len(), &mut self.prefixes, &self.metrics);
        let tokens = &r.job.prompt[chunk.tokens.clone()];
        let span = Span { tokens, cache: &mut r.cache, wanted: Wanted::All };
        let states = self.decoder.hidden_states(&mut [span], &mut self.state);
        r.add_states(&states, self.decoder.config.hidden_size);
        self.metrics.prompt_computed.add(chunk.tokens.len());
        self.metrics.passes.add(1);
        self.metrics.rows.add(chunk.tokens.len());
    }
}

/// Makes room for `more` positions. What prefixes hold alone is taken back for it, the longest unused first; that is
/// enough, since the pool has pages for as many sequences as run.
fn reserve(cache: &mut KvCache, more: usize, prefixes: &mut Prefixes, metrics: &Metrics) {
    while !cache.reserve(more) && prefixes.drop_oldest() {
        metrics.pages_reclaimed.add(1);
    }
}
