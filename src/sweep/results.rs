//! What came of the runs: a figure each, mean and spread of each setting, which settings can be told apart.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use toml::Value;

use super::plan::{Plan, Run, shown};
use super::statistics::{Noise, Sample};
use crate::config::{OF_THE_TEXT, TOKEN_KEYS};
use crate::error::{Error, Result};
use crate::files::write_bytes;
use crate::report::{self, Summary, Texts};

/// Results for programs, a JSON object a run and a line.
pub const JSONL: &str = "results.jsonl";
/// What the folder of a run has beside it, with this extension, while its last training came to nothing.
pub const FAILED: &str = "failed";
/// The same as a table.
pub const CSV: &str = "results.csv";

/// What settings are compared by; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Validation,
    /// Of a text that is not the same tokens in all runs.
    BitsPerByte,
    /// Of the synthetic tasks.
    Wrong,
    Training,
}

/// What came of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Keys of the grid with their values, as people write them.
    pub settings: BTreeMap<String, String>,
    pub seed: u64,
    /// The folder of the run in that of the sweep.
    pub folder: String,
    /// [`Figure`]; `None` of a run that has not ended, or whose figure is not finite.
    pub figure: Option<f64>,
    pub val_nll: Option<f64>,
    pub val_ppl: Option<f64>,
    pub bits_per_byte: Option<f64>,
    pub test_ppl: Option<f64>,
    pub accuracy: Option<f64>,
    pub last20_loss: Option<f64>,
    pub tokens: Option<u64>,
    pub tok_per_s: Option<f64>,
    pub seconds: Option<f64>,
}

/// One setting with all its runs.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub settings: Vec<(String, Value)>,
    /// Seed and figure of each run that has one.
    pub figures: Vec<(u64, f64)>,
    /// Runs that have no figure.
    pub without: usize,
    /// Those of them that were tried: what is left of such a setting is no fair sample, and is not ranked.
    pub failed: usize,
    pub sample: Option<Sample>,
    /// Higher than the best by more than noise makes; `None` where that cannot be said.
    pub worse: Option<bool>,
}

impl Row {
    /// What can be said of the setting; `best`: of the one with the best mean.
    pub fn verdict(&self, best: bool) -> &'static str {
        match self.worse {
            Some(true) => "worse",
            Some(false) if best => "best mean",
            Some(false) => "not told apart from the best",
            None if self.failed > 0 => "not ranked: a run failed",
            None => "",
        }
    }
}

/// All that a sweep has come to so far.
#[derive(Clone, Debug)]
pub struct Results {
    pub outcomes: Vec<Outcome>,
    /// The best mean first; settings of which a run failed after the others, those without a figure last.
    pub rows: Vec<Row>,
    pub noise: Option<Noise>,
    pub figure: Figure,
    /// Whether the figure is of the same thing in all runs.
    pub comparable: bool,
}

impl Results {
    /// Reads the reports of the runs of `plan` in the folder `dir`.
    ///
    /// # Errors
    /// A report that is none; runs on another text than others of their settings.
    pub fn read(plan: &Plan, dir: &Path) -> Result<Self> {
        let runs = plan.runs();
        let mut found = Vec::new();
        for run in &runs {
            let folder = dir.join(run.folder());
            let ended = folder.join(report::JSON).is_file();
            found.push(if ended { Some(report::read(&folder)?) } else { None });
        }
        same_texts(dir, &runs, &found)?;
        let of_tokens = varies_tokens(plan, found.iter().flatten());
        let figure = Figure::of(of_tokens, found.iter().flatten());
        let outcomes: Vec<Outcome> =
            runs.iter().zip(&found).map(|(run, summary)| outcome(run, summary.as_ref(), figure)).collect();
        let mut rows: Vec<Row> = Vec::new();
        for (run, outcome) in runs.iter().zip(&outcomes) {
            let at = match rows.iter().position(|row| row.settings == run.settings) {
                Some(at) => at,
                None => {
                    let settings = run.settings.clone();
                    rows.push(Row { settings, ..Row::default() });
                    rows.len() - 1
                }
            };
            match outcome.figure {
                Some(figure) => rows[at].figures.push((run.seed, figure)),
                None => {
                    rows[at].without += 1;
                    let folder = dir.join(run.folder());
                    rows[at].failed += (folder.with_extension(FAILED).is_file()
                        || folder.join(report::JSON).is_file())
                        as usize;
                }
            }
        }
        for row in &mut rows {
            row.sample = Sample::of(&row.figures.iter().map(|f| f.1).collect::<Vec<_>>());
        }
        let key = |row: &Row| row.sample.map_or(f64::INFINITY, |s| s.mean);
        rows.sort_by(|a, b| (a.failed > 0).cmp(&(b.failed > 0)).then(key(a).total_cmp(&key(b))));
        let comparable = !(of_tokens && matches!(figure, Figure::Validation | Figure::Training));
        let ranked = rows.iter().filter(|row| row.failed == 0);
        let samples: Vec<Sample> = ranked.filter_map(|row| row.sample).collect();
        let noise = if comparable { Noise::of(&samples) } else { None };
        let best = rows.first().filter(|row| row.failed == 0).and_then(|row| row.sample);
        if let (Some(noise), Some(best)) = (noise, best) {
            for row in rows.iter_mut().filter(|row| row.failed == 0) {
                row.worse = row.sample.map(|s| s.mean - best.mean > noise.least_difference(&s, &best));
            }
        }
        Ok(Self { outcomes, rows, noise, figure, comparable })
    }

