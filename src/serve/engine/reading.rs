//! A prompt that goes through the model chunk by chunk.

use std::ops::Range;

use rayon::prelude::*;

use super::making::Making;
use crate::generate::{Scored, score};
use crate::model::{KvCache, Span, Wanted};
use crate::serve::queue::{Event, Generate, Job, Task};
use crate::text::Tokenizer;

pub struct Reading {
    pub job: Job,
    /// Counted in the order of arrival.
    pub number: u64,
    /// What of the prompt has been read.
    pub cache: KvCache,
    /// Tokens that another prompt had computed.
    pub shared: usize,
    scores: Vec<Scored>,
    /// The logits after the last token.
    last: Vec<f32>,
    /// The sum of the hidden states so far.
    sum: Vec<f64>,
}

impl Reading {
    pub fn new(job: Job, number: u64, cache: KvCache) -> Self {
        Self { job, number, cache, shared: 0, scores: Vec::new(), last: Vec::new(), sum: Vec::new() }
    }

    pub fn is_done(&self) -> bool {
        self.cache.len() == self.job.prompt.len()
    }

    pub fn embeds(&self) -> bool {
        matches!(self.job.task, Task::Embed)
    }

    /// With how many of the most likely tokens those of the prompt are scored.
    fn prompt_scores(&self) -> Option<usize> {
        match &self.job.task {
            Task::Generate(generate) => generate.prompt_scores,
            Task::Embed => None,
        }
    }

    /// Whether nothing is wanted of the tokens before the last: then their keys and values may be another's.
    pub fn may_share(&self) -> bool {
        self.prompt_scores().is_none() && !self.embeds()
    }

    fn wanted(&self, tokens: &Range<usize>) -> Wanted {
        match tokens.end == self.job.prompt.len() {
            _ if self.prompt_scores().is_some() => Wanted::All,
            true => Wanted::Last,
            false => Wanted::None,
        }
    }

    /// Some tokens, which are to be read.
    pub fn next(&mut self, tokens: Range<usize>) -> Span<'_> {
        let wanted = self.wanted(&tokens);
        Span { tokens: &self.job.prompt[tokens], cache: &mut self.cache, wanted }
    }

    /// Rows of logits that [`Reading::wanted`] means.
    pub fn wanted_rows(&self, tokens: &Range<usize>) -> usize {
        match self.wanted(tokens) {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => tokens.len(),
        }
    }

    /// Takes the wanted logits of a chunk.
    pub fn read(&mut self, tokens: &Range<usize>, logits: &[f32], vocab: usize) {
        if let Some(top) = self.prompt_scores() {
            let next = self.job.prompt[tokens.start + 1..].par_iter();
            let scored = next.zip(logits.par_chunks_exact(vocab));
            self.scores.par_extend(scored.map(|(token, logits)| score(logits, *token, top)));
        }
        if self.is_done() {
            self.last = logits[logits.len() - vocab..].to_vec();
        }
    }

    /// Takes the hidden states of a chunk, rows of `width`.
    pub fn add_states(&mut self, states: &[f32], width: usize) {
        self.sum.resize(width, 0.0);
        for row in states.chunks_exact(width) {
            self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }

    /// Says what was asked of the prompt, and begins its answers.
    pub fn finish(self, tokenizer: &Tokenizer, context: usize, making: &mut Vec<Making>) {
        let (events, place) = (&self.job.events, self.job.place);
        let _ = events.send(Event::Read { shared: self.shared });
        let generate = match &self.job.task {
            Task::Embed => {
                let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
                let mean = self.sum.iter().map(|x| (x / length) as f32).collect();
                let _ = events.send(Event::Embedded { place, mean });
                return;
            }
            Task::Generate(generate) => generate,
        };
        if generate.prompt_scores.is_some() {
            let _ = events.send(Event::PromptScores { place, scores: self.scores });
        }
        let Generate { choices, .. } = **generate;
        for choice in 0..choices {
            let mut answer = Making::new(&self.job, generate, choice, self.cache.clone(), tokenizer, context);
            answer.take(&mut self.last.clone());
            if !answer.ended {
                making.push(answer);
            }
        }
    }
}
