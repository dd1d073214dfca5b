//! What the keys of a recipe do to a step, against their definitions.

mod common;

use common::lab::{Lab, TINY, success};
use std::collections::BTreeSet;
use ternlm::config::{DistillConfig, Recipe};
use ternlm::model::Role;
use ternlm::train::{self, Share, Source, StepReport, Trainer};

/// A trainer of `TINY` by plain gradient descent, whose first step is `-lr` times the gradient.
fn trainer(lab: &Lab, change: impl FnOnce(&mut Recipe)) -> Trainer {
    let keys =
        "optimizer = \"sgd\"\nmomentum = 0.0\nschedule = \"constant\"\nclip = 0.0\nweight_decay = 0.0\n";
    let mut recipe: Recipe = toml::from_str(&format!("{TINY}{keys}")).unwrap();
    recipe.data.train = vec![lab.path("text.txt")];
    change(&mut recipe);
    recipe.validate(&lab.path("tiny.toml")).unwrap();
    train::setup(recipe, None, &lab.path("cache"), Share::WHOLE, &|_| {}).unwrap()
}

fn latents(trainer: &Trainer) -> Vec<Vec<f32>> {
    trainer.model.decoder.weights().map(|w| trainer.latents.of(w).to_vec()).collect()
}

/// What the first step adds to each weight.
fn moved(trainer: &mut Trainer) -> (Vec<Vec<f32>>, StepReport) {
    let before = latents(trainer);
    let report = trainer.step(false).unwrap();
    let difference =
        |(before, after): (Vec<f32>, Vec<f32>)| after.iter().zip(&before).map(|(a, b)| a - b).collect();
    (before.into_iter().zip(latents(trainer)).map(difference).collect(), report)
}

/// The largest difference from `factor` times the wanted, as a share of the largest of these.
fn off(found: &[Vec<f32>], wanted: &[Vec<f32>], factor: f32) -> f32 {
    let pairs = || found.iter().flatten().zip(wanted.iter().flatten());
    let most = pairs().fold(0f32, |most, (_, w)| most.max((factor * w).abs()));
    common::most(pairs().map(|(f, w)| f64::from((f - factor * w).abs()))) as f32 / most
}

#[test]
fn rate_warm_up_and_clipping_scale_the_step() {
    let lab = Lab::new("");
    // Large enough that differences of latents keep the digits of a step.
    let (plain, report) = moved(&mut trainer(&lab, |r| r.train.lr = 1.0));
    let factor = |change: fn(&mut Recipe)| {
        let mut changed = trainer(&lab, |r| {
            r.train.lr = 1.0;
            change(r);
        });
        moved(&mut changed).0
    };
    assert!(off(&factor(|r| r.train.lr = 0.5), &plain, 0.5) < 1e-4);
    assert!(
        off(&factor(|r| r.train.warmup = 4), &plain, 0.25) < 1e-4,
        "a quarter in the first of four steps"
    );
    let half = report.grad_norm as f32 / 2.0;
    let mut clipped = trainer(&lab, |r| (r.train.lr, r.train.clip) = (1.0, half));
    assert!(off(&moved(&mut clipped).0, &plain, 0.5) < 1e-4);
    let mut wide = trainer(&lab, |r| (r.train.lr, r.train.clip) = (1.0, 4.0 * half));
    assert!(off(&moved(&mut wide).0, &plain, 1.0) < 1e-6, "a norm below the bound is left");
    // Weight decay is of matrices alone.
    let (decayed, before) = {
        let mut changed = trainer(&lab, |r| (r.train.lr, r.train.weight_decay) = (1.0, 0.5));
        let before = latents(&changed);
        (moved(&mut changed).0, before)
    };
    let roles: Vec<Role> = trainer(&lab, |_| {}).model.decoder.weights().map(|w| w.role).collect();
    for (at, role) in roles.iter().enumerate() {
        let share = if role.is_matrix() { 0.5 } else { 0.0 };
        let wanted: Vec<f32> = plain[at].iter().zip(&before[at]).map(|(step, p)| step - share * p).collect();
        assert!(off(&[decayed[at].clone()], &[wanted], 1.0) < 1e-4, "{role:?}");
    }
}

