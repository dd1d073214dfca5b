//! An answer as it grows, and the forms in which clients want it.

use std::hash::{BuildHasher, RandomState};

use serde_json::{Value, json};

use super::error::{ApiError, REASON};
use super::served::{Inner, seconds_now};
use crate::generate::Scored;
use crate::serve::queue::{Event, Failure, Piece, Reason};
use crate::text::Tokenizer;

/// What the engine has said of a request so far.
pub struct Answer {
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub prompt_tokens: usize,
    /// Tokens of prompts that another request had computed.
    pub shared: usize,
    pub choices: Vec<Choice>,
    /// Of each prompt, where asked for.
    pub prompt_scores: Vec<Vec<Scored>>,
    pub embedded: Vec<Vec<f32>>,
    pub failure: Option<Failure>,
    /// Answers and embeddings that are still to end.
    left: usize,
}

/// One of the answers.
#[derive(Default)]
pub struct Choice {
    pub text: String,
    pub scores: Vec<Scored>,
    pub reason: Option<Reason>,
    pub made: usize,
}

/// An event of a stream.
pub struct Frame {
    /// Its name, where events have names.
    pub event: Option<&'static str>,
    pub data: Value,
}

impl From<Value> for Frame {
    fn from(data: Value) -> Self {
        Frame { event: None, data }
    }
}

/// The JSON of one endpoint's answers, whole and as a stream.
pub trait Form: Send {
    fn whole(&self, answer: &Answer) -> Value;

    /// Before the first piece.
    fn begin(&mut self, _answer: &Answer) -> Vec<Frame> {
        Vec::new()
    }
    fn piece(&mut self, _answer: &Answer, _piece: &Piece) -> Vec<Frame> {
        Vec::new()
    }
    /// One of the answers has ended.
    fn ended(&mut self, _answer: &Answer, _choice: usize) -> Vec<Frame> {
        Vec::new()
    }
    /// All have.
    fn finish(&mut self, _answer: &Answer) -> Vec<Frame> {
        Vec::new()
    }
    /// Nothing more comes.
    fn failed(&mut self, _answer: &Answer, error: &ApiError) -> Vec<Frame> {
        vec![error.json().into()]
    }
    /// The last line of a stream, beside its events.
    fn last_line(&self) -> Option<&'static str> {
        Some("[DONE]")
    }
}

impl Answer {
    /// `kind`: what its id begins with.
    pub fn new(kind: &str, served: &Inner, prompts: &[Vec<u32>], choices: usize) -> Self {
        let random = [RandomState::new().hash_one(1u8), RandomState::new().hash_one(2u8)];
        let mut all = Vec::new();
        all.resize_with(prompts.len() * choices, Choice::default);
        Self {
            id: format!("{kind}-{:016x}{:016x}", random[0], random[1]),
            created: seconds_now(),
            model: served.name.clone(),
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            shared: 0,
            left: all.len().max(prompts.len()),
            choices: all,
            prompt_scores: vec![Vec::new(); prompts.len()],
            embedded: vec![Vec::new(); prompts.len()],
            failure: None,
        }
    }

    /// Takes what the engine says. The piece is what was new in it.
    pub fn take(&mut self, event: Event) -> Option<Piece> {
        match event {
            Event::Read { shared } => self.shared += shared,
            Event::PromptScores { place, scores } => self.prompt_scores[place] = scores,
            Event::Piece(piece) => {
                let choice = &mut self.choices[piece.choice];
                choice.text.push_str(&piece.text);
                choice.scores.extend(piece.scores.iter().cloned());
                return Some(piece);
            }
            Event::Ended { choice, reason, made } => {
                let choice = &mut self.choices[choice];
                (choice.reason, choice.made) = (Some(reason), made);
                self.left -= 1;
            }
            Event::Embedded { place, mean } => {
                self.embedded[place] = mean;
                self.left -= 1;
            }
            Event::Failed(failure) => self.failure = Some(failure),
        }
        None
    }

    /// Whether there are probabilities of tokens.
    pub fn has_scores(&self) -> bool {
        self.choices.iter().any(|choice| !choice.scores.is_empty())
            || self.prompt_scores.iter().any(|scores| !scores.is_empty())
    }

    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// What is said of a request that ended without an answer, to the client and in the log. Without a failure the engine has
    /// gone.
    pub fn failed(&self) -> (ApiError, &'static str) {
        let error = |status, kind, why: &str| ApiError::new(status, kind, why);
        match &self.failure {
            Some(Failure::OutOfTime) => {
                (error(504, "timeout_error", "the time for a request is over"), "out of time")
            }
            Some(Failure::ShuttingDown(why)) => (error(503, "server_error", why), "shut down"),
            // The request's own: as large, or as impossible, when it is asked again.
            Some(Failure::Constraint(why)) => {
                let why = format!("the constraint: {why:.REASON$}");
                (error(400, "invalid_request_error", &why), "constraint")
            }
            None => (error(500, "server_error", "the engine has failed"), "failed"),
        }
    }

    /// Tokens of all answers.
    pub fn made(&self) -> usize {
        self.choices.iter().map(|choice| choice.made).sum()
    }

    pub fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.made(),
            "total_tokens": self.prompt_tokens + self.made(),
            "prompt_tokens_details": { "cached_tokens": self.shared },
        })
    }
}

/// Why an answer ended, as clients call it.
pub fn finish_reason(reason: Option<Reason>) -> Value {
    match reason {
        None => Value::Null,
        Some(Reason::Stop) => "stop".into(),
        Some(Reason::Length) => "length".into(),
    }
}

/// A token as a text; what is no text by its bytes.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    String::from_utf8(bytes).unwrap_or_else(|e| {
        let bytes = e.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", bytes.collect::<String>())
    })
}

/// JSON has no infinity; this is what OpenAI's API says instead.
pub fn finite(log_probability: f32) -> f32 {
    log_probability.max(-9999.0)
}
