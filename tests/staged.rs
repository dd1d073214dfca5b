//! Weights that become ternary one kind after the other: what they are at which step, and trainings that do it.

mod common;

use common::lab::{Lab, TINY, records, refused, step, success};
use common::{close, on_this_isa};
use std::fs;
use std::path::Path;
use ternlm::config::{Recipe, Scope, StartConfig, TernaryConfig};
use ternlm::kernels::Values;
use ternlm::model::{Decoder, Latents, Role};
use ternlm::ternary::Grouping;
use ternlm::train::Residuals;

/// Of `[train]`.
const KEYS: &str = "log_every = 3";

/// Twelve steps, annealed over three: what is left of the latents, worked out by hand (half a cosine of thirds).
const STAGES: [(&str, [f64; 12]); 3] = [
    ("feed_forward", [1.0, 0.75, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ("attention", [1.0, 1.0, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ("ends", [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0]),
];

fn staged() -> TernaryConfig {
    let start = StartConfig { feed_forward: 0.0, attention: 0.25, ends: 0.5 };
    TernaryConfig { anneal: 0.25, start, ..TernaryConfig::default() }
}

#[test]
fn each_kind_of_weight_becomes_ternary_at_its_own_step() {
    let _isa = on_this_isa();
    for tied in [true, false] {
        let mut config = toml::from_str::<Recipe>(TINY).unwrap().model.unwrap();
        (config.vocab_size, config.tie_embeddings) = (17, tied);
        let mut decoder = Decoder::new(&config, Scope::All, Grouping::Size(16));
        let mut latents = Latents::random(decoder.weights_mut(), 7, None).unwrap();
        for step in 0..12 {
            let residuals = Residuals::at(&staged(), 12, step as u64).unwrap();
            latents.soften(decoder.weights_mut(), |role| residuals.of(role));
            for weight in decoder.weights().filter(|weight| weight.role.is_matrix()) {
                let kind = match weight.role {
                    Role::FeedForward => 0,
                    Role::Attention => 1,
                    _ => 2,
                };
                let left = STAGES[kind].1[step];
                let what = format!("{} in step {step}", weight.name);
                let trits = weight.ternary().unwrap();
                match weight.matrix().values() {
                    Values::Dense { data, .. } if left == 1.0 => {
                        assert!(data == latents.of(weight), "{what}");
                    }
                    Values::Dense { data, cols, .. } => {
                        let mut hard = vec![0.0; data.len()];
                        hard.chunks_mut(cols).enumerate().for_each(|(row, out)| trits.unpack_row(row, out));
                        let between = hard.iter().zip(latents.of(weight));
                        let want: Vec<f64> =
                            between.map(|(t, w)| (1.0 - left) * *t as f64 + left * *w as f64).collect();
                        assert!(left > 0.0, "{what}: found no trits");
                        close(data, &want, 8, &what);
                    }
                    _ => assert_eq!(left, 0.0, "{what}: found trits"),
                }
            }
            latents.harden(decoder.weights_mut());
        }
    }
}

#[test]
fn a_staged_training_resumes_bit_for_bit_in_every_stage_and_ends_ternary() {
    let lab = Lab::new(KEYS);
    let start = ["ternary.anneal=0.25", "ternary.start.attention=0.25", "ternary.start.ends=0.5"];
    let sets = start.iter().flat_map(|set| ["--set", *set]);
    let sets: Vec<&str> = sets.chain(["--set", "train.keep=20", "--set", "train.log_every=1"]).collect();
    success(lab.train("whole", &sets));
    let (whole, part) = (lab.path("whole"), lab.path("part"));
    let train = records(&whole, "train");
    assert_eq!(train.len(), 12);
    for (kind, wanted) in STAGES {
        for (record, wanted) in train.iter().zip(wanted) {
            assert!(record["residual"].is_null());
            let found = record["residuals"][kind].as_f64().unwrap();
            assert!((found - wanted).abs() < 1e-6, "{kind}: {record}, wanted {wanted}");
        }
    }
    // In the middle of annealing, and where attention begins and ends, and embedding and head begin.
    success(lab.train("part", &sets));
    for done in [8, 6, 3, 2] {
        for n in done + 1..=12 {
            fs::remove_dir_all(step(&part, n)).unwrap();
        }
        success(lab.train("part", &["--resume", "--threads", "1"]));
        for file in ["model.safetensors", "optimizer.safetensors", "ternary.json"] {
            let read = |run: &Path| fs::read(step(run, 12).join(file)).unwrap();
            assert!(read(&whole) == read(&part), "{file} differs after a stop at {done}");
        }
    }
    let report = fs::read_to_string(whole.join("report.json")).unwrap();
    assert!(report.contains("\"pass\": true"), "{report}");
    assert!(fs::read_to_string(whole.join("report.html")).unwrap().contains("Left of the latents"));
    assert!(lab.ok(&["verify", "whole/model"]).contains("PASS"));
    refused(
        lab.train("part", &["--resume", "--set", "ternary.start.attention=0"]),
        "ternary.start.attention: found 0.0, wanted 0.25, as at the start",
    );
}

#[test]
fn before_their_start_weights_are_those_of_the_full_precision_twin() {
    let lab = Lab::new(KEYS);
    let every = ["--set", "train.log_every=1", "--set", "train.weight_decay=0.1"];
    let late = ["feed_forward", "attention", "ends"].map(|kind| format!("ternary.start.{kind}=0.5"));
    let late: Vec<&str> = late.iter().flat_map(|set| ["--set", set]).collect();
    success(lab.train("late", &[&every[..], &late].concat()));
    success(lab.train("twin", &[&every[..], &["--set", "ternary.scope=none"]].concat()));
    let losses = |run: &str| -> Vec<f64> {
        records(&lab.path(run), "train").iter().map(|r| r["loss"].as_f64().unwrap()).collect()
    };
    let (late, twin) = (losses("late"), losses("twin"));
    // The loss is taken before the update, so the seventh is the first of trits.
    assert_eq!(late[..6], twin[..6]);
    assert!((late[6] - twin[6]).abs() > 1e-3, "{late:?}, {twin:?}");
}

#[test]
fn a_stage_that_would_come_too_late_is_refused() {
    let lab = Lab::new(KEYS);
    let set = "--set";
    let late = [set, "ternary.anneal=0.25", set, "ternary.start.attention=0.7"];
    refused(
        lab.train("late", &late),
        "ternary.start.attention: found 0.7, wanted 0 to 0.9 together with ternary.anneal, 0.25",
    );
    refused(lab.train("early", &[set, "ternary.start.ends=-0.1"]), "ternary.start.ends: found -0.1");
    refused(lab.train("kind", &[set, "ternary.start.heads=0.1"]), "unknown field `heads`");
}