#[test]
fn what_the_loss_is_made_of_is_in_the_step() {
    let lab = Lab::new("");
    success(lab.train("teacher", &["--set", "train.steps=3"]));
    let distil = |recipe: &mut Recipe| {
        let teacher = Some(lab.path("teacher/model"));
        recipe.distill = Some(DistillConfig { teacher, weight: 0.9, ..DistillConfig::default() });
    };
    let (plain, _) = moved(&mut trainer(&lab, |r| r.train.lr = 1.0));
    let (z, _) = moved(&mut trainer(&lab, |r| (r.train.lr, r.train.z_loss) = (1.0, 0.1)));
    assert!(off(&z, &plain, 1.0) > 1e-3);
    let (rounded, _) = moved(&mut trainer(&lab, |r| {
        r.train.lr = 1.0;
        r.train.precision = ternlm::config::Precision::Bf16;
    }));
    let by = off(&rounded, &plain, 1.0);
    assert!((1e-5..0.1).contains(&by), "bf16 is another number, and nearly the same: {by}");
    let mut steps = vec![plain];
    for key in ["weight = 0.9", "temperature = 2.0", "direction = \"reverse\""] {
        let mut taught = trainer(&lab, |r| {
            r.train.lr = 1.0;
            distil(r);
            let changed: DistillConfig = toml::from_str(key).unwrap();
            let distill = r.distill.as_mut().unwrap();
            (distill.temperature, distill.direction) = (changed.temperature, changed.direction);
        });
        let (step, report) = moved(&mut taught);
        assert!(report.divergence.is_some_and(|d| d > 0.0), "{key}: {report:?}");
        let all: Vec<f32> = steps.iter().map(|other| off(&step, other, 1.0)).collect();
        assert!(all.iter().all(|off| *off > 1e-3), "{key}: as without it, or with another: {all:?}");
        steps.push(step);
    }
    // Whatever a step is rounded to, validations are of the model that is stored.
    let bf16 = trainer(&lab, |r| r.train.precision = ternlm::config::Precision::Bf16);
    let (mut f32, mut bf16) = (trainer(&lab, |_| {}), bf16);
    assert_eq!(f32.validate(0).unwrap().unwrap().nll, bf16.validate(0).unwrap().unwrap().nll);
}

/// Five steps of Newton and Schulz with the coefficients of Muon's authors (Jordan et al., 2024), in f64.
fn orthogonal(x: &[f32], rows: usize, cols: usize) -> Vec<f64> {
    let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x) / norm).collect();
    let product = |a: &[f64], b: &[f64], [m, k, n]: [usize; 3]| -> Vec<f64> {
        (0..m * n).map(|at| (0..k).map(|i| a[at / n * k + i] * b[i * n + at % n]).sum()).collect()
    };
    for _ in 0..5 {
        let turned: Vec<f64> = (0..x.len()).map(|at| x[at % rows * cols + at / rows]).collect();
        let a = product(&x, &turned, [rows, cols, rows]);
        let square = product(&a, &a, [rows; 3]);
        let b: Vec<f64> = a.iter().zip(&square).map(|(a, square)| -4.7750 * a + 2.0315 * square).collect();
        let more = product(&b, &x, [rows, rows, cols]);
        x.iter_mut().zip(more).for_each(|(x, more)| *x = 3.4445 * *x + more);
    }
    x
}

#[test]
fn muon_moves_projections_by_an_orthogonal_matrix() {
    let lab = Lab::new("");
    let gradients = moved(&mut trainer(&lab, |r| r.train.lr = 1.0)).0;
    let muon = |cautious| {
        let mut muon = trainer(&lab, |r| {
            r.train.optimizer = ternlm::config::OptimizerKind::Muon;
            (r.train.muon_lr, r.train.muon_steps, r.train.cautious) = (0.5, 5, cautious);
            (r.train.warmup, r.train.weight_decay, r.train.momentum) = (2, 0.2, 0.95);
        });
        let before = latents(&muon);
        (moved(&mut muon).0, before)
    };
    let ((found, before), (careful, _)) = (muon(false), muon(true));
    let shapes = trainer(&lab, |_| {});
    let (mut tall, mut wide) = (0, 0);
    for (at, weight) in shapes.model.decoder.weights().enumerate().filter(|(_, w)| w.role.is_projection()) {
        let [rows, cols] = weight.shape[..] else { panic!("a matrix") };
        (tall, wide) = (tall + usize::from(rows > cols), wide + usize::from(rows < cols));
        let o = orthogonal(&gradients[at], rows, cols);
        // The gradient is that of plain descent with its sign turned; half of the rate in the first of two steps.
        let size = 0.25 * (rows as f64 / cols as f64).max(1.0).sqrt();
        let decay = 0.25 * 0.2;
        for (i, found) in found[at].iter().enumerate() {
            let wanted = size * o[i] - decay * f64::from(before[at][i]);
            assert!(
                (f64::from(*found) - wanted).abs() < 2e-3 * size,
                "{} {i}: {found}, wanted {wanted}",
                weight.name
            );
        }
        let against = careful[at].iter().enumerate().filter(|(i, step)| {
            let step = f64::from(**step) + decay * f64::from(before[at][*i]);
            step.abs() > 1e-5 && step * f64::from(gradients[at][*i]) < 0.0
        });
        assert_eq!(against.count(), 0, "{}: a cautious step goes nowhere against the gradient", weight.name);
    }
    assert!(tall > 0 && wide > 0);
}

#[test]
fn sequences_of_a_task_that_are_held_out_are_never_trained_on() {
    let recipe: Recipe =
        toml::from_str("name = 'c'\ntask = 'copy'\n[data]\nsequence = 8\n[train]\nsteps = 1").unwrap();
    let source = Source::synthetic(&recipe, 64);
    let seq = source.seq();
    let mut trained = BTreeSet::new();
    let (mut inputs, mut targets) = (vec![0; seq], vec![0; seq]);
    for n in 0..3000 {
        source.fill(n, &mut inputs, &mut targets);
        trained.insert(inputs.clone());
    }
    let mut held_out = 0;
    source.each_validation(7, 0, |inputs, _, _| {
        held_out += inputs.len() / seq;
        assert!(inputs.chunks(seq).all(|sequence| !trained.contains(sequence)));
    });
    assert_eq!((held_out, trained.len()), (256, 3000));
}
