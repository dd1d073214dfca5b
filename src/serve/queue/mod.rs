//! What waits for the engine, and what the engine says of it: the one thing that HTTP tasks and the engine share.

mod metrics;
mod waiting;

use std::time::Instant;

use llguidance::Matcher;
use tokio::sync::mpsc::UnboundedSender;

use crate::generate::{SamplingConfig, Scored};

pub use metrics::Metrics;
pub use waiting::{Queue, Refused};

/// Where the engine tells a request what happens.
pub type Events = UnboundedSender<Event>;

/// One prompt of a request.
pub struct Job {
    pub prompt: Vec<u32>,
    /// Its place among the prompts of the request.
    pub place: usize,
    pub task: Task,
    /// Closed when the client has gone away. Bounded by the length of the answer.
    pub events: Events,
    pub arrived: Instant,
    /// When it ends, done or not.
    pub deadline: Instant,
}

/// What is wanted of a prompt.
pub enum Task {
    Generate(Box<Generate>),
    /// The mean of the last hidden states.
    Embed,
}

/// Answers to a prompt.
#[derive(Clone)]
pub struct Generate {
    /// How many; the seed of each is one more than that of the one before.
    pub choices: usize,
    pub sampling: SamplingConfig,
    pub bias: Vec<(u32, f32)>,
    /// Tokens of each at most.
    pub limit: usize,
    pub stop: Vec<String>,
    /// With how many of the most likely tokens those of the answer are scored; `None`: not.
    pub scores: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_scores: Option<usize>,
    /// What the answer must be.
    pub constraint: Option<Matcher>,
}

impl Job {
    /// Sequences that it takes.
    pub fn sequences(&self) -> usize {
        match &self.task {
            Task::Generate(generate) => generate.choices,
            Task::Embed => 1,
        }
    }
}

/// Whether a prompt keeps its place: its client is still there, and its time is not over. A client whose time is over is
/// told.
pub fn stays(events: &Events, deadline: Instant, now: Instant) -> bool {
    if deadline <= now {
        let _ = events.send(Event::Failed(Failure::OutOfTime));
    }
    deadline > now && !events.is_closed()
}

/// What the engine says of a request, in the order in which it happens.
#[derive(Debug)]
pub enum Event {
    /// A prompt has been read; so many of its tokens another had computed.
    Read {
        shared: usize,
    },
    /// Of every token of a prompt but the first.
    PromptScores {
        place: usize,
        scores: Vec<Scored>,
    },
    Piece(Piece),
    Ended {
        choice: usize,
        reason: Reason,
        made: usize,
    },
    Embedded {
        place: usize,
        mean: Vec<f32>,
    },
    /// Nothing more comes.
    Failed(Failure),
}

/// Some more of an answer.
#[derive(Debug, Default)]
pub struct Piece {
    /// Counted through all prompts of the request.
    pub choice: usize,
    pub text: String,
    /// Tokens that the text is made of, where scores were asked for.
    pub scores: Vec<Scored>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A stop token, a stop string, or the end of what a constraint allows.
    Stop,
    /// The limit, or the end of the context.
    Length,
}

/// Why a request ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    OutOfTime,
    ShuttingDown(String),
    /// The constraint could not be followed further.
    Constraint(String),
}
