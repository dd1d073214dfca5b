//! Learning from a teacher how positions relate to each other: the kernel and whole decoders against the f64 reference, trainings
//! as their users run them.

mod common;

use common::lab::{Lab, TINY, records, refused, step, success};
use common::{Rng, close, difference, frequencies, on_every_isa, on_this_isa, wide};
use std::collections::BTreeMap;
use std::fs;
use ternlm::config::{Direction, ModelConfig, Precision, Recipe, Scope};
use ternlm::kernels::{self as k, AttentionShape, Distillation, IGNORE, RelationShape, reference as r};
use ternlm::model::{
    self, Decoder, Gradients, Latents, Learning, Loss, Relations, Role, Sequences, State, Teacher,
};
use ternlm::ternary::Grouping;

fn shape(batch: usize, len: usize, heads: usize, dims: [usize; 2], causal: bool) -> RelationShape {
    RelationShape { batch, len, heads, dim: dims[0], teacher_dim: dims[1], causal }
}

#[test]
fn the_kernel_is_the_reference_and_its_gradient() {
    on_every_isa(|rng| {
        for s in [
            shape(2, 3, 2, [3, 3], true),
            shape(2, 5, 3, [4, 7], true),
            shape(3, 6, 2, [6, 6], false),
            // Several tiles, and the last one is short.
            shape(1, 150, 2, [5, 4], true),
            shape(2, 67, 1, [18, 20], false),
        ] {
            let rows = s.batch * s.len;
            let draw = |rng: &mut Rng, dim: usize| -> Vec<f32> {
                rng.normal(rows * s.heads * dim).iter().map(|x| 1.5 * x).collect()
            };
            let (student, teacher) = (draw(rng, s.dim), draw(rng, s.teacher_dim));
            let targets: Vec<u32> = (0..rows).map(|i| if i % 5 == 3 { IGNORE } else { 1 }).collect();
            let before: Vec<f32> = rng.normal(student.len()).iter().map(|x| 0.1 * x).collect();
            let mut da = before.clone();
            let got = k::relations(&s, &student, &teacher, &targets, 0.75, &mut da);
            let (mut x, u) = (wide(&student), wide(&teacher));
            let want = r::relations(&s, &x, &u, &targets);
            assert!((got - want).abs() < 1e-5 * want, "{got}, wanted {want}, {s:?}");
            // All of a short one, some of a long one.
            let some: Vec<usize> = match x.len() {
                ..200 => (0..x.len()).collect(),
                len => (0..40).map(|_| rng.below(len)).collect(),
            };
            let differences: Vec<f64> = some
                .iter()
                .map(|&i| 0.75 * difference(&mut x, i, 1e-5, |x| r::relations(&s, x, &u, &targets)))
                .collect();
            let norm = differences.iter().fold(0f64, |a, b| a.max(b.abs()));
            assert!(norm > 0.05, "the gradient is nearly zero, which tests nothing: {s:?}");
            for (&i, want) in some.iter().zip(&differences) {
                let got = (da[i] - before[i]) as f64;
                assert!((got - want).abs() < 3e-5 * norm, "{s:?}[{i}]: {got}, {want} by differences");
            }
        }
    });
}

#[test]
fn relations_of_equals_are_equal_to_the_bit() {
    on_every_isa(|rng| {
        let s = shape(2, 70, 3, [10, 10], true);
        let (rows, targets) = (rng.normal(2 * 70 * 30), vec![0; 140]);
        let mut da = vec![0.0; rows.len()];
        assert_eq!(k::relations(&s, &rows, &rows, &targets, 1.0, &mut da), 0.0);
        assert!(da.iter().all(|d| *d == 0.0));
        // And nothing is asked of positions that are not scored.
        let other = rng.normal(rows.len());
        assert_eq!(k::relations(&s, &rows, &other, &[IGNORE; 140], 1.0, &mut da), 0.0);
        assert!(da.iter().all(|d| *d == 0.0));
    });
}

#[test]
fn relations_are_the_same_for_any_number_of_threads() {
    let _isa = on_this_isa();
    let mut rng = Rng::new(4);
    let s = shape(3, 90, 4, [12, 8], true);
    let (student, teacher) = (rng.normal(270 * 48), rng.normal(270 * 32));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut da = vec![0.5; student.len()];
            (k::relations(&s, &student, &teacher, &[7; 270], 0.3, &mut da).to_bits(), da)
        })
    };
    let one = run(1);
    assert!([2, 3, 7].into_iter().all(|threads| run(threads) == one));
}

