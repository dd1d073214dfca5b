//! The loop: steps, log lines, validations, checkpoints, until the last step or a request to stop.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::diary::Diary;
use super::{StepReport, Trainer, checkpoint};
use crate::error::{Error, Result};
use crate::measure::Perplexity;

/// Told what happens, to show it.
pub trait Observer {
    /// After every step; `logged` when a log line was written.
    fn stepped(&mut self, report: &StepReport, tok_per_s: f64, logged: bool);
    fn validated(&mut self, step: u64, measured: &Perplexity);
    fn saved(&mut self, path: &Path);
    /// What [`Advisor`](super::Advisor) found worth a word.
    fn advised(&mut self, text: &str) {
        let _ = text;
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// Asked to stop; a checkpoint was written.
    Stopped(PathBuf),
}

/// Trains from where `trainer` stands to the last step, writing into the folder `run`. When `stop` becomes true the
/// step at hand is finished, a checkpoint saved, and the loop left. Of several processes the first one writes; `stop` on any of
/// them stops all.
pub fn run(
    trainer: &mut Trainer,
    run: &Path,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let leads = trainer.together.leads();
    if leads {
        // A process killed between its last save and this work leaves it to the next one.
        checkpoint::tidy(run, trainer.recipe.train.keep)?;
    }
    let mut diary = leads.then(|| Diary::open(run, trainer)).transpose()?;
    let t = trainer.recipe.train.clone();
    let mut since_log = (trainer.progress.tokens, trainer.progress.elapsed_s);
    let mut speed = 0.0;
    while trainer.progress.step < t.steps {
        let index = trainer.progress.step;
        let last = index + 1 == t.steps;
        let log = index.is_multiple_of(t.log_every) || last;
        // Validation and saving are no training time.
        let clock = Instant::now();
        let report = trainer.step(log).map_err(|e| with_last_checkpoint(e, run))?;
        trainer.progress.elapsed_s += clock.elapsed().as_secs_f64();
        let (tokens, seconds) =
            (trainer.progress.tokens - since_log.0, trainer.progress.elapsed_s - since_log.1);
        speed = if seconds > 0.0 { tokens as f64 / seconds } else { speed };
        let mut advice = Vec::new();
        if log {
            since_log = (trainer.progress.tokens, trainer.progress.elapsed_s);
            if let Some(diary) = &mut diary {
                advice = diary.log(trainer, &report, speed)?;
            }
        }
        observer.stepped(&report, speed, log);
        let step = trainer.progress.step;
        if last || (t.eval_every > 0 && step.is_multiple_of(t.eval_every)) {
            // The last validation reads everything.
            let measured = trainer.validate(if last { 0 } else { t.eval_sequences })?;
            if let Some(measured) = measured {
                if let Some(diary) = &mut diary {
                    advice.extend(diary.validation(step, &measured)?);
                }
                observer.validated(step, &measured);
            }
        }
        advice.iter().for_each(|text| observer.advised(text));
        let stopping = trainer.together.any(stop.load(Ordering::SeqCst))? && !last;
        if last || stopping || (t.save_every > 0 && step.is_multiple_of(t.save_every)) {
            let path = save(run, trainer)?;
            observer.saved(&path);
            if stopping {
                return Ok(Outcome::Stopped(path));
            }
        }
    }
    Ok(Outcome::Finished)
}

/// Bytes of a weight in a checkpoint, with two moments.
const SAVED: usize = 12;
/// Bytes a second that a disk writes at least.
const SLOW_DISK: usize = 5 << 20;

/// A checkpoint of what all processes have alike.
fn save(run: &Path, trainer: &mut Trainer) -> Result<PathBuf> {
    let compared = trainer.together.compare(&trainer.model.decoder, &trainer.latents);
    compared
        .map_err(|e| Error::usage(format!("after step {}: {e}; {}", trainer.progress.step, last(run))))?;
    // Process 0 writes, the others wait: a slow disk is no process that is gone.
    let values: usize = trainer.model.decoder.weights().map(|weight| weight.len()).sum();
    trainer.together.wait_longer(Duration::from_secs((SAVED * values / SLOW_DISK) as u64))?;
    let saved = match trainer.together.leads() {
        true => checkpoint::save(run, trainer),
        false => checkpoint::help_to_save(trainer).map(|()| checkpoint::path(run, trainer.progress.step)),
    };
    if saved.is_err() && trainer.together.shards().is_some() {
        // The others may still be sending their moments: this process cannot ask them whether they agree.
        return saved;
    }
    let saved = trainer.together.agree(saved)?;
    trainer.together.wait_longer(Duration::ZERO)?;
    Ok(saved)
}

/// Adds to a loss of finiteness where training can go on from.
fn with_last_checkpoint(error: Error, run: &Path) -> Error {
    match error {
        Error::NotFinite { tensor, detail } => {
            let place = last(run);
            Error::NotFinite { tensor, detail: format!("{detail}; {place}. A lower learning rate may help") }
        }
        other => other,
    }
}

fn last(run: &Path) -> String {
    match checkpoint::list(run).pop() {
        Some(path) => format!("the last good checkpoint is {}", path.display()),
        None => "no checkpoint has been saved yet".into(),
    }
}
