//! A run directory from beginning to end.

use std::fs;
use std::path::Path;

use super::{fixture, read, rewrite, write};
use crate::train::MetricsLog;

fn run_dir(dir: &Path) {
    let mut log = MetricsLog::create(&dir.join("metrics.jsonl")).unwrap();
    for record in fixture::records() {
        log.append(&record).unwrap();
    }
}

/// `TERNLM_REPORT=DIR cargo test report` leaves the made-up run there, to be looked at.
#[test]
fn a_report_is_written_read_and_rewritten() {
    let temp = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("TERNLM_REPORT");
    let dir = kept.as_ref().map_or(temp.path(), Path::new);
    fs::create_dir_all(dir).unwrap();
    run_dir(dir);
    let summary = fixture::summary();
    write(dir, &summary).unwrap();
    let mut found = read(dir).unwrap();
    assert_eq!(found.loss_curve.len(), 2000);
    assert_eq!(found.loss_curve[1999].0, 2000);
    found.loss_curve.clear();
    assert_eq!(found, summary);
    let json = fs::read_to_string(dir.join("report.json")).unwrap();
    assert!(json.contains("\"name\": \"train loss\"") && json.contains("\"name\": \"min accuracy\""));
    let html = fs::read_to_string(dir.join("report.html")).unwrap();
    fs::remove_file(dir.join("report.html")).unwrap();
    rewrite(dir).unwrap();
    assert_eq!(fs::read_to_string(dir.join("report.html")).unwrap(), html);
    for shown in [
        "tinystories-6l-256",
        "Ternary: PASS",
        "All bars reached",
        "<td>train loss</td><td>1.674</td><td>≤ 1.8</td>",
        "<td>min accuracy</td><td>0.981</td><td>≥ 0.95</td>",
        "6.071",
        "layers.5.ffn.down",
        "5,472,256",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
    assert_eq!(html.matches("<svg").count(), 8, "seven charts, one of them in two widths");
    assert!(html.len() < 600_000, "{} bytes", html.len());
    // Samples are text, and nothing is loaded or run.
    assert!(html.contains("&lt;script&gt;") && html.contains("&lt;&#x2f;blockquote&gt;"));
    for forbidden in ["<script", "src=", "@import", "url(", "<link"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert!(html.matches("http").count() == html.matches("http://www.w3.org/2000/svg").count());
}

#[test]
fn a_bare_run_has_a_report_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut summary = fixture::summary();
    summary.ternary = None;
    summary.val = None;
    summary.test = None;
    summary.samples.clear();
    summary.accuracy = Some(1.0);
    summary.checks[0].pass = false;
    summary.last20_loss = f64::NAN;
    summary.recipe = serde_json::Value::Null;
    summary.loss_curve = vec![(1, f64::NAN)];
    write(dir.path(), &summary).unwrap();
    let found = read(dir.path()).unwrap();
    assert!(found.last20_loss.is_nan() && found.loss_curve.is_empty() && found.val.is_none());
    let html = fs::read_to_string(dir.path().join("report.html")).unwrap();
    for shown in ["Full precision", "1 of 2 bars missed", "100.0 %", "not finite"] {
        assert!(html.contains(shown), "{shown}");
    }
    assert!(!html.contains("<svg"));
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(dir.path()).unwrap_err().to_string().contains("report.json"));
    for bad in ["", "{", "[]", "{\"name\": 3}", "\u{0}"] {
        fs::write(dir.path().join("report.json"), bad).unwrap();
        assert!(rewrite(dir.path()).unwrap_err().to_string().contains("report.json: content"), "{bad}");
    }
    write(dir.path(), &fixture::summary()).unwrap();
    fs::write(dir.path().join("metrics.jsonl"), "{}\n").unwrap();
    assert!(rewrite(dir.path()).unwrap_err().to_string().contains("metrics.jsonl: line 1"));
}