/// A decoder with two layers and queries that share keys.
fn student(causal: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 7,
        hidden_size: 8,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        intermediate_size: 6,
        qk_norm: true,
        causal,
        rope_theta: 100.0,
        max_positions: 128,
        ..ModelConfig::default()
    }
}

/// Of other widths and another depth, without norms on queries and keys.
fn teacher(causal: bool) -> ModelConfig {
    ModelConfig { hidden_size: 10, layers: 3, head_dim: 6, qk_norm: false, ..student(causal) }
}

fn random(config: &ModelConfig, seed: u64) -> Decoder {
    let (mut decoder, mut rng) = (Decoder::new(config, Scope::None, Grouping::default()), Rng::new(seed));
    for weight in decoder.weights_mut() {
        let gain = weight.role == Role::Gain;
        let value = |x: &f32| if gain { 1.0 + 0.3 * x } else { 0.6 * x };
        let values: Vec<f32> = rng.normal(weight.len()).iter().map(value).collect();
        weight.dense_mut().copy_from_slice(&values);
    }
    decoder
}

type Weights = BTreeMap<String, Vec<f64>>;

fn weights(decoder: &Decoder) -> Weights {
    decoder.weights().map(|w| (w.name.clone(), wide(w.dense()))).collect()
}

/// Logits in f64, and queries, keys and values of a layer behind their norms.
fn pass(
    c: &ModelConfig,
    w: &Weights,
    tokens: &[u32],
    seqs: Sequences,
    layer: usize,
) -> (Vec<f64>, [Vec<f64>; 3]) {
    let (width, table) = (c.hidden_size, &w["model.embed_tokens.weight"]);
    let norm = |x: &[f64], name: &str| r::rms_norm(x, &w[&format!("{name}.weight")], c.rms_norm_eps as f64);
    let add = |x: &mut [f64], y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    let frequencies = frequencies(c.head_dim, c.rope_theta as f64);
    let rope = |x: &[f64], heads| r::rope(x, heads, &frequencies, 1.0, seqs.len);
    let mut x: Vec<f64> =
        tokens.iter().flat_map(|&t| table[t as usize * width..][..width].to_vec()).collect();
    let mut related = Default::default();
    for l in 0..c.layers {
        let name = |part: &str| format!("model.layers.{l}.{part}");
        let linear =
            |x: &[f64], part: &str, inputs| r::linear(x, &w[&name(&format!("{part}.weight"))], None, inputs);
        let h = norm(&x, &name("input_layernorm"));
        let of = |part: &str| {
            let x = linear(&h, &format!("self_attn.{part}_proj"), width);
            if c.qk_norm { norm(&x, &name(&format!("self_attn.{part}_norm"))) } else { x }
        };
        let (q, kk, v) = (of("q"), of("k"), linear(&h, "self_attn.v_proj", width));
        let s = AttentionShape {
            batch: seqs.batch,
            queries: seqs.len,
            keys: seqs.len,
            heads: c.heads,
            kv_heads: c.kv_heads,
            dim: c.head_dim,
            causal: c.causal,
        };
        let mixed = r::attention(&s, &rope(&q, c.heads), &rope(&kk, c.kv_heads), &v);
        if l == layer {
            related = [q, kk, v];
        }
        add(&mut x, linear(&mixed, "self_attn.o_proj", c.heads * c.head_dim));
        let h = norm(&x, &name("post_attention_layernorm"));
        let (gate, up) = (linear(&h, "mlp.gate_proj", width), linear(&h, "mlp.up_proj", width));
        let act: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| r::silu(*g) * u).collect();
        add(&mut x, linear(&act, "mlp.down_proj", c.intermediate_size));
    }
    (r::linear(&norm(&x, "model.norm"), &w["lm_head.weight"], None, width), related)
}

const HOW: Distillation = Distillation { weight: 0.5, temperature: 1.5, direction: Direction::Forward };

