//! Among how many threads an operation is shared out.

use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Tasks of an operation for each thread.
const EACH: usize = 2;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Threads that the operation at hand may use.
pub(super) fn count() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Tasks that the operation at hand is best cut into: several for each thread, so that one that something else slows down
/// does less; 1 where there is but one thread.
pub(super) fn tasks() -> usize {
    if count() > 1 { EACH * count() } else { 1 }
}

/// What [`ALONE`] is again when a part is done, or has failed.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        ALONE.set(self.0);
    }
}

/// Calls `f` with each part of some work and its number, at the same time; the results in order. With as many parts as
/// threads, or more, [`count`] is 1 within a part: dense products and those on tiles are not cut for other threads. What is
/// shared out by rayon alone may still be finished by a thread that has nothing else to do.
pub fn side_by_side<T: Send, R: Send>(work: Vec<T>, f: impl Fn((usize, T)) -> R + Sync) -> Vec<R> {
    let enough = work.len() >= rayon::current_num_threads();
    let run = |part| {
        let _before = Before(ALONE.replace(enough || ALONE.get()));
        f(part)
    };
    work.into_par_iter().enumerate().with_max_len(1).map(run).collect()
}

/// Calls `f` on rectangles of a result, rows and columns, that cover all of it: at least as many as `wanted` if it is large
/// enough, on this thread alone where that is 1. They are at most `most` high and wide, which are multiples of `unit` or
/// the whole size, and multiples of `unit` except at the ends.
pub(super) fn rectangles(
    (rows, columns): (usize, usize),
    most: (usize, usize),
    unit: (usize, usize),
    wanted: usize,
    f: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    let part = |len: usize, most: usize, unit: usize| len.div_ceil(len.div_ceil(most)).next_multiple_of(unit);
    let (mut height, mut width) = (part(rows, most.0, unit.0), part(columns, most.1, unit.1));
    while rows.div_ceil(height) * columns.div_ceil(width) < wanted {
        // The longer side, of those that leave two units.
        let (low, narrow) = (height <= 2 * unit.0, width <= 2 * unit.1);
        let (side, unit) = match (low, narrow) {
            (true, true) => break,
            (true, false) => (&mut width, unit.1),
            (false, false) if width >= height => (&mut width, unit.1),
            (false, _) => (&mut height, unit.0),
        };
        *side = (*side / 2).next_multiple_of(unit);
    }
    let across = columns.div_ceil(width);
    let task = |t: usize| {
        let (i, j) = (t / across * height, t % across * width);
        f(i..(i + height).min(rows), j..(j + width).min(columns));
    };
    let tasks = rows.div_ceil(height) * across;
    if wanted > 1 && tasks > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn rectangles_cover_everything_once() {
        for (size, most, unit) in [
            ((1, 1), (8, 8), (4, 8)),
            ((100, 37), (100, 37), (14, 32)),
            ((513, 70), (384, 64), (32, 32)),
            ((5, 1000), (96, 1000), (6, 16)),
        ] {
            for wanted in [1, 2, 3, 16] {
                let seen = Mutex::new(vec![0; size.0 * size.1]);
                let count = Mutex::new(0);
                rectangles(size, most, unit, wanted, |rows, columns| {
                    assert!(rows.start.is_multiple_of(unit.0) && columns.start.is_multiple_of(unit.1));
                    assert!(rows.len() <= most.0 && columns.len() <= most.1);
                    *count.lock().unwrap() += 1;
                    let mut seen = seen.lock().unwrap();
                    rows.for_each(|i| columns.clone().for_each(|j| seen[i * size.1 + j] += 1));
                });
                assert!(seen.into_inner().unwrap().iter().all(|n| *n == 1), "{size:?}, {wanted} wanted");
                let enough = size.0.div_ceil(2 * unit.0) * size.1.div_ceil(2 * unit.1);
                assert!(count.into_inner().unwrap() >= enough.min(wanted), "{size:?}, {wanted} wanted");
            }
        }
    }

    #[test]
    fn parts_side_by_side_know_that_they_are_and_keep_their_order() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (parts, alone) in [(2, false), (3, true), (8, true)] {
            let counts = pool.install(|| side_by_side((0..parts).collect(), |(i, x)| (i, x, count())));
            let wanted: Vec<_> = (0..parts).map(|i| (i, i, if alone { 1 } else { 3 })).collect();
            assert_eq!(counts, wanted);
        }
        assert_eq!(pool.install(count), 3, "afterwards they share their work again");
    }
}
