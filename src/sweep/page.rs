//! `sweep.html`: one file, no scripts, nothing loaded from elsewhere.

use minijinja::context;
use minijinja::value::Serde;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

use super::plan::{Plan, Run, shown};
use super::results::{Results, Row};
use super::statistics::Sample;
use crate::error::Result;
use crate::files::write_bytes;
use crate::number::significant;
use crate::report::{Band, band_chart, render};
use crate::train::{METRICS, Record, read_metrics};

/// The page, in the folder of a sweep.
pub const HTML: &str = "sweep.html";
/// Settings whose curves are drawn: the best ones.
const CURVES: usize = 12;

/// A line of dots, one for each run, on the scale of its table. Places are in percent of its width.
#[derive(Serialize)]
struct Strip {
    label: String,
    mean: String,
    spread: String,
    runs: String,
    dots: Vec<f64>,
    /// Of the mean.
    tick: Option<f64>,
    verdict: &'static str,
    /// Whether it is worse than the best by more than noise makes.
    worse: bool,
    folder: String,
}

#[derive(Serialize)]
struct Table {
    title: String,
    note: String,
    strips: Vec<Strip>,
    /// Left and right end of what noise cannot tell from the best, in percent.
    noise: Option<(f64, f64)>,
    low: String,
    high: String,
}

/// Writes the page into the folder `dir` of a sweep.
pub fn write(plan: &Plan, results: &Results, dir: &Path) -> Result<()> {
    write_bytes(dir.join(HTML), page(plan, results, dir)?.as_bytes())
}

fn page(plan: &Plan, results: &Results, dir: &Path) -> Result<String> {
    let mut tables = vec![table("Settings".into(), &results.rows, results)];
    for (key, values) in plan.grid.iter().filter(|(_, values)| values.len() > 1 && plan.grid.len() > 1) {
        let rows: Vec<Row> = values
            .iter()
            .map(|value| {
                let of = |row: &&Row| row.settings.iter().any(|(k, v)| k == key && v == value);
                let some: Vec<&Row> = results.rows.iter().filter(of).collect();
                let figures: Vec<(u64, f64)> = some.iter().flat_map(|row| row.figures.clone()).collect();
                Row {
                    settings: vec![(key.clone(), value.clone())],
                    sample: Sample::of(&figures.iter().map(|f| f.1).collect::<Vec<_>>()),
                    without: some.iter().map(|row| row.without).sum(),
                    failed: 0,
                    figures,
                    worse: None,
                }
            })
            .collect();
        let mut of_key = table(key.clone(), &rows, results);
        of_key.note = "over all values of the other keys, whose effect is in the spread".into();
        of_key.noise = None;
        of_key.strips.iter_mut().for_each(|strip| strip.verdict = "");
        tables.push(of_key);
    }
    let shown = context! {
            recipe => plan.recipe.display().to_string(),
            settings => results.rows.len(),
            seeds => plan.seeds.len(),
            figure => results.figure.to_string(),
            shared => plan.set.iter().map(|(key, value)| format!("{key} = {}", shown(value))).collect::<Vec<_>>(),
            ended => results.outcomes.iter().filter(|o| o.figure.is_some()).count(),
            runs => results.outcomes.len(),
            noise => results.noise.map(|n| significant(n.deviation, 2)),
            degrees => results.noise.map(|n| n.degrees),
            comparable => results.comparable,
            tables => Serde(&tables),
            curves => Serde(curves(results, dir)),
    };
    render(include_str!("sweep.html.jinja"), shown)
}

fn table(title: String, rows: &[Row], results: &Results) -> Table {
    let all = rows.iter().flat_map(|row| row.figures.iter().map(|f| f.1));
    let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let place = |x: f64| if high > low { 100.0 * (x - low) / (high - low) } else { 50.0 };
    let best = rows
        .iter()
        .filter(|row| row.failed == 0)
        .filter_map(|row| row.sample)
        .min_by(|a, b| a.mean.total_cmp(&b.mean));
    let strips = rows.iter().map(|row| Strip {
        label: Run::name(&row.settings),
        mean: row.sample.map_or("–".into(), |s| significant(s.mean, 5)),
        spread: row
            .sample
            .and_then(|s| s.spread)
            .map_or("–".into(), |d| format!("± {}", significant(d, 2))),
        runs: match row.without {
            0 => row.figures.len().to_string(),
            n => format!("{} of {}", row.figures.len(), row.figures.len() + n),
        },
        dots: row.figures.iter().map(|f| place(f.1)).collect(),
        tick: row.sample.map(|s| place(s.mean)),
        verdict: row.verdict(row.sample == best),
        worse: row.worse == Some(true),
        folder: row.figures.first().map_or(String::new(), |(seed, _)| {
            Run { settings: row.settings.clone(), seed: *seed }.folder().display().to_string()
        }),
    });
    let strips: Vec<Strip> = strips.collect();
    let noise = match (results.noise, best) {
        (Some(noise), Some(best)) => {
            let least = noise.least_difference(&best, &best);
            Some((place(best.mean).clamp(0.0, 100.0), place(best.mean + least).clamp(0.0, 100.0)))
        }
        _ => None,
    };
    let end = |x: f64| if x.is_finite() { significant(x, 4) } else { String::new() };
    Table { title, note: String::new(), strips, noise, low: end(low), high: end(high) }
}

