//! What a teacher says of the text of a training, stored once for as many trainings as like.
//!
//! Positions are stored, not windows, so that a training of any seed, order and phase finds its own. The teacher reads windows of
//! `train.seq` tokens, half a window apart; a position is taken from the one in which it has half a window before it, or more,
//! and of the first window all are.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::cost::teacher_pass_bytes;
use super::setup::{teacher_of, tokenizer};
use super::{Taught, differences};
use crate::config::Recipe;
use crate::error::{Error, Result};
use crate::files::{self, FolderLock, if_there};
use crate::formats::lessons::{self, Index};
use crate::machine::Memory;
use crate::model::{Decoder, Sequences, State};
use crate::number::gib;
use crate::text::Corpus;

/// Tokens of the windows that pass through the teacher together, if one has no more. Fixed: products of another number of rows
/// may round otherwise.
const ROWS: usize = 2048;
/// Likeliest tokens of a position where nothing is said.
const TOP: usize = 64;

/// Lessons that are being made in a folder.
pub struct Teaching {
    pub index: Index,
    folder: PathBuf,
    corpus: Corpus,
    teacher: Taught,
    /// Shards that there are not yet.
    missing: Vec<usize>,
    _lock: FolderLock,
}

impl Teaching {
    /// Of the teacher and the text of `recipe`, which has been validated, in `folder`: `top` tokens a position (64, or the
    /// vocabulary where that is less), `shard` positions a file. What the folder has of the same lessons stays. `cache` and
    /// `progress` are as those of [`setup`](super::setup).
    ///
    /// # Errors
    /// A folder with other lessons, a teacher that cannot teach such a training, too little memory for it, a text that is too short.
    pub fn open(
        recipe: &Recipe,
        top: Option<usize>,
        shard: usize,
        folder: &Path,
        cache: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self> {
        let Some((weights, shape)) = teacher_of(recipe)? else {
            return Err(Error::usage("distill.teacher: found nothing, wanted the model to store lessons of"));
        };
        let (context, vocabulary) = (recipe.train.seq, shape.vocab_size);
        let top = top.unwrap_or(TOP.min(vocabulary));
        for (key, found, most) in [("top", top, vocabulary), ("shard", shard, u32::MAX as usize)] {
            if !(1..=most).contains(&found) {
                return Err(Error::usage(format!("--{key}: found {found}, wanted 1 to {most}")));
            }
        }
        let rows = (context * Self::windows_at_once(context)) as u128;
        // Tokens and probabilities of a shard, and as they are written.
        let held = 14 * shard as u128 * top as u128;
        judge_memory(weights + teacher_pass_bytes(&shape, rows, false) + held)?;
        let lock = FolderLock::acquire(folder)?;
        let tokenizer = tokenizer(recipe, None, &|_, _| ())?.ok_or_else(|| {
            Error::usage("task: found one without a text, wanted lm: lessons are of a text")
        })?;
        let corpus = Corpus::open(&recipe.data, &tokenizer, cache, progress)?;
        tokenizer.fits("the text of the training", [corpus.largest], vocabulary)?;
        if corpus.train.len() < 2 {
            return Err(Error::usage(format!(
                "data.train: found {} tokens, wanted 2 or more",
                corpus.train.len()
            )));
        }
        let teacher = Taught::open(recipe, Some(&tokenizer), vocabulary, context)?;
        let teacher = teacher.expect("the recipe has a teacher");
        let index = Index {
            teacher: teacher.digest().into(),
            corpus: corpus.fingerprint.clone(),
            vocabulary,
            positions: corpus.train.len() - 1,
            context,
            top,
            precision: recipe.train.precision,
            shard,
        };
        match if_there(Index::read(folder))? {
            Some(there) => {
                if let Some(d) = differences(&there, &index).into_iter().next() {
                    let wanted = format!("{}, as asked for (another --out DIR can have that)", d.wanted);
                    return Err(Error::input(folder.join(lessons::FILE_NAME), d.key, d.found, wanted));
                }
            }
            None => index.write(folder)?,
        }
        files::sweep(folder)?;
        let missing =
            (0..index.shards()).filter(|shard| !lessons::has_shard(folder, &index, *shard)).collect();
        Ok(Self { index, folder: folder.into(), corpus, teacher, missing, _lock: lock })
    }

    /// Positions that are stored already.
    pub fn done(&self) -> u64 {
        let missing = self.missing.iter().map(|shard| self.index.positions_of(*shard).len() as u64);
        self.index.positions as u64 - missing.sum::<u64>()
    }

    /// Makes what is missing, one shard after the other; `progress` is told the positions that were added.
    ///
    /// # Errors
    /// A teacher that says what is no number, a disk that is full.
    pub fn run(mut self, progress: &dyn Fn(u64)) -> Result<()> {
        let mut state = State::default();
        let decoder = self.teacher.decoder(self.index.precision).expect("a teacher that is a model");
        for shard in self.missing {
            let positions = self.index.positions_of(shard);
            let (tokens, ln_p) = said(decoder, &self.corpus, &self.index, positions, &mut state, progress);
            lessons::write_shard(&self.folder, &self.index, shard, &tokens, &ln_p)?;
        }
        Ok(())
    }

    fn windows_at_once(context: usize) -> usize {
        (ROWS / context).max(1)
    }
}

/// The windows of so many tokens over a text.
#[derive(Clone, Copy, Debug)]
struct Windows {
    context: usize,
    /// From one to the next.
    stride: usize,
}

impl Windows {
    fn new(context: usize) -> Self {
        Self { context, stride: (context / 2).max(1) }
    }

