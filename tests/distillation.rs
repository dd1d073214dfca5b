//! Learning from a teacher, and weights on their way to trits: kernels and gradients against the f64 reference, trainings as
//! their users run them.

mod common;

use common::lab::{Lab, TINY, records, refused, step, success};
use common::{Rng, close, differences, is_gradient, on_every_isa, on_this_isa, randomise, wide};
use std::fs;
use std::path::Path;
use ternlm::config::{Direction, ModelConfig, Scope};
use ternlm::kernels::{self as k, Buffer, Distillation, IGNORE, Objective, reference as r};
use ternlm::model::cross_entropy::{self, Lesson};
use ternlm::model::{
    Decoder, Gradients, Latents, Learning, Linear, Role, Sequences, State, Teacher, Weight, Workspace,
};
use ternlm::ternary::{Grouping, TernaryMatrix};

/// Every direction, with and without cross-entropy, at temperatures of 1, below and above.
fn ways() -> Vec<Distillation> {
    let mut ways = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse] {
        for (weight, temperature) in [(0.5, 1.0), (1.0, 1.0), (0.3, 2.0), (1.0, 0.7)] {
            ways.push(Distillation { weight, temperature, direction });
        }
    }
    ways
}

#[test]
fn the_kernel_is_the_reference_and_its_gradient() {
    on_every_isa(|rng| {
        for (how, z_loss) in ways().into_iter().flat_map(|how| [(how, 0.0), (how, 0.125)]) {
            for (rows, classes) in [(1, 2), (4, 16), (5, 37), (2, 70)] {
                let what = format!("{how:?}, z-loss {z_loss}, {rows} rows of {classes}");
                let draw = |rng: &mut Rng| -> Vec<f32> {
                    rng.normal(rows * classes).iter().map(|x| 3.0 * x).collect()
                };
                let (student, teacher) = (draw(rng), draw(rng));
                let targets: Vec<u32> =
                    (0..rows as u32).map(|i| if i == 3 { IGNORE } else { i * 7 % classes as u32 }).collect();
                // What lies between rows is neither read nor written.
                let stride = classes + 3;
                let apart = |values: &[f32]| -> Vec<f32> {
                    values.chunks(classes).flat_map(|row| [row, &[f32::NAN, 7.0, 8.0]].concat()).collect()
                };
                let (mut logits, taught) = (apart(&student), apart(&teacher));
                let (mut loss, mut divergence) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                k::distill(
                    &mut logits,
                    &taught,
                    classes,
                    stride,
                    &targets,
                    how,
                    Objective { scale: 0.25, z_loss },
                    &mut loss,
                    &mut divergence,
                );
                for row in 0..rows {
                    let gradient = &logits[row * stride..][..classes];
                    assert_eq!(logits[row * stride + classes + 1..][..2], [7.0, 8.0], "{what}");
                    if targets[row] == IGNORE {
                        assert_eq!((loss[row], divergence[row]), (0.0, 0.0), "{what}");
                        assert!(gradient.iter().all(|g| *g == 0.0), "{what}");
                        continue;
                    }
                    let [z, u] = [&student, &teacher].map(|x| wide(&x[row * classes..][..classes]));
                    let target = targets[row] as usize;
                    let [ce, kl, _] = r::distill(&z, &u, target, how);
                    // As exact as numbers of the size of the logits are.
                    let size = z.iter().chain(&u).fold(0f64, |a, b| a.max(b.abs()))
                        / how.temperature.min(1.0) as f64;
                    close(
                        &[loss[row], divergence[row], size as f32],
                        &[ce, kl, size as f32 as f64],
                        64,
                        &what,
                    );
                    let minimised =
                        |z: &[f64]| r::distill(z, &u, target, how)[2] + z_loss as f64 * r::z_loss(z);
                    let want = differences(&z, |z| 0.25 * minimised(z));
                    is_gradient(&what, gradient, &want, 0.25 * size);
                }
            }
        }
    });
}

