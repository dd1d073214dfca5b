//! What a training asks of the processes that it shares its steps with. One that is alone asks nobody.

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::group::{Link, Reduced, Spent, Values, gather_bytes, share};
use super::shards::Shards;
use crate::error::{Error, Result};
use crate::model::{Decoder, Gradients, Latents, Outlet};

/// Bytes of a digest of a tensor.
const DIGEST: usize = 16;

/// The processes of a training.
#[derive(Default)]
pub struct Together {
    link: Option<Link>,
    /// Blocks of gradients that are being added up.
    reduced: Option<(Receiver<Reduced>, usize)>,
    waited: Duration,
    /// How long this process waits for the others; for ever at first.
    patience: Option<Duration>,
    /// Where each process updates a part of the model.
    shards: Option<Arc<Shards>>,
    /// The last error is everybody's: all processes have it, and none waits for another.
    shared_error: bool,
}

impl Together {
    /// One process.
    pub fn alone() -> Self {
        Self::default()
    }

    pub fn over(link: Link) -> Self {
        let waited = Duration::ZERO;
        Self { link: Some(link), reduced: None, waited, patience: None, shards: None, shared_error: false }
    }

    pub fn is_alone(&self) -> bool {
        self.link.is_none()
    }

    pub fn rank(&self) -> usize {
        self.link.as_ref().map_or(0, Link::rank)
    }

    pub fn size(&self) -> usize {
        self.link.as_ref().map_or(1, Link::size)
    }

    /// Whether this process writes what there is to be written and says what there is to be said.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Time for which this process has waited for others.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// What adding up gradients has cost.
    pub fn spent(&self) -> Spent {
        self.link.as_ref().map(Link::spent).unwrap_or_default()
    }

    /// Of `count` sequences from number `cursor` on those of this process: every one of as many as there are processes.
    pub fn numbers(&self, cursor: u64, count: usize) -> impl ExactSizeIterator<Item = u64> + use<> {
        let (rank, size) = (self.rank(), self.size());
        (rank..count).step_by(size).map(move |n| cursor + n as u64)
    }