    /// Writes the tables for programs into the folder `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (mut lines, mut table) = (String::new(), String::new());
        let number = |x: Option<f64>| x.filter(|x| x.is_finite()).map_or(String::new(), |x| x.to_string());
        for (i, o) in self.outcomes.iter().enumerate() {
            let json = serde_json::to_string(o).map_err(std::io::Error::from);
            lines += &json.map_err(Error::io("write", dir.join(JSONL)))?;
            lines.push('\n');
            let figures = [
                ("figure", o.figure),
                ("val_nll", o.val_nll),
                ("val_ppl", o.val_ppl),
                ("bits_per_byte", o.bits_per_byte),
                ("test_ppl", o.test_ppl),
                ("accuracy", o.accuracy),
                ("last20_loss", o.last20_loss),
                ("tokens", o.tokens.map(|n| n as f64)),
                ("tok_per_s", o.tok_per_s),
                ("seconds", o.seconds),
            ];
            if i == 0 {
                let keys = o.settings.keys().map(|key| cell(key));
                let names = figures.iter().map(|(name, _)| name.to_string());
                table += &keys.chain(["seed".into()]).chain(names).collect::<Vec<_>>().join(",");
                table.push('\n');
            }
            let values = o.settings.values().map(|value| cell(value));
            let cells = values.chain([o.seed.to_string()]).chain(figures.iter().map(|(_, x)| number(*x)));
            table += &cells.collect::<Vec<_>>().join(",");
            table.push('\n');
        }
        write_bytes(dir.join(JSONL), lines.as_bytes())?;
        write_bytes(dir.join(CSV), table.as_bytes())
    }
}

impl Figure {
    /// What all runs that have ended have; `of_tokens`: whose tokens are not the same.
    fn of<'a>(of_tokens: bool, summaries: impl Iterator<Item = &'a Summary> + Clone) -> Self {
        let in_bytes = |s: &Summary| s.val.as_ref().is_some_and(|val| val.bits_per_byte.is_some());
        match summaries.clone().count() {
            0 => Figure::Training,
            _ if of_tokens && summaries.clone().all(in_bytes) => Figure::BitsPerByte,
            _ if summaries.clone().all(|s| s.val.is_some()) => Figure::Validation,
            _ if summaries.clone().all(|s| s.accuracy.is_some()) => Figure::Wrong,
            _ => Figure::Training,
        }
    }

    fn in_summary(self, summary: &Summary) -> Option<f64> {
        let value = match self {
            Figure::Validation => summary.val.as_ref()?.nll,
            Figure::BitsPerByte => summary.val.as_ref()?.bits_per_byte?,
            Figure::Wrong => 1.0 - summary.accuracy?,
            Figure::Training => summary.last20_loss,
        };
        value.is_finite().then_some(value)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Figure::Validation => "validation loss, nats per token",
            Figure::BitsPerByte => "validation loss, bits per byte",
            Figure::Wrong => "share of wrong tokens",
            Figure::Training => "training loss of the last 20 steps, nats per token",
        })
    }
}

/// Whether a token of one run is not a token of every other.
fn varies_tokens<'a>(plan: &Plan, mut summaries: impl Iterator<Item = &'a Summary>) -> bool {
    // A vocabulary of the text is another one for each text.
    let of_the_text = |s: &Summary| s.recipe["data"]["tokenizer"] == OF_THE_TEXT;
    plan.varies_tokens() || plan.grid.contains_key("data.train") && summaries.any(of_the_text)
}

/// That the text of a path has not changed since the first runs.
///
/// # Errors
/// Two runs on other tokens, of settings that do not say so.
pub fn judge_texts(plan: &Plan, dir: &Path) -> Result<()> {
    let runs = plan.runs();
    let found: Vec<Option<Summary>> =
        runs.iter().map(|run| report::read(&dir.join(run.folder())).ok()).collect();
    same_texts(dir, &runs, &found)
}

