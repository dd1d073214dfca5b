//! Steps of the optimizer, and the projection that goes with them.

use std::cell::RefCell;
use ternlm::kernels::{self, AdamW, BLOCK, Codes, Latents, Moments, Pass, Rule, dither_key, reference};
use ternlm::ternary::{Grouping, TernaryMatrix};

use super::common::noise;
use super::harness::{Bench, Limit, Operand, ROUND, both, read};
use super::tests::adamw;
use super::{FFN, VOCAB, WEIGHTS, WIDTH, at_some, some_of};

/// Over the weights of the embedding, a third of the model's. Muon's over one matrix of the feed-forward network.
pub fn optimizers(bench: &mut Bench) {
    let a = AdamW {
        lr: 3e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.01,
        grad_scale: 0.5,
        step: 100,
    };
    let formula = |before: [f64; 4]| adamw(&a, before);
    let (m, v) = (noise(WEIGHTS, 2), noise(WEIGHTS, 3).iter().map(|v| v * v).collect());
    let f32s = Moments::F32 { first: m, second: v };
    optimizer(bench, "adamw, 25.7 M weights", Rule::AdamW(a), f32s, formula);
    let blocks = WEIGHTS / BLOCK;
    let first = Codes {
        codes: noise(WEIGHTS, 2).iter().map(|x| (127.0 * x) as i8).collect(),
        scales: noise(blocks, 4).iter().map(|x| 1.5 + x).collect(),
    };
    let second = Codes {
        codes: noise(WEIGHTS, 3).iter().map(|x| (255.0 * x.abs()) as u8).collect(),
        scales: noise(blocks, 5).iter().map(|x| 1.5 + x).collect(),
    };
    let int8s = Moments::Int8 { first, second };
    optimizer(bench, "adamw, 25.7 M, 8-bit moments", Rule::AdamW(a), int8s, formula);
    let (lr, momentum, weight_decay, grad_scale) = (3e-4, 0.9, 0.1, 0.5);
    let sgd = |[p, g, b, _]: [f64; 4]| {
        let [lr, momentum, decay, scale] = [lr, momentum, weight_decay, grad_scale].map(f64::from);
        let b = momentum * b + scale * g + decay * p;
        [p - lr * b, b, 0.0]
    };
    let rule = Rule::Sgd { lr, momentum, weight_decay, grad_scale };
    let momenta = Moments::F32 { first: noise(WEIGHTS, 2), second: Vec::new() };
    optimizer(bench, "sgd, 25.7 M weights", rule, momenta, sgd);
    let len = FFN * WIDTH;
    bench.run(
        "scale_add",
        Limit::Memory,
        [both(len), read(len)],
        |_, [out, x]| kernels::scale_add(0.3, out, -0.7, x),
        |[before, x], [out, _]| {
            at_some(len, out, "scale_add", |i| 0.3 * before[i] as f64 - 0.7 * x[i] as f64)
        },
    );
}

