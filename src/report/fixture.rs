//! A made-up run of plausible shape.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::json;

use super::summary::*;
use super::versions::Versions;
use crate::train::{Record, TensorPoint};

/// Uniform in −1 to 1.
fn noise(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0
}

fn tensors(step: u64, rng: &mut ChaCha8Rng) -> Vec<TensorPoint> {
    let progress = step as f64 / 2000.0;
    let point = |name: String, rows: u64, cols: u64, rng: &mut ChaCha8Rng| {
        let zero = 0.31 + 0.06 * progress + 0.02 * noise(rng);
        let minus = 0.5 * (1.0 - zero) + 0.004 * noise(rng);
        let changed = (rows * cols) as f64 * 0.02 * (-3.0 * progress).exp() * (1.0 + 0.2 * noise(rng));
        let scale = (cols as f64).powf(-0.5) * (0.9 + 0.3 * progress);
        TensorPoint {
            name,
            weights: rows * cols,
            groups: rows * cols.div_ceil(128),
            minus,
            zero,
            plus: 1.0 - zero - minus,
            scale_mean: scale,
            scale_min: 0.4 * scale,
            scale_max: 2.2 * scale,
            scale_drift: 0.25 * progress,
            moved: Some(0.4 * progress),
            dead_groups: if rng.next_u32().is_multiple_of(9) { 3 } else { 0 },
            to_zero: (0.55 * changed) as u64,
            from_zero: (0.45 * changed) as u64,
            sign_flips: (0.08 * changed) as u64,
            undone: Some(0.2 + 0.3 * progress),
            near: Some(0.08 + 0.02 * progress),
            rms_update: Some(0.01 * (1.0 - progress)),
        }
    };
    let mut out = vec![point("embedding".into(), 4096, 256, rng)];
    for layer in 0..6 {
        for (name, rows, cols) in [
            ("attention.q", 256, 256),
            ("attention.k", 128, 256),
            ("attention.v", 128, 256),
            ("attention.o", 256, 256),
            ("ffn.gate", 704, 256),
            ("ffn.up", 704, 256),
            ("ffn.down", 256, 704),
        ] {
            out.push(point(format!("layers.{layer}.{name}"), rows, cols, rng));
        }
    }
    out
}

/// 2000 steps with a validation every 200.
pub(super) fn records() -> Vec<Record> {
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let mut out = vec![Record::Ternary { step: 0, tensors: tensors(0, rng) }];
    for step in 1..=2000u64 {
        let x = step as f64;
        let mean = 1.62 + 6.7 * (-x / 60.0).exp() + 1.5 * (-x / 600.0).exp();
        let lr = 2e-3 * (x / 100.0).min(1.0) * (0.55 + 0.45 * (std::f64::consts::PI * x / 2000.0).cos());
        let spike = if step.is_multiple_of(610) { 40.0 } else { 1.0 };
        out.push(Record::Train {
            step,
            loss: mean + 0.13 * noise(rng),
            divergence: None,
            relations: None,
            residual: None,
            residuals: None,
            lr,
            grad_norm: spike * (0.6 + 3.0 * (-x / 150.0).exp()) * (1.0 + 0.35 * noise(rng)),
            tokens: step * 8192,
            tok_per_s: 21_500.0,
            elapsed_s: x * 0.381,
        });
        if step.is_multiple_of(200) {
            let nll = mean + 0.11;
            out.push(Record::Val {
                step,
                nll,
                ppl: nll.exp(),
                bits_per_byte: Some(nll / 1.9),
                tokens: 65_472,
            });
        }
        if step.is_multiple_of(50) {
            out.push(Record::Ternary { step, tensors: tensors(step, rng) });
        }
    }
    out
}

pub(super) fn summary() -> Summary {
    let val = Evaluation {
        nll: 1.8035,
        ppl: 6.071,
        bits_per_byte: Some(1.372),
        tokens: 65_472,
        context: 256,
        stride: 128,
    };
    let test = Evaluation { nll: 1.9241, ppl: 6.849, bits_per_byte: None, ..val.clone() };
    let sample = |prompt: &str, text: &str| Sample { prompt: prompt.into(), text: text.into() };
    Summary {
        name: "tinystories-6l-256".into(),
        task: "lm".into(),
        steps: 2000,
        seed: 7,
        parameters: 5_480_192,
        ternary_weights: 5_472_256,
        wall_seconds: 762.0,
        tokens: 16_384_000,
        tok_per_s: 21_500.0,
        first5_loss: 8.2871,
        last20_loss: 1.6744,
        loss_curve: Vec::new(),
        val: Some(val),
        test: Some(TestEvaluation { file: "data/held-out.txt".into(), result: test }),
        accuracy: None,
        ternary: Some(TernarySummary {
            pass: true,
            tensors: 43,
            weights: 5_472_256,
            minus: 1_724_000,
            zero: 2_019_256,
            plus: 1_729_000,
            groups: 43_520,
            dead_groups: 12,
            max_error: 0.0,
        }),
        samples: vec![
            sample(
                "Once upon a time",
                ", there was a little girl named Lily. She loved to play outside in the park. One day she saw a \
                 big red ball under a tree.\n\n\"Can I have it?\" asked Lily. Her mom smiled and said, \"Yes, but \
                 you must share it with your friends.\"",
            ),
            sample("<script>alert(1)</script> & \"quotes\"", " are only text </blockquote><b>here</b>.\n"),
        ],
        checks: vec![Check::new(Goal::TrainLoss, 1.6744, 1.8), Check::new(Goal::Accuracy, 0.981, 0.95)],
        texts: Some(Texts { train: "9f86d081".into(), val: "60303ae2".into() }),
        recipe: json!({
            "name": "tinystories-6l-256", "task": "lm", "seed": 7,
            "model": {"vocab_size": 4096, "hidden_size": 256, "layers": 6, "heads": 8, "kv_heads": 4,
                      "head_dim": 32, "intermediate_size": 704, "activation": "swiglu", "causal": true},
            "ternary": {"scope": "all", "group": 128},
            "data": {"train": ["data/tinystories-train.txt"], "val_fraction": 0.1, "tokenizer": "data/tokenizer.json"},
            "train": {"steps": 2000, "batch": 32, "seq": 256, "optimizer": "adamw", "lr": 0.002,
                      "schedule": "cosine", "warmup": 100, "clip": 1.0},
        }),
        versions: Versions {
            ternlm: "0.1.0".into(),
            rustc: Some("1.89.0".into()),
            os: "Linux 6.8 x86_64".into(),
            cpu: "AMD EPYC 9654".into(),
            isa: "AVX-512 VNNI".into(),
            threads: 16,
        },
    }
}