#[test]
fn the_reference_of_the_divergence_is_the_textbooks() {
    // p = (1/2, 1/2), q = (1/4, 3/4).
    let (p, q) = ([0.0, 0.0], [0.25f64.ln(), 0.75f64.ln()]);
    let way = |direction| Distillation { weight: 1.0, temperature: 1.0, direction };
    let forward = 0.5 * 2f64.ln() + 0.5 * (0.5f64 / 0.75).ln();
    let reverse = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
    for (direction, want) in [(Direction::Forward, forward), (Direction::Reverse, reverse)] {
        let [ce, kl, all] = r::distill(&q, &p, 0, way(direction));
        assert!((ce - 4f64.ln()).abs() < 1e-12 && (kl - want).abs() < 1e-12 && (all - want).abs() < 1e-12);
    }
    // At the temperature 2 the logits are halved, and the loss is four times the divergence.
    let how = Distillation { weight: 0.25, temperature: 2.0, direction: Direction::Forward };
    let [ce, kl, all] = r::distill(&[2.0, 0.0], &[0.0, 2.0], 1, how);
    let halved = r::distill(&[1.0, 0.0], &[0.0, 1.0], 1, way(Direction::Forward))[1];
    assert!((kl - halved).abs() < 1e-12 && (all - (0.75 * ce + kl)).abs() < 1e-12);
}

#[test]
fn the_loss_fused_with_both_heads_has_the_gradient_of_the_whole() {
    on_every_isa(|rng| {
        let (n, width, wider, vocab) = (9, 7, 10, 13);
        let mut head = Weight::new("head", &[vocab, width], Role::Head, None);
        let mut taught = Weight::new("head", &[vocab, wider], Role::Head, None);
        randomise([&mut head], rng);
        randomise([&mut taught], rng);
        let (h, of_teacher) = (rng.normal(n * width), rng.normal(n * wider));
        let teacher = r::linear(&wide(&of_teacher), &wide(taught.dense()), None, wider);
        let targets: Vec<u32> = (0..n as u32).map(|i| if i == 4 { IGNORE } else { i * 5 % 13 }).collect();
        for (how, z_loss) in ways().into_iter().flat_map(|how| [(how, 0.0), (how, 0.125)]) {
            let sums = |h: &[f64], w: &[f64]| -> [f64; 3] {
                let logits = r::linear(h, w, None, width);
                let scored = targets.iter().enumerate().filter(|(_, t)| **t != IGNORE);
                scored.fold([0.0; 3], |sums, (i, &t)| {
                    let [z, u] = [&logits, &teacher].map(|x| &x[i * vocab..][..vocab]);
                    let mut one = r::distill(z, u, t as usize, how);
                    one[2] += z_loss as f64 * r::z_loss(z);
                    std::array::from_fn(|j| sums[j] + one[j])
                })
            };
            let (mut ws, mut dh) = (Workspace::default(), Buffer::zeros(h.len()));
            let mut grads = Gradients::zeros([&head]);
            let (rows, its) = (Buffer::from(h.clone()), Buffer::from(of_teacher.clone()));
            let lesson = Lesson::Hidden { h: &its, head: &taught, how };
            let got = cross_entropy::forward_backward(
                &rows,
                &head,
                &targets,
                Some(lesson),
                Objective { scale: 0.25, z_loss },
                &mut ws,
                &mut dh,
                &mut grads,
            );
            let [ce, kl, _] = sums(&wide(&h), &wide(head.dense()));
            assert!(
                (got.sum - ce).abs() < 1e-4 * ce && (got.divergence - kl).abs() < 1e-4 * kl.max(1.0),
                "{got:?}"
            );
            assert_eq!(got.count, 8);
            let w = wide(head.dense());
            is_gradient("dh", &dh, &differences(&wide(&h), |h| 0.25 * sums(h, &w)[2]), 0.25);
            let h = wide(&h);
            is_gradient("dW", grads.get(&head), &differences(&w, |w| 0.25 * sums(&h, w)[2]), 0.25);
        }
    });
}

