//! An output head whose loss is taken with it, against plain sums in f64, wherever this machine has such a way.

mod common;

use common::{Rng, on_every_isa, wide};
use ternlm::config::{Inputs, Precision};
use ternlm::kernels::head::{Head, loss_and_gradients, with_loss};
use ternlm::kernels::{IGNORE, Isa, Matrix, Objective, reference};
use ternlm::ternary::{Grouping, TernaryMatrix};

fn rounded(x: f32) -> f64 {
    reference::bf16(x) as f64
}

/// Losses, `dx` and `dW` of the definition: operands rounded where a product takes them, all else in f64.
fn defined(
    x: &[f32],
    w: &TernaryMatrix,
    targets: &[u32],
    objective: Objective,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, out, inputs) = (targets.len(), w.rows(), w.cols());
    let used: Vec<f64> = x.iter().map(|x| rounded(*x)).collect();
    let mut unpacked = vec![0.0; out * inputs];
    unpacked.chunks_mut(inputs).enumerate().for_each(|(r, row)| w.unpack_row(r, row));
    let logits = reference::linear(&used, &wide(&unpacked), None, inputs);
    let (mut losses, mut g) = (vec![0.0; n], vec![0f32; n * out]);
    for (r, &target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
        let row = &logits[r * out..(r + 1) * out];
        let max = row.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        losses[r] = lse - row[target as usize];
        for (o, g) in g[r * out..(r + 1) * out].iter_mut().enumerate() {
            let pulled = (1.0 + 2.0 * objective.z_loss as f64 * lse) * (row[o] - lse).exp();
            *g = (objective.scale as f64 * (pulled - (o == target as usize) as u8 as f64)) as f32;
        }
    }
    let dx = reference::input_gradient_bf16(&g, w);
    let mut dw = vec![0.0; out * inputs];
    for r in 0..n {
        for o in 0..out {
            let g = rounded(g[r * out + o]);
            (0..inputs).for_each(|i| dw[o * inputs + i] += g * used[r * inputs + i]);
        }
    }
    (losses, dx, dw)
}

/// The largest difference, relative to the largest value.
fn apart(found: &[f32], wanted: &[f64]) -> f64 {
    let largest = wanted.iter().fold(1e-30, |top: f64, x| top.max(x.abs()));
    let apart = found.iter().zip(wanted).map(|(found, wanted)| (*found as f64 - wanted).abs());
    common::most(apart) / largest
}

fn case(rng: &mut Rng, n: usize, inputs: usize, out: usize, grouping: Grouping) {
    let w = TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, grouping).unwrap();
    let matrix = Matrix::ternary(&w, Inputs::F32).rounded(Precision::Bf16);
    let Some(w) = with_loss(n, matrix) else {
        assert!(Isa::current() != Isa::Amx, "{n} x {inputs} x {out} is a head for tiles");
        println!("SKIPPED on {}: no AMX (emulate/amx has it)", Isa::current());
        return;
    };
    let mut x = rng.normal(n * inputs);
    x.iter_mut().for_each(|x| *x *= 3.0 / (inputs as f32).sqrt());
    let mut targets: Vec<u32> = (0..n).map(|r| (r * 7919 % out) as u32).collect();
    (targets[0], targets[n - 1], targets[n / 2]) = (IGNORE, out as u32 - 1, IGNORE);
    for objective in [Objective::scaled(1.0), Objective { scale: 0.25, z_loss: 0.01 }] {
        let (losses, dx, dw) = defined(&x, w, &targets, objective);
        let before = rng.normal(out * inputs);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            // Losses and `dx` are set, `dW` is added to.
            let (mut losses, mut dx) = (vec![f32::NAN; n], vec![f32::NAN; n * inputs]);
            let mut dw: Vec<f32> = before.iter().map(|x| x * 1e-3).collect();
            let (x, targets) = (&x[..], &targets[..]);
            let head = Head { x, w, targets, objective, losses: &mut losses, dx: &mut dx, dw: &mut dw };
            pool.install(|| loss_and_gradients(head));
            (losses, dx, dw)
        };
        let found = run(1);
        assert!(run(3) == found, "the same for any number of threads");
        let dw: Vec<f64> = dw.iter().zip(&before).map(|(dw, before)| dw + (before * 1e-3) as f64).collect();
        let what = format!("{n} x {inputs} x {out}, groups of {grouping}, {objective:?}");
        assert!(found.0[0] == 0.0 && found.0[n / 2] == 0.0, "{what}: a loss where nothing is asked");
        for (name, apart, bound) in [
            ("losses", apart(&found.0, &losses), 1e-5),
            // A gradient that is a little off may be rounded to the next bf16.
            ("dx", apart(&found.1, &dx), 1e-3),
            ("dW", apart(&found.2, &dw), 1e-3),
        ] {
            assert!(apart < bound, "{what}: {name} {apart:e} apart");
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_the_definition() {
    on_every_isa(|rng| {
        for (n, inputs, out, grouping) in [
            (32, 64, 2048, Grouping::Size(64)),
            (70, 130, 2100, Grouping::Size(128)),
            // Two tasks, and a segment of 64 after one of 128, as in a width of 576.
            (289, 192, 2307, Grouping::Size(128)),
            (40, 1100, 2050, Grouping::Size(128)),
            (33, 96, 2048, Grouping::Tensor),
            // More outputs than gradients have room for at once.
            (3000, 48, 2900, Grouping::Size(16)),
        ] {
            case(rng, n, inputs, out, grouping);
        }
    });
}

#[test]
fn what_is_not_finite_is_seen_in_its_row() {
    on_every_isa(|rng| {
        let (n, inputs, out) = (64, 128, 2048);
        let w =
            TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, Grouping::default()).unwrap();
        let Some(w) = with_loss(n, Matrix::ternary(&w, Inputs::F32).rounded(Precision::Bf16)) else { return };
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = rng.normal(n * inputs);
            x[5 * inputs + 3] = bad;
            let (targets, objective) = (vec![7; n], Objective::scaled(1.0));
            let (mut losses, mut dx, mut dw) = (vec![0.0; n], vec![0.0; n * inputs], vec![0.0; out * inputs]);
            loss_and_gradients(Head {
                x: &x,
                w,
                targets: &targets,
                objective,
                losses: &mut losses,
                dx: &mut dx,
                dw: &mut dw,
            });
            for (row, loss) in losses.iter().enumerate() {
                assert_eq!(loss.is_finite(), row != 5, "{bad}: the loss of row {row} is {loss}");
            }
        }
    });
}
