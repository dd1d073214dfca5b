//! The diary of a training: `metrics.jsonl`, one JSON object a line.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Residuals;
use crate::error::{Error, Result};
use crate::files::{if_there, read_limited, write_bytes};

/// Name of the metrics file of a run.
pub const METRICS: &str = "metrics.jsonl";
/// Bytes of a `metrics.jsonl`; a week of training writes a hundredth.
const MAX_BYTES: u64 = 4 << 30;

/// What happened at a step. Steps count optimizer updates from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// A training step.
    Train {
        step: u64,
        /// Cross-entropy of the step's batch in nats per token.
        #[serde(with = "nan_as_null")]
        loss: f64,
        /// Divergence from the teacher at the temperature, nats per token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        divergence: Option<f64>,
        /// Divergence of the relations of positions from the teacher's, nats per token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        relations: Option<f64>,
        /// Share of the latents in what was multiplied with, where all ternary weights anneal together.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        residual: Option<f64>,
        /// The same of each kind of weight, where they have starts of their own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        residuals: Option<Residuals>,
        #[serde(with = "nan_as_null")]
        lr: f64,
        /// Global L2 norm before clipping.
        #[serde(with = "nan_as_null")]
        grad_norm: f64,
        /// Tokens trained on since the start.
        tokens: u64,
        #[serde(with = "nan_as_null")]
        tok_per_s: f64,
        /// Seconds since the start.
        #[serde(with = "nan_as_null")]
        elapsed_s: f64,
    },
    /// A validation.
    Val {
        step: u64,
        /// Nats per token.
        #[serde(with = "nan_as_null")]
        nll: f64,
        #[serde(with = "nan_as_null")]
        ppl: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bits_per_byte: Option<f64>,
        /// Tokens that were predicted.
        tokens: u64,
    },
    /// The state of every ternary matrix.
    Ternary { step: u64, tensors: Vec<TensorPoint> },
}

impl Record {
    pub fn step(&self) -> u64 {
        match self {
            Record::Train { step, .. } | Record::Val { step, .. } | Record::Ternary { step, .. } => *step,
        }
    }
}

/// One ternary matrix at a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorPoint {
    pub name: String,
    /// Number of weights; averages over tensors are weighted by it.
    pub weights: u64,
    /// Number of groups that have a scale of their own.
    pub groups: u64,
    /// Fractions of the weights that are −1, 0 and +1.
    #[serde(with = "nan_as_null")]
    pub minus: f64,
    #[serde(with = "nan_as_null")]
    pub zero: f64,
    #[serde(with = "nan_as_null")]
    pub plus: f64,
    #[serde(with = "nan_as_null")]
    pub scale_mean: f64,
    #[serde(with = "nan_as_null")]
    pub scale_min: f64,
    #[serde(with = "nan_as_null")]
    pub scale_max: f64,
    /// Mean of `|s − s₀| / s₀` over the groups, `s₀` the scale at the start.
    #[serde(with = "nan_as_null")]
    pub scale_drift: f64,
    /// Fraction of the weights whose trit is not that of the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<f64>,
    /// Groups whose weights are all zero.
    pub dead_groups: u64,
    /// Weights that became zero, stopped being zero, or changed sign since the last record.
    pub to_zero: u64,
    pub from_zero: u64,
    pub sign_flips: u64,
    /// Of these changes, the share of which nothing is left at this record: trits that went and came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<f64>,
    /// Fraction of the latents within a tenth of a threshold, [`NEAR`](super::NEAR).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<f64>,
    /// Root mean square of the last update of the latent weights, in scales (`|ΔW| / s`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rms_update: Option<f64>,
}

/// JSON has no NaN or infinity: they are written as `null`, and `null` reads as NaN.
pub(crate) mod nan_as_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, out: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(value).serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(input)?.unwrap_or(f64::NAN))
    }
}

/// An open `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts an empty file, replacing an older one.
    pub fn create(path: &Path) -> Result<Self> {
        write_bytes(path, b"")?;
        Self::open(path)
    }

    /// Continues after the checkpoint of `step`: later records and a torn last line are dropped.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let Some(text) = if_there(read_limited(path, MAX_BYTES))? else { return Self::create(path) };
        let mut kept = Vec::new();
        for (line, record) in parse(&text, path)? {
            if record.step() <= step {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
        }
        if kept != text {
            write_bytes(path, &kept)?;
        }
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("open", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Writes one line, at once: a reader or a crash never sees less than what was appended.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)
            .map_err(io::Error::from)
            .map_err(Error::io("append to", &self.path))?;
        line.push(b'\n');
        // One write call, so that only a crash of the machine can tear the line.
        self.file.write_all(&line).map_err(Error::io("append to", &self.path))
    }
}

