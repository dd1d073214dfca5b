//! Hand-written backward passes against central finite differences of the f64 reference.
//!
//! Differences through the rounding of the projection measure nothing, so the gradient of a ternary layer is compared
//! with that of a dense layer whose weight is Ŵ.

mod common;

use common::{Rng, difference, is_gradient, on_every_isa, randomise, wide};
use ternlm::config::{Activation, ModelConfig, Precision, Scope};
use ternlm::kernels::{
    self as k, Attended, AttentionGradients, AttentionShape, Buffer, IGNORE, Objective, RopeTable, To,
    reference as r,
};
use ternlm::model::{
    Attention, AttentionSaved, Decoder, Embedding, FeedForward, FeedForwardSaved, Gradients, Latents, Linear,
    Loss, RmsNorm, Role, Sequences, State, Weight, Workspace, cross_entropy, in_context,
};
use ternlm::ternary::Grouping;

/// Panics unless `analytic` is the gradient of `f` at `at`.
#[track_caller]
fn check(what: &str, at: &[f32], analytic: &[f32], f: impl Fn(&[f64]) -> f64) {
    let mut x = wide(at);
    let slope = |i: usize| {
        let step = 1e-5 * x[i].abs().max(1.0);
        difference(&mut x, i, step, &f)
    };
    let numeric: Vec<f64> = (0..at.len()).map(slope).collect();
    is_gradient(what, analytic, &numeric, 0.0);
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * *b as f64).sum()
}

#[test]
fn linear() {
    on_every_isa(|rng| {
        let (n, inputs, out) = (7, 19, 11);
        let mut layer = Linear::new("l", inputs, out, Role::FeedForward, None, true);
        randomise(layer.weights_mut(), rng);
        let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
        let mut dx = vec![0.0; x.len()];
        let mut grads = Gradients::zeros(layer.weights());
        layer.backward(&x, &dy, &mut dx, &mut grads);
        let (w, b) = (wide(layer.weight.dense()), wide(layer.bias.as_ref().unwrap().dense()));
        check("dx", &x, &dx, |x| dot(&r::linear(x, &w, Some(&b), inputs), &dy));
        let x = wide(&x);
        check("dW", layer.weight.dense(), grads.get(&layer.weight), |w| {
            dot(&r::linear(&x, w, Some(&b), inputs), &dy)
        });
        let bias = layer.bias.as_ref().unwrap();
        check("db", bias.dense(), grads.get(bias), |b| dot(&r::linear(&x, &w, Some(b), inputs), &dy));
    });
}

#[test]
fn ternary_linear_has_the_dense_gradient_at_its_projection() {
    on_every_isa(|rng| {
        for grouping in [Grouping::Size(8), Grouping::Size(128), Grouping::Tensor] {
            let (n, inputs, out) = (9, 20, 6);
            let mut layer = Linear::new("l", inputs, out, Role::FeedForward, Some(grouping), false);
            let latents = Latents::random(layer.weights_mut(), rng.next(), None).unwrap();
            let mut projected = vec![0.0; inputs * out];
            let t = layer.weight.ternary().unwrap().clone();
            projected.chunks_mut(inputs).enumerate().for_each(|(i, row)| t.unpack_row(i, row));
            assert_ne!(projected, latents.of(&layer.weight));
            let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
            let mut y = vec![0.0; n * out];
            layer.forward(&x, &mut y, To::Set);
            common::close(&y, &r::linear(&wide(&x), &wide(&projected), None, inputs), inputs, "y");
            let mut dx = vec![0.0; x.len()];
            let mut grads = Gradients::zeros(layer.weights());
            layer.backward(&x, &dy, &mut dx, &mut grads);
            check("dx", &x, &dx, |x| dot(&r::linear(x, &wide(&projected), None, inputs), &dy));
            let x = wide(&x);
            check("dW", &projected, grads.get(&layer.weight), |w| dot(&r::linear(&x, w, None, inputs), &dy));
        }
    });
}

