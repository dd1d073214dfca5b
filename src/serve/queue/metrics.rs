//! Counters, as Prometheus reads them.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    pub fn set(&self, now: usize) {
        self.0.store(now as u64, Ordering::Relaxed);
    }
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper ends of the buckets of times, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// How long something took, by buckets.
#[derive(Debug, Default)]
pub struct Timing {
    /// The last one has what is longer than all ends.
    counts: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Timing {
    pub fn saw(&self, time: Duration) {
        let bucket = BUCKETS.iter().position(|end| time.as_secs_f64() <= *end).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// The mean in seconds, and of how many.
    fn mean(&self) -> (f64, u64) {
        let count: u64 = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        (self.micros.load(Ordering::Relaxed) as f64 / 1e6 / count.max(1) as f64, count)
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut sum = 0;
        for (i, count) in self.counts.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            let end = BUCKETS.get(i).map_or("+Inf".to_string(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{end}\"}} {sum}");
        }
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {sum}");
    }
}

/// All counters of a server.
#[derive(Debug, Default)]
pub struct Metrics {
    pub waiting: Level,
    pub running: Level,
    pub pages: Level,
    pub page_bytes: Level,
    pub connections: Level,
    /// Tokens of prompts that went through the model.
    pub prompt_computed: Count,
    /// Tokens of prompts whose keys and values another prompt had left.
    pub prompt_shared: Count,
    pub made: Count,
    pub passes: Count,
    /// Rows of all passes.
    pub rows: Count,
    pub pages_reclaimed: Count,
    pub gone: Count,
    pub refused: Count,
    pub first_token: Timing,
    pub pass: Timing,
    /// From arrival to the last token.
    pub answers: Timing,
    /// Requests by path and status.
    requests: Mutex<Vec<((&'static str, u16), u64)>>,
}

impl Metrics {
    /// Counts a request that was answered.
    pub fn answered(&self, path: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(|e| e.into_inner());
        match requests.iter_mut().find(|(key, _)| *key == (path, status)) {
            Some((_, count)) => *count += 1,
            None => requests.push(((path, status), 1)),
        }
    }

    /// Seconds until a place may be free for a prompt behind `waiting` others, from how long answers took so far.
    pub fn wait_for(&self, waiting: usize, parallel: usize) -> u64 {
        let (seconds, answers) = self.answers.mean();
        let rounds = waiting as f64 / parallel as f64;
        if answers == 0 { 1 } else { (seconds * rounds).ceil().clamp(1.0, 60.0) as u64 }
    }

    /// Prometheus' text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let levels = [
            ("waiting", "Prompts that wait for a place.", &self.waiting),
            ("running", "Sequences that run.", &self.running),
            ("pages_in_use", "Pages of keys and values that are held.", &self.pages),
            ("page_bytes", "Bytes of a page.", &self.page_bytes),
            ("connections", "Open connections.", &self.connections),
        ];
        for (name, help, level) in levels {
            let _ = writeln!(out, "# HELP ternlm_{name} {help}\n# TYPE ternlm_{name} gauge");
            let _ = writeln!(out, "ternlm_{name} {}", level.get());
        }
        let counts = [
            (
                "prompt_tokens_computed",
                "Tokens of prompts that went through the model.",
                &self.prompt_computed,
            ),
            ("prompt_tokens_shared", "Tokens of prompts that another had computed.", &self.prompt_shared),
            ("tokens_made", "Tokens drawn for answers, those that end one included.", &self.made),
            ("passes", "Passes through the model.", &self.passes),
            ("rows", "Tokens of all passes.", &self.rows),
            ("prefixes_reclaimed", "Kept prefixes whose pages were taken back.", &self.pages_reclaimed),
            ("clients_gone", "Requests whose client went away.", &self.gone),
            ("refused", "Requests refused because the queue was full.", &self.refused),
        ];
        for (name, help, count) in counts {
            let _ = writeln!(out, "# HELP ternlm_{name}_total {help}\n# TYPE ternlm_{name}_total counter");
            let _ = writeln!(out, "ternlm_{name}_total {}", count.get());
        }
        let _ = writeln!(
            out,
            "# HELP ternlm_requests_total Requests by path and status.\n# TYPE ternlm_requests_total counter"
        );
        for ((path, status), count) in self.requests.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let _ = writeln!(out, "ternlm_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}");
        }
        self.first_token.write("ternlm_first_token_seconds", "From arrival to the first token.", &mut out);
        self.answers.write("ternlm_answer_seconds", "From arrival to the last token.", &mut out);
        self.pass.write("ternlm_pass_seconds", "Time of a pass through the model.", &mut out);
        out
    }
}
