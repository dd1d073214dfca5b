//! Processes that train one model together: what they need of each other, and who provides it.
//!
//! A [`Group`] moves bytes and adds numbers: MPI ([`library`]), threads of one process ([`threads`]). [`Link`] gives it a
//! thread of its own, which reduces gradients while the backward pass goes on.

mod launch;
#[cfg(unix)]
mod library;
mod link;
mod sum;
mod threads;
mod values;

pub use launch::{Launch, launched, local_processes, threads_of_each};
pub use link::{Link, Maker, Reduced, Spent, gone};
pub use sum::{Way, gather_bytes, share};
pub use threads::{Thread, threads};
pub use values::Values;

use std::ops::Range;
use std::time::Duration;

use crate::error::Result;

/// Processes that call the same functions in the same order; each call waits for all of them.
///
/// Parts are ranges of values, one for each process.
pub trait Group {
    /// Which of the processes this is, from 0.
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    /// What a person would look for this process by.
    fn place(&self) -> String;

    /// Every value becomes the sum of those of all processes, in an order of the group's choice, with the same bits on all.
    fn sum(&mut self, values: &mut [f32]) -> Result<()>;

    /// Sends `parts[k]` of `from` to process `k`, and fills `to` with what all processes sent here, by rank: parts are the same
    /// on all of them, so `to` is `size` times as long as the own part.
    fn exchange(&mut self, from: Values<'_>, parts: &[Range<usize>], to: Values<'_>) -> Result<()>;

    /// Fills `parts[k]` of `all` with what stands there on process `k`.
    fn gather(&mut self, all: Values<'_>, parts: &[Range<usize>]) -> Result<()>;

    /// `bytes` become those of process 0.
    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<()>;

    /// Returns when all processes have called it.
    fn barrier(&mut self) -> Result<()>;

    /// How long a call may wait for the others before the job is given up; for ever at first.
    fn set_patience(&mut self, patience: Duration);

    /// Takes leave of the others, who do the same.
    fn finish(&mut self) -> Result<()>;

    /// Ends all processes at once, for the reason that `text` gives; may not return.
    fn abort(&mut self, text: &str);
}

/// The MPI of this machine, where `launch` says that it started us. To be called on the thread that will use it.
///
/// # Errors
/// No library, or one that is not the launcher's.
#[cfg(unix)]
pub fn mpi(launch: &Launch) -> Result<Box<dyn Group>> {
    library::open(launch)
}

/// There is no MPI here that could be opened.
#[cfg(not(unix))]
pub fn mpi(launch: &Launch) -> Result<Box<dyn Group>> {
    let text = format!("{}: found an MPI launcher, wanted none: not on this system", launch.variable);
    Err(crate::error::Error::usage(text))
}
