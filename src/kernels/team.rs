//! Threads for operations of a few microseconds: they wait awake for a moment, which costs less than waking them.
//!
//! A token of a small model is some hundred products of 1 to 20 µs, and a fork of rayon's pool, whose threads have gone to
//! sleep meanwhile, takes as long. Here a helper that is awake joins within a fraction of one; one that is late, because
//! the machine runs something else on its core, is not waited for.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a helper waits awake for the next operation.
const AWAKE: Duration = Duration::from_micros(200);
/// Looks between two at the clock.
const LOOKS: u32 = 64;

/// The operation at hand, erased: it outlives every helper's part in it, which [`share`] waits for.
#[derive(Clone, Copy)]
struct Job {
    /// Does one part.
    run: unsafe fn(*const (), usize),
    data: *const (),
    parts: usize,
}
// SAFETY: what `data` points at is `Sync`, by the bound of `share`.
unsafe impl Send for Job {}

struct Shared {
    /// 1 while an operation is open to helpers; those inside are counted in the upper half.
    state: AtomicU64,
    /// Written while nobody is inside.
    job: std::cell::UnsafeCell<Option<Job>>,
    /// The next part to be done.
    next: AtomicUsize,
    failed: Mutex<Option<Box<dyn Any + Send>>>,
}
// SAFETY: `job` is written only by whoever holds the team, between operations, and read only by helpers inside of one.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

const INSIDE: u64 = 1 << 32;

impl Shared {
    /// Counts the caller in, if an operation is open; whether one is.
    fn enter(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & 1 == 0 {
                return false;
            }
            match self.state.compare_exchange_weak(
                state,
                state + INSIDE,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// Does parts until none is left.
    fn work(&self, job: Job) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= job.parts {
                return;
            }
            // SAFETY: `data` is what `run` was made for, and lives until the operation has ended.
            unsafe { (job.run)(job.data, part) };
        }
    }
}

struct Helper {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

struct Team {
    shared: Arc<Shared>,
    helpers: Vec<Helper>,
    /// Held by the one operation that the team works on.
    leader: Mutex<()>,
}

impl Team {
    fn new(helpers: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: std::cell::UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            failed: Mutex::new(None),
        });
        let start = |i: usize| {
            let (shared, asleep) = (shared.clone(), Arc::new(AtomicBool::new(false)));
            let mine = asleep.clone();
            let thread = thread::Builder::new().name(format!("team {i}")).spawn(move || help(&shared, &mine));
            // With fewer threads than wanted the others do more.
            Some(Helper { thread: thread.ok()?.thread().clone(), asleep })
        };
        let helpers = (0..helpers).filter_map(start).collect();
        Self { shared, helpers, leader: Mutex::new(()) }
    }
}

fn help(shared: &Shared, asleep: &AtomicBool) {
    let mut seen = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if shared.enter() {
                // SAFETY: nobody writes the job while somebody is inside.
                let job = unsafe { (*shared.job.get()).expect("an open operation has a job") };
                if let Err(why) = catch_unwind(AssertUnwindSafe(|| shared.work(job))) {
                    *shared.failed.lock().expect("nothing fails while it is held") = Some(why);
                }
                shared.state.fetch_sub(INSIDE, Ordering::Release);
                seen = Instant::now();
            }
            spin_loop();
        }
        if seen.elapsed() > AWAKE {
            asleep.store(true, Ordering::SeqCst);
            // An operation that began before that was seen has not woken this thread.
            if shared.state.load(Ordering::SeqCst) & 1 == 0 {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            seen = Instant::now();
        }
    }
}

/// Calls `f` with each of `0..parts`, among as many threads as rayon's pool has, and returns when all are done. Parts that
/// take about as long are best; several for each thread, so that one that something else slows down does fewer.
///
/// While another operation has the team, all parts are done by the caller.
pub fn share<F: Fn(usize) + Sync>(parts: usize, f: F) {
    static TEAM: OnceLock<Team> = OnceLock::new();
    let team = TEAM.get_or_init(|| Team::new(rayon::current_num_threads().saturating_sub(1)));
    let held = match team.leader.try_lock() {
        Ok(held) => held,
        Err(TryLockError::Poisoned(held)) => held.into_inner(),
        Err(TryLockError::WouldBlock) => return (0..parts).for_each(f),
    };
    if parts < 2 || team.helpers.is_empty() {
        return (0..parts).for_each(f);
    }
    unsafe fn run<F: Fn(usize)>(data: *const (), part: usize) {
        // SAFETY: `data` is the `F` below.
        unsafe { (*data.cast::<F>())(part) }
    }
    let shared = &*team.shared;
    let job = Job { run: run::<F>, data: (&raw const f).cast(), parts };
    shared.next.store(0, Ordering::Relaxed);
    // SAFETY: this thread has the team, and no helper is inside.
    unsafe { *shared.job.get() = Some(job) };
    shared.state.fetch_or(1, Ordering::SeqCst);
    for helper in &team.helpers {
        if helper.asleep.load(Ordering::SeqCst) {
            helper.thread.unpark();
        }
    }
    let own = catch_unwind(AssertUnwindSafe(|| shared.work(job)));
    // Closed: who has not come in yet stays out; who is inside is waited for, `f` being on this stack.
    shared.state.fetch_and(!1, Ordering::Relaxed);
    while shared.state.load(Ordering::Acquire) >= INSIDE {
        spin_loop();
    }
    let failed = shared.failed.lock().expect("nothing fails while it is held").take();
    drop(held);
    if let Some(why) = own.err().or(failed) {
        resume_unwind(why);
    }
}

/// Calls `f` with each of some things, among the same threads.
pub fn share_each<T: Send>(things: impl IntoIterator<Item = T>, f: impl Fn(T) + Sync) {
    let things: Vec<Mutex<Option<T>>> = things.into_iter().map(|thing| Mutex::new(Some(thing))).collect();
    share(things.len(), |i| {
        let thing = things[i].lock().ok().and_then(|mut thing| thing.take());
        thing.into_iter().for_each(&f);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_by_somebody() {
        for round in 0..2000 {
            let parts = round % 17;
            let done: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            share(parts, |part| {
                done[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1), "round {round}");
            if round % 500 == 0 {
                thread::sleep(2 * AWAKE); // helpers go to sleep, and are woken
            }
        }
    }

    #[test]
    fn everything_is_given_once() {
        let mut values: Vec<usize> = (0..100).collect();
        share_each(values.iter_mut(), |value| *value += 1);
        assert!(values.iter().enumerate().all(|(i, value)| *value == i + 1), "{values:?}");
    }

    #[test]
    fn operations_of_several_threads_and_inside_of_others_are_done_too() {
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        share(5, |part| {
                            share(3, |inner| {
                                sum.fetch_add(part * inner, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 10 * 3);
    }

    #[test]
    fn a_part_that_panics_is_heard_of() {
        let run = || share(8, |part| assert_ne!(part, 5, "part five"));
        assert!(catch_unwind(run).is_err());
        share(8, |_| {});
    }
}