    /// Each of the numbers added up over all processes, in the order of rank.
    pub fn sum<const N: usize>(&mut self, numbers: [f64; N]) -> Result<[f64; N]> {
        if self.is_alone() {
            return Ok(numbers);
        }
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut sums = [0.0; N];
        for (rank, bytes) in self.gather(bytes)?.into_iter().enumerate() {
            for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks().0) {
                let x = f64::from_le_bytes(*bytes);
                *sum = if rank == 0 { x } else { *sum + x };
            }
        }
        Ok(sums)
    }

    /// Whether it is so on one of the processes.
    pub fn any(&mut self, here: bool) -> Result<bool> {
        self.sum([here as u8 as f64]).map(|[count]| count > 0.0)
    }

    /// Returns when all have come so far.
    pub fn barrier(&mut self) -> Result<()> {
        self.ask(|link| link.call(|group| group.barrier())).unwrap_or(Ok(()))
    }

    /// The bytes of all processes, by rank; as many of each.
    fn gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let (rank, size, len) = (self.rank(), self.size(), bytes.len());
        let gathered = self.ask(|link| {
            let mut all = vec![0; len * size];
            all[rank * len..(rank + 1) * len].copy_from_slice(&bytes);
            link.call(move |group| {
                group.gather(Values::Bytes(&mut all), &share(len * size, size))?;
                Ok(all)
            })
        });
        match gathered {
            Some(all) => Ok(all?.chunks(len.max(1)).map(<[u8]>::to_vec).collect()),
            None => Ok(vec![bytes]),
        }
    }

    /// The texts of all processes, by rank.
    fn texts(&mut self, text: &str) -> Result<Vec<String>> {
        let lens = self.gather((text.len() as u64).to_le_bytes().to_vec())?;
        let lens: Vec<usize> = lens
            .iter()
            .map(|len| u64::from_le_bytes(len[..].try_into().expect("eight bytes")) as usize)
            .collect();
        let longest = lens.iter().copied().max().unwrap_or(0);
        let mut padded = text.as_bytes().to_vec();
        padded.resize(longest, b' ');
        let all = self.gather(padded)?;
        Ok(all
            .iter()
            .zip(lens)
            .map(|(text, len)| String::from_utf8_lossy(&text[..len]).into_owned())
            .collect())
    }

    /// What a person would look for each process by.
    pub fn places(&mut self) -> Result<Vec<String>> {
        let own = self.link.as_ref().map(|link| link.place().to_string()).unwrap_or_default();
        self.texts(&own)
    }

    /// The text of the first process that has one.
    pub fn first_text(&mut self, text: Option<String>) -> Result<Option<String>> {
        let texts = self.texts(&text.unwrap_or_default())?;
        Ok(texts.into_iter().find(|text| !text.is_empty()))
    }

    /// The text of process 0.
    pub fn text_of_first(&mut self, text: &str) -> Result<String> {
        let len = text.len() as u64;
        let broadcast = |mut bytes: Vec<u8>| {
            move |link: &Link| {
                link.call(move |group| {
                    group.broadcast(&mut bytes)?;
                    Ok(bytes)
                })
            }
        };
        let Some(first) = self.ask(broadcast(len.to_le_bytes().to_vec())) else { return Ok(text.into()) };
        let first = u64::from_le_bytes(first?[..].try_into().expect("eight bytes")) as usize;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(first, 0);
        let bytes = self.ask(broadcast(bytes)).expect("not alone")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Asks the others, and counts how long the answer takes.
    fn ask<T>(&mut self, what: impl FnOnce(&Link) -> T) -> Option<T> {
        let link = self.link.as_ref()?;
        let start = Instant::now();
        let answer = what(link);
        self.waited += start.elapsed();
        Some(answer)
    }

    /// `result`, unless one of the others failed: then all fail, with the errors of those that did.
    pub fn agree<T>(&mut self, result: Result<T>) -> Result<T> {
        if self.is_alone() || !self.any(result.is_err())? {
            return result;
        }
        let text = result.as_ref().err().map(Error::to_string).unwrap_or_default();
        let texts = self.texts(&text)?;
        self.shared_error = true;
        let mut said = Vec::new();
        for (rank, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            // The same everywhere is one error.
            if !texts[..rank].contains(text) {
                said.push(format!("process {rank} of {}: {text}", texts.len()));
            }
        }
        let everywhere = texts.iter().all(|text| *text == texts[0]);
        Err(match result {
            Err(error) if everywhere => error,
            _ => Error::usage(said.join("; ")),
        })
    }

    /// An error that all processes have alike.
    pub fn alike(&mut self, error: Error) -> Error {
        self.shared_error = true;
        error
    }

    /// Has `grads` added up over all processes while the backward pass that is about to begin finishes them.
    pub fn begin_reduction(&mut self, grads: &mut Gradients) {
        if let Some(link) = &self.link {
            let shards = self.shards.clone();
            let (outlet, reduced) = link.reducer(move |block| shards.as_ref()?.blocks[block].clone());
            grads.set_outlet(Some(Outlet(Box::new(outlet))));
            self.reduced = Some((reduced, grads.lens().len()));
        }
    }

    /// Waits until they are.
    pub fn end_reduction(&mut self, grads: &mut Gradients) -> Result<()> {
        let Some((reduced, blocks)) = self.reduced.take() else { return Ok(()) };
        grads.set_outlet(None);
        let start = Instant::now();
        for _ in 0..blocks {
            let (block, values, result) = reduced.recv().map_err(super::group::gone)?;
            result?;
            grads.put(block, values);
        }
        self.waited += start.elapsed();
        Ok(())
    }

    /// From now on each process updates rows of its own, those of `shards`.
    pub fn shard(&mut self, shards: Arc<Shards>) {
        self.shards = Some(shards);
    }

    pub fn shards(&self) -> Option<&Arc<Shards>> {
        self.shards.as_ref()
    }

    /// Where each process has updated rows of its own, brings those of the others here, and projections up to date.
    ///
    /// # Errors
    /// A latent that is not finite, by its tensor's name: the same on all.
    pub fn gather_latents(&mut self, decoder: &mut Decoder, latents: &mut Latents) -> Result<()> {
        let (Some(link), Some(shards)) = (&self.link, &self.shards) else { return Ok(()) };
        let mut away = VecDeque::new();
        for weight in decoder.weights_mut() {
            away.push_back(match &shards.values[weight.index()] {
                Some(values) => Some(link.gather(latents.take(weight), values.clone())?),
                None => None,
            });
        }
        for weight in decoder.weights_mut() {
            let Some(gathered) = away.pop_front().expect("one for each") else { continue };
            let start = Instant::now();
            let (_, values, result) = gathered.recv().map_err(super::group::gone)?;
            self.waited += start.elapsed();
            result?;
            latents.put(weight, values)?;
        }
        Ok(())
    }

    /// The parts of all processes, so many bytes of each, one after the other.
    pub fn joined(&self, own: Vec<u8>, lens: &[usize]) -> Result<Vec<u8>> {
        let Some(link) = &self.link else { return Ok(own) };
        let mut parts = Vec::new();
        let mut all = 0;
        for len in lens {
            parts.push(all..all + len);
            all += len;
        }
        let rank = link.rank();
        link.call(move |group| {
            let mut bytes = vec![0; all];
            bytes[parts[rank].clone()].copy_from_slice(&own);
            gather_bytes(group, &mut bytes, &parts)?;
            Ok(bytes)
        })
    }

    /// The root mean squares that all processes have measured of their rows, of all rows.
    pub fn join_updates(&mut self, decoder: &Decoder, updates: &mut [f64]) -> Result<()> {
        let Some(shards) = self.shards.clone() else { return Ok(()) };
        let all = self.gather(updates.iter().flat_map(|x| x.to_le_bytes()).collect())?;
        for weight in decoder.weights().filter(|weight| shards.rows(weight).is_some()) {
            let at = 8 * weight.index();
            let of = |bytes: &Vec<u8>| f64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            updates[weight.index()] = all.iter().map(|bytes| of(bytes).powi(2)).sum::<f64>().sqrt();
        }
        Ok(())
    }

    /// Compares the latents of all processes.
    ///
    /// # Errors
    /// The first tensor that is not the same on all.
    pub fn compare(&mut self, decoder: &Decoder, latents: &Latents) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let weights: Vec<_> = decoder.weights().collect();
        let digests: Vec<[u8; DIGEST]> = weights.par_iter().map(|w| digest(latents.of(w))).collect();
        let all = self.gather(digests.concat())?;
        for (nth, weight) in weights.iter().enumerate() {
            let of = |rank: usize| &all[rank][nth * DIGEST..(nth + 1) * DIGEST];
            if let Some(rank) = (1..all.len()).find(|rank| of(*rank) != of(0)) {
                return Err(self.alike(Error::usage(format!(
                    "{}: process {rank} of {} has other values than process 0: the processes have come apart, which a fault \
                     of memory, processor or network can do",
                    weight.name,
                    all.len()
                ))));
            }
        }
        Ok(())
    }

    /// From now on waits for the others no longer than that.
    pub fn set_patience(&mut self, patience: Duration) -> Result<()> {
        self.patience = Some(patience);
        self.wait_longer(Duration::ZERO)
    }

    /// From now on waits so much longer than that: while one of them does what takes long.
    pub fn wait_longer(&mut self, more: Duration) -> Result<()> {
        let Some(patience) = self.patience.map(|patience| patience.saturating_add(more)) else {
            return Ok(());
        };
        let set = |link: &Link| {
            link.call(move |group| {
                group.set_patience(patience);
                Ok(())
            })
        };
        self.ask(set).unwrap_or(Ok(()))
    }

    /// Takes leave of the others after the last thing that was done together: this process is alone from here on.
    pub fn leave(&mut self) -> Result<()> {
        self.link.take().map_or(Ok(()), Link::finish)
    }

    /// Ends with an error that is `error`: after an orderly leave where all processes have it, which process 0 alone is to
    /// tell; else by ending all of them.
    pub fn fail(&mut self, error: Error) -> Error {
        let Some(link) = self.link.take() else { return error };
        if !self.shared_error {
            link.abort(error.to_string());
            return error;
        }
        let leads = link.rank() == 0;
        let _ = link.finish();
        if leads { error } else { Error::usage("") }
    }
}

impl Drop for Together {
    /// Of a process that panics, or leaves by a way that nobody thought of: the others shall not wait for it.
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.abort("it ended before its time".into());
        }
    }
}

/// SHA-256, shortened.
fn digest(values: &[f32]) -> [u8; DIGEST] {
    const PIECE: usize = 1 << 12;
    let mut hash = Sha256::new();
    let mut bytes = [0; 4 * PIECE];
    for piece in values.chunks(PIECE) {
        let bytes = &mut bytes[..4 * piece.len()];
        bytes.as_chunks_mut().0.iter_mut().zip(piece).for_each(|(b, x)| *b = x.to_le_bytes());
        hash.update(&*bytes);
    }
    hash.finalize()[..DIGEST].try_into().expect("as many bytes")
}