/// One pass of `rule`: update, projection, and a gradient of zeros. `formula` gives latent and moments after it from
/// latent, gradient and moments before. Each round goes on from the one before with another gradient, so that few trits
/// change.
fn optimizer(
    bench: &mut Bench,
    name: &str,
    rule: Rule,
    moments: Moments,
    formula: impl Fn([f64; 4]) -> [f64; 3],
) {
    let trits = TernaryMatrix::zeros(VOCAB, WIDTH, Grouping::default());
    // Codes are read to be compared.
    let beside = bytes(&moments) / 2 + trits.words().len() + trits.scales().len();
    let start = moments.clone();
    let state = RefCell::new((moments, trits, 0));
    bench.run(
        name,
        Limit::Memory,
        [Operand { moved: 2 * WEIGHTS + beside, ..read(WEIGHTS) }, both(WEIGHTS)],
        |i, [value, grad]| {
            assert_eq!(i, 0, "one set of operands has one state");
            let (moments, trits, step) = &mut *state.borrow_mut();
            let ternary = Some((Grouping::default(), trits));
            let latents = Latents { name: "w", cols: WIDTH, value, grad, ternary };
            let pass = Pass { measure: false, dither: dither_key(*step, 1), ..Pass::default() };
            kernels::update(&rule, latents, moments, pass).expect("finite numbers");
            *step += 1;
        },
        |[p0, g0], [p, g]| {
            assert!(g.iter().all(|g| *g == 0.0), "{name} leaves a gradient");
            let (moments, trits, _) = &*state.borrow();
            let want = |i: usize| {
                let [m, v] = moments_at(&start, i);
                formula([p0[i] as f64, g0[i] as f64, m, v])
            };
            at_some(WEIGHTS, p, name, |i| want(i)[0]);
            match moments {
                Moments::F32 { first, second } => {
                    at_some(WEIGHTS, first, &format!("{name}, first moment"), |i| want(i)[1]);
                    if !second.is_empty() {
                        at_some(WEIGHTS, second, &format!("{name}, second moment"), |i| want(i)[2]);
                    }
                }
                // Rounded at random to one of the two codes beside it.
                Moments::Int8 { first, second } => (0..WEIGHTS).step_by(WEIGHTS / 1000).for_each(|i| {
                    let [_, m, v] = want(i);
                    let m = (m.abs() / first.scales[i / BLOCK] as f64).sqrt() * 127.0 * m.signum();
                    let v = (v.sqrt() / second.scales[i / BLOCK] as f64).sqrt() * 255.0;
                    let (got_m, got_v) = (first.codes[i] as f64, second.codes[i] as f64);
                    assert!((m - got_m).abs() < 1.001, "{name}, first moment: {got_m} for {m}");
                    assert!((v - got_v).abs() < 1.001, "{name}, second moment: {got_v} for {v}");
                }),
            }
            check_projection(p, trits);
        },
    );
}

fn bytes(moments: &Moments) -> usize {
    match moments {
        Moments::F32 { first, second } => 4 * (first.len() + second.len()),
        Moments::Int8 { first, second } => {
            first.codes.len() + second.codes.len() + 4 * (first.scales.len() + second.scales.len())
        }
    }
}

/// The moments of value `i`, 0 for one that there is not; rows are whole blocks.
fn moments_at(moments: &Moments, i: usize) -> [f64; 2] {
    match moments {
        Moments::F32 { first, second } => [first, second].map(|x| x.get(i).map_or(0.0, |x| *x as f64)),
        Moments::Int8 { first, second } => {
            let m = reference::decode_first_moments(&first.codes[i..=i], first.scales[i / BLOCK])[0];
            let v = reference::decode_second_moments(&second.codes[i..=i], second.scales[i / BLOCK])[0];
            [m as f64, v as f64]
        }
    }
}

/// A few rows against the definition.
fn check_projection(latent: &[f32], got: &TernaryMatrix) {
    for row in some_of(VOCAB) {
        let latent = &latent[row * WIDTH..][..WIDTH];
        let want = TernaryMatrix::project("w", latent, 1, WIDTH, Grouping::default()).unwrap();
        for col in 0..WIDTH {
            let (got, want) =
                ((got.trit(row, col), got.scale(row, col)), (want.trit(0, col), want.scale(0, col)));
            assert_eq!(got, want, "the projection is wrong at {row}, {col}");
        }
    }
}

/// A step changes few trits: the codes are there already, and are read to be compared.
pub fn projection(bench: &mut Bench) {
    let zeros = TernaryMatrix::zeros(VOCAB, WIDTH, Grouping::default());
    let codes = zeros.words().len() + zeros.scales().len();
    // One for each call of a round.
    let out = RefCell::new(vec![zeros; ROUND.div_ceil(4 * WEIGHTS)]);
    bench.run(
        "project, 25.7 M weights",
        Limit::Memory,
        [Operand { moved: WEIGHTS + codes, ..read(WEIGHTS) }],
        |i, [latent]| {
            let out = &mut out.borrow_mut()[i];
            kernels::project("w", latent, Grouping::default(), out).expect("finite numbers");
        },
        |_, [latent]| check_projection(latent, &out.borrow()[0]),
    );
}
