//! A start that keeps outputs: the kernel against GPTQ as its authors write it, and trainings that begin so.

mod common;

use common::lab::{Lab, refused, step, success};
use common::{Rng, data, on_every_isa};
use std::fs;
use ternlm::kernels::{InputProducts, calibrate};
use ternlm::ternary::{Grouping, TernaryMatrix};

/// Of `[train]`.
const KEYS: &str = "log_every = 3";

/// Inputs that depend on each other, the last of them always 0.
fn correlated(rng: &mut Rng, n: usize, inputs: usize) -> Vec<f32> {
    let mut x = Vec::new();
    for _ in 0..n {
        let mut last = 0.0;
        for own in rng.normal(inputs) {
            last = 0.8 * last + 0.6 * own;
            x.push(last);
        }
        *x.last_mut().unwrap() = 0.0;
    }
    x
}

/// The inverse of a symmetric matrix, by elimination.
fn inverse(a: &[f64], n: usize) -> Vec<f64> {
    let mut a: Vec<Vec<f64>> = a.chunks(n).map(<[f64]>::to_vec).collect();
    let mut out: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| (i == j) as u8 as f64).collect()).collect();
    for col in 0..n {
        let pivot = a[col][col];
        for j in 0..n {
            a[col][j] /= pivot;
            out[col][j] /= pivot;
        }
        for row in (0..n).filter(|row| *row != col) {
            let factor = a[row][col];
            for j in 0..n {
                a[row][j] -= factor * a[col][j];
                out[row][j] -= factor * out[col][j];
            }
        }
    }
    out.concat()
}

/// `U` with `Uᵀ U = a`, upper triangular.
fn upper(a: &[f64], n: usize) -> Vec<f64> {
    let mut u = vec![0f64; n * n];
    for i in 0..n {
        for j in i..n {
            let dot: f64 = (0..i).map(|k| u[k * n + i] * u[k * n + j]).sum();
            u[i * n + j] =
                if i == j { (a[i * n + i] - dot).sqrt() } else { (a[i * n + j] - dot) / u[i * n + i] };
        }
    }
    u
}

/// GPTQ (arXiv 2210.17323, algorithm 1) of one row: trits times scales, in f64.
fn gptq(row: &[f32], u: &[f64], group: usize) -> Vec<f64> {
    let n = row.len();
    let mut w: Vec<f64> = row.iter().map(|w| *w as f64).collect();
    let mut out = vec![0.0; n];
    for from in (0..n).step_by(group) {
        let to = n.min(from + group);
        let mean = w[from..to].iter().map(|w| w.abs()).sum::<f64>() / (to - from) as f64;
        let scale = half::f16::from_f64(mean).to_f64();
        for j in from..to {
            out[j] = if w[j].abs() <= scale / 2.0 { 0.0 } else { scale * w[j].signum() };
            let error = (w[j] - out[j]) / u[j * n + j];
            (j + 1..n).for_each(|k| w[k] -= error * u[j * n + k]);
        }
    }
    out
}

#[test]
fn the_trits_are_those_of_gptq() {
    on_every_isa(|rng| {
        for (rows, inputs, group, seen) in
            [(7, 60, 16, 200), (9, 150, 128, 400), (5, 33, 128, 20), (1, 1, 128, 3)]
        {
            let (x, before) = (correlated(rng, seen, inputs), rng.normal(rows * inputs));
            let mut products = InputProducts::zeros(inputs);
            // In two batches.
            let cut = seen / 2 * inputs;
            [&x[..cut], &x[cut..]].into_iter().for_each(|x| products.add(x));
            let mut latents = before.clone();
            assert!(calibrate(&products, group, &mut [&mut latents]));
            let got = TernaryMatrix::project("w", &latents, rows, inputs, Grouping::Size(group)).unwrap();

            let mut h = vec![0f64; inputs * inputs];
            for x in x.chunks(inputs) {
                (0..inputs * inputs).for_each(|at| h[at] += (x[at / inputs] * x[at % inputs]) as f64);
            }
            let damping = 0.01 * (0..inputs).map(|i| h[i * (inputs + 1)]).sum::<f64>() / inputs as f64;
            (0..inputs).for_each(|i| h[i * (inputs + 1)] += if damping > 0.0 { damping } else { 1.0 });
            let u = upper(&inverse(&h, inputs), inputs);
            let (mut same, mut errors) = (0, [0f64; 3]);
            let off = |w: &[f64], row: &[f32]| -> f64 {
                let each = x.chunks(inputs).map(|x| {
                    let off = x.iter().zip(w.iter().zip(row)).map(|(x, (w, r))| *x as f64 * (w - *r as f64));
                    off.sum::<f64>().powi(2)
                });
                each.sum()
            };
            let plain = TernaryMatrix::project("w", &before, rows, inputs, Grouping::Size(group)).unwrap();
            for (i, row) in before.chunks(inputs).enumerate() {
                let want = gptq(row, &u, group);
                let values = |of: &TernaryMatrix| -> Vec<f64> {
                    (0..inputs).map(|j| of.scale(i, j) as f64 * of.trit(i, j) as f64).collect()
                };
                let found = values(&got);
                // f16 is wide: two scales are equal, or one place apart.
                same += (0..inputs).filter(|j| (found[*j] - want[*j]).abs() <= 1e-3 * want[*j].abs()).count();
                for (sum, w) in errors.iter_mut().zip([found, want, values(&plain)]) {
                    *sum += off(&w, row);
                }
            }
            let [found, want, plain] = errors;
            let what = format!("[{rows}, {inputs}] by {group}: {found} {want} {plain}, {same} alike");
            // Once a weight has fallen to the other side in f32, those after it are others.
            assert!(same * 100 >= 97 * rows * inputs, "{what}");
            assert!((found - want).abs() <= 0.02 * want + 1e-6, "{what}");
            assert!(seen < 2 * inputs || inputs == 1 || found < 0.8 * plain, "{what}");
        }
    });
}

