//! Dropout: which values, how often, the gradient with them, and trainings that have it.

mod common;

use common::lab::{Lab, records, refused, step, success};
use common::{Rng, close, differences, on_every_isa, on_this_isa, wide};
use std::fs;
use ternlm::config::{ModelConfig, Scope};
use ternlm::kernels::{self as k, AttentionShape, Dropout, IGNORE, To, reference as r};
use ternlm::model::{Decoder, Gradients, Latents, Learning, Loss, Sequences, State, Weight};
use ternlm::ternary::Grouping;

#[test]
fn which_values_are_dropped_is_what_another_program_finds() {
    // By SplitMix64 in Python: seed, sequence, place and position; the first 24 columns at a rate of a quarter.
    for (seed, [sequence, place, position], wanted) in [
        (0, [0, 0, 0], "100100010000100001000000"),
        (7, [41, 3, 5], "000000110000000000000000"),
        (123_456_789, [1_000_000_000_000, 16, 1023], "111100000000101000011000"),
    ] {
        let dropped = |column| r::dropped(seed, [sequence, place, position], column, 0.25);
        let found: String = (0..24).map(|column| if dropped(column) { '1' } else { '0' }).collect();
        assert_eq!(found, wanted, "seed {seed}, sequence {sequence}, place {place}, position {position}");
    }
}

#[test]
fn the_kernel_is_the_reference() {
    on_every_isa(|rng| {
        for (sequences, len, width) in [(1, 1, 1), (2, 3, 16), (3, 5, 37), (2, 40, 600)] {
            let numbers: Vec<u64> = (0..sequences).map(|_| rng.next() >> 20).collect();
            let (x, before) = (rng.normal(sequences * len * width), rng.normal(sequences * len * width));
            for (rate, left) in [(0.25f32, 0.75), (0.5, 0.5), (0.1, 1.0 - 6554.0 / 65_536.0)] {
                let seed = rng.next();
                let how = Dropout { rate, seed, sequences: &numbers };
                let kept: Vec<f64> = (0..x.len())
                    .map(|at| {
                        let (row, column) = (at / width, at % width);
                        let path = [numbers[row / len], 9, (row % len) as u64];
                        if r::dropped(seed, path, column, rate) { 0.0 } else { x[at] as f64 / left }
                    })
                    .collect();
                let mut out = vec![f32::NAN; x.len()];
                k::dropout(how, 9, width, &x, &mut out, To::Set);
                close(&out, &kept, 2, "set");
                assert!(out.iter().zip(&kept).all(|(out, kept)| (*out == 0.0) == (*kept == 0.0)));
                let mut out = before.clone();
                k::dropout(how, 9, width, &x, &mut out, To::Add);
                let sums: Vec<f64> = before.iter().zip(&kept).map(|(b, x)| *b as f64 + x).collect();
                close(&out, &sums, 4, "added");
            }
        }
    });
}

#[test]
fn the_mean_stays_and_every_number_of_the_path_counts() {
    let _isa = on_this_isa();
    let (len, width) = (1000, 500);
    let ones = vec![1.0; 2 * len * width];
    let drawn = |rate, seed, sequences: &[u64], place| {
        let mut out = vec![0.0; ones.len()];
        k::dropout(Dropout { rate, seed, sequences }, place, width, &ones, &mut out, To::Set);
        out
    };
    for rate in [0.05f32, 0.1, 0.3, 0.9] {
        let out = drawn(rate, 1, &[0, 1], 0);
        let n = out.len() as f64;
        let share = out.iter().filter(|x| **x == 0.0).count() as f64 / n;
        let mean = out.iter().map(|x| *x as f64).sum::<f64>() / n;
        // Five standard deviations of a million draws; the rate itself is rounded to 65,536ths.
        let p = rate as f64;
        let bound = 5.0 * (p * (1.0 - p) / n).sqrt();
        assert!((share - p).abs() < bound + 1e-5, "{share} dropped, wanted {p}");
        assert!((mean - 1.0).abs() < bound / (1.0 - p) + 1e-5, "a mean of {mean} at {p}");
        // Neighbours, which share a random number, are both dropped as often as others.
        let both = out.windows(2).filter(|pair| pair == &[0.0, 0.0]).count() as f64 / n;
        assert!((both - p * p).abs() < 2.0 * bound + 1e-5, "{both} pairs, wanted {}", p * p);
    }
    let base = drawn(0.5, 1, &[0, 1], 0);
    for (what, other) in [
        ("seed", drawn(0.5, 2, &[0, 1], 0)),
        ("sequence", drawn(0.5, 1, &[2, 3], 0)),
        ("place", drawn(0.5, 1, &[0, 1], 1)),
        ("position", [&base[width..], &base[..width]].concat()),
    ] {
        let same = base.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / base.len() as f64;
        assert!((same - 0.5).abs() < 0.005, "another {what}: {same} are the same, wanted half");
    }
    // What a sequence loses does not depend on where it stands.
    let turned = drawn(0.5, 1, &[1, 0], 0);
    assert!(turned[..len * width] == base[len * width..] && turned[len * width..] == base[..len * width]);
}

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 11,
        hidden_size: 8,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        intermediate_size: 10,
        rope_theta: 100.0,
        max_positions: 110,
        ..ModelConfig::default()
    }
}

