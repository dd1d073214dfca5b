//! The thread that talks to the other processes: everything goes through it in one order, and a reduction goes on while
//! others compute.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::sum::{Sums, gather_in_pieces};
use super::{Group, Values, Way};
use crate::error::{Error, Result};
use crate::kernels::Buffer;

/// Makes a group on the thread that is to use it.
pub type Maker = Box<dyn FnOnce() -> Result<Box<dyn Group>> + Send>;

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// A block that has been added up.
pub type Reduced = (usize, Buffer, Result<()>);

pub struct Link {
    rank: usize,
    size: usize,
    place: String,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    spent: Arc<Counters>,
}

/// What reductions have cost since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Bytes that this process sent.
    pub bytes: u64,
    pub time: Duration,
}

#[derive(Default)]
struct Counters {
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

struct Worker {
    group: Box<dyn Group>,
    sums: Sums,
}

impl Link {
    /// # Errors
    /// Those of `make`.
    pub fn open(make: Maker, way: Way) -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (ready, made) = channel();
        let run = move || {
            let mut worker = match make() {
                Ok(group) => {
                    let _ = ready.send(Ok((group.rank(), group.size(), group.place())));
                    Worker { group, sums: Sums::new(way) }
                }
                Err(error) => return drop(ready.send(Err(error))),
            };
            todo.into_iter().for_each(|job| job(&mut worker));
        };
        let thread = std::thread::Builder::new().name("group".into()).spawn(run);
        let thread = thread.map_err(Error::io("start", "a thread"))?;
        let (rank, size, place) = made.recv().map_err(gone)??;
        Ok(Self { rank, size, place, jobs: Some(jobs), thread: Some(thread), spent: Arc::default() })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// What a person would look for this process by.
    pub fn place(&self) -> &str {
        &self.place
    }

    pub fn spent(&self) -> Spent {
        Spent {
            bytes: self.spent.bytes.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.spent.nanoseconds.load(Ordering::Relaxed)),
        }
    }

    /// Does `work` on the thread, after all that has been asked for before.
    pub fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Group) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = channel();
        let job: Job = Box::new(move |worker| drop(answer.send(work(&mut *worker.group))));
        self.jobs.as_ref().ok_or_else(|| gone(()))?.send(job).map_err(gone)?;
        answered.recv().map_err(gone)?
    }

    /// Takes blocks of gradients, by their number, and gives them back added up, in the same order. `owned(block)` as for
    /// [`Sums::reduce`].
    pub fn reducer<F>(&self, owned: F) -> (impl FnMut(usize, Buffer) + Send + use<F>, Receiver<Reduced>)
    where
        F: Fn(usize) -> Option<Vec<Range<usize>>> + Send + 'static,
    {
        let (done, reduced) = channel();
        let (jobs, spent) = (self.jobs.clone(), self.spent.clone());
        let reduce = move |block: usize, mut buffer: Buffer| {
            let (done, spent, owned) = (done.clone(), spent.clone(), owned(block));
            let job: Job = Box::new(move |worker: &mut Worker| {
                let start = Instant::now();
                let result = worker.sums.reduce(&mut *worker.group, block, &mut buffer, owned.as_deref());
                let bytes = worker.sums.bytes(buffer.len(), worker.group.size(), owned.is_none());
                spent.bytes.fetch_add(bytes, Ordering::Relaxed);
                spent.nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
                let _ = done.send((block, buffer, result));
            });
            // Where the thread has gone, the one who waits for the block is told.
            let _ = jobs.as_ref().map(|jobs| jobs.send(job));
        };
        (reduce, reduced)
    }

    /// Has each process fill its part of `buffer` on all others; it comes back as the answer.
    pub fn gather(&self, mut buffer: Buffer, parts: Vec<Range<usize>>) -> Result<Receiver<Reduced>> {
        let (done, gathered) = channel();
        let spent = self.spent.clone();
        let job: Job = Box::new(move |worker: &mut Worker| {
            let start = Instant::now();
            let result = gather_in_pieces(&mut *worker.group, Values::F32(&mut buffer), &parts);
            let own = parts[worker.group.rank()].len() * (parts.len() - 1);
            spent.bytes.fetch_add(4 * own as u64, Ordering::Relaxed);
            spent.nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            let _ = done.send((0, buffer, result));
        });
        self.jobs.as_ref().ok_or_else(|| gone(()))?.send(job).map_err(gone)?;
        Ok(gathered)
    }

    /// Takes leave of the others.
    pub fn finish(mut self) -> Result<()> {
        let left = self.call(|group| group.finish());
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        left
    }

    /// Ends all processes.
    pub fn abort(&self, text: String) {
        let _ = self.call(move |group| {
            group.abort(&text);
            Ok(())
        });
    }
}

/// For `map_err`, where the thread does not answer.
pub fn gone<T>(_: T) -> Error {
    Error::usage("the thread that talks to the other processes has ended")
}
