//! Several runs on one page: figures, curves, settings that differ, trits by layer, what each writes.

use minijinja::context;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::charts::{Chart, Ink, RUNS, Series};
use super::curves::{Curves, Point, highest, smoothed, thinned};
use super::render::render;
use super::{JSON, Summary, metrics, read};
use crate::config::{OF_THE_TEXT, TOKEN_KEYS};
use crate::error::{Error, Result};
use crate::files::{if_there, read_limited, write_bytes};
use crate::number::{duration, percent, short, significant};

/// Bytes of a `recipe.toml`.
const MAX_RECIPE: u64 = 16 << 20;

/// A run as it is compared; one that has not ended has no summary.
struct Compared {
    name: String,
    summary: Option<Summary>,
    recipe: Json,
    curves: Curves,
}

/// For programs: what differs between runs, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Names of the runs.
    pub runs: Vec<String>,
    /// Figures by name, one for each run; `null` where a run has none.
    pub figures: BTreeMap<&'static str, Vec<Option<f64>>>,
    /// Keys of the recipe in which runs differ, with each one's value.
    pub differing: BTreeMap<String, Vec<Json>>,
}

/// Compares the runs in these folders.
///
/// # Errors
/// Fewer than two or more than six, or a folder that holds no run.
pub fn compare(runs: &[PathBuf]) -> Result<Comparison> {
    let runs = open(runs)?;
    Ok(Comparison {
        figures: FIGURES.iter().map(|f| (f.name, runs.iter().map(f.of).collect())).collect(),
        differing: differing(&runs),
        runs: runs.into_iter().map(|run| run.name).collect(),
    })
}

/// Writes the page that compares the runs in these folders.
///
/// # Errors
/// As [`compare`].
pub fn write_comparison(runs: &[PathBuf], to: &Path) -> Result<()> {
    let runs = open(runs)?;
    let legend: Vec<(usize, String)> = runs.iter().map(|run| run.name.clone()).enumerate().collect();
    let shown = context! {
        legend => legend,
        figures => Serde(figure_rows(&runs)),
        settings => Serde(setting_rows(&runs)),
        panels => Serde(panels(&runs)),
        maps => Serde(runs.iter().map(map).collect::<Vec<_>>()),
        samples => Serde(samples(&runs)),
    };
    write_bytes(to, render(include_str!("compare.html.jinja"), shown)?.as_bytes())
}

fn open(folders: &[PathBuf]) -> Result<Vec<Compared>> {
    if !(2..=RUNS).contains(&folders.len()) {
        let found = folders.len();
        return Err(Error::usage(format!("runs to be compared: found {found}, wanted 2 to {RUNS}")));
    }
    let names = names(folders);
    let run = |(folder, name): (&PathBuf, String)| {
        let records = metrics(folder)?;
        let summary = if folder.join(JSON).is_file() { Some(read(folder)?) } else { None };
        if records.is_empty() && summary.is_none() {
            return Err(Error::input(folder, "report", "no metrics.jsonl", "the folder of a run"));
        }
        let recipe = match &summary {
            Some(summary) => summary.recipe.clone(),
            None => recipe(folder)?,
        };
        let curves = Curves::new(&records);
        let curves = summary.as_ref().map_or(curves.clone(), |s| curves.with_losses(&s.loss_curve));
        Ok(Compared { name, summary, recipe, curves })
    };
    folders.iter().zip(names).map(run).collect()
}