#[test]
fn a_decoder_has_the_gradient_of_all_that_it_learns() {
    on_every_isa(|_| {
        for causal in [true, false] {
            let (c, t) = (student(causal), teacher(causal));
            let (mut decoder, taught) = (random(&c, 1), random(&t, 2));
            let tokens = [3, 1, 4, 1, 5, 2, 6, 5, 3, 0];
            let targets = [1, 4, 1, 5, IGNORE, 6, 5, IGNORE, 0, 2];
            let (seqs, scale) = (Sequences::new(2, 5), 0.125);
            let its = weights(&taught);
            for (layer, of_teacher, recompute) in [(0, 2, false), (1, 1, true)] {
                let relations = Relations { weight: 3.0, layer, of_teacher };
                decoder.set_recompute(recompute);
                let (logits, its) = pass(&t, &its, &tokens, seqs, of_teacher);
                let sums = |w: &Weights| -> [f64; 2] {
                    let (own, related) = pass(&c, w, &tokens, seqs, layer);
                    let scored = targets.iter().enumerate().filter(|(_, t)| **t != IGNORE);
                    let of = |(i, &t): (usize, &u32)| {
                        let [z, u] = [&own, &logits].map(|x| &x[i * 7..][..7]);
                        r::distill(z, u, t as usize, HOW)[2]
                    };
                    let heads = [c.heads, c.kv_heads, c.kv_heads];
                    let three = related.iter().zip(&its).zip(heads).map(|((x, u), heads)| {
                        let s = shape(2, 5, heads, [c.head_dim, t.head_dim], causal);
                        r::relations(&s, x, u, &targets) / 3.0
                    });
                    [scored.map(of).sum(), three.sum()]
                };
                let teacher = Teacher::Model { decoder: &taught, how: HOW, relations: Some(relations) };
                let learning = Learning { teacher: Some(teacher), ..Learning::plain(scale) };
                let (mut state, mut grads) = (State::default(), Gradients::zeros(decoder.weights()));
                let loss = decoder.learn(&tokens, &targets, seqs, learning, &mut state, &mut grads);
                let mut w = weights(&decoder);
                let [_, want] = sums(&w);
                assert!((loss.relations - want).abs() < 1e-4 * want && want > 0.1, "{loss:?}, wanted {want}");
                for weight in decoder.weights() {
                    let mut values = w[&weight.name].clone();
                    let differences: Vec<f64> = (0..values.len())
                        .map(|i| {
                            difference(&mut values, i, 1e-5, |values| {
                                w.get_mut(&weight.name).unwrap().copy_from_slice(values);
                                let [text, relations] = sums(&w);
                                scale as f64 * (text + 3.0 * relations)
                            })
                        })
                        .collect();
                    w.insert(weight.name.clone(), values);
                    let norm = differences.iter().fold(0f64, |a, b| a.max(b.abs()));
                    for (i, (got, want)) in grads.get(weight).iter().zip(&differences).enumerate() {
                        assert!(
                            (*got as f64 - want).abs() < 1e-4 * norm,
                            "causal {causal}, layer {layer}, {}[{i}]: {got}, {want} by differences ({norm})",
                            weight.name
                        );
                    }
                }
            }
        }
    });
}

fn tiny() -> ModelConfig {
    let mut config = toml::from_str::<Recipe>(TINY).unwrap().model.unwrap();
    config.vocab_size = 17;
    config
}

/// What a decoder is off by, and the gradients of that.
fn learnt(
    decoder: &Decoder,
    taught: &Decoder,
    weight: f32,
    (tokens, seqs): (&[u32], Sequences),
) -> (Loss, Vec<Vec<f32>>) {
    let relations = Some(Relations { weight, layer: 1, of_teacher: 1 });
    let how = Distillation { weight: 1.0, ..HOW };
    let teacher = Some(Teacher::Model { decoder: taught, how, relations });
    let (mut state, mut grads) = (State::default(), Gradients::zeros(decoder.weights()));
    let learning = Learning { teacher, ..Learning::plain(0.1) };
    // The second time with what the first has left behind.
    let first = decoder.learn(tokens, tokens, seqs, learning, &mut state, &mut grads);
    let got: Vec<Vec<f32>> = decoder.weights().map(|weight| grads.get(weight).to_vec()).collect();
    grads.zero();
    assert_eq!(decoder.learn(tokens, tokens, seqs, learning, &mut state, &mut grads), first);
    assert!(decoder.weights().zip(&got).all(|(weight, got)| grads.get(weight) == got));
    (first, got)
}

