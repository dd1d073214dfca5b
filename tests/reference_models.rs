//! The whole decoder against an independent implementation: logits, hidden states, gradients, ten AdamW steps, and the
//! real pretrained stories260K. `fixtures/qwen3-tiny`, made by `fixtures/make_qwen3_tiny.py`, is always there.

mod common;

use serde_json::Value;
use std::path::{Path, PathBuf};
use ternlm::config::{KvFormat, Scope, TernaryConfig, TrainConfig};
use ternlm::formats::npy;
use ternlm::formats::tensors::TensorFiles;
use ternlm::kernels::IGNORE;
use ternlm::measure::{self, Windows};
use ternlm::model::{self, Decoder, Gradients, KvPool, Latents, Sequences, Span, State, Wanted};
use ternlm::train::{At, Optimizer, Trained};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn load(dir: &Path, scope: Scope) -> Decoder {
    model::load(dir, Some(&TernaryConfig { scope, ..TernaryConfig::default() })).unwrap().decoder
}

/// Both sequences of `ref.json` in one row after the other, and their shifted targets.
fn batch(reference: &Value) -> (Vec<u32>, Vec<u32>, Sequences) {
    let rows: Vec<Vec<u32>> = reference["input_ids"].as_array().unwrap().iter().map(ids).collect();
    let targets = rows.iter().flat_map(|r| r[1..].iter().copied().chain([IGNORE])).collect();
    (rows.concat(), targets, Sequences::new(rows.len(), rows[0].len()))
}

/// Largest difference, and the largest value to hold it against.
fn difference(a: &[f32], b: &[f32]) -> (f32, f32) {
    (common::apart(a, b) as f32, b.iter().map(|b| b.abs()).fold(0.0, f32::max))
}