#[test]
fn ternary_embedding_adds_up_repeated_tokens() {
    on_every_isa(|rng| {
        let (vocab, width) = (5, 24);
        let mut layer = Embedding::new("e", vocab, width, Some(Grouping::Size(16)));
        let latents = Latents::random([&mut layer.weight], rng.next(), None).unwrap();
        let tokens = [3, 0, 3, 1];
        let dx = rng.normal(tokens.len() * width);
        let mut grads = Gradients::zeros([&layer.weight]);
        layer.backward(&tokens, &dx, &mut grads);
        check("dW", latents.of(&layer.weight), grads.get(&layer.weight), |w| {
            tokens
                .iter()
                .enumerate()
                .map(|(n, &t)| dot(&w[t as usize * width..][..width], &dx[n * width..]))
                .sum()
        });
        assert!(
            grads.get(&layer.weight)[2 * width..3 * width].iter().all(|g| *g == 0.0),
            "token 2 did not occur"
        );
    });
}

#[test]
fn rms_norm() {
    on_every_isa(|rng| {
        let (n, width) = (130, 18);
        let mut layer = RmsNorm::new("n", width, 1e-5);
        randomise([&mut layer.gain], rng);
        let (x, dy, before) = (rng.normal(n * width), rng.normal(n * width), rng.normal(n * width));
        let mut dx = before.clone();
        let mut grads = Gradients::zeros([&layer.gain]);
        layer.backward(&x, &dy, &mut dx, To::Add, &mut grads);
        dx.iter_mut().zip(&before).for_each(|(d, b)| *d -= b);
        let gain = wide(layer.gain.dense());
        check("dx", &x, &dx, |x| dot(&r::rms_norm(x, &gain, 1e-5), &dy));
        let x = wide(&x);
        check("dgain", layer.gain.dense(), grads.get(&layer.gain), |g| dot(&r::rms_norm(&x, g, 1e-5), &dy));
    });
}

#[test]
fn attention_kernel() {
    on_every_isa(|rng| {
        for (queries, keys, causal) in [(5, 5, true), (67, 67, true), (66, 66, false), (3, 8, true)] {
            let s = AttentionShape { batch: 1, queries, keys, heads: 2, kv_heads: 1, dim: 4, causal };
            let (q, kk, v) = (rng.normal(queries * 8), rng.normal(keys * 4), rng.normal(keys * 4));
            let dout = rng.normal(queries * 8);
            let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 2 * queries]);
            k::attention(&s, Precision::F32, &q, &kk, &v, &mut out, &mut lse);
            let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; kk.len()], vec![0.0; v.len()]);
            let forward = Attended { q: &q, k: &kk, v: &v, out: &out, lse: &lse };
            let grads = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            k::attention_backward(&s, Precision::F32, forward, &dout, grads);
            let (wq, wk, wv) = (wide(&q), wide(&kk), wide(&v));
            check("dq", &q, &dq, |q| dot(&r::attention(&s, q, &wk, &wv), &dout));
            check("dk", &kk, &dk, |kk| dot(&r::attention(&s, &wq, kk, &wv), &dout));
            check("dv", &v, &dv, |v| dot(&r::attention(&s, &wq, &wk, v), &dout));
        }
    });
}

fn config(activation: Activation) -> ModelConfig {
    ModelConfig {
        vocab_size: 11,
        hidden_size: 12,
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        intermediate_size: 10,
        activation,
        qk_norm: true,
        qkv_bias: true,
        rope_theta: 100.0,
        max_positions: 16,
        ..ModelConfig::default()
    }
}