fn same_texts(dir: &Path, runs: &[Run], found: &[Option<Summary>]) -> Result<()> {
    // Settings that decide what the tokens are.
    let of_tokens = |key: &str| key.starts_with("data.") || key == "init" || TOKEN_KEYS.contains(&key);
    let mut first: BTreeMap<String, (&Run, &Texts)> = BTreeMap::new();
    for (run, summary) in runs.iter().zip(found) {
        let Some(texts) = summary.as_ref().and_then(|summary| summary.texts.as_ref()) else { continue };
        let settings: Vec<_> = run.settings.iter().filter(|(key, _)| of_tokens(key)).cloned().collect();
        let (other, wanted) = *first.entry(Run::name(&settings)).or_insert((run, texts));
        if wanted != texts {
            let part = if wanted.train == texts.train { "held out" } else { "trained on" };
            return Err(Error::input(
                dir.join(run.folder()),
                "texts",
                format!("other tokens {part} than in {}", dir.join(other.folder()).display()),
                "the same: a text has changed since (remove the folders of the runs that are to be trained again)",
            ));
        }
    }
    Ok(())
}

fn outcome(run: &Run, summary: Option<&Summary>, figure: Figure) -> Outcome {
    let val = summary.and_then(|s| s.val.as_ref());
    Outcome {
        settings: run.settings.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
        seed: run.seed,
        folder: run.folder().display().to_string(),
        figure: summary.and_then(|s| figure.in_summary(s)),
        val_nll: val.map(|v| v.nll),
        val_ppl: val.map(|v| v.ppl),
        bits_per_byte: val.and_then(|v| v.bits_per_byte),
        test_ppl: summary.and_then(|s| s.test.as_ref()).map(|t| t.result.ppl),
        accuracy: summary.and_then(|s| s.accuracy),
        last20_loss: summary.map(|s| s.last20_loss),
        tokens: summary.map(|s| s.tokens),
        tok_per_s: summary.map(|s| s.tok_per_s),
        seconds: summary.map(|s| s.wall_seconds),
    }
}

/// A cell of a CSV table (RFC 4180).
fn cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports of two learning rates with three seeds and a third rate with one.
    fn swept(dir: &Path, losses: &[(f64, u64, f64)]) -> Plan {
        let plan: Plan =
            toml::from_str("recipe='copy'\nseeds=[0,1,2]\n[grid]\n'train.lr'=[1.0,2.0,3.0]\n'a, b'=['x']")
                .unwrap();
        for run in plan.runs() {
            let lr = run.settings.iter().find(|s| s.0 == "train.lr").unwrap().1.as_float().unwrap();
            let Some(found) = losses.iter().find(|l| (l.0, l.1) == (lr, run.seed)) else { continue };
            let folder = dir.join(run.folder());
            std::fs::create_dir_all(&folder).unwrap();
            let versions = serde_json::to_value(report::Versions::current()).unwrap();
            let summary = serde_json::json!({
                "name": "copy", "task": "lm", "steps": 1, "seed": run.seed, "parameters": 1, "ternary_weights": 1,
                "wall_seconds": 2.5, "tokens": 10, "tok_per_s": 4.0, "first5_loss": 9.0, "last20_loss": found.2,
                "versions": versions,
            });
            std::fs::write(folder.join(report::JSON), summary.to_string()).unwrap();
        }
        plan
    }

    #[test]
    fn settings_inside_of_the_noise_are_not_ranked() {
        let dir = tempfile::tempdir().unwrap();
        let losses = [
            (1.0, 0, 1.00),
            (1.0, 1, 1.10),
            (1.0, 2, 1.20),
            (2.0, 0, 1.05),
            (2.0, 1, 1.15),
            (2.0, 2, 1.25),
            (3.0, 0, 9.00),
        ];
        let plan = swept(dir.path(), &losses);
        let results = Results::read(&plan, dir.path()).unwrap();
        let means: Vec<(f64, Option<bool>)> =
            results.rows.iter().map(|row| (row.sample.unwrap().mean, row.worse)).collect();
        // A deviation of 0.1 with four degrees of freedom: 2.776 * 0.1 * sqrt(2 / 3) = 0.227 is the least that counts.
        assert!((results.noise.unwrap().deviation - 0.1).abs() < 1e-9);
        assert_eq!(means[0].1, Some(false));
        assert_eq!(means[1].1, Some(false), "0.05 is noise");
        assert_eq!(means[2], (9.0, Some(true)));
        assert_eq!(results.rows[2].without, 2);

        results.write(dir.path()).unwrap();
        let table = std::fs::read_to_string(dir.path().join(CSV)).unwrap();
        assert!(table.starts_with("\"a, b\",train.lr,seed,figure,val_nll"), "{table}");
        assert!(table.contains("\nx,1.0,0,1,,,,,,1,10,4,2.5\n"), "{table}");
        let lines = std::fs::read_to_string(dir.path().join(JSONL)).unwrap();
        let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!((&first["settings"]["train.lr"], &first["figure"]), (&"1.0".into(), &1.0.into()));
        assert_eq!(lines.lines().count(), 9, "runs that have not ended are listed, too");
    }

    #[test]
    fn one_seed_ranks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let plan = swept(dir.path(), &[(1.0, 0, 1.0), (2.0, 0, 5.0), (3.0, 0, f64::MAX)]);
        let results = Results::read(&plan, dir.path()).unwrap();
        assert!(results.noise.is_none() && results.rows.iter().all(|row| row.worse.is_none()));
    }
}
