//! Prompts that wait for a place, oldest first, and no more than the queue holds.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use super::{Event, Failure, Job, Metrics, stays};

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// How many wait.
    Full(usize),
    Closed,
}

/// The queue between HTTP tasks and the engine.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Takes nothing more.
    closed: bool,
    /// Everything is to end at once, for this reason.
    ended: Option<String>,
}

impl Queue {
    pub fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limit, metrics }
    }

    /// Prompts that it holds at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Takes all prompts of a request, or none.
    pub fn push(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed || state.ended.is_some() {
            return Err(Refused::Closed);
        }
        if state.waiting.len() + jobs.len() > self.limit {
            return Err(Refused::Full(state.waiting.len()));
        }
        state.waiting.extend(jobs);
        self.metrics.waiting.set(state.waiting.len());
        self.changed.notify_one();
        Ok(())
    }

    /// The oldest prompt, if it fits. Those whose client has gone, or whose time is over, are dropped.
    pub fn pop(&self, fits: impl FnOnce(&Job) -> bool) -> Option<Job> {
        let mut state = self.lock();
        let now = Instant::now();
        state.waiting.retain(|job| stays(&job.events, job.deadline, now));
        let job = if state.waiting.front().is_some_and(fits) { state.waiting.pop_front() } else { None };
        self.metrics.waiting.set(state.waiting.len());
        job
    }

    /// Waits until there is a prompt, or an end.
    pub fn wait(&self) {
        let mut state = self.lock();
        while state.waiting.is_empty() && state.ended.is_none() {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Whether it takes nothing more.
    pub fn is_closed(&self) -> bool {
        let state = self.lock();
        state.closed || state.ended.is_some()
    }

    /// Refuses what comes from now on.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Ends everything, for this reason.
    pub fn end(&self, why: &str) {
        let mut state = self.lock();
        state.ended.get_or_insert_with(|| why.to_string());
        for job in state.waiting.drain(..) {
            let _ = job.events.send(Event::Failed(Failure::ShuttingDown(why.to_string())));
        }
        self.changed.notify_one();
    }

    /// Why everything is to end, if it is.
    pub fn ended(&self) -> Option<String> {
        self.lock().ended.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}