#[test]
fn attention_layer_with_norms_rotation_and_biases() {
    on_every_isa(|rng| {
        let c = ModelConfig { o_bias: true, sub_norm: true, ..config(Activation::SwiGlu) };
        let seqs = Sequences::new(2, 5);
        let mut layer = Attention::new("a", &c, None);
        randomise(layer.weights_mut(), rng);
        let (h, dout) = (rng.normal(10 * 12), rng.normal(10 * 12));
        let frequencies = common::frequencies(6, 100.0);
        let rope = RopeTable::new(8, &frequencies, 1.25);
        let (mut saved, mut ws) = (AttentionSaved::default(), Workspace::default());
        let (mut out, mut dh) = (vec![0.0; 120], vec![0.0; 120]);
        in_context(seqs, &rope, &mut ws, |cx| layer.forward(&h, cx, &mut saved, None, &mut out));
        let mut grads = Gradients::zeros(layer.weights());
        in_context(seqs, &rope, &mut ws, |cx| layer.backward(&h, cx, &saved, &dout, &mut dh, &mut grads));
        let params: Vec<(String, Vec<f32>, Vec<f32>)> =
            layer.weights().map(|w| (w.name.clone(), w.dense().to_vec(), grads.get(w).to_vec())).collect();
        // Weights in the order of `params`, replaced one by one.
        let forward = |h: &[f64], replaced: Option<(&str, &[f64])>| {
            let get = |name: &str| match replaced {
                Some((n, v)) if n == format!("a.{name}") => v.to_vec(),
                _ => wide(&params.iter().find(|p| p.0 == format!("a.{name}")).unwrap().1),
            };
            let project = |name: &str| {
                r::linear(h, &get(&format!("{name}.weight")), Some(&get(&format!("{name}.bias"))), 12)
            };
            let rotated = |x: Vec<f64>, heads, norm: &str| {
                r::rope(&r::rms_norm(&x, &get(&format!("{norm}.weight")), 1e-6), heads, &frequencies, 1.25, 5)
            };
            let (q, kk) = (rotated(project("q_proj"), 4, "q_norm"), rotated(project("k_proj"), 2, "k_norm"));
            let s =
                AttentionShape { batch: 2, queries: 5, keys: 5, heads: 4, kv_heads: 2, dim: 6, causal: true };
            let mixed = r::attention(&s, &q, &kk, &project("v_proj"));
            let mixed = r::rms_norm(&mixed, &get("attn_sub_norm.weight"), 1e-6);
            r::linear(&mixed, &get("o_proj.weight"), Some(&get("o_proj.bias")), 24)
        };
        common::close(&out, &forward(&wide(&h), None), 200, "forward");
        check("dh", &h, &dh, |h| dot(&forward(h, None), &dout));
        let h = wide(&h);
        for (name, value, grad) in &params {
            check(name, value, grad, |v| dot(&forward(&h, Some((name, v))), &dout));
        }
    });
}

#[test]
fn feed_forward_of_every_kind() {
    on_every_isa(|rng| {
        let plain = [Activation::SwiGlu, Activation::Relu2Glu, Activation::Gelu, Activation::Relu2];
        // With what BitNet and some LLaMA models add, too.
        let more = [(Activation::Relu2Glu, true), (Activation::Relu2, true)];
        for (activation, more) in plain.map(|activation| (activation, false)).into_iter().chain(more) {
            let c = ModelConfig { sub_norm: more, mlp_bias: more, ..config(activation) };
            let n = 6;
            let (seqs, rope) = (Sequences::new(1, n), RopeTable::new(n, &[1.0], 1.0));
            let mut layer = FeedForward::new("f", &c, None);
            randomise(layer.weights_mut(), rng);
            let (h, dout) = (rng.normal(n * 12), rng.normal(n * 12));
            let (mut saved, mut ws) = (FeedForwardSaved::default(), Workspace::default());
            let (mut out, mut dh) = (vec![0.0; n * 12], vec![0.0; n * 12]);
            in_context(seqs, &rope, &mut ws, |cx| layer.forward(&h, cx, &mut saved, &mut out));
            let mut grads = Gradients::zeros(layer.weights());
            in_context(seqs, &rope, &mut ws, |cx| layer.backward(&h, cx, &saved, &dout, &mut dh, &mut grads));
            let params: Vec<(String, Vec<f32>, Vec<f32>)> = layer
                .weights()
                .map(|w| (w.name.clone(), w.dense().to_vec(), grads.get(w).to_vec()))
                .collect();
            let forward = |h: &[f64], replaced: Option<(&str, &[f64])>| {
                let get = |name: &str| match replaced {
                    Some((n, v)) if n == name => v.to_vec(),
                    _ => wide(&params.iter().find(|p| p.0 == name).unwrap().1),
                };
                let project = |x: &[f64], name: &str, inputs: usize| {
                    let bias = more.then(|| get(&format!("f.{name}.bias")));
                    r::linear(x, &get(&format!("f.{name}.weight")), bias.as_deref(), inputs)
                };
                let up = project(h, "up_proj", 12);
                let act: Vec<f64> = match activation {
                    Activation::SwiGlu => {
                        project(h, "gate_proj", 12).iter().zip(&up).map(|(g, u)| r::silu(*g) * u).collect()
                    }
                    Activation::Relu2Glu => {
                        project(h, "gate_proj", 12).iter().zip(&up).map(|(g, u)| r::relu2(*g) * u).collect()
                    }
                    Activation::Gelu => up.iter().map(|u| r::gelu(*u)).collect(),
                    Activation::Relu2 => up.iter().map(|u| r::relu2(*u)).collect(),
                };
                let norm = |act: Vec<f64>| r::rms_norm(&act, &get("f.ffn_sub_norm.weight"), 1e-6);
                let act = if more { norm(act) } else { act };
                project(&act, "down_proj", 10)
            };
            check("dh", &h, &dh, |h| dot(&forward(h, None), &dout));
            let h = wide(&h);
            for (name, value, grad) in &params {
                check(name, value, grad, |v| dot(&forward(&h, Some((name, v))), &dout));
            }
        }
    });
}