/// All records of a `metrics.jsonl`, in order. A last line that was torn by a crash is left out.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = read_limited(path, MAX_BYTES)?;
    Ok(parse(&text, path)?.into_iter().map(|(_, record)| record).collect())
}

fn parse<'a>(text: &'a [u8], path: &Path) -> Result<Vec<(&'a [u8], Record)>> {
    let mut records = Vec::new();
    let mut lines = text.split(|&b| b == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let last = lines.peek().is_none();
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(record) => records.push((line, record)),
            // Only a line without its newline can be torn.
            Err(_) if last => {}
            Err(e) => {
                let field = format!("line {}", number + 1);
                return Err(Error::input(path, field, e, "a record of the training"));
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn train(step: u64, loss: f64) -> Record {
        Record::Train {
            step,
            loss,
            divergence: None,
            relations: None,
            residual: None,
            residuals: None,
            lr: 1e-3,
            grad_norm: 0.5,
            tokens: step * 64,
            tok_per_s: 1e4,
            elapsed_s: 0.25,
        }
    }

    fn val(step: u64) -> Record {
        Record::Val { step, nll: 2.0, ppl: 7.389, bits_per_byte: None, tokens: 100 }
    }

    fn ternary(step: u64) -> Record {
        let point = TensorPoint { name: "layers.0.q".into(), weights: 8, zero: 1.0, ..Default::default() };
        Record::Ternary { step, tensors: vec![point] }
    }

    #[test]
    fn lines_look_as_documented_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let records = [train(1, 5.5), val(1), ternary(1), train(2, 5.25)];
        let mut log = MetricsLog::create(&path).unwrap();
        for record in &records {
            log.append(record).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text.lines().next().unwrap(),
            r#"{"kind":"train","step":1,"loss":5.5,"lr":0.001,"grad_norm":0.5,"tokens":64,"tok_per_s":10000.0,"elapsed_s":0.25}"#
        );
        assert!(text.contains(r#"{"kind":"val","step":1,"nll":2.0,"ppl":7.389,"tokens":100}"#));
        assert_eq!(read(&path).unwrap(), records);
    }

    #[test]
    fn a_loss_that_is_not_finite_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsLog::create(&path).unwrap().append(&train(1, f64::INFINITY)).unwrap();
        let Record::Train { loss, .. } = read(&path).unwrap()[0] else { panic!() };
        assert!(loss.is_nan());
    }

    #[test]
    fn resume_drops_what_the_checkpoint_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        for step in 1..=5 {
            log.append(&train(step, 3.0)).unwrap();
            log.append(&val(step)).unwrap();
        }
        log.file.write_all(br#"{"kind":"train","st"#).unwrap();
        assert_eq!(read(&path).unwrap().len(), 10);
        let mut log = MetricsLog::resume(&path, 3).unwrap();
        log.append(&train(4, 2.0)).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found.len(), 7);
        assert_eq!(found[5..], [val(3), train(4, 2.0)]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        // A complete last line that only lacks its newline is kept, and gets one.
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.trim_end()).unwrap();
        MetricsLog::resume(&path, 9).unwrap().append(&val(5)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 8);
        let missing = dir.path().join("new.jsonl");
        MetricsLog::resume(&missing, 9).unwrap().append(&val(5)).unwrap();
        assert_eq!(read(&missing).unwrap(), [val(5)]);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let good = serde_json::to_string(&val(1)).unwrap();
        for bad in ["{\"kind\":\"val\"}", "x", "{\"kind\":\"other\",\"step\":1}", "\u{0}"] {
            fs::write(&path, format!("{good}\n{bad}\n{good}\n")).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("metrics.jsonl: line 2:"), "{error}");
            assert!(MetricsLog::resume(&path, 1).is_err());
        }
        fs::write(&path, b"\xff\xfe\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 1"));
        assert!(read(&dir.path().join("none")).is_err());
    }
}