/// The last parts of the paths, as many as tell them apart.
fn names(folders: &[PathBuf]) -> Vec<String> {
    let last = |folder: &PathBuf, parts: usize| {
        let all: Vec<_> = folder.components().map(|c| c.as_os_str().to_string_lossy()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let most = folders.iter().map(|f| f.components().count()).max().unwrap_or(1);
    let names = |parts| folders.iter().map(|f| last(f, parts)).collect::<Vec<_>>();
    let apart = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    (1..=most).map(names).find(apart).unwrap_or_else(|| names(most))
}

/// The recipe of a run that has not ended.
fn recipe(folder: &Path) -> Result<Json> {
    let path = folder.join("recipe.toml");
    let Some(text) = if_there(read_limited(&path, MAX_RECIPE))? else { return Ok(Json::Null) };
    let text = String::from_utf8_lossy(&text);
    toml::from_str(&text).map_err(|e| Error::input(&path, "TOML", e, "the recipe of a run"))
}

/// A figure by which runs are compared.
struct Figure {
    name: &'static str,
    label: &'static str,
    of: fn(&Compared) -> Option<f64>,
    shown: fn(f64) -> String,
    /// Whether less is better, more is, or neither.
    better: Option<bool>,
    /// Keys that decide what it is measured on: of runs that differ in them it says nothing.
    on: &'static [&'static str],
}

/// Keys that say which tokens are counted, and of which text.
const HELD_OUT: &[&str] =
    &[TOKEN_KEYS[0], TOKEN_KEYS[1], "data.val", "data.val_fraction", "data.field", "data.join"];
const TEST: &[&str] = &[TOKEN_KEYS[0], TOKEN_KEYS[1], "report.test"];
const BYTES: &[&str] = &["report.test", "data.val", "data.val_fraction", "data.field"];
const TRAINED: &[&str] = &[TOKEN_KEYS[0], TOKEN_KEYS[1], "data.train", "data.field", "data.join"];

const FIGURES: [Figure; 10] = [
    Figure {
        name: "val_nll",
        label: "Validation, nats per token",
        of: |run| match run.summary.as_ref().and_then(|s| s.val.as_ref()) {
            Some(val) => Some(val.nll),
            None => run.curves.val.last().map(|p| p.1),
        },
        shown: |x| significant(x, 5),
        better: Some(false),
        on: HELD_OUT,
    },
    Figure {
        name: "val_ppl",
        label: "Validation perplexity",
        of: |run| (FIGURES[0].of)(run).map(f64::exp),
        shown: |x| significant(x, 4),
        better: Some(false),
        on: HELD_OUT,
    },
    Figure {
        name: "test_ppl",
        label: "Test perplexity",
        of: |run| Some(run.summary.as_ref()?.test.as_ref()?.result.ppl),
        shown: |x| significant(x, 4),
        better: Some(false),
        on: TEST,
    },
    Figure {
        name: "bits_per_byte",
        label: "Bits per byte, test or validation",
        of: |run| {
            let summary = run.summary.as_ref()?;
            let test = summary.test.as_ref().and_then(|t| t.result.bits_per_byte);
            test.or_else(|| summary.val.as_ref()?.bits_per_byte)
        },
        shown: |x| significant(x, 4),
        better: Some(false),
        on: BYTES,
    },
    Figure {
        name: "accuracy",
        label: "Accuracy",
        of: |run| run.summary.as_ref()?.accuracy,
        shown: percent,
        better: Some(true),
        on: &[],
    },
    Figure {
        name: "train_loss",
        label: "Training loss, last 20 steps",
        of: |run| match &run.summary {
            Some(summary) => Some(summary.last20_loss),
            None => smoothed(&run.curves.loss).last().map(|p| p.1),
        },
        shown: |x| significant(x, 5),
        better: Some(false),
        on: TRAINED,
    },
    Figure {
        name: "zero",
        label: "Zeros",
        of: |run| run.curves.trits.last().map(|t| t.1[1]),
        shown: percent,
        better: None,
        on: &[],
    },
    Figure {
        name: "parameters",
        label: "Weights",
        of: |run| Some(run.summary.as_ref()?.parameters as f64),
        shown: short,
        better: None,
        on: &[],
    },
    Figure {
        name: "tokens",
        label: "Tokens trained on",
        of: |run| Some(run.summary.as_ref()?.tokens as f64),
        shown: short,
        better: None,
        on: &[],
    },
    Figure {
        name: "seconds",
        label: "Time",
        of: |run| Some(run.summary.as_ref()?.wall_seconds),
        shown: duration,
        better: Some(false),
        on: &[],
    },
];

#[derive(Serialize)]
struct Cell {
    text: String,
    best: bool,
}

fn figure_rows(runs: &[Compared]) -> Vec<(&'static str, Vec<Cell>)> {
    // What a figure is of: a token more or less, or another text, is another thing.
    let digests = runs.iter().all(|run| run.summary.as_ref().is_some_and(|s| s.texts.is_some()));
    let of = |figure: &Figure, run: &Compared| {
        let recipe = flat(&run.recipe);
        let mut keys = figure.on.to_vec();
        let of_tokens = keys.contains(&TOKEN_KEYS[0]);
        // What the files hold says more than where they are, where all runs say it.
        let texts = run.summary.as_ref().and_then(|summary| summary.texts.as_ref()).filter(|_| digests);
        let digest = texts.and_then(|texts| match keys.as_slice() {
            HELD_OUT => Some(&texts.val),
            TRAINED => Some(&texts.train),
            _ => None,
        });
        if let Some(digest) = digest {
            return (vec![Some(digest.as_str().into())], true);
        }
        if of_tokens && recipe.get(TOKEN_KEYS[0]).is_some_and(|name| name == "") {
            // The tokenizer is that of the start.
            keys.push("init");
        }
        let own_vocabulary = of_tokens && recipe.get(TOKEN_KEYS[0]).is_some_and(|name| name == OF_THE_TEXT);
        let val = recipe.get("data.val").and_then(|val| val.as_array()).is_some_and(|val| !val.is_empty());
        if !keys.is_empty() && (own_vocabulary || !val) {
            keys.push("data.train");
        }
        let values: Vec<Option<Json>> = keys.iter().map(|key| recipe.get(*key).cloned()).collect();
        // A run that has not ended was measured on a part.
        (values, !keys.is_empty() && run.summary.is_some())
    };
    let row = |figure: &Figure| {
        let values: Vec<Option<f64>> =
            runs.iter().map(|run| (figure.of)(run).filter(|x| x.is_finite())).collect();
        let known = values.iter().flatten().copied();
        let same = runs.windows(2).all(|two| of(figure, &two[0]) == of(figure, &two[1]));
        let best = match figure.better.filter(|_| same) {
            Some(true) => known.reduce(f64::max),
            Some(false) => known.reduce(f64::min),
            None => None,
        };
        let cell = |value: &Option<f64>| Cell {
            text: value.map_or("–".into(), figure.shown),
            best: best.is_some() && *value == best,
        };
        values.iter().any(Option::is_some).then(|| (figure.label, values.iter().map(cell).collect()))
    };
    FIGURES.iter().filter_map(row).collect()
}

/// The recipe as keys with dots.
fn flat(recipe: &Json) -> BTreeMap<String, Json> {
    let mut out = BTreeMap::new();
    let mut open = vec![(String::new(), recipe)];
    while let Some((key, value)) = open.pop() {
        match value {
            Json::Object(table) => {
                let below = |k: &String| if key.is_empty() { k.clone() } else { format!("{key}.{k}") };
                open.extend(table.iter().map(|(k, v)| (below(k), v)));
            }
            other => drop(out.insert(key, other.clone())),
        }
    }
    out
}

fn differing(runs: &[Compared]) -> BTreeMap<String, Vec<Json>> {
    let recipes: Vec<_> = runs.iter().map(|run| flat(&run.recipe)).collect();
    let keys: BTreeSet<&String> = recipes.iter().flat_map(|r| r.keys()).collect();
    let values =
        |key: &String| recipes.iter().map(|r| r.get(key).cloned().unwrap_or(Json::Null)).collect::<Vec<_>>();
    let rows = keys.into_iter().map(|key| (key.clone(), values(key)));
    rows.filter(|(_, values)| values.iter().any(|v| *v != values[0])).collect()
}

fn setting_rows(runs: &[Compared]) -> Vec<(String, Vec<String>)> {
    let text = |v: &Json| match v {
        Json::Null => "–".into(),
        Json::String(s) => s.clone(),
        other => other.to_string(),
    };
    differing(runs).into_iter().map(|(key, values)| (key, values.iter().map(text).collect())).collect()
}

#[derive(Serialize)]
struct Panel {
    title: &'static str,
    unit: &'static str,
    svg: String,
}

fn panels(runs: &[Compared]) -> Vec<Panel> {
    let lines = |points: &dyn Fn(&Curves) -> Vec<Point>| {
        let line =
            |(i, run): (usize, &Compared)| Series::Line(Ink::Run(i), 2, thinned(&points(&run.curves), 800));
        runs.iter().enumerate().map(line).collect::<Vec<_>>()
    };
    let changes = |c: &Curves| c.changes.iter().map(|(x, t)| (*x, t.iter().sum())).collect();
    let zeros = |c: &Curves| c.trits.iter().map(|(x, t)| (*x, t[1])).collect();
    let later = |run: &Compared| {
        let smooth = smoothed(&run.curves.loss);
        highest(&smooth, smooth.len() / 10)
    };
    let top = runs.iter().map(later).fold(f64::MIN, f64::max);
    let charts = [
        ("Training loss", "nats per token, smoothed", lines(&|c| smoothed(&c.loss)), false, Some(top)),
        ("Validation loss", "nats per token", lines(&|c| c.val.clone()), false, None),
        ("Changed weights", "per interval", lines(&changes), true, None),
        ("Zeros", "share of the ternary weights", lines(&zeros), true, None),
        ("Size of a step", "root mean square of ΔW, in scales", lines(&|c| c.updates.clone()), true, None),
        ("Learning rate", "", lines(&|c| c.lr.clone()), true, None),
    ];
    let panel = |(title, unit, series, from_zero, top): (&'static str, &'static str, _, _, Option<f64>)| {
        let percent = matches!(title, "Changed weights" | "Zeros");
        let top = top.filter(|top| top.is_finite() && *top > f64::MIN);
        let svg = Chart { series, from_zero, percent, top, ..Chart::default() }.svg((440, 270))?;
        Some(Panel { title, unit, svg })
    };
    charts.into_iter().filter_map(panel).collect()
}

/// A run's ternary matrices: rows are layers, columns are what a layer has.
#[derive(Serialize)]
struct Map {
    name: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Option<Square>>)>,
}

