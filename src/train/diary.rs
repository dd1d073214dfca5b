//! What a run writes down as it goes, and what that gives reason to say.

use std::path::Path;

use super::{
    Advisor, EventWriter, METRICS, MetricsLog, Record, StepReport, TensorPoint, Trainer, read_metrics,
};
use crate::error::Result;
use crate::measure::Perplexity;

/// `metrics.jsonl`, the event files, and an adviser who hears every record.
pub struct Diary {
    metrics: MetricsLog,
    events: EventWriter,
    advisor: Advisor,
}

impl Diary {
    /// Of a training that stands where `trainer` does: from the start, or after what its checkpoint knows.
    pub fn open(run: &Path, trainer: &mut Trainer) -> Result<Self> {
        let (path, step) = (run.join(METRICS), trainer.progress.step);
        let mut metrics =
            if step == 0 { MetricsLog::create(&path) } else { MetricsLog::resume(&path, step) }?;
        let mut advisor = Advisor::default();
        if step == 0 {
            // Where every later change starts from.
            metrics.append(&Record::Ternary { step, tensors: trainer.tensor_points() })?;
        }
        for record in read_metrics(&path)? {
            advisor.hear(&record);
        }
        Ok(Self { metrics, events: EventWriter::create(&run.join("tensorboard"), step + 1)?, advisor })
    }

    /// A log line; sentences for who watches.
    pub fn log(&mut self, trainer: &mut Trainer, report: &StepReport, tok_per_s: f64) -> Result<Vec<String>> {
        let step = trainer.progress.step;
        let mut said = Vec::new();
        let staged = !trainer.recipe.ternary.start.is_at_once();
        let (together, apart) = match report.residuals {
            Some(residuals) if staged => (None, Some(residuals)),
            residuals => (residuals.map(|r| r.attention as f64), None),
        };
        said.extend(self.append(&Record::Train {
            step,
            loss: report.loss,
            divergence: report.divergence,
            relations: report.relations,
            residual: together,
            residuals: apart,
            lr: report.lr as f64,
            grad_norm: report.grad_norm,
            tokens: trainer.progress.tokens,
            tok_per_s,
            elapsed_s: trainer.progress.elapsed_s,
        })?);
        for (tag, value) in [
            ("train/loss", report.loss),
            ("train/lr", report.lr as f64),
            ("train/grad_norm", report.grad_norm),
            ("train/tok_per_s", tok_per_s),
        ] {
            self.events.scalar(tag, value as f32, step)?;
        }
        for (tag, value) in [
            ("train/divergence", report.divergence),
            ("train/relations", report.relations),
            ("train/residual", together),
        ] {
            if let Some(value) = value {
                self.events.scalar(tag, value as f32, step)?;
            }
        }
        for (kind, left) in apart.iter().flat_map(|residuals| residuals.by_key()) {
            self.events.scalar(&format!("train/residual/{kind}"), left, step)?;
        }
        let tensors = trainer.tensor_points();
        for point in &tensors {
            for (tag, value) in curves(point) {
                if let Some(value) = value {
                    self.events.scalar(&format!("{tag}/{}", point.name), value as f32, step)?;
                }
            }
        }
        if !tensors.is_empty() {
            said.extend(self.append(&Record::Ternary { step, tensors })?);
        }
        self.events.flush()?;
        Ok(said)
    }

    /// A validation; a sentence for who watches.
    pub fn validation(&mut self, step: u64, p: &Perplexity) -> Result<Option<String>> {
        let bits_per_byte = p.bits_per_byte();
        let said =
            self.append(&Record::Val { step, nll: p.nll, ppl: p.ppl, bits_per_byte, tokens: p.tokens })?;
        self.events.scalar("val/nll", p.nll as f32, step)?;
        self.events.scalar("val/ppl", p.ppl as f32, step)?;
        self.events.flush()?;
        Ok(said)
    }

    fn append(&mut self, record: &Record) -> Result<Option<String>> {
        self.metrics.append(record)?;
        Ok(self.advisor.hear(record))
    }
}

/// What TensorBoard shows of a tensor.
fn curves(p: &TensorPoint) -> [(&'static str, Option<f64>); 11] {
    let share = |n: u64| Some(n as f64 / p.weights as f64);
    [
        ("zero", Some(p.zero)),
        ("flips", share(p.to_zero + p.from_zero + p.sign_flips)),
        ("to_zero", share(p.to_zero)),
        ("from_zero", share(p.from_zero)),
        ("sign_flips", share(p.sign_flips)),
        ("undone", p.undone),
        ("near_threshold", p.near),
        ("moved", p.moved),
        ("rms_update", p.rms_update),
        ("dead_groups", Some(p.dead_groups as f64)),
        ("scale_drift", Some(p.scale_drift)),
    ]
}
