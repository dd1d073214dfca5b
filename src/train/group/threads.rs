//! Threads of one process as a group: for tests, and to see what the seam asks for.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::{Group, Values};
use crate::error::{Error, Result};

/// One thread's end of a group.
pub struct Thread {
    rank: usize,
    room: Arc<Room>,
    patience: Duration,
    finished: bool,
}

struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What each thread has put down in this round.
    put: Vec<Option<Vec<Vec<u8>>>>,
    /// How many have read it.
    read: usize,
    /// Why there will be no further round.
    dead: Option<String>,
}

/// The ends of a group of so many threads, by rank.
pub fn threads(size: usize) -> Vec<Thread> {
    let state = State { put: vec![None; size], read: 0, dead: None };
    let room = Arc::new(Room { state: Mutex::new(state), changed: Condvar::new() });
    let end = |rank| Thread { rank, room: room.clone(), patience: Duration::MAX, finished: false };
    (0..size).map(end).collect()
}

impl Thread {
    fn state(&self) -> MutexGuard<'_, State> {
        self.room.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until `ready`.
    fn when(&self, ready: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        let waits = |state: &mut State| state.dead.is_none() && !ready(state);
        let wait = self.room.changed.wait_timeout_while(state, self.patience, waits);
        let (mut state, waited) = wait.unwrap_or_else(|e| e.into_inner());
        if waited.timed_out() {
            state.dead = Some(format!("found no answer from the other threads for {:?}", self.patience));
            self.room.changed.notify_all();
        }
        match &state.dead {
            Some(why) => Err(Error::usage(why)),
            None => Ok(state),
        }
    }

    /// Puts down a piece for each thread; the pieces that all put down for this one.
    fn round(&mut self, pieces: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let (rank, size) = (self.rank, self.size());
        let mut state = self.when(|state| state.put[rank].is_none())?;
        state.put[rank] = Some(pieces);
        self.room.changed.notify_all();
        drop(state);
        let mut state = self.when(|state| state.put.iter().all(Option::is_some))?;
        let here = state.put.iter().flatten().map(|pieces| pieces[rank].clone()).collect();
        state.read += 1;
        if state.read == size {
            state.read = 0;
            state.put.iter_mut().for_each(|put| *put = None);
        }
        self.room.changed.notify_all();
        Ok(here)
    }
}

impl Group for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.state().put.len()
    }

    fn place(&self) -> String {
        "a thread".into()
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        let len = values.len();
        let all = self.round(vec![Values::F32(&mut *values).copied(0..len); self.size()])?;
        // Another order than that of rank: the result must not depend on it being the same.
        values.fill(0.0);
        let mut part = vec![0.0; len];
        for bytes in all.iter().rev() {
            Values::F32(&mut part).set(0, bytes);
            values.iter_mut().zip(&part).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }

    fn exchange(&mut self, from: Values<'_>, parts: &[Range<usize>], mut to: Values<'_>) -> Result<()> {
        let own = parts[self.rank].len();
        assert_eq!(to.len(), own * parts.len(), "room for {} parts of {own} values", parts.len());
        let all = self.round(parts.iter().map(|part| from.copied(part.clone())).collect())?;
        all.iter().enumerate().for_each(|(rank, bytes)| to.set(rank * own, bytes));
        Ok(())
    }

    fn gather(&mut self, mut all: Values<'_>, parts: &[Range<usize>]) -> Result<()> {
        let own = all.copied(parts[self.rank].clone());
        let pieces = self.round(vec![own; parts.len()])?;
        parts.iter().zip(pieces).for_each(|(part, bytes)| all.set(part.start, &bytes));
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<()> {
        let first = self.round(vec![bytes.to_vec(); self.size()])?.swap_remove(0);
        bytes.copy_from_slice(&first);
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        self.round(vec![Vec::new(); self.size()]).map(drop)
    }

    fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn finish(&mut self) -> Result<()> {
        self.finished = true;
        Ok(())
    }

    fn abort(&mut self, text: &str) {
        self.state().dead.get_or_insert(text.to_string());
        self.finished = true;
        self.room.changed.notify_all();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if !self.finished {
            self.abort(&format!("process {} of {} is gone", self.rank, self.size()));
        }
    }
}