fn config() -> ModelConfig {
    let mut recipe: ternlm::config::Recipe = toml::from_str(TINY).unwrap();
    let mut config = recipe.model.take().unwrap();
    config.vocab_size = 17;
    config
}

#[test]
fn a_model_that_is_its_own_teacher_has_nothing_to_learn() {
    let _isa = on_this_isa();
    let mut decoder = Decoder::new(&config(), Scope::Blocks, Grouping::Size(16));
    Latents::random(decoder.weights_mut(), 7, None).unwrap();
    let (tokens, seqs) = (vec![3, 1, 4, 1, 5, 9, 2, 6], Sequences::new(2, 4));
    let gradients = |teacher: Option<Teacher<'_>>| {
        let (mut state, mut grads) = (State::default(), Gradients::zeros(decoder.weights()));
        let learning = Learning { teacher, ..Learning::plain(0.125) };
        let loss = decoder.learn(&tokens, &tokens, seqs, learning, &mut state, &mut grads);
        (loss, decoder.weights().map(|w| k::sum_squares(grads.get(w))).sum::<f64>().sqrt())
    };
    let how = |weight| Distillation { weight, temperature: 1.5, direction: Direction::Forward };
    let (plain, norm) = gradients(None);
    let (own, nothing) =
        gradients(Some(Teacher::Model { decoder: &decoder, how: how(1.0), relations: None }));
    assert!(own.sum == plain.sum || (own.sum - plain.sum).abs() < 1e-5 * plain.sum);
    assert!(own.divergence.abs() < 1e-5 && nothing < 1e-5 * norm, "{own:?}, gradient {nothing} of {norm}");
    let (_, half) = gradients(Some(Teacher::Model { decoder: &decoder, how: how(0.5), relations: None }));
    assert!((half - 0.5 * norm).abs() < 1e-4 * norm, "{half}, wanted half of {norm}");
    let mut other = Decoder::new(&config(), Scope::None, Grouping::default());
    Latents::random(other.weights_mut(), 8, None).unwrap();
    let (taught, _) = gradients(Some(Teacher::Model { decoder: &other, how: how(1.0), relations: None }));
    assert!(taught.divergence > 0.01, "{taught:?}");
}

#[test]
fn annealed_weights_are_between_latents_and_trits() {
    on_every_isa(|rng| {
        for (rows, cols) in [(1, 1), (3, 17), (40, 128), (5, 300)] {
            let latents = rng.normal(rows * cols);
            let matrix = TernaryMatrix::project("w", &latents, rows, cols, Grouping::default()).unwrap();
            let mut trits = vec![0.0; latents.len()];
            trits.chunks_mut(cols).enumerate().for_each(|(row, out)| matrix.unpack_row(row, out));
            for residual in [0.0f32, 0.25, 1.0] {
                let mut got = vec![f32::NAN; latents.len()];
                k::anneal(&matrix, &latents, residual, &mut got);
                let part = residual as f64;
                let want: Vec<f64> = trits
                    .iter()
                    .zip(&latents)
                    .map(|(t, w)| (1.0 - part) * *t as f64 + part * *w as f64)
                    .collect();
                close(&got, &want, 4, &format!("[{rows}, {cols}] with {residual} left"));
                if residual == 1.0 {
                    assert_eq!(got, latents);
                }
            }
        }
    });
}