const TOKENS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];

fn norm(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().map(|g| k::sum_squares(g)).sum::<f64>().sqrt()
}

#[test]
fn a_model_that_is_its_own_teacher_has_no_relations_to_learn() {
    let _isa = on_this_isa();
    let mut decoder = Decoder::new(&tiny(), Scope::Blocks, Grouping::Size(16));
    Latents::random(decoder.weights_mut(), 7, None).unwrap();
    let batch = (&TOKENS[..], Sequences::new(2, 6));
    let (own, nothing) = learnt(&decoder, &decoder, 1e3, batch);
    assert_eq!(own.relations, 0.0);
    let other = random(&tiny(), 8);
    let (taught, something) = learnt(&decoder, &other, 1e3, batch);
    assert!(taught.relations > 0.1, "{taught:?}");
    assert!(norm(&nothing) < 1e-7 * norm(&something), "{} of {}", norm(&nothing), norm(&something));
}

#[test]
fn a_rotation_leaves_relations_as_they_are() {
    let _isa = on_this_isa();
    for qk_norm in [true, false] {
        let taught = random(&ModelConfig { qk_norm, ..tiny() }, 9);
        let mut turned = taught.clone();
        model::rotate(&mut turned).unwrap();
        let values = |decoder: &Decoder| decoder.layers[1].self_attn.v_proj.weight.dense().to_vec();
        assert_ne!(values(&turned), values(&taught));
        let batch = (&TOKENS[..], Sequences::new(2, 6));
        let (loss, _) = learnt(&turned, &taught, 1.0, batch);
        assert!(loss.relations.abs() < 1e-5, "{loss:?}");
    }
}

#[test]
fn relations_of_projections_that_are_made_again_give_the_same_bits() {
    on_every_isa(|rng| {
        let taught = random(&tiny(), 3);
        let mut decoder = Decoder::new(&tiny(), Scope::All, Grouping::Size(6));
        Latents::random(decoder.weights_mut(), 7, None).unwrap();
        let tokens: Vec<u32> = (0..48).map(|_| rng.below(17) as u32).collect();
        for precision in [Precision::F32, Precision::Bf16] {
            decoder.set_precision(precision);
            let mut run = |recompute: bool| {
                decoder.set_recompute(recompute);
                learnt(&decoder, &taught, 2.0, (&tokens, Sequences::new(3, 16)))
            };
            assert!(run(true) == run(false), "{precision}");
        }
    });
}

#[test]
fn a_batch_in_parts_learns_the_relations_of_its_sequences() {
    let _isa = on_this_isa();
    // Five sequences of 110 tokens are two parts, of two and of three.
    let (batch, len) = (5, 110);
    let (decoder, taught) = (random(&student(true), 5), random(&teacher(true), 6));
    assert_eq!(decoder.parts(Sequences::new(batch, len)), 2);
    let mut rng = Rng::new(8);
    let mut draw = || -> Vec<u32> { (0..batch * len).map(|_| rng.below(7) as u32).collect() };
    let (tokens, mut targets) = (draw(), draw());
    targets[3 * len..3 * len + 40].fill(IGNORE);
    let relations = Some(Relations { weight: 5.0, layer: 1, of_teacher: 2 });
    let learning = Learning {
        teacher: Some(Teacher::Model { decoder: &taught, how: HOW, relations }),
        ..Learning::plain(0.01)
    };
    let mut state = State::default();
    let mut run = |grads: &mut Gradients, sequences: std::ops::Range<usize>| {
        let rows = sequences.start * len..sequences.end * len;
        let seqs = Sequences::new(sequences.len(), len);
        decoder.learn(&tokens[rows.clone()], &targets[rows], seqs, learning, &mut state, grads)
    };
    let mut grads = Gradients::zeros(decoder.weights());
    let together = run(&mut grads, 0..batch);
    let got: Vec<Vec<f32>> = decoder.weights().map(|weight| grads.get(weight).to_vec()).collect();
    grads.zero();
    let one_by_one = (0..batch).fold(Loss::default(), |mut sum, i| {
        sum += run(&mut grads, i..i + 1);
        sum
    });
    let off = (together.relations - one_by_one.relations).abs();
    assert!(off < 1e-5 * one_by_one.relations, "{together:?}, {one_by_one:?}");
    for (weight, got) in decoder.weights().zip(&got) {
        close(got, &wide(grads.get(weight)), batch * len, &weight.name);
    }
}

