//! What bounds a server.

use std::time::Duration;

use crate::config::KvFormat;
use crate::error::{Error, Result};
use crate::kernels::PAGE;

/// Bounds of a server, and who may use it. Every one is a limit that holds from the first request on.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of a sequence at most, prompt and answer together.
    pub context: usize,
    /// Sequences that run together.
    pub parallel: usize,
    /// Prompts that wait for a place; more are refused.
    pub queue: usize,
    /// Tokens of prompts that a pass reads at most: a multiple of [`PAGE`].
    pub chunk: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Connections that are open at once; more wait to be accepted.
    pub connections: usize,
    /// From a request's arrival to its last token.
    pub time: Duration,
    /// How long a client may take to send a request, or to take some of an answer.
    pub patience: Duration,
    /// How long running requests may go on once the server is to stop.
    pub grace: Duration,
    /// Whoever does not name it is refused, if there is one.
    pub api_key: Option<String>,
    /// How keys and values are kept.
    pub kv: KvFormat,
}

/// A year: no clock of a machine runs over.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl Default for Options {
    fn default() -> Self {
        Self {
            context: 4096,
            parallel: 8,
            queue: 64,
            chunk: PAGE,
            body: 2 << 20,
            connections: 1024,
            time: Duration::from_secs(600),
            patience: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            api_key: None,
            kv: KvFormat::F16,
        }
    }
}

impl Options {
    /// Judges the values, as they come from a command line.
    ///
    /// # Errors
    /// The first that is out of its range, by name.
    pub fn validate(&self) -> Result<()> {
        for (name, value, least, most) in [
            ("--context", self.context, 2, 1 << 24),
            ("--parallel", self.parallel, 1, 1024),
            ("--queue", self.queue, 1, 1 << 20),
            ("--chunk", self.chunk, PAGE, 1 << 16),
            ("--body", self.body, 1 << 10, 1 << 30),
            ("--connections", self.connections, 1, 1 << 16),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::usage(format!("{name} {value}: wanted {least} to {most}")));
            }
        }
        for (name, value) in [("--time", self.time), ("--patience", self.patience), ("--grace", self.grace)] {
            let least = if name == "--grace" { Duration::ZERO } else { Duration::from_millis(1) };
            if !(least..=LONGEST).contains(&value) {
                let (found, most) = (value.as_secs(), LONGEST.as_secs());
                let wanted = if least.is_zero() { "at most" } else { "above 0 and at most" };
                return Err(Error::usage(format!("{name} {found}: wanted {wanted} {most} s")));
            }
        }
        if !self.chunk.is_multiple_of(PAGE) {
            return Err(Error::usage(format!("--chunk {}: wanted a multiple of {PAGE}", self.chunk)));
        }
        if self.api_key.as_ref().is_some_and(|key| key.is_empty() || !key.is_ascii()) {
            return Err(Error::usage("--api-key: wanted one or more ASCII characters"));
        }
        Ok(())
    }
}