#[test]
fn a_softened_layer_computes_with_what_is_between_and_hardens_to_trits() {
    on_every_isa(|rng| {
        let (n, inputs, out) = (5, 40, 6);
        let mut layer = Linear::new("l", inputs, out, Role::FeedForward, Some(Grouping::Size(16)), true);
        let mut latents = Latents::random(layer.weights_mut(), rng.next(), None).unwrap();
        let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
        let forward = |layer: &Linear| {
            let mut y = vec![0.0; n * out];
            layer.forward(&x, &mut y, k::To::Set);
            y
        };
        let hard = forward(&layer);
        latents.soften(layer.weights_mut(), |_| 0.25);
        let mut between = vec![0.0; inputs * out];
        k::anneal(layer.weight.ternary().unwrap(), latents.of(&layer.weight), 0.25, &mut between);
        let w = wide(&between);
        let soft = forward(&layer);
        assert_ne!(soft, hard);
        close(&soft, &r::linear(&wide(&x), &w, None, inputs), inputs, "y");
        let (mut dx, mut grads) = (vec![0.0; x.len()], Gradients::zeros(layer.weights()));
        layer.backward(&x, &dy, &mut dx, &mut grads);
        let dot = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, d)| y * *d as f64).sum::<f64>();
        is_gradient("dx", &dx, &differences(&wide(&x), |x| dot(r::linear(x, &w, None, inputs))), 0.0);
        // The derivative of (1 - ε) ŵ + ε w by w, straight through ŵ, is 1.
        is_gradient(
            "dW",
            grads.get(&layer.weight),
            &differences(&w, |w| dot(r::linear(&wide(&x), w, None, inputs))),
            0.0,
        );
        latents.harden(layer.weights_mut());
        assert_eq!(forward(&layer), hard);
    });
}

#[test]
fn a_taught_and_annealed_training_resumes_bit_for_bit_and_ends_ternary() {
    let lab = Lab::taught(60);
    let sets = ["--set", "distill.temperature=2", "--set", "ternary.anneal=0.5"];
    success(lab.learn("run", &sets));
    let run = lab.path("run");
    let (last, kept) = (step(&run, 12), lab.path("kept"));
    fs::rename(&last, &kept).unwrap();
    // The newest left is in the middle of neither: 11; one of the annealing is made by stopping there.
    success(lab.train("run", &["--resume"]));
    let same = |a: &Path, b: &Path| {
        for file in ["model.safetensors", "optimizer.safetensors", "ternary.json"] {
            assert!(fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap(), "{file} differs");
        }
    };
    same(&last, &kept);
    success(lab.learn("again", &[&sets[..], &["--set", "train.keep=20"]].concat()));
    let again = lab.path("again");
    for n in 4..=12 {
        fs::remove_dir_all(step(&again, n)).unwrap();
    }
    success(lab.train("again", &["--resume", "--threads", "1"]));
    same(&step(&again, 12), &kept);

    let train = records(&again, "train");
    let numbers = |key: &str| -> Vec<f64> { train.iter().map(|r| r[key].as_f64().unwrap()).collect() };
    assert!(
        numbers("divergence").iter().all(|kl| kl.is_finite()) && numbers("loss").iter().all(|l| *l > 0.0)
    );
    let residual = numbers("residual");
    assert!(
        residual[0] == 1.0 && residual[1] == 0.5 && residual[2..].iter().all(|r| *r == 0.0),
        "{residual:?}"
    );
    // The first step is with the teacher's own weights.
    assert!(numbers("divergence")[0].abs() < 1e-4, "{:?}", numbers("divergence"));
    // Validations are of the trits, from the first on.
    assert!(records(&again, "val")[0]["nll"].as_f64().unwrap() > 0.0);
    let report = fs::read_to_string(again.join("report.json")).unwrap();
    assert!(report.contains("\"pass\": true"), "{report}");
}

#[test]
fn a_teacher_teaches() {
    let lab = Lab::taught(60);
    success(lab.learn("taught", &["--set", "distill.weight=1", "--set", "train.steps=40"]));
    let divergences: Vec<f64> =
        records(&lab.path("taught"), "train").iter().map(|r| r["divergence"].as_f64().unwrap()).collect();
    let (first, last) = (divergences[0], divergences[divergences.len() - 1]);
    assert!(last < 0.7 * first, "{divergences:?}");
}

