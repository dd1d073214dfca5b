//! One line a request: what was asked, how it ended, tokens and times. Never a text.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::serve::api::Answer;
use crate::serve::queue::Metrics;

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A request from its arrival on. The line is written when it is dropped: also when the client went away.
pub struct Record {
    path: &'static str,
    arrived: Instant,
    first: Option<Instant>,
    status: Option<u16>,
    ended: &'static str,
    id: String,
    tokens: [usize; 3],
    metrics: Arc<Metrics>,
}

impl Record {
    pub fn new(path: &'static str, metrics: Arc<Metrics>) -> Self {
        let id = format!("request-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let arrived = Instant::now();
        Self { path, arrived, first: None, status: None, ended: "gone", id, tokens: [0; 3], metrics }
    }

    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The request has been given to the engine.
    pub fn asked(&mut self, answer: &Answer) {
        self.id = answer.id.clone();
    }

    /// Something of an answer has come.
    pub fn saw(&mut self, answer: &Answer) {
        self.first.get_or_insert_with(Instant::now);
        self.tokens = [answer.prompt_tokens, answer.shared, answer.made()];
    }

    /// Its status has been sent. An answer that is streamed has still to end.
    pub fn status(&mut self, status: u16) {
        self.status = Some(status);
    }

    pub fn ended(&mut self, how: &'static str) {
        self.ended = how;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // 499, as other servers say it: the client closed before it was answered.
        let status = if self.ended == "gone" { 499 } else { self.status.unwrap_or(499) };
        if status == 499 {
            self.metrics.gone.add(1);
        }
        self.metrics.answered(self.path, status);
        if self.ended == "done" && self.tokens[2] > 0 {
            self.metrics.answers.saw(self.arrived.elapsed());
        }
        let ms = |at: Instant| at.duration_since(self.arrived).as_millis();
        let first = self.first.map_or("-".to_string(), |first| ms(first).to_string());
        let [prompt, shared, made] = self.tokens;
        tracing::info!(
            "{} {} {status} {}: prompt {prompt} (shared {shared}), made {made}, first {first} ms, all {} ms",
            self.id,
            self.path,
            self.ended,
            ms(Instant::now())
        );
    }
}
