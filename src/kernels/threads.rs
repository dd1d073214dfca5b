//! Among how many threads an operation is shared out.

use rayon::prelude::*;
use std::cell::Cell;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Threads that the operation at hand may use.
pub(super) fn count() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Calls `f` with each part of some work and its number, at the same time; the results in order. With as many parts as
/// threads, or more, products within a part stay on the part's thread.
pub fn side_by_side<T: Send, R: Send>(work: Vec<T>, f: impl Fn((usize, T)) -> R + Sync) -> Vec<R> {
    let enough = work.len() >= rayon::current_num_threads();
    let run = |part| {
        let before = ALONE.replace(enough || ALONE.get());
        let result = f(part);
        ALONE.set(before);
        result
    };
    work.into_par_iter().enumerate().with_max_len(1).map(run).collect()
}
