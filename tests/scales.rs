//! Scales that are numbers of their own: their step, latents that are kept at them, and trainings that learn them.

mod common;

use common::lab::{Lab, refused, step, success};
use common::{close, on_every_isa};
use std::fs;
use std::path::Path;
use ternlm::config::MomentFormat;
use ternlm::formats::tensors::TensorFiles;
use ternlm::kernels::{self as k, AdamW, Latents, LearnedScales, Moments, Pass, Rule};
use ternlm::ternary::{Grouping, TernaryMatrix};

const ADAM: AdamW =
    AdamW { lr: 0.25, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, grad_scale: 0.5, step: 3 };

/// Of `[train]`.
const KEYS: &str = "log_every = 3";

#[test]
fn a_step_moves_each_logarithm_by_adam_along_its_own_gradient() {
    on_every_isa(|rng| {
        for (rows, cols, group) in [(1, 37, 128), (5, 300, 128), (40, 128, 128), (3, 50, 7)] {
            let mut latents = rng.normal(rows * cols);
            // The last group is dead.
            let tail = cols - (cols - 1) / group * group;
            latents[rows * cols - tail..].fill(0.0);
            let trits = TernaryMatrix::project("w", &latents, rows, cols, Grouping::Size(group)).unwrap();
            let mut hard = vec![0f32; rows * cols];
            hard.chunks_mut(cols).enumerate().for_each(|(row, out)| trits.unpack_row(row, out));
            let between: Vec<f32> = hard.iter().zip(&latents).map(|(t, w)| 0.75 * t + 0.25 * w).collect();
            // Of the loss `sum (w - goal)^2 / 2`.
            let goal = rng.normal(rows * cols);
            for weights in [None, Some(&between[..])] {
                let multiplied = weights.unwrap_or(&hard);
                let grad: Vec<f32> = multiplied.iter().zip(&goal).map(|(w, goal)| w - goal).collect();
                let mut scales = LearnedScales::of(&latents, cols, group);
                scales.first = rng.normal(scales.means.len());
                scales.second = rng.normal(scales.means.len()).iter().map(|x| x * x).collect();
                let before = scales.clone();
                let (mut means, mut firsts) = (Vec::new(), Vec::new());
                let mut at = 0;
                for row in 0..rows {
                    for from in (0..cols).step_by(group) {
                        let part = row * cols + from..row * cols + cols.min(from + group);
                        // The gradient by ln s, from the loss itself.
                        let loss = |by: f64| -> f64 {
                            let off = part.clone().map(|i| by.exp() * multiplied[i] as f64 - goal[i] as f64);
                            off.map(|off| off * off / 2.0).sum()
                        };
                        let g = 0.5 * (loss(1e-4) - loss(-1e-4)) / 2e-4;
                        let m = 0.9 * before.first[at] as f64 + 0.1 * g;
                        let v = 0.95 * before.second[at] as f64 + 0.05 * g * g;
                        let (mh, vh) = (m / (1.0 - 0.9f64.powi(3)), v / (1.0 - 0.95f64.powi(3)));
                        let mean: f64 = latents[part.clone()].iter().map(|w| w.abs() as f64).sum::<f64>();
                        means.push(mean / part.len() as f64 * (-0.25 * mh / (vh.sqrt() + 1e-8)).exp());
                        firsts.push(m);
                        at += 1;
                    }
                }
                k::learn_scales(&ADAM, &grad, &trits, weights, &mut scales);
                close(&scales.first, &firsts, 4 * group, "first moments");
                close(&scales.means, &means, 4 * group, "scales");
                assert_eq!(*scales.means.last().unwrap(), 0.0, "a dead group stays dead");
            }
        }
    });
}