#[test]
fn cross_entropy_fused_with_the_head() {
    on_every_isa(|rng| {
        let (n, width, vocab) = (9, 7, 13);
        let mut head = Weight::new("head", &[vocab, width], Role::Head, None);
        randomise([&mut head], rng);
        let h = rng.normal(n * width);
        let targets: Vec<u32> = (0..n as u32).map(|i| if i == 4 { IGNORE } else { i * 5 % 13 }).collect();
        let rows = Buffer::from(h.clone());
        let mut ws = Workspace::default();
        let forward = cross_entropy::forward(&rows, &head, &targets, &mut ws);
        for z_loss in [0.0, 0.125] {
            let loss = |h: &[f64], w: &[f64], z_loss: f64| -> f64 {
                let logits = r::linear(h, w, None, width);
                let scored = targets.iter().enumerate().filter(|(_, t)| **t != IGNORE);
                let of = |(i, &t): (usize, &u32)| {
                    let row = &logits[i * vocab..][..vocab];
                    0.25 * (r::cross_entropy(row, t as usize) + z_loss * r::z_loss(row))
                };
                scored.map(of).sum()
            };
            let (mut dh, mut grads) = (Buffer::zeros(h.len()), Gradients::zeros([&head]));
            let got = cross_entropy::forward_backward(
                &rows,
                &head,
                &targets,
                None,
                Objective { scale: 0.25, z_loss },
                &mut ws,
                &mut dh,
                &mut grads,
            );
            // What is told is the cross-entropy alone.
            let want = loss(&wide(&h), &wide(head.dense()), 0.0);
            assert!((got.sum * 0.25 - want).abs() < 1e-4 && got.count == 8, "{got:?}, wanted {want}");
            assert!((forward.sum - got.sum).abs() < 1e-4);
            let z_loss = z_loss as f64;
            check("dh", &h, &dh, |h| loss(h, &wide(head.dense()), z_loss));
            check("dW", head.dense(), grads.get(&head), |w| loss(&wide(&h), w, z_loss));
        }
    });
}

