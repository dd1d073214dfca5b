//! The loop: steps, log lines, validations, checkpoints, until the last step or a request to stop.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::{EventWriter, MetricsLog, Record, StepReport, Trainer, checkpoint};
use crate::error::{Error, Result};
use crate::measure::Perplexity;

/// Told what happens, to show it.
pub trait Observer {
    /// After every step; `logged` when a log line was written.
    fn stepped(&mut self, report: &StepReport, tok_per_s: f64, logged: bool);
    fn validated(&mut self, step: u64, measured: &Perplexity);
    fn saved(&mut self, path: &Path);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// Asked to stop; a checkpoint was written.
    Stopped(PathBuf),
}

/// Name of the metrics file of a run.
pub const METRICS: &str = "metrics.jsonl";

/// Trains from where `trainer` stands to the last step, writing into the folder `run`. When `stop` becomes true the
/// step at hand is finished, a checkpoint saved, and the loop left.
pub fn run(
    trainer: &mut Trainer,
    run: &Path,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    // A process killed between its last save and this work leaves it to the next one.
    checkpoint::tidy(run, trainer.recipe.train.keep)?;
    let diary = run.join(METRICS);
    let mut metrics = match trainer.progress.step {
        0 => MetricsLog::create(&diary)?,
        step => MetricsLog::resume(&diary, step)?,
    };
    let mut events = EventWriter::create(&run.join("tensorboard"), trainer.progress.step + 1)?;
    let t = trainer.recipe.train.clone();
    if trainer.progress.step == 0 {
        // Where every later change starts from.
        let tensors = trainer.tensor_points();
        metrics.append(&Record::Ternary { step: 0, tensors })?;
    }
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
        if log {
            since_log = (trainer.progress.tokens, trainer.progress.elapsed_s);
            write_log(trainer, &report, speed, &mut metrics, &mut events)?;
        }
        observer.stepped(&report, speed, log);
        let step = trainer.progress.step;
        if last || (t.eval_every > 0 && step.is_multiple_of(t.eval_every)) {
            // The last validation reads everything.
            let measured = trainer.validate(if last { 0 } else { t.eval_sequences });
            if let Some(measured) = measured {
                write_validation(step, &measured, &mut metrics, &mut events)?;
                observer.validated(step, &measured);
            }
        }
        let stopping = stop.load(Ordering::SeqCst) && !last;
        if last || stopping || (t.save_every > 0 && step.is_multiple_of(t.save_every)) {
            let path = checkpoint::save(run, trainer)?;
            observer.saved(&path);
            if stopping {
                return Ok(Outcome::Stopped(path));
            }
        }
    }
    Ok(Outcome::Finished)
}

fn write_log(
    trainer: &mut Trainer,
    report: &StepReport,
    tok_per_s: f64,
    metrics: &mut MetricsLog,
    events: &mut EventWriter,
) -> Result<()> {
    let step = trainer.progress.step;
    metrics.append(&Record::Train {
        step,
        loss: report.loss,
        lr: report.lr as f64,
        grad_norm: report.grad_norm,
        tokens: trainer.progress.tokens,
        tok_per_s,
        elapsed_s: trainer.progress.elapsed_s,
    })?;
    for (tag, value) in [
        ("train/loss", report.loss),
        ("train/lr", report.lr as f64),
        ("train/grad_norm", report.grad_norm),
        ("train/tok_per_s", tok_per_s),
    ] {
        events.scalar(tag, value as f32, step)?;
    }
    let tensors = trainer.tensor_points();
    for point in &tensors {
        let flips = (point.to_zero + point.from_zero + point.sign_flips) as f64 / point.weights as f64;
        for (tag, value) in [("zero", point.zero), ("flips", flips), ("scale_drift", point.scale_drift)] {
            events.scalar(&format!("{tag}/{}", point.name), value as f32, step)?;
        }
    }
    if !tensors.is_empty() {
        metrics.append(&Record::Ternary { step, tensors })?;
    }
    events.flush()
}

fn write_validation(
    step: u64,
    p: &Perplexity,
    metrics: &mut MetricsLog,
    events: &mut EventWriter,
) -> Result<()> {
    let bits_per_byte = p.bits_per_byte();
    metrics.append(&Record::Val { step, nll: p.nll, ppl: p.ppl, bits_per_byte, tokens: p.tokens })?;
    events.scalar("val/nll", p.nll as f32, step)?;
    events.scalar("val/ppl", p.ppl as f32, step)?;
    events.flush()
}

/// Adds to a loss of finiteness where training can go on from.
fn with_last_checkpoint(error: Error, run: &Path) -> Error {
    match error {
        Error::NotFinite { tensor, detail } => {
            let place = match checkpoint::list(run).pop() {
                Some(path) => format!("the last good checkpoint is {}", path.display()),
                None => "no checkpoint has been saved yet".into(),
            };
            Error::NotFinite { tensor, detail: format!("{detail}; {place}. A lower learning rate may help") }
        }
        other => other,
    }
}