#[test]
fn a_held_pass_changes_directions_alone() {
    on_every_isa(|rng| {
        for (rows, cols, group) in [(1, 37, 128), (3, 9000, 128), (40, 1000, 128), (300, 17, 7)] {
            let (before, g) = (rng.normal(rows * cols), rng.normal(rows * cols));
            let grouping = Grouping::Size(group);
            let means: Vec<f32> =
                LearnedScales::of(&before, cols, group).means.iter().map(|m| 1.5 * m).collect();
            let rule = Rule::AdamW(AdamW { step: 1, ..ADAM });
            let pass = |means, out: &mut TernaryMatrix| {
                let (mut value, mut grad) = (before.clone(), g.clone());
                let mut moments = Moments::zeros(MomentFormat::F32, 2, rows, cols);
                let ternary = Some((grouping, out));
                let latents = Latents { name: "w", cols, value: &mut value, grad: &mut grad, ternary };
                let pass = Pass { means, measure: true, ..Pass::default() };
                let done = k::update(&rule, latents, &mut moments, pass).unwrap();
                (value, done)
            };
            let start = TernaryMatrix::project("w", &before, rows, cols, grouping).unwrap();
            let (mut free, mut held) = (start.clone(), start);
            let (followed, _) = pass(None, &mut free);
            let (value, done) = pass(Some(&means), &mut held);
            close(&LearnedScales::of(&value, cols, group).means, &to_f64(&means), 4, "means");
            assert!(held == TernaryMatrix::project("w", &value, rows, cols, grouping).unwrap());
            // The thresholds move with the latents, but for those that rounding puts on the other side.
            let same =
                (0..rows * cols).filter(|i| held.trit(i / cols, i % cols) == free.trit(i / cols, i % cols));
            assert!(same.count() * 1000 >= 998 * rows * cols, "[{rows}, {cols}]: other trits");
            let angle = |a: &[f32], b: &[f32]| {
                let dot =
                    |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
                dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
            };
            for (a, b) in value.chunks(cols).zip(followed.chunks(cols)) {
                for (a, b) in a.chunks(group).zip(b.chunks(group)) {
                    assert!(angle(a, b) > 1.0 - 1e-6);
                }
            }
            let squares: f64 = value.iter().zip(&before).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
            assert!((done.squares - squares).abs() <= 1e-9 * squares, "what is measured is what changed");
        }
    });
}

fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| *x as f64).collect()
}

#[test]
fn a_training_that_learns_scales_resumes_bit_for_bit() {
    let lab = Lab::new(KEYS);
    let set = "--set";
    let learned = [set, "ternary.scale=learned", set, "ternary.anneal=0.5", set, "train.keep=20"];
    for (name, optimizer) in [("muon", "train.optimizer=muon"), ("adamw", "train.moments=int8")] {
        let sets = [&learned[..], &[set, optimizer]].concat();
        let (whole, part) = (format!("{name}-whole"), format!("{name}-part"));
        success(lab.train(&whole, &sets));
        success(lab.train(&part, &sets));
        let (whole, run) = (lab.path(&whole), lab.path(&part));
        // Of trits, and in the middle of the annealing.
        for done in [8, 3] {
            for n in done + 1..=12 {
                fs::remove_dir_all(step(&run, n)).unwrap();
            }
            success(lab.train(&part, &["--resume", "--threads", "1"]));
            for file in ["model.safetensors", "optimizer.safetensors", "ternary.json"] {
                let read = |run: &Path| fs::read(step(run, 12).join(file)).unwrap();
                assert!(read(&whole) == read(&run), "{name}: {file} differs after a stop at {done}");
            }
        }
        assert!(lab.ok(&["verify", &format!("{name}-whole/model")]).contains("PASS"));
    }
    refused(
        lab.train("muon-part", &["--resume", set, "ternary.scale=absmean"]),
        "ternary.scale: found absmean, wanted learned, as at the start",
    );
    success(lab.train("plain", &[]));
    refused(
        lab.train("plain", &["--resume", set, "train.scale_lr=0.1"]),
        "train.scale_lr: found 0.1, wanted 0.003: only learned scales (ternary.scale) use it",
    );
    refused(
        lab.train("tensor", &[set, "ternary.scale=learned", set, "ternary.group=tensor"]),
        "ternary.scale: found learned, wanted absmean with ternary.group = \"tensor\"",
    );
}

#[test]
fn a_scale_that_is_not_learned_is_kept() {
    let lab = Lab::new(KEYS);
    let sets = ["ternary.scale=learned", "train.scale_lr=0", "train.weight_decay=0.5"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    success(lab.train("run", &[&sets[..], &["--set", "train.keep=20"]].concat()));
    let scales = |n: u64| {
        let all = lab.path("run").join(format!("checkpoints/step-{n:08}"));
        let stored = TensorFiles::open_file(all.join("optimizer.safetensors")).unwrap();
        let latents = TensorFiles::open(&all).unwrap();
        let name = "model.layers.1.mlp.up_proj.weight";
        let (mut means, mut values) = (vec![0.0; 80], vec![0.0; 80 * 48]);
        stored.read_f32_into(&format!("scale.{name}"), &[80, 1], &mut means).unwrap();
        latents.read_f32_into(name, &[80, 48], &mut values).unwrap();
        close(&LearnedScales::of(&values, 48, 128).means, &to_f64(&means), 4, "the latents' means");
        means
    };
    assert_eq!(scales(1), scales(12), "neither steps nor weight decay change it");
}