/// The fixture, and those of `names` that are among the test data.
fn models(names: &[&'static str]) -> Vec<(&'static str, PathBuf)> {
    let named = names.iter().map(|&name| Some((name, common::data(&format!("ckpt/{name}"))?)));
    [("qwen3-tiny", common::fixture("qwen3-tiny"))].into_iter().chain(named.flatten()).collect()
}

#[test]
fn absent_data_is_skipped_where_it_may_be() {
    assert_eq!(common::look(Path::new("no such file"), false), None);
    assert!(std::panic::catch_unwind(|| common::look(Path::new("no such file"), true)).is_err());
}

const ALL: [&str; 5] = [
    "qwen3-tiny-tied-f32",
    "qwen3-tiny-untied-f32",
    "qwen3-tiny-tied-bf16",
    "qwen3-tiny-untied-bf16",
    "qwen3-tiny-tied-bf16-sharded",
];

#[test]
fn logits_and_hidden_states_match() {
    for (name, dir) in models(&ALL) {
        let refs =
            if name.ends_with("sharded") { dir.with_file_name("qwen3-tiny-tied-bf16") } else { dir.clone() };
        let reference = json(&refs.join("ref.json"));
        let (tokens, targets, seqs) = batch(&reference);
        let decoder = load(&dir, Scope::None);
        let mut state = State::default();
        let logits = decoder.logits(&tokens, seqs, &mut state);
        let (error, _) = difference(&logits, &npy::read(refs.join("ref_logits.npy")).unwrap().1);
        assert!(error < 1e-4, "{name}: logits differ by {error}");
        for layer in 0..2 {
            let want = npy::read(refs.join(format!("ref_hidden_{layer}.npy"))).unwrap().1;
            let (error, size) = difference(&state.block_input(layer)[..want.len()], &want);
            assert!(error < 1e-5 * size, "{name}: hidden state {layer} differs by {error}");
        }
        let loss = decoder.loss(&tokens, &targets, seqs, &mut state).mean();
        let want = reference["loss_mean_ce_shifted"].as_f64().unwrap();
        assert!((loss - want).abs() < 1e-5 * want, "{name}: loss {loss}, wanted {want}");
    }
}

#[test]
fn gradients_match() {
    for (name, dir) in models(&["qwen3-tiny-tied-f32", "qwen3-tiny-untied-f32"]) {
        let (tokens, targets, seqs) = batch(&json(&dir.join("ref.json")));
        let count = targets.iter().filter(|t| **t != IGNORE).count();
        let decoder = load(&dir, Scope::None);
        let mut grads = Gradients::zeros(decoder.weights());
        let (scale, state) = (1.0 / count as f32, &mut State::default());
        decoder.loss_and_gradient(&tokens, &targets, seqs, scale, state, &mut grads);
        let stored = TensorFiles::open_file(dir.join("ref_grads.safetensors")).unwrap();
        for weight in decoder.weights() {
            let mut want = vec![0.0; weight.len()];
            stored.read_f32_into(&weight.name, &weight.shape, &mut want).unwrap();
            let (error, size) = difference(grads.get(weight), &want);
            assert!(error < 2e-5 * size, "{name}: gradient of {} differs by {error} of {size}", weight.name);
        }
    }
}

#[test]
fn ten_adamw_steps_match() {
    // The tied model memorises its two sequences within five steps; from there on any two correct programs drift apart.
    for (name, dir) in models(&["qwen3-tiny-tied-f32", "qwen3-tiny-untied-f32"]) {
        let steps = if name == "qwen3-tiny-untied-f32" { 10 } else { 5 };
        let (tokens, targets, seqs) = batch(&json(&dir.join("ref.json")));
        let count = targets.iter().filter(|t| **t != IGNORE).count();
        let reference = json(&dir.join("ref_train.json"));
        let mut decoder = load(&dir, Scope::None);
        let mut latents = Latents::with_places(decoder.weights().count());
        let mut grads = Gradients::zeros(decoder.weights());
        let config = TrainConfig { lr: 1e-3, weight_decay: 0.1, ..TrainConfig::default() };
        let mut optimizer = Optimizer::new(&config, &decoder);
        let mut state = State::default();
        for (step, want) in reference["trajectory"].as_array().unwrap().iter().take(steps).enumerate() {
            let scale = 1.0 / count as f32;
            let loss =
                decoder.loss_and_gradient(&tokens, &targets, seqs, scale, &mut state, &mut grads).mean();
            let squares = decoder.weights().map(|w| ternlm::kernels::sum_squares(grads.get(w)));
            let norm = squares.sum::<f64>().sqrt();
            let (want_loss, want_norm) =
                (want["loss"].as_f64().unwrap(), want["grad_norm_before_clip"].as_f64().unwrap());
            assert!(
                (loss - want_loss).abs() < 2e-4 * want_loss,
                "{name} step {step}: loss {loss}, wanted {want_loss}"
            );
            assert!(
                (norm - want_norm).abs() < 1e-3 * want_norm,
                "{name} step {step}: norm {norm}, wanted {want_norm}"
            );
            let trained = Trained { decoder: &mut decoder, latents: &mut latents, grads: &mut grads };
            let at = At { grad_scale: (1.0 / norm).min(1.0) as f32, ..At::step(step as u64) };
            optimizer.step(trained, &config, at, None).unwrap();
        }
    }
}

#[test]
fn stories260k_is_itself() {
    let Some(dir) = common::data("ckpt/stories260K-hf") else { return };
    let reference = json(&dir.join("ref.json"));
    let decoder = load(&dir, Scope::None);
    let mut state = State::default();
    let story = ids(&reference["first_story_ids"]);
    let loss =
        decoder.loss(&story[..story.len() - 1], &story[1..], Sequences::new(1, story.len() - 1), &mut state);
    let want = reference["first_story_mean_ce"].as_f64().unwrap();
    assert!((loss.mean() - want).abs() < 1e-5, "{} nats, wanted {want}", loss.mean());
    assert_eq!(loss.count as u64, reference["first_story_n_pred"].as_u64().unwrap());

    // The same greedy story, token by token through the cache.
    let want = ids(&reference["greedy_ids_256"]);
    let (mut cache, mut got) = (decoder.cache(KvFormat::F32), vec![want[0]]);
    while got.len() < want.len() {
        let logits = decoder.step(&got[got.len() - 1..], &mut cache, &mut state);
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        got.push(best as u32);
    }
    assert_eq!(got, want);
}

/// What is loaded is shared: several threads read it at once.
#[test]
fn a_model_is_used_through_a_shared_reference() {
    let decoder = std::sync::Arc::new(load(&common::fixture("qwen3-tiny"), Scope::All));
    let losses: Vec<f64> = std::thread::scope(|scope| {
        let run = || {
            let decoder = decoder.clone();
            let seqs = Sequences::new(1, 3);
            scope.spawn(move || decoder.loss(&[1, 2, 3], &[2, 3, 4], seqs, &mut State::default()).sum)
        };
        let threads: Vec<_> = (0..4).map(|_| run()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(losses.iter().all(|loss| *loss == losses[0] && loss.is_finite()), "{losses:?}");
}

#[test]
fn a_cache_changes_nothing() {
    for scope in [Scope::None, Scope::All] {
        for (name, dir) in models(&["qwen3-tiny-untied-f32"]) {
            let (tokens, _, seqs) = batch(&json(&dir.join("ref.json")));
            let tokens = &tokens[..seqs.len];
            let decoder = load(&dir, scope);
            let mut state = State::default();
            let all = decoder.logits(tokens, Sequences::new(1, seqs.len), &mut state);
            let vocab = decoder.config.vocab_size;
            // In pieces of every kind: a long one, one token, a few, the rest.
            let mut cache = decoder.cache(KvFormat::F32);
            for piece in [&tokens[..12], &tokens[12..13], &tokens[13..16], &tokens[16..]] {
                let logits = decoder.step(piece, &mut cache, &mut state);
                let at = (cache.len() - 1) * vocab;
                let (error, size) = difference(&logits, &all[at..at + vocab]);
                let after = cache.len();
                assert!(error < 2e-5 * size, "{name}, {scope:?} after {after} tokens: off by {error}");
            }
        }
    }
}

/// Sequences of different lengths in one pass, some from a common beginning: each as if it were alone.
#[test]
fn sequences_that_differ_share_a_pass_and_pages() {
    let decoder = load(&common::fixture("qwen3-tiny"), Scope::All);
    let (vocab, most) = (decoder.config.vocab_size, decoder.config.max_positions);
    let token = |i: usize| (7 * i + i * i / 5) as u32 % vocab as u32;
    let text: Vec<u32> = (0..most).map(token).collect();
    let mut state = State::default();
    let mut alone = |tokens: &[u32]| decoder.logits(tokens, Sequences::new(1, tokens.len()), &mut state);
    let same = |got: &[f32], want: &[f32], what: &str| {
        let (error, size) = difference(got, want);
        assert!(error < 2e-5 * size, "{what}: off by {error}");
    };
    let pool = KvPool::new(&decoder.config, KvFormat::F32, 1024);
    let mut state = State::default();
    let (mut a, mut c) = (pool.sequence(), pool.sequence());
    // The beginning that `a` and `b` have in common, and something else beside it.
    let (common, other) = (most * 2 / 3, most / 4);
    let prefill = [
        Span { tokens: &text[..common], cache: &mut a, wanted: Wanted::None },
        Span { tokens: &text[3..3 + other], cache: &mut c, wanted: Wanted::All },
    ];
    let got = decoder.advance(&mut { prefill }, &mut state);
    same(&got, &alone(&text[3..3 + other]), "all logits of the second span");
    let held = pool.in_use();
    let mut b = a.fork(common - 1);
    assert_eq!((pool.in_use(), b.len()), (held, common - 1), "a fork takes no page");
    let changed: Vec<u32> = text[common - 1..common + 4].iter().map(|t| (t + 1) % vocab as u32).collect();
    let spans = [
        Span { tokens: &text[common..common + 1], cache: &mut a, wanted: Wanted::Last },
        Span { tokens: &changed, cache: &mut b, wanted: Wanted::Last },
        Span { tokens: &text[3 + other..5 + other], cache: &mut c, wanted: Wanted::All },
    ];
    let got = decoder.advance(&mut { spans }, &mut state);
    let (got_a, rest) = got.split_at(vocab);
    let (got_b, got_c) = rest.split_at(vocab);
    let last = |logits: Vec<f32>, rows: usize| logits[logits.len() - rows * vocab..].to_vec();
    same(got_a, &last(alone(&text[..common + 1]), 1), "the sequence that went on");
    same(got_b, &last(alone(&[&text[..common - 1], &changed].concat()), 1), "the one that left it");
    same(got_c, &last(alone(&text[3..5 + other]), 2), "the other");
}

#[test]
fn what_is_saved_loads_and_computes_the_same() {
    let dir = common::fixture("qwen3-tiny");
    let (tokens, targets, seqs) = batch(&json(&dir.join("ref.json")));
    for scope in [Scope::Blocks, Scope::All] {
        let config = TernaryConfig { scope, ..TernaryConfig::default() };
        let (loaded, latents) = model::load_to_train(&dir, Some(&config)).unwrap();
        let mut state = State::default();
        let want = loaded.decoder.loss(&tokens, &targets, seqs, &mut state);
        for stored in [Some(&latents), None] {
            let out = tempfile::tempdir().unwrap();
            model::save(out.path(), &loaded.decoder, &loaded.description, stored).unwrap();
            let (to_train, again_latents) = model::load_to_train(out.path(), None).unwrap();
            for again in [&to_train.decoder, &model::load(out.path(), None).unwrap().decoder] {
                assert_eq!(again.scope, scope);
                for (a, b) in again.weights().zip(loaded.decoder.weights()) {
                    assert_eq!(a.ternary(), b.ternary(), "{} of {scope:?}", a.name);
                }
                assert_eq!(again.loss(&tokens, &targets, seqs, &mut state), want, "{scope:?}");
            }
            for (a, b) in
                to_train.decoder.weights().zip(loaded.decoder.weights()).filter(|_| stored.is_some())
            {
                assert_eq!(again_latents.of(a), latents.of(b), "{}", a.name);
            }
        }
    }
}

#[test]
fn a_generated_story_continues_its_prompt_letter_by_letter() {
    use ternlm::generate::{Sampler, SamplingConfig, Session};
    use ternlm::text::Tokenizer;
    let Some(dir) = common::data("ckpt/stories260K-hf") else { return };
    let want = json(&dir.join("ref.json"))["greedy_text"].as_str().unwrap().to_string();
    let decoder = model::load(&dir, None).unwrap().decoder;
    let tokenizer = Tokenizer::open(&dir.to_string_lossy()).unwrap();
    for prompt in ["Once upon a time", "Once upon a time, there was a little"] {
        let mut session = Session::new(&decoder, &tokenizer, KvFormat::F32);
        session.set_tokens(tokenizer.encode_prompt(prompt).unwrap());
        let mut pieces = String::new();
        let made = session
            .generate(&mut Sampler::new(SamplingConfig::default()), 60, &[], &mut |piece| {
                pieces.push_str(piece);
                true
            })
            .unwrap();
        assert_eq!(pieces, made.text);
        assert!(want.starts_with(&format!("{prompt}{}", made.text)), "{prompt}|{}", made.text);
    }
}

/// A text scored through a cache in f32 is scored as whole windows are; f16 and 8 bits move it a little, and in that order.
#[test]
fn perplexity_through_a_cache_is_that_of_whole_windows() {
    let Some(dir) = common::data("ckpt/stories260K-hf") else { return };
    let decoder = load(&dir, Scope::None);
    let story = ids(&json(&dir.join("ref.json"))["first_story_ids"]);
    let windows = Windows::Sliding { context: 64, stride: 32 };
    let none = &mut |_| {};
    let whole = measure::perplexity(&decoder, &story, windows, None, none);
    let [f32, f16, int8] = [KvFormat::F32, KvFormat::F16, KvFormat::Int8].map(|kv| {
        let cached = measure::perplexity(&decoder, &story, windows, Some(kv), none);
        assert_eq!((cached.tokens, cached.context, cached.stride), (whole.tokens, 64, 32));
        (cached.nll - whole.nll).abs()
    });
    assert!(f32 < 1e-5 && f16 < 1e-3 && int8 < 2e-2, "{f32} {f16} {int8} nats away from {}", whole.nll);
    assert!(f16 > f32 && int8 > f16, "rounding is seen: {f32} {f16} {int8}");
}