/// The summed loss of a model in f64, whose values are dropped as the reference says.
fn reference_loss(get: &dyn Fn(&str) -> Vec<f64>, tokens: &[u32], targets: &[u32], how: Dropout<'_>) -> f64 {
    let (n, width) = (tokens.len(), 8);
    let len = n / how.sequences.len();
    let drop = |place: u64, x: Vec<f64>| -> Vec<f64> {
        let kept = |(at, x): (usize, f64)| {
            let (row, column) = (at / width, at % width);
            let path = [how.sequences[row / len], place, (row % len) as u64];
            if r::dropped(how.seed, path, column, how.rate) { 0.0 } else { x / (1.0 - how.rate as f64) }
        };
        x.into_iter().enumerate().map(kept).collect()
    };
    let add = |x: &[f64], y: Vec<f64>| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x + y).collect() };
    let embedding = get("model.embed_tokens.weight");
    let rows = tokens.iter().flat_map(|&t| embedding[t as usize * width..][..width].to_vec()).collect();
    let mut x = drop(0, rows);
    for layer in 0..2 {
        let weight = |part: &str| get(&format!("model.layers.{layer}.{part}.weight"));
        let h = r::rms_norm(&x, &weight("input_layernorm"), 1e-6);
        let project = |h: &[f64], part: &str, inputs| r::linear(h, &weight(part), None, inputs);
        let frequencies = common::frequencies(4, 100.0);
        let turn = |x: Vec<f64>, heads| r::rope(&x, heads, &frequencies, 1.0, len);
        let q = turn(project(&h, "self_attn.q_proj", width), 2);
        let keys = turn(project(&h, "self_attn.k_proj", width), 1);
        let (batch, v) = (how.sequences.len(), project(&h, "self_attn.v_proj", width));
        let shape =
            AttentionShape { batch, queries: len, keys: len, heads: 2, kv_heads: 1, dim: 4, causal: true };
        let mixed = r::attention(&shape, &q, &keys, &v);
        x = add(&x, drop(1 + 2 * layer, project(&mixed, "self_attn.o_proj", 8)));
        let h = r::rms_norm(&x, &weight("post_attention_layernorm"), 1e-6);
        let (gate, up) = (project(&h, "mlp.gate_proj", width), project(&h, "mlp.up_proj", width));
        let act: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| r::silu(*g) * u).collect();
        x = add(&x, drop(2 + 2 * layer, project(&act, "mlp.down_proj", 10)));
    }
    let h = r::rms_norm(&x, &get("model.norm.weight"), 1e-6);
    let logits = r::linear(&h, &get("lm_head.weight"), None, width);
    let scored = targets.iter().enumerate().filter(|(_, target)| **target != IGNORE);
    scored.map(|(row, &target)| r::cross_entropy(&logits[row * 11..][..11], target as usize)).sum()
}

#[test]
fn a_model_with_dropped_values_has_their_gradient() {
    for recompute in [false, true] {
        on_every_isa(|rng| dropped_values_have_their_gradient(rng, recompute));
    }
}

fn dropped_values_have_their_gradient(rng: &mut Rng, recompute: bool) {
    let mut decoder = Decoder::new(&config(), Scope::None, Grouping::default());
    decoder.set_recompute(recompute);
    Latents::random(decoder.weights_mut(), rng.next(), None).unwrap();
    let tokens: Vec<u32> = (0..10).map(|_| rng.below(11) as u32).collect();
    let targets: Vec<u32> = (0..10).map(|i| if i == 6 { IGNORE } else { rng.below(11) as u32 }).collect();
    let how = Dropout { rate: 0.25, seed: rng.next(), sequences: &[40, 7] };
    let (mut state, mut grads) = (State::default(), Gradients::zeros(decoder.weights()));
    let learning = Learning { dropout: Some(how), ..Learning::plain(1.0) };
    let seqs = Sequences::new(2, 5);
    let loss = decoder.learn(&tokens, &targets, seqs, learning, &mut state, &mut grads).sum;
    let weights: Vec<&Weight> = decoder.weights().collect();
    let loss_at = |replaced: &str, values: &[f64]| {
        let of = |name: &str| match name == replaced {
            true => values.to_vec(),
            false => wide(weights.iter().find(|w| w.name == name).unwrap().dense()),
        };
        reference_loss(&of, &tokens, &targets, how)
    };
    let want = loss_at("", &[]);
    assert!((loss - want).abs() < 1e-5 * want, "{loss}, wanted {want}");
    let without = decoder.loss(&tokens, &targets, seqs, &mut State::default()).sum;
    assert!((loss - without).abs() > 1e-3, "nothing was dropped: {loss}, {without}");
    for weight in &weights {
        let slopes = differences(&wide(weight.dense()), |values| loss_at(&weight.name, values));
        let norm = slopes.iter().fold(0f64, |a, b| a.max(b.abs()));
        assert!(norm > 1e-6, "{}: the gradient is zero, which tests nothing", weight.name);
        for (i, (got, want)) in grads.get(weight).iter().zip(&slopes).enumerate() {
            let off = (*got as f64 - want).abs();
            assert!(off <= 1e-4 * norm, "{}[{i}]: {got}, by differences {want}", weight.name);
        }
    }
}

