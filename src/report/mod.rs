//! What is left for people to look at when a training has ended: `report.json` and `report.html`.

mod charts;
mod curves;
mod html;
mod number;
mod summary;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::train::{Record, atomic, read_metrics};
use curves::Curves;

pub use summary::{Check, Evaluation, Sample, Summary, TernarySummary, TestEvaluation, Versions};

const JSON: &str = "report.json";
const HTML: &str = "report.html";
const METRICS: &str = "metrics.jsonl";
/// Bytes of a `report.json`; ours have below one MiB.
const MAX_JSON: u64 = 64 << 20;

/// Writes both files of a finished run. An empty `loss_curve` is filled from the run's `metrics.jsonl`.
pub fn write(run_dir: &Path, summary: &Summary) -> Result<()> {
    let curves = Curves::new(&metrics(run_dir)?);
    let mut summary = summary.clone();
    if summary.loss_curve.is_empty() {
        summary.loss_curve = curves.loss_points(2000);
    }
    // JSON has no NaN.
    summary.loss_curve.retain(|point| point.1.is_finite());
    let file = run_dir.join(JSON);
    let mut json = serde_json::to_vec_pretty(&summary)
        .map_err(std::io::Error::from)
        .map_err(Error::io("write", &file))?;
    json.push(b'\n');
    atomic::write(&file, &json)?;
    write_html(run_dir, &summary, &curves)
}

/// The summary in a run's `report.json`.
pub fn read(run_dir: &Path) -> Result<Summary> {
    let file = run_dir.join(JSON);
    let mut json = Vec::new();
    let opened = File::open(&file).map_err(Error::io("read", &file))?;
    opened.take(MAX_JSON + 1).read_to_end(&mut json).map_err(Error::io("read", &file))?;
    if json.len() as u64 > MAX_JSON {
        return Err(Error::input(&file, "size", format!("more than {MAX_JSON} bytes"), "a report"));
    }
    serde_json::from_slice(&json).map_err(|e| Error::input(&file, "content", e, "the report of a run"))
}

/// Makes `report.html` again from `report.json` and `metrics.jsonl`.
pub fn rewrite(run_dir: &Path) -> Result<()> {
    write_html(run_dir, &read(run_dir)?, &Curves::new(&metrics(run_dir)?))
}

/// The records of the run; none if it kept no diary.
fn metrics(run_dir: &Path) -> Result<Vec<Record>> {
    let file = run_dir.join(METRICS);
    match fs::exists(&file) {
        Ok(false) => Ok(Vec::new()),
        _ => read_metrics(&file),
    }
}

fn write_html(run_dir: &Path, summary: &Summary, curves: &Curves) -> Result<()> {
    let page = html::page(summary, curves).map_err(Error::usage)?;
    atomic::write(&run_dir.join(HTML), page.as_bytes())
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