    /// The number of the window that a position is taken from.
    fn of(self, position: usize) -> usize {
        if position < self.context { 0 } else { 1 + (position - self.context) / self.stride }
    }

    /// The positions that are taken from a window.
    fn taken(self, window: usize) -> Range<usize> {
        let end = window * self.stride + self.context;
        if window == 0 { 0..end } else { end - self.stride..end }
    }
}

/// The likeliest tokens after some positions, and the natural logarithms of their probabilities. No bit of them depends on other
/// positions that are asked for before or after.
fn said(
    decoder: &Decoder,
    corpus: &Corpus,
    index: &Index,
    positions: Range<usize>,
    state: &mut State,
    progress: &dyn Fn(u64),
) -> (Vec<u32>, Vec<f32>) {
    let (top, windows) = (index.top, Windows::new(index.context));
    let (mut tokens, mut ln_p) = (Vec::new(), Vec::new());
    let (mut next, last) = (windows.of(positions.start), windows.of(positions.end - 1));
    while next <= last {
        // Of the first window more positions are taken than of others.
        let count = if next == 0 { 1 } else { Teaching::windows_at_once(index.context).min(last + 1 - next) };
        let mut inputs = vec![0; count * index.context];
        for (window, inputs) in (next..).zip(inputs.chunks_mut(index.context)) {
            let start = window * windows.stride;
            // What stands after the end of the text is seen by no position that is taken.
            let len = index.context.min(corpus.train.len() - start);
            corpus.train.read(start, &mut inputs[..len]);
        }
        let seqs = Sequences::new(count, index.context);
        let from = index.context - windows.taken(next).len();
        let (found, probabilities) = decoder.likeliest(&inputs, seqs, from, top, state);
        let (first, end) = (windows.taken(next).start, windows.taken(next + count - 1).end);
        let wanted = positions.start.max(first)..positions.end.min(end);
        let values = (wanted.start - first) * top..(wanted.end - first) * top;
        tokens.extend_from_slice(&found[values.clone()]);
        ln_p.extend_from_slice(&probabilities[values]);
        progress(wanted.len() as u64);
        next += count;
    }
    (tokens, ln_p)
}

fn judge_memory(needed: u128) -> Result<()> {
    match Memory::now().map(|memory| memory.total as u128).filter(|memory| needed > *memory) {
        None => Ok(()),
        Some(memory) => Err(Error::usage(format!(
            "memory: found {:.1} GiB, wanted at least {:.1} GiB for the teacher and what it says (a smaller train.seq or --shard \
             needs less)",
            gib(memory),
            gib(needed)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_is_taken_once_with_half_a_window_before_it() {
        for context in 1..20 {
            let windows = Windows::new(context);
            let mut next = 0;
            for window in 0..30 {
                let (taken, start) = (windows.taken(window), window * windows.stride);
                assert_eq!(taken.start, next, "{context}");
                assert!(taken.end <= start + context && !taken.is_empty());
                assert!(taken.clone().all(|position| windows.of(position) == window));
                assert!(window == 0 || 2 * (taken.start - start) + 1 >= context, "{context}: {taken:?}");
                next = taken.end;
            }
        }
    }
}