#[test]
fn inputs_that_do_not_depend_on_each_other_change_nothing() {
    on_every_isa(|rng| {
        let inputs = 40;
        let mut products = InputProducts::zeros(inputs);
        let mut x = vec![0f32; inputs * inputs];
        (0..inputs).for_each(|i| x[i * (inputs + 1)] = 2.0);
        products.add(&x);
        let before = rng.normal(6 * inputs);
        let (mut a, mut b) = (before.clone(), rng.normal(3 * inputs));
        assert!(calibrate(&products, 16, &mut [&mut a, &mut b]));
        let project = |w: &[f32]| TernaryMatrix::project("w", w, 6, inputs, Grouping::Size(16)).unwrap();
        assert!(project(&a) == project(&before));
        // A group's mean becomes what f16 has nearest to it.
        let moved = common::apart(&a, &before);
        assert!(moved < 4e-3, "{moved}");
        // Scales that f16 cannot hold are named by the projection, and not made zeros of.
        for bad in [1e9, f32::NAN] {
            let mut weights = before.clone();
            weights[..16].fill(bad);
            assert!(calibrate(&products, 16, &mut [&mut weights]));
            let projected = TernaryMatrix::project("w", &weights, 6, inputs, Grouping::Size(16));
            assert!(projected.is_err(), "{bad}: {:?}", &weights[..16]);
        }
        products.add(&vec![f32::INFINITY; inputs]);
        let kept = a.clone();
        assert!(!calibrate(&products, 16, &mut [&mut a]) && a == kept, "left as they were");
    });
}

#[test]
fn a_calibrated_start_resumes_bit_for_bit() {
    let lab = Lab::new(KEYS);
    let set = "--set";
    success(lab.train(
        "full",
        &[set, "ternary.scope=none", set, "train.steps=150", set, "train.lr=1e-2", set, "train.save_every=0"],
    ));
    let init = ["--init", "full/model", set, "train.keep=20"];
    for scope in ["all", "blocks"] {
        let start = |name: &str, more: &[&str]| {
            let scope = format!("ternary.scope={scope}");
            success(lab.train(name, &[&init[..], &[set, &scope], more].concat()));
            let first = common::lab::records(&lab.path(name), "train")[0]["loss"].as_f64().unwrap();
            (first, lab.path(name))
        };
        let (plain, _) = start(&format!("plain-{scope}"), &[]);
        let (kept, whole) = start(&format!("kept-{scope}"), &[set, "ternary.calibrate=40"]);
        // Of a model as small as this blocks alone may gain nothing.
        let (gained, other) = (kept < plain - 0.01, (kept - plain).abs() > 1e-3);
        assert!(
            gained || scope == "blocks" && other,
            "{scope}: the first loss is {kept}, and {plain} without"
        );
        let (same, part) = start(&format!("part-{scope}"), &[set, "ternary.calibrate=40", "--threads", "1"]);
        assert_eq!(same, kept);
        for n in 6..=12 {
            fs::remove_dir_all(step(&part, n)).unwrap();
        }
        success(lab.train(&format!("part-{scope}"), &["--resume"]));
        for file in ["model.safetensors", "optimizer.safetensors", "ternary.json"] {
            let read = |run: &std::path::Path| fs::read(step(run, 12).join(file)).unwrap();
            assert!(read(&whole) == read(&part), "{scope}: {file}");
        }
        assert!(lab.ok(&["verify", &format!("kept-{scope}/model")]).contains("PASS"));
    }
    let calibrate = [set, "ternary.calibrate=40"];
    refused(lab.train("a", &calibrate), "ternary.calibrate: found 40, wanted 0: only a model to start from");
    let tensor = [&init[..], &calibrate, &[set, "ternary.group=tensor"]].concat();
    refused(lab.train("b", &tensor), "ternary.calibrate: found 40, wanted 0 with ternary.group");
    refused(
        lab.train("kept-all", &["--resume", set, "ternary.calibrate=0"]),
        "ternary.calibrate: found 0, wanted 40, as at the start",
    );
}

#[test]
fn a_real_model_loses_less_that_way() {
    let (Some(model), Some(text)) = (data("ckpt/stories260K-hf"), data("tinystories/tinystories_317.txt"))
    else {
        return;
    };
    let lab = Lab::new(KEYS);
    let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
    let first = |scope: &str, sequences: &str| {
        let out = format!("{scope}{sequences}");
        let sets = [format!("ternary.scope={scope}"), format!("ternary.calibrate={sequences}")];
        let more = ["train.steps=1", "train.batch=16", "train.seq=128", "train.lr=0", "train.warmup=0"];
        let sets = sets.iter().map(String::as_str).chain(more).flat_map(|set| ["--set", set]);
        let recipe = ["train", "qwen3-0.6b-blocks", "--init", model, "--data", text, "--out", &out];
        lab.ok(&recipe.into_iter().chain(sets).collect::<Vec<_>>());
        common::lab::records(&lab.path(&out), "val")[0]["nll"].as_f64().unwrap()
    };
    let losses = [("blocks", "0"), ("blocks", "64"), ("all", "0"), ("all", "64")].map(|(s, n)| first(s, n));
    println!("{losses:?}");
    let [plain, kept, plain_all, kept_all] = losses;
    assert!(kept < plain - 1.0 && kept_all < plain_all - 0.4, "{losses:?}");
}