#[test]
fn a_training_that_learns_relations_resumes_bit_for_bit() {
    let lab = Lab::taught(30);
    let (relations, keep) = (["--set", "distill.relations=20"], ["--set", "train.keep=20"]);
    success(lab.learn("run", &[relations, keep].concat()));
    let run = lab.path("run");
    let read = |run: &str, file: &str| fs::read(step(&lab.path(run), 12).join(file)).unwrap();
    let files = ["model.safetensors", "optimizer.safetensors", "ternary.json"];
    let first = files.map(|file| read("run", file));
    for n in 6..=12 {
        fs::remove_dir_all(step(&run, n)).unwrap();
    }
    success(lab.train("run", &["--resume", "--threads", "1"]));
    assert!(files.map(|file| read("run", file)) == first);
    // Projections that are made again change nothing, relations do.
    success(lab.learn("again", &[relations, ["--set", "train.recompute=true"]].concat()));
    success(lab.learn("without", &[]));
    assert!(read("again", files[0]) == first[0] && read("without", files[0]) != first[0]);

    let of = |run: &str| -> Vec<Option<f64>> {
        records(&lab.path(run), "train").iter().map(|r| r["relations"].as_f64()).collect()
    };
    assert!(of("run").iter().all(|r| r.is_some_and(|r| r.is_finite() && r > 0.0)), "{:?}", of("run"));
    assert!(of("without").iter().all(Option::is_none) && !of("without").is_empty());
    // They are a teacher's also where its logits do not count, and may change when a training goes on.
    success(lab.learn("alone", &[relations, ["--set", "distill.weight=0"]].concat()));
    let alone = of("alone");
    assert!(alone.iter().all(Option::is_some) && !alone.is_empty(), "{alone:?}");
    fs::remove_dir_all(step(&lab.path("alone"), 12)).unwrap();
    let other = ["--set", "distill.relations=1", "--set", "distill.relation_layer=0"];
    let said = success(lab.train("alone", &[&["--resume"], &other[..]].concat()));
    assert!(!said.contains("changes nothing"), "{said}");
    fs::remove_dir_all(step(&lab.path("alone"), 12)).unwrap();
    // What is said of the logits then changes nothing, as a new run is told.
    let said = success(lab.train("alone", &["--resume", "--set", "distill.temperature=2"]));
    assert!(
        said.contains("--set distill.temperature changes nothing: no teacher's logits are learnt"),
        "{said}"
    );
    fs::remove_dir_all(step(&lab.path("alone"), 12)).unwrap();
    refused(
        lab.train("alone", &["--resume", "--set", "distill.relations=0"]),
        "distill.teacher: found none, wanted a model",
    );
}

#[test]
fn relations_that_cannot_be_learnt_are_refused() {
    let lab = Lab::taught(30);
    let (set, on) = ("--set", "distill.relations=1");
    refused(
        lab.learn("a", &[set, "distill.relations=-1"]),
        "distill.relations: found -1, wanted 0 to 1000000",
    );
    refused(
        lab.learn("b", &[set, on, set, "distill.relation_layer=2"]),
        "distill.relation_layer: found 2, wanted 0 to 1",
    );
    refused(
        lab.train("c", &[set, on, set, "distill.weight=0"]),
        "distill.teacher: found nothing, wanted the model to learn from",
    );
    let one = [set, "train.steps=1"];
    success(lab.train("few", &[&one[..], &[set, "model.heads=2"]].concat()));
    refused(lab.train("d", &["--teacher", "few/model", set, on]), "heads: found 2, wanted 4, as the model");
    success(lab.train("keys", &[&one[..], &[set, "model.kv_heads=1"]].concat()));
    refused(
        lab.train("e", &["--teacher", "keys/model", set, on]),
        "kv_heads: found 1, wanted 2, as the model",
    );
    // Heads of another width and another number of layers do.
    let deep = [set, "model.head_dim=8", set, "model.layers=4", set, "model.hidden_size=32"];
    success(lab.train("deep", &[&one[..], &deep].concat()));
    success(lab.train("f", &[&["--teacher", "deep/model", set, on], &one[..]].concat()));
}