#[test]
fn a_batch_in_parts_drops_what_its_sequences_drop() {
    let _one_at_a_time = on_this_isa();
    // Five sequences of 110 tokens are two parts, of two and of three.
    let (batch, len) = (5, 110);
    let mut decoder = Decoder::new(&config(), Scope::All, Grouping::Size(4));
    Latents::random(decoder.weights_mut(), 7, None).unwrap();
    assert!(decoder.parts(Sequences::new(batch, len)) > 1);
    let mut rng = Rng::new(8);
    let mut draw = || -> Vec<u32> { (0..batch * len).map(|_| rng.below(11) as u32).collect() };
    let (tokens, targets) = (draw(), draw());
    let (numbers, mut state) = ([9, 4, 100, 2, 7], State::default());
    let mut run = |grads: &mut Gradients, sequences: std::ops::Range<usize>| {
        let rows = sequences.start * len..sequences.end * len;
        let seqs = Sequences::new(sequences.len(), len);
        let how = Dropout { rate: 0.3, seed: 1, sequences: &numbers[sequences] };
        let learning = Learning { dropout: Some(how), ..Learning::plain(0.01) };
        decoder.learn(&tokens[rows.clone()], &targets[rows], seqs, learning, &mut state, grads)
    };
    let (mut together, mut apart) =
        (Gradients::zeros(decoder.weights()), Gradients::zeros(decoder.weights()));
    let loss = run(&mut together, 0..batch);
    let mut sum = Loss::default();
    (0..batch).for_each(|i| sum += run(&mut apart, i..i + 1));
    assert!((loss.sum - sum.sum).abs() < 1e-5 * sum.sum, "{loss:?}, {sum:?}");
    for weight in decoder.weights() {
        close(together.get(weight), &wide(apart.get(weight)), batch * len, &weight.name);
    }
}

/// Of `[train]`.
const KEYS: &str = "dropout = 0.2\nlog_every = 1\nkeep = 20";

/// The last checkpoint of a run.
fn last(lab: &Lab, run: &str) -> [Vec<u8>; 3] {
    let file = |name: &str| fs::read(step(&lab.path(run), 12).join(name)).unwrap();
    ["model.safetensors", "optimizer.safetensors", "ternary.json"].map(file)
}

fn numbers(lab: &Lab, run: &str, kind: &str, key: &str) -> Vec<f64> {
    records(&lab.path(run), kind).iter().map(|r| r[key].as_f64().unwrap()).collect()
}

#[test]
fn a_resumed_training_on_other_threads_drops_the_same() {
    let lab = Lab::new(KEYS);
    success(lab.train("whole", &["--threads", "2"]));
    success(lab.train("part", &["--threads", "1"]));
    assert!(last(&lab, "whole") == last(&lab, "part"), "threads");
    for n in 6..=12 {
        fs::remove_dir_all(step(&lab.path("part"), n)).unwrap();
    }
    success(lab.train("part", &["--resume"]));
    assert!(last(&lab, "whole") == last(&lab, "part"), "resumed");
    success(lab.train("none", &["--set", "train.dropout=0"]));
    assert!(last(&lab, "whole") != last(&lab, "none"), "nothing was dropped");
    // How much is dropped may change on the way.
    fs::remove_dir_all(step(&lab.path("part"), 12)).unwrap();
    success(lab.train("part", &["--resume", "--set", "train.dropout=0.5"]));
    assert!(last(&lab, "whole") != last(&lab, "part"), "it was not taken up");
}

#[test]
fn validations_and_finished_models_drop_nothing() {
    let lab = Lab::new(KEYS);
    // Weights that never change.
    success(lab.train("dropped", &["--set", "train.lr=0", "--set", "train.dropout=0.5"]));
    success(lab.train("none", &["--set", "train.lr=0", "--set", "train.dropout=0"]));
    assert_eq!(numbers(&lab, "dropped", "val", "nll"), numbers(&lab, "none", "val", "nll"));
    let [dropped, none] = ["dropped", "none"].map(|run| numbers(&lab, run, "train", "loss"));
    assert!(dropped.iter().zip(&none).all(|(a, b)| a != b), "{dropped:?}, {none:?}");
    refused(lab.train("all", &["--set", "train.dropout=1"]), "train.dropout: found 1, wanted 0 to 0.9");
}