#[derive(Serialize, Clone)]
struct Square {
    shares: [f64; 3],
    zero: String,
    moved: String,
}

fn map(run: &Compared) -> Map {
    let (mut columns, mut rows) = (Vec::<String>::new(), Vec::<(String, BTreeMap<String, Square>)>::new());
    for tensor in &run.curves.tensors {
        let (layer, kind) = place(&tensor.name);
        if !columns.contains(&kind) {
            columns.push(kind.clone());
        }
        if rows.last().is_none_or(|row| row.0 != layer) {
            rows.push((layer, BTreeMap::new()));
        }
        let square = Square {
            shares: [tensor.minus, tensor.zero, tensor.plus],
            zero: percent(tensor.zero),
            moved: tensor.moved.map_or("–".into(), percent),
        };
        rows.last_mut().expect("a row").1.insert(kind, square);
    }
    let row = |(layer, squares): (String, BTreeMap<String, Square>)| {
        (layer, columns.iter().map(|kind| squares.get(kind).cloned()).collect())
    };
    Map { name: run.name.clone(), rows: rows.into_iter().map(row).collect(), columns }
}

/// `model.layers.3.mlp.up_proj.weight` as layer `3` and `up`; what is in no layer stands in a row of its own.
fn place(name: &str) -> (String, String) {
    let parts: Vec<&str> = name.trim_end_matches(".weight").split('.').collect();
    let number = parts.iter().position(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let last = parts.last().copied().unwrap_or(name).trim_end_matches("_proj").to_string();
    match number {
        Some(at) => (parts[at].to_string(), last),
        None => (last, "–".into()),
    }
}

#[derive(Serialize)]
struct Samples {
    prompt: String,
    /// Of each run; none where it was not asked for.
    texts: Vec<Option<String>>,
}

fn samples(runs: &[Compared]) -> Vec<Samples> {
    let of = |run: &Compared| run.summary.as_ref().map(|s| s.samples.clone()).unwrap_or_default();
    let all: Vec<_> = runs.iter().map(of).collect();
    let mut prompts: Vec<&String> = Vec::new();
    for sample in all.iter().flatten() {
        if !prompts.contains(&&sample.prompt) {
            prompts.push(&sample.prompt);
        }
    }
    let texts = |prompt: &String| {
        all.iter().map(|some| Some(some.iter().find(|s| s.prompt == *prompt)?.text.clone())).collect()
    };
    prompts.into_iter().map(|prompt| Samples { prompt: prompt.clone(), texts: texts(prompt) }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{fixture, write};
    use super::*;
    use crate::train::MetricsLog;
    use std::fs;

    fn run(dir: &Path, name: &str, change: impl Fn(&mut Summary)) -> PathBuf {
        let folder = dir.join(name);
        fs::create_dir_all(&folder).unwrap();
        let mut log = MetricsLog::create(&folder.join("metrics.jsonl")).unwrap();
        fixture::records().iter().for_each(|record| log.append(record).unwrap());
        let mut summary = fixture::summary();
        change(&mut summary);
        write(&folder, &summary).unwrap();
        folder
    }

    /// `TERNLM_REPORT=DIR cargo test compare` leaves the page there, to be looked at.
    #[test]
    fn what_differs_is_shown_and_what_is_equal_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let kept = std::env::var_os("TERNLM_REPORT").map(PathBuf::from);
        let dir = kept.as_deref().unwrap_or(temp.path());
        let first = run(dir, "a/seed-0", |_| ());
        let second = run(dir, "b/seed-0", |s| {
            s.recipe["train"]["lr"] = 0.5.into();
            s.val.as_mut().unwrap().nll += 1.0;
            s.samples[0].text = "<script>other</script>".into();
        });
        // One that still runs.
        let third = dir.join("c/seed-0");
        fs::create_dir_all(&third).unwrap();
        fs::copy(first.join("metrics.jsonl"), third.join("metrics.jsonl")).unwrap();
        fs::write(third.join("recipe.toml"), "seed = 9\n[train]\nlr = 0.5\n").unwrap();
        let runs = [first, second, third];
        let found = compare(&runs[..2]).unwrap();
        assert_eq!(found.runs, ["a/seed-0", "b/seed-0"]);
        assert_eq!(found.differing.keys().collect::<Vec<_>>(), ["train.lr"]);
        let nll = &found.figures["val_nll"];
        assert!((nll[1].unwrap() - nll[0].unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(compare(&runs).unwrap().differing["train.lr"][2], 0.5);

        let page = dir.join("comparison.html");
        write_comparison(&runs, &page).unwrap();
        let html = fs::read_to_string(&page).unwrap();
        for shown in ["a&#x2f;seed-0", "train.lr", "other&lt;&#x2f;script&gt;", "run2", "Zeros", ">gate<"] {
            assert!(html.contains(shown), "{shown}");
        }
        for forbidden in ["<script", "src=", "@import", "url(", "<link"] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn too_few_too_many_and_no_runs_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = run(dir.path(), "a", |_| ());
        let error = |runs: &[PathBuf]| compare(runs).unwrap_err().to_string();
        assert!(error(std::slice::from_ref(&folder)).contains("found 1, wanted 2 to 6"));
        assert!(error(&vec![folder.clone(); 7]).contains("found 7"));
        assert!(error(&[folder, dir.path().join("none")]).contains("none"));
    }

    #[test]
    fn tensors_have_a_place_in_the_map() {
        assert_eq!(place("model.layers.11.mlp.up_proj.weight"), ("11".into(), "up".into()));
        assert_eq!(place("model.embed_tokens.weight"), ("embed_tokens".into(), "–".into()));
    }
}