#[derive(Serialize)]
struct Curve {
    label: String,
    svg: String,
}

/// The losses of the best settings over the steps, mean and range of the seeds, in one scale.
fn curves(results: &Results, dir: &Path) -> Vec<Curve> {
    let some: Vec<(String, Vec<Band>)> = results
        .rows
        .iter()
        .filter(|row| !row.figures.is_empty())
        .take(CURVES)
        .map(|row| (Run::name(&row.settings), bands(row, dir)))
        .collect();
    let top = some.iter().filter_map(|(_, bands)| {
        // The fall of the first steps would leave little room for all others.
        bands.get(bands.len() / 20).map(|band| band.high)
    });
    let top = top.fold(f64::NEG_INFINITY, f64::max);
    let charts = some.into_iter().filter_map(|(label, bands)| {
        let svg = band_chart(&bands, top.is_finite().then_some(top))?;
        Some(Curve { label, svg })
    });
    charts.collect()
}

/// Training losses step by step: mean, least and greatest of the seeds, in a hundred parts of the run.
fn bands(row: &Row, dir: &Path) -> Vec<Band> {
    const PARTS: usize = 100;
    let mut runs: Vec<BTreeMap<u64, f64>> = Vec::new();
    for (seed, _) in &row.figures {
        let run = Run { settings: row.settings.clone(), seed: *seed };
        // A run without a diary has no curve; its figure counts all the same.
        let records = read_metrics(&dir.join(run.folder()).join(METRICS)).unwrap_or_default();
        let losses = records.iter().filter_map(|record| match record {
            Record::Train { step, loss, .. } if loss.is_finite() => Some((*step, *loss)),
            _ => None,
        });
        runs.push(losses.collect());
    }
    runs.retain(|run| !run.is_empty());
    let last = runs.iter().filter_map(|run| run.keys().next_back()).copied().min().unwrap_or(0);
    let part = (last as usize).div_ceil(PARTS).max(1) as u64;
    let mut out = Vec::new();
    for first in (0..last).step_by(part as usize) {
        let means: Vec<f64> = runs
            .iter()
            .filter_map(|run| {
                let some: Vec<f64> = run.range(first + 1..=first + part).map(|(_, loss)| *loss).collect();
                Sample::of(&some).map(|s| s.mean)
            })
            .collect();
        let Some(sample) = Sample::of(&means).filter(|s| s.count == runs.len()) else { continue };
        let range = means.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
        out.push(Band {
            step: (first + part).min(last) as f64,
            low: range.0,
            mean: sample.mean,
            high: range.1,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Figure;

    #[test]
    fn a_page_says_why_nothing_is_ranked() {
        let dir = tempfile::tempdir().unwrap();
        let plan: Plan = toml::from_str("recipe='copy'\nseeds=[0]").unwrap();
        let (of_tokens, of_runs) =
            ("a token of one setting is not a token of another", "No setting has two runs");
        for (comparable, why, other) in [(false, of_tokens, of_runs), (true, of_runs, of_tokens)] {
            let (outcomes, rows, figure) = (Vec::new(), Vec::new(), Figure::Validation);
            let results = Results { outcomes, rows, noise: None, figure, comparable };
            let page = page(&plan, &results, dir.path()).unwrap();
            assert!(page.contains(why) && !page.contains(other), "{page}");
        }
    }

    #[test]
    fn a_run_without_a_diary_takes_no_curve_away() {
        let dir = tempfile::tempdir().unwrap();
        let row = Row { figures: vec![(0, 1.0), (1, 2.0), (2, 3.0)], ..Row::default() };
        for (seed, losses) in [(0, [4.0, 2.0]), (2, [6.0, 3.0])] {
            let folder = dir.path().join(Run { settings: Vec::new(), seed }.folder());
            let line = |(step, loss): (u64, f64)| {
                serde_json::json!({
                    "kind": "train", "step": step, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "tokens": 1,
                    "tok_per_s": 1.0, "elapsed_s": 1.0,
                })
                .to_string()
            };
            std::fs::create_dir_all(&folder).unwrap();
            let lines: Vec<String> = (1..).zip(losses).map(line).collect();
            std::fs::write(folder.join(METRICS), lines.join("\n")).unwrap();
        }
        let found: Vec<[f64; 4]> =
            bands(&row, dir.path()).iter().map(|b| [b.step, b.low, b.mean, b.high]).collect();
        assert_eq!(found, [[1.0, 4.0, 5.0, 6.0], [2.0, 2.0, 2.5, 3.0]]);
    }
}
