//! `report.html`: one file, no scripts, nothing loaded from elsewhere.

use minijinja::context;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::Value as Json;

use super::charts::{Chart, Ink, Series};
use super::curves::{Curves, Point, highest, smoothed, thinned};
use super::render::render;
use super::summary::{Evaluation, Summary};
use crate::config;
use crate::error::Result;
use crate::number::{duration, percent, short, significant, thousands};

/// A heading number.
#[derive(Serialize)]
struct Figure {
    label: &'static str,
    value: String,
    note: String,
}

/// A chart in the two widths the page chooses from.
#[derive(Serialize)]
struct Panel {
    title: &'static str,
    unit: String,
    full: bool,
    wide: Option<String>,
    narrow: String,
    /// Colour and meaning.
    legend: Vec<(&'static str, &'static str)>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    weights: String,
    shares: [f64; 3],
    zero: String,
    scale: String,
    scale_range: String,
    drift: String,
    moved: String,
    dead: String,
    some_dead: bool,
}

#[derive(Serialize)]
struct Bar {
    name: String,
    value: String,
    wanted: String,
    pass: bool,
}

/// The page.
pub(super) fn page(summary: &Summary, curves: &Curves) -> Result<String> {
    let shares = summary.ternary.as_ref().map(|t| [t.minus, t.zero, t.plus].map(|n| ratio(n, t.weights)));
    let ternary = summary.ternary.as_ref().map(|t| {
        context! {
            pass => t.pass,
            tensors => thousands(t.tensors),
            weights => thousands(t.weights),
            groups => thousands(t.groups),
            dead_groups => thousands(t.dead_groups),
            max_error => if t.max_error == 0.0 { "exactly 0".into() } else { significant(t.max_error, 3) },
            shares => shares,
            texts => shares.map(|s| s.map(percent)),
        }
    });
    let task = match summary.task.as_str() {
        "lm" => "Language model",
        "copy" => "Copy task",
        "recall" => "Recall task",
        other => other,
    };
    let failed = summary.checks.iter().filter(|c| !c.pass).count();
    let figures = figures(summary);
    // One full row, or two of them.
    let columns = if figures.len() > 5 { figures.len().div_ceil(2) } else { figures.len() };
    let shown = context! {
        name => summary.name.as_str(),
        task,
        steps => thousands(summary.steps),
        seed => summary.seed,
        parameters => short(summary.parameters as f64),
        ternary_share => percent(ratio(summary.ternary_weights, summary.parameters)),
        duration => duration(summary.wall_seconds),
        cpu => summary.versions.cpu.as_str(),
        ternary,
        checks => Serde(bars(summary)),
        failed,
        columns,
        figures => Serde(figures),
        panels => Serde(panels(curves)),
        tensors => Serde(rows(curves)),
        remarks => Serde(&curves.remarks),
        evaluations => Serde(evaluations(summary)),
        samples => Serde(&summary.samples),
        settings => Serde(settings(&summary.recipe)),
        versions => Serde(versions(summary)),
    };
    render(include_str!("report.html.jinja"), shown)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn figures(s: &Summary) -> Vec<Figure> {
    let mut out = Vec::new();
    let mut add = |label, value, note| out.push(Figure { label, value, note });
    if let Some(accuracy) = s.accuracy {
        add("Accuracy", percent(accuracy), "of the tokens asked for".into());
    }
    let note = |e: &Evaluation| match e.bits_per_byte {
        Some(bits) => format!("{} bits per byte", significant(bits, 4)),
        None => format!("{} nats per token", significant(e.nll, 4)),
    };
    if let Some(val) = &s.val {
        add("Validation perplexity", significant(val.ppl, 4), note(val));
    }
    if let Some(test) = &s.test {
        add("Test perplexity", significant(test.result.ppl, 4), note(&test.result));
    }
    add(
        "Training loss",
        significant(s.last20_loss, 4),
        format!("last 20 steps; first 5: {}", significant(s.first5_loss, 4)),
    );
    add("Tokens trained on", short(s.tokens as f64), format!("{} a second", short(s.tok_per_s)));
    add(
        "Weights",
        short(s.parameters as f64),
        format!("{} of them ternary", short(s.ternary_weights as f64)),
    );
    add("Time", duration(s.wall_seconds), format!("{} threads, {}", s.versions.threads, s.versions.isa));
    out
}

fn bars(s: &Summary) -> Vec<Bar> {
    let bar = |c: &super::Check| Bar {
        name: config::name(&c.goal),
        value: significant(c.value, 4),
        wanted: format!("{} {}", if c.goal.is_least() { "≥" } else { "≤" }, significant(c.bar, 4)),
        pass: c.pass,
    };
    s.checks.iter().map(bar).collect()
}

fn panels(c: &Curves) -> Vec<Panel> {
    let line = |ink, width, points: &[Point]| Series::Line(ink, width, thinned(points, 800));
    let one = |points: &[Point]| vec![line(Ink::Main, 2, points)];
    let changes = |i: usize| c.changes.iter().map(|(x, t)| (*x, t[i])).collect::<Vec<_>>();
    let (norms, spikes) = without_spikes(&c.grad_norm);
    let charts = [
        Chart {
            title: "Ternary weights",
            unit: "share of all".into(),
            legend: vec![("minus", "−1"), ("zero", "0"), ("plus", "+1")],
            series: bands(c).into(),
            from_zero: true,
            percent: true,
            ..Chart::default()
        },
        Chart {
            title: "Changed weights",
            unit: "per interval".into(),
            legend: vec![("main", "to 0"), ("dot", "from 0"), ("minus", "sign flips")],
            series: vec![
                line(Ink::Main, 2, &changes(0)),
                line(Ink::Dot, 2, &changes(1)),
                line(Ink::Minus, 2, &changes(2)),
            ],
            from_zero: true,
            percent: true,
            ..Chart::default()
        },
        Chart {
            title: "Restless weights",
            unit: "share".into(),
            legend: vec![("main", "of changes, undone at once"), ("dot", "of latents, near a threshold")],
            series: vec![line(Ink::Main, 2, &c.undone), line(Ink::Dot, 2, &c.near)],
            from_zero: true,
            percent: true,
            ..Chart::default()
        },
        Chart {
            title: "Size of a step",
            unit: "root mean square of ΔW, in scales".into(),
            series: one(&c.updates),
            from_zero: true,
            ..Chart::default()
        },
        residual_chart(c),
        Chart { title: "Learning rate", series: one(&c.lr), from_zero: true, ..Chart::default() },
        Chart {
            title: "Gradient norm",
            unit: match spikes {
                Some(highest) => format!("before clipping, spikes up to {}", significant(highest, 3)),
                None => "before clipping".into(),
            },
            series: one(&norms),
            from_zero: true,
            ..Chart::default()
        },
    ];
    let loss = loss_chart(c);
    let wide = loss.svg((1040, 340));
    let first = panel(loss, wide);
    first.into_iter().chain(charts.into_iter().filter_map(|chart| panel(chart, None))).collect()
}

/// Nothing of a training that was ternary from its first step on.
fn residual_chart(c: &Curves) -> Chart {
    let inks = [("main", Ink::Main), ("dot", Ink::Dot), ("minus", Ink::Minus)];
    let kinds = || inks.into_iter().zip(&c.residuals);
    Chart {
        title: "Left of the latents",
        unit: "share in what was multiplied with".into(),
        legend: kinds().map(|((ink, _), (kind, _))| (ink, *kind)).collect(),
        series: kinds().map(|((_, ink), (_, points))| Series::Line(ink, 2, thinned(points, 800))).collect(),
        from_zero: true,
        percent: true,
        ..Chart::default()
    }
}

fn panel(chart: Chart, wide: Option<String>) -> Option<Panel> {
    let narrow = chart.svg((440, 270))?;
    Some(Panel {
        title: chart.title,
        unit: chart.unit,
        full: wide.is_some(),
        wide,
        narrow,
        legend: chart.legend,
    })
}

fn loss_chart(c: &Curves) -> Chart {
    let smooth = smoothed(&c.loss);
    let mut series = vec![
        Series::Line(Ink::Faint, 1, thinned(&c.loss, 1500)),
        Series::Line(Ink::Main, 3, thinned(&smooth, 800)),
    ];
    let mut legend = vec![("faint", "training"), ("main", "training, smoothed")];
    if !c.val.is_empty() {
        series.push(Series::Dots(Ink::Dot, thinned(&c.val, 200)));
        legend.push(("dot", "validation"));
    }
    let later = highest(&smooth, smooth.len() / 25).max(highest(&c.val, 0)) * 1.05;
    let start = smooth.first().map_or(0.0, |p| p.1);
    let top = (later > 0.0 && start > 1.4 * later).then_some(later);
    let unit = match top {
        Some(_) => format!("nats per token, falling from {}", significant(start, 3)),
        None => "nats per token".into(),
    };
    Chart { title: "Loss", unit, legend, series, top, ..Chart::default() }
}

fn bands(c: &Curves) -> [Series; 3] {
    let band = |ink, part: fn([f64; 3]) -> (f64, f64)| {
        let points = c.trits.iter().map(|&(x, t)| (x, part(t)));
        Series::Band(ink, points.map(|(x, (low, high))| (x, low, high)).collect())
    };
    [
        band(Ink::Minus, |t| (0.0, t[0])),
        band(Ink::Zero, |t| (t[0], t[0] + t[1])),
        band(Ink::Plus, |t| (t[0] + t[1], t[0] + t[1] + t[2])),
    ]
}

/// A few huge values would flatten the rest: they are drawn at four times the 99th percentile. Also returns the
/// highest of them.
fn without_spikes(points: &[Point]) -> (Vec<Point>, Option<f64>) {
    let mut values: Vec<f64> = points.iter().map(|p| p.1).filter(|v| v.is_finite()).collect();
    values.sort_unstable_by(f64::total_cmp);
    let Some(&typical) = values.get(values.len() * 99 / 100) else { return (Vec::new(), None) };
    let cut = 4.0 * typical;
    let highest = values.last().copied().filter(|&v| v > cut);
    (points.iter().map(|&(x, y)| (x, if y > cut { cut } else { y })).collect(), highest)
}

fn rows(c: &Curves) -> Vec<Row> {
    let row = |t: &crate::train::TensorPoint| Row {
        name: t.name.clone(),
        weights: thousands(t.weights),
        shares: [t.minus, t.zero, t.plus],
        zero: percent(t.zero),
        scale: significant(t.scale_mean, 3),
        scale_range: format!("{} to {}", significant(t.scale_min, 2), significant(t.scale_max, 2)),
        drift: percent(t.scale_drift),
        moved: t.moved.map_or("–".into(), percent),
        dead: format!("{} of {}", thousands(t.dead_groups), thousands(t.groups)),
        some_dead: t.dead_groups > 0,
    };
    c.tensors.iter().map(row).collect()
}

fn evaluations(s: &Summary) -> Vec<[String; 6]> {
    let row = |name: &str, e: &Evaluation| {
        [
            name.to_owned(),
            significant(e.ppl, 5),
            significant(e.nll, 5),
            e.bits_per_byte.map_or("–".into(), |b| significant(b, 4)),
            thousands(e.tokens),
            format!("{}, stride {}", thousands(e.context), thousands(e.stride)),
        ]
    };
    let val = s.val.iter().map(|e| row("Validation", e));
    val.chain(s.test.iter().map(|t| row(&t.file, &t.result))).collect()
}

/// The recipe's tables, each with its settings.
fn settings(recipe: &Json) -> Vec<(String, Vec<(String, String)>)> {
    let Json::Object(recipe) = recipe else { return Vec::new() };
    let text = |v: &Json| match v {
        Json::String(s) => s.clone(),
        Json::Null => "–".into(),
        Json::Array(list) if list.iter().all(Json::is_string) => {
            list.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    let mut general = Vec::new();
    let mut tables = Vec::new();
    for (key, value) in recipe {
        match value {
            Json::Object(table) => {
                tables.push((key.clone(), table.iter().map(|(k, v)| (k.clone(), text(v))).collect()));
            }
            other => general.push((key.clone(), text(other))),
        }
    }
    if !general.is_empty() {
        tables.insert(0, ("recipe".into(), general));
    }
    tables
}

fn versions(s: &Summary) -> Vec<(&'static str, String)> {
    let v = &s.versions;
    let mut out = vec![("ternlm", v.ternlm.clone())];
    out.extend(v.rustc.clone().map(|r| ("rustc", r)));
    out.extend([
        ("system", v.os.clone()),
        ("processor", v.cpu.clone()),
        ("instructions", v.isa.clone()),
        ("threads", v.threads.to_string()),
    ]);
    out
}