#[test]
fn the_z_loss_of_equal_logits_pushes_all_of_them_down_alike() {
    // Of two zeros, ln Z = ln 2; its square has the slope 2 ln 2 · 1/2 by each.
    let ln2 = std::f64::consts::LN_2;
    assert!((r::z_loss(&[0.0, 0.0]) - ln2 * ln2).abs() < 1e-15);
    on_every_isa(|_| {
        let (mut logits, mut loss) = ([0.0; 2], [0.0]);
        let objective = Objective { scale: 2.0, z_loss: 0.5 };
        k::cross_entropy(&mut logits, 2, 2, &[1], Some(objective), &mut loss);
        let pushed = 0.5 * ln2;
        common::close(&loss, &[ln2], 2, "the loss without it");
        common::close(&logits, &[2.0 * (0.5 + pushed), 2.0 * (-0.5 + pushed)], 2, "its gradient");
    });
}

#[test]
fn a_batch_in_parts_has_the_gradients_of_its_sequences() {
    let _one_at_a_time = common::on_this_isa();
    // Five sequences of 110 tokens are two parts, of two and of three.
    let (batch, len) = (5, 110);
    let config = ModelConfig { max_positions: len, ..config(Activation::SwiGlu) };
    let mut decoder = Decoder::new(&config, Scope::All, Grouping::Size(6));
    Latents::random(decoder.weights_mut(), 7, None).unwrap();
    let mut grads = Gradients::zeros(decoder.weights());
    let mut rng = Rng::new(8);
    let mut draw = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.below(11) as u32).collect() };
    let (tokens, mut targets) = (draw(batch * len), draw(batch * len));
    targets[3 * len..3 * len + 40].fill(IGNORE);
    let mut state = State::default();
    let mut run = |grads: &mut Gradients, sequences: std::ops::Range<usize>| {
        let rows = sequences.start * len..sequences.end * len;
        let seqs = Sequences::new(sequences.len(), len);
        decoder.loss_and_gradient(&tokens[rows.clone()], &targets[rows], seqs, 0.01, &mut state, grads)
    };
    let all = |grads: &Gradients| -> Vec<Vec<f32>> {
        decoder.weights().map(|weight| grads.get(weight).to_vec()).collect()
    };
    let together = run(&mut grads, 0..batch);
    let got = all(&grads);
    grads.zero();
    let again = run(&mut grads, 0..batch);
    assert!(again == together && all(&grads) == got, "the second time is as the first");
    grads.zero();
    let one_by_one = (0..batch).fold(Loss::default(), |mut sum, i| {
        sum += run(&mut grads, i..i + 1);
        sum
    });
    assert_eq!(together.count, batch * len - 40);
    assert_eq!(together.count, one_by_one.count);
    assert!((together.sum - one_by_one.sum).abs() < 1e-5 * one_by_one.sum, "{together:?}, {one_by_one:?}");
    for (weight, got) in decoder.weights().zip(&got) {
        common::close(got, &wide(grads.get(weight)), batch * len, &weight.name);
    }
}

#[test]
fn projections_that_are_made_again_give_the_same_bits() {
    on_every_isa(|rng| {
        for (activation, sub_norm) in
            [(Activation::SwiGlu, false), (Activation::Relu2Glu, true), (Activation::Gelu, false)]
        {
            let (batch, len) = (3, 16);
            let config = ModelConfig { layers: 3, sub_norm, ..config(activation) };
            let mut decoder = Decoder::new(&config, Scope::All, Grouping::Size(6));
            Latents::random(decoder.weights_mut(), 7, None).unwrap();
            let mut draw = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.below(11) as u32).collect() };
            let (tokens, targets) = (draw(batch * len), draw(batch * len));
            for precision in [Precision::F32, Precision::Bf16] {
                decoder.set_precision(precision);
                let mut run = |recompute: bool| {
                    decoder.set_recompute(recompute);
                    let (mut state, mut grads) = (State::default(), Gradients::zeros(decoder.weights()));
                    // The second time with what the first has left behind.
                    let seqs = Sequences::new(batch, len);
                    let mut step =
                        || decoder.loss_and_gradient(&tokens, &targets, seqs, 0.1, &mut state, &mut grads);
                    let losses = [step(), step()];
                    let grads = decoder.weights().map(|weight| grads.get(weight).to_vec());
                    (losses, grads.collect::<Vec<_>>())
                };
                assert!(run(true) == run(false), "{activation:?}, {precision}");
            }
        }
    });
}
