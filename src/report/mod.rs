//! What is left for people to look at when a training has ended: `report.json` and `report.html`.

mod charts;
mod compare;
mod curves;
mod html;
mod render;
mod summary;
mod versions;

use std::path::Path;

use crate::error::{Error, Result};
use crate::files::{if_there, read_limited, write_bytes};
use crate::train::{METRICS, Record, read_metrics};
use curves::Curves;

pub(crate) use charts::{Band, band_chart};
pub use compare::{Comparison, compare, write_comparison};
pub(crate) use render::render;
pub use summary::{Check, Evaluation, Goal, Sample, Summary, TernarySummary, TestEvaluation, Texts};
pub use versions::Versions;

/// The report for programs, in the folder of a run.
pub const JSON: &str = "report.json";
/// The report for people.
pub const HTML: &str = "report.html";
/// Bytes of a `report.json`; ours have below one MiB.
const MAX_JSON: u64 = 64 << 20;

/// Writes both files of a finished run. `loss_curve` may hold every step: it is thinned; an empty one is filled from
/// the run's `metrics.jsonl`.
pub fn write(run_dir: &Path, summary: &Summary) -> Result<()> {
    let curves = Curves::new(&metrics(run_dir)?);
    let mut summary = summary.clone();
    summary.loss_curve = curves.with_losses(&summary.loss_curve).loss_points(2000);
    // JSON has no NaN.
    summary.loss_curve.retain(|point| point.1.is_finite());
    let file = run_dir.join(JSON);
    let mut json = serde_json::to_vec_pretty(&summary)
        .map_err(std::io::Error::from)
        .map_err(Error::io("write", &file))?;
    json.push(b'\n');
    write_bytes(&file, &json)?;
    write_html(run_dir, &summary, &curves)
}

/// The summary in a run's `report.json`.
pub fn read(run_dir: &Path) -> Result<Summary> {
    let file = run_dir.join(JSON);
    serde_json::from_slice(&read_limited(&file, MAX_JSON)?)
        .map_err(|e| Error::input(&file, "content", e, "the report of a run"))
}

/// Makes `report.html` again from `report.json` and `metrics.jsonl`.
pub fn rewrite(run_dir: &Path) -> Result<()> {
    write_html(run_dir, &read(run_dir)?, &Curves::new(&metrics(run_dir)?))
}

/// The records of the run; none if it kept no diary.
fn metrics(run_dir: &Path) -> Result<Vec<Record>> {
    Ok(if_there(read_metrics(&run_dir.join(METRICS)))?.unwrap_or_default())
}

fn write_html(run_dir: &Path, summary: &Summary, curves: &Curves) -> Result<()> {
    let curves = curves.with_losses(&summary.loss_curve);
    write_bytes(run_dir.join(HTML), html::page(summary, &curves)?.as_bytes())
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