#[test]
fn without_a_teacher_and_with_one_of_no_weight_the_bits_are_the_same() {
    let lab = Lab::taught(60);
    let init = ["--init", "teacher/model"];
    success(lab.train("plain", &init));
    // A teacher without weight is not even read.
    let none = ["--teacher", "no/such/model", "--set", "distill.weight=0"];
    success(lab.train("none", &[&init[..], &none].concat()));
    let read = |run: &str| fs::read(step(&lab.path(run), 12).join("model.safetensors")).unwrap();
    assert!(read("plain") == read("none"));
    success(lab.learn("taught", &[]));
    assert!(read("plain") != read("taught"));
}

#[test]
fn what_a_teacher_must_be_is_said() {
    let lab = Lab::taught(60);
    let fit = "--set";
    refused(
        lab.train("a", &[fit, "distill.weight=0.5"]),
        "distill.teacher: found nothing, wanted the model to learn from",
    );
    refused(lab.learn("b", &[fit, "distill.weight=1.5"]), "distill.weight: found 1.5, wanted 0 to 1");
    refused(lab.learn("c", &[fit, "distill.temperature=0"]), "distill.temperature: found 0");
    refused(
        lab.learn("d", &[fit, "distill.direction=sideways"]),
        "`sideways`, expected `forward` or `reverse`",
    );
    refused(lab.learn("e", &[fit, "ternary.anneal=1"]), "ternary.anneal: found 1, wanted 0 to 0.9");
    refused(lab.train("f", &["--teacher", "nowhere"]), "nowhere");
    // Another vocabulary, by size and by token.
    success(lab.train("wide", &[fit, "model.vocab_size=300", fit, "train.steps=1"]));
    refused(lab.train("g", &["--teacher", "wide/model"]), "vocab_size: found 300, wanted 256");
    let tokenizer = lab.path("teacher/model/tokenizer.json");
    let own = fs::read_to_string(&tokenizer).unwrap();
    assert!(own.contains("\"a\": 97") && own.contains("\"b\": 98"), "{}", &own[..2000]);
    let swapped =
        own.replace("\"a\": 97", "\"a\": 98x").replace("\"b\": 98,", "\"b\": 97,").replace("98x", "98");
    fs::write(&tokenizer, swapped).unwrap();
    refused(lab.train("h", &["--teacher", "teacher/model"]), "token 97: found \"b\", wanted \"a\"");
    fs::write(&tokenizer, own).unwrap();
    success(lab.train("short", &[fit, "model.max_positions=24", fit, "train.steps=1"]));
    refused(lab.train("i", &["--teacher", "short/model", fit, "train.seq=32"]), "max_positions: found 24");
}

#[test]
fn a_resumed_training_keeps_its_teacher() {
    let lab = Lab::taught(60);
    success(lab.learn("run", &[]));
    fs::remove_dir_all(step(&lab.path("run"), 12)).unwrap();
    success(lab.train("other", &["--set", "ternary.scope=none", "--set", "train.steps=20"]));
    refused(
        lab.train("run", &["--resume", "--teacher", "other/model"]),
        "distill.teacher: found a model of SHA-256",
    );
    refused(lab.train("run", &["--resume", "--set", "distill.weight=0"]), "distill.teacher: found none");
    // The same weights elsewhere are the same teacher; how much it counts may change.
    fs::rename(lab.path("teacher"), lab.path("moved")).unwrap();
    success(lab.train("run", &["--resume", "--teacher", "moved/model", "--set", "distill.weight=0.75"]));
    success(lab.train("plain", &[]));
    fs::remove_dir_all(step(&lab.path("plain"), 12)).unwrap();
    refused(lab.train("plain", &["--resume", "--teacher", "moved/model"]), "wanted none, as so far");
}
