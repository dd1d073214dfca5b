//! An answer that grows by a token in every pass.

use std::time::Instant;

use llguidance::Matcher;

use crate::generate::{Sampler, SamplingConfig, Scored, StopStrings, score};
use crate::model::{KvCache, Span, Wanted};
use crate::serve::queue::{Event, Events, Failure, Generate, Job, Piece, Reason};
use crate::text::{TokenStream, Tokenizer};

pub struct Making {
    pub events: Events,
    pub deadline: Instant,
    pub ended: bool,
    cache: KvCache,
    /// Prompt and answer; the last one has not been read yet.
    tokens: Vec<u32>,
    made: usize,
    /// Counted through all prompts of the request.
    choice: usize,
    limit: usize,
    context: usize,
    sampler: Sampler,
    stop_ids: Vec<u32>,
    stream: Option<TokenStream>,
    stops: StopStrings,
    constraint: Option<Matcher>,
    scores: Option<usize>,
    /// Of tokens whose text is held back, all of it or a part, and where in the answer each one's begins.
    pending: Vec<(usize, Scored)>,
    /// Bytes of text that tokens made, and of what was said of it.
    made_bytes: usize,
    said_bytes: usize,
}

impl Making {
    pub fn new(
        job: &Job,
        generate: &Generate,
        choice: usize,
        cache: KvCache,
        tokenizer: &Tokenizer,
        context: usize,
    ) -> Self {
        let seed = generate.sampling.seed.wrapping_add(choice as u64);
        let sampling = SamplingConfig { seed, ..generate.sampling.clone() };
        let mut sampler = Sampler::new(sampling).with_bias(generate.bias.clone());
        sampler.set_prompt(job.prompt.len());
        Self {
            events: job.events.clone(),
            deadline: job.deadline,
            ended: false,
            cache,
            tokens: job.prompt.clone(),
            made: 0,
            choice: job.place * generate.choices + choice,
            limit: generate.limit,
            context,
            sampler,
            stop_ids: tokenizer.stop_ids().to_vec(),
            stream: Some(TokenStream::after(tokenizer, &job.prompt)),
            stops: StopStrings::new(generate.stop.clone()),
            // A lexer, and its limit, of its own.
            constraint: generate.constraint.as_ref().map(Matcher::deep_clone),
            scores: generate.scores,
            pending: Vec::new(),
            made_bytes: 0,
            said_bytes: 0,
        }
    }

    /// The last token, which is to be read.
    pub fn next(&mut self) -> Span<'_> {
        let tokens = &self.tokens[self.tokens.len() - 1..];
        Span { tokens, cache: &mut self.cache, wanted: Wanted::Last }
    }

    /// Chooses the next token by the logits after the last, and says what that makes certain.
    pub fn take(&mut self, logits: &mut [f32]) {
        if self.made == self.limit || self.tokens.len() == self.context {
            return self.end(Reason::Length);
        }
        let raw = self.scores.map(|top| (logits.to_vec(), top));
        if let Err(why) = self.constrain(logits) {
            return self.fail(why);
        }
        let token = self.sampler.sample(logits, &self.tokens);
        if self.stop_ids.contains(&token) {
            return self.end(Reason::Stop);
        }
        if let Some(constraint) = &mut self.constraint
            && let Err(why) = constraint.consume_token(token)
        {
            return self.fail(why.to_string());
        }
        self.tokens.push(token);
        self.made += 1;
        self.pending.extend(raw.map(|(logits, top)| (self.made_bytes, score(&logits, token, top))));
        let piece = self.stream.as_mut().map(|stream| stream.push(token)).unwrap_or_default();
        self.made_bytes += piece.len();
        let (text, stopped) = self.stops.push(&piece);
        if stopped {
            // Of a token that the stop string begins in, a part is text.
            let end = self.said_bytes + text.len();
            self.pending.retain(|(start, _)| *start < end);
            self.stream = None;
        }
        let all = !self.stops.holds() && !piece.is_empty();
        self.say(text, all);
        let complete = self.constraint.as_ref().is_some_and(Matcher::is_stopped);
        if stopped || complete {
            self.end(Reason::Stop);
        } else if self.made == self.limit || self.tokens.len() == self.context {
            self.end(Reason::Length);
        }
    }

    /// Makes impossible what the constraint does not allow.
    fn constrain(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        let allowed = constraint.compute_mask().map_err(|e| e.to_string())?;
        if allowed.is_zero() {
            return Err("no token can follow".into());
        }
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= allowed.len() || !allowed.is_allowed(id as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// `all`: no text of the tokens so far is held back.
    fn say(&mut self, text: String, all: bool) {
        let scores = if all { std::mem::take(&mut self.pending) } else { Vec::new() };
        let scores: Vec<Scored> = scores.into_iter().map(|(_, scored)| scored).collect();
        self.said_bytes += text.len();
        if !text.is_empty() || !scores.is_empty() {
            let _ = self.events.send(Event::Piece(Piece { choice: self.choice, text, scores }));
        }
    }

    fn end(&mut self, reason: Reason) {
        // Held back as the beginning of a stop string, or as part of a character.
        let rest = self.stream.take().map(TokenStream::finish).unwrap_or_default();
        let (text, _) = self.stops.push(&rest);
        let text = text + &self.stops.finish();
        self.say(text, true);
        let _ = self.events.send(Event::Ended { choice: self.choice, reason, made: self.made });
        self.ended = true;
    }

    fn fail(&mut self, why: String) {
        let _ = self.events.send(Event::Failed(Failure::Constraint(why)));
        self.ended = true;
    }
}
