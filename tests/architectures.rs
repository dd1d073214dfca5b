//! Every supported family against Hugging Face's implementation (`fixtures/make_architectures.py`): logits, gradients where
//! arithmetic of its own is trained, every rotation in both spellings; through files, caches and training, and in sizes that
//! no group divides.

mod common;

use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use ternlm::config::{Inputs, KvFormat, ModelConfig, Scope, TernaryConfig, TrainConfig};
use ternlm::formats::tensors::{Dtype, FILE_NAME, TensorFiles};
use ternlm::formats::{Description, ModelFiles, hf};
use ternlm::kernels::IGNORE;
use ternlm::measure;
use ternlm::model::{self, Decoder, Gradients, Latents, Sequences, State};
use ternlm::ternary::{Density, Grouping};
use ternlm::train::{At, Optimizer, Trained};

const FAMILIES: [&str; 6] = ["llama", "smollm2", "mistral", "qwen2", "qwen3", "bitnet"];
const SEQUENCES: usize = 2;

fn folder(name: &str) -> PathBuf {
    common::fixture("architectures").join(name)
}

fn decoder_at(dir: &Path) -> Decoder {
    model::load(dir, None).unwrap_or_else(|error| panic!("{error}")).decoder
}

fn tensor(file: &Path, name: &str) -> Vec<f32> {
    let stored = TensorFiles::open_file(file).unwrap();
    let shape = stored.shape(name).unwrap().to_vec();
    let mut values = vec![0.0; shape.iter().product()];
    stored.read_f32_into(name, &shape, &mut values).unwrap();
    values
}

fn tokens(name: &str) -> (Vec<u32>, Sequences) {
    let ids = tensor(&folder(name).join("ref.safetensors"), "input_ids");
    (ids.iter().map(|id| *id as u32).collect(), Sequences::new(SEQUENCES, ids.len() / SEQUENCES))
}

#[track_caller]
fn same(got: &[f32], want: &[f32], bound: f32, what: &str) {
    let error = common::apart(got, want);
    assert!(error < bound.into(), "{what}: off by {error}, allowed {bound}");
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |a, x| a.max(x.abs()))
}

#[test]
fn logits_are_those_of_the_reference() {
    let _one_at_a_time = common::on_this_isa();
    for name in FAMILIES.into_iter().chain(["bitnet-int8", "bitnet-online"]) {
        let (tokens, seqs) = tokens(name);
        let decoder = decoder_at(&folder(name));
        let logits = decoder.logits(&tokens, seqs, &mut State::default());
        same(&logits, &tensor(&folder(name).join("ref.safetensors"), "logits"), 1e-4, name);
    }
}

#[test]
fn gradients_are_those_of_the_reference() {
    let _one_at_a_time = common::on_this_isa();
    for name in ["llama", "qwen2", "bitnet", "bitnet-int8", "bitnet-online"] {
        let (tokens, seqs) = tokens(name);
        let targets: Vec<u32> =
            tokens.chunks(seqs.len).flat_map(|row| row[1..].iter().copied().chain([IGNORE])).collect();
        let decoder = decoder_at(&folder(name));
        let mut grads = Gradients::zeros(decoder.weights());
        let scale = 1.0 / (SEQUENCES * (seqs.len - 1)) as f32;
        decoder.loss_and_gradient(&tokens, &targets, seqs, scale, &mut State::default(), &mut grads);
        for weight in decoder.weights() {
            let want = tensor(&folder(name).join("ref.safetensors"), &format!("grad.{}", weight.name));
            let what = format!("{name}: gradient of {}", weight.name);
            // The gradient by a key's bias is zero but for rounding: it moves all scores of a query alike.
            same(grads.get(weight), &want, 2e-5 * largest(&want).max(0.1), &what);
        }
    }
}

/// `llama` with other settings of its rotation.
fn turned(change: impl FnOnce(&mut Map<String, Value>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder("llama").join(FILE_NAME), dir.path().join(FILE_NAME)).unwrap();
    let text = fs::read(folder("llama").join("config.json")).unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&text).unwrap();
    config.remove("rope_parameters");
    change(&mut config);
    fs::write(dir.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    dir
}

#[test]
fn rotations_are_those_of_the_reference_in_both_spellings() {
    let _one_at_a_time = common::on_this_isa();
    let ropes: Map<String, Value> = serde_json::from_slice(&fs::read(folder("ropes.json")).unwrap()).unwrap();
    let (tokens, seqs) = tokens("llama");
    for (name, scaling) in &ropes {
        let want = tensor(&folder("ropes.safetensors"), name);
        let released = turned(|config| {
            config.insert("rope_theta".into(), json!(10000));
            config.insert("rope_scaling".into(), scaling.clone());
        });
        let nested = turned(|config| {
            let mut rope = scaling.clone();
            rope["rope_theta"] = json!(10000.0);
            config.insert("rope_parameters".into(), rope);
        });
        for dir in [released.path(), nested.path()] {
            let decoder = decoder_at(dir);
            let logits = decoder.logits(&tokens, seqs, &mut State::default());
            same(&logits, &want, 1e-4, name);
            // And what is written of it says the same, all of it.
            let read = ModelFiles::open(dir).unwrap().description;
            assert!(read.model.rope_scaling.is_some(), "{name}");
            hf::write_config(dir, &read, Dtype::F32).unwrap();
            let again = ModelFiles::open(dir).unwrap().description;
            assert_eq!(again.model, read.model, "{name}");
            let written: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
            for (key, value) in scaling.as_object().unwrap().iter().filter(|(key, _)| *key != "type") {
                assert_eq!(&written["rope_scaling"][key], value, "{name}: {key}");
            }
        }
    }
}

#[test]
fn rotations_that_are_not_understood_are_named() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
        "original_max_position_embeddings": 16});
    let with = |key: &str, value: Value| {
        let mut rope = llama3.clone();
        rope[key] = value;
        rope
    };
    for (scaling, field) in [
        (with("rope_type", json!("longrope")), "rope_scaling.rope_type: found \"longrope\""),
        (with("rope_type", json!("su")), "rope_scaling.rope_type"),
        (with("type", json!("yarn")), "rope_scaling.type: found \"yarn\", wanted rope_type's \"llama3\""),
        (with("factor", json!(0.5)), "rope_scaling.factor: found 0.5, wanted 1 or more"),
        (with("factor", json!("8")), "rope_scaling.factor"),
        (with("factor", Value::Null), "rope_scaling.factor: found nothing"),
        (with("low_freq_factor", json!(4)), "rope_scaling.high_freq_factor: found 4"),
        (with("original_max_position_embeddings", json!(0)), "rope_scaling.original_max_position_embeddings"),
        (
            with("beta_fast", json!(32)),
            "rope_scaling.beta_fast: found 32, wanted null: no field of \"llama3\"",
        ),
        (with("attn_factor", json!(1.1)), "rope_scaling.attn_factor"),
        (with("partial_rotary_factor", json!(0.5)), "rope_scaling.partial_rotary_factor"),
        (with("mrope_section", json!([1, 2])), "rope_scaling.mrope_section"),
        (with("rope_theta", json!(1e6)), "rope_scaling.rope_theta"),
        (json!({"factor": 2}), "rope_scaling: found an object without rope_type"),
    ] {
        let dir = turned(|config| {
            config.insert("rope_theta".into(), json!(10000));
            config.insert("rope_scaling".into(), scaling.clone());
        });
        let message = model::load(dir.path(), None).expect_err("refused").to_string();
        assert!(message.contains(&format!("config.json: {field}")), "{scaling}: {message}");
    }
    let differ = turned(|config| {
        config.insert("rope_scaling".into(), llama3.clone());
        config.insert("rope_parameters".into(), with("factor", json!(4)));
        config.insert("rope_theta".into(), json!(10000));
    });
    let message = model::load(differ.path(), None).expect_err("refused").to_string();
    assert!(message.contains("rope_parameters: found another rotation"), "{message}");
}

/// Made ternary: through a directory, packed files and caches it is one model.
#[test]
fn a_family_is_itself_in_every_file_and_from_token_to_token() {
    let _one_at_a_time = common::on_this_isa();
    for name in FAMILIES {
        let (tokens, seqs) = tokens(name);
        let ternary =
            TernaryConfig { scope: Scope::Blocks, group: Grouping::Size(16), ..TernaryConfig::default() };
        let (start, _) = model::load_to_train(&folder(name), Some(&ternary)).unwrap();
        let mut state = State::default();
        let want = start.decoder.logits(&tokens, seqs, &mut state);
        let bound = 2e-5 * largest(&want);

        let dir = tempfile::tempdir().unwrap();
        model::save(dir.path(), &start.decoder, &start.description, None).unwrap();
        let unpacked = model::load(dir.path(), None).unwrap();
        assert_eq!(unpacked.decoder.config, start.decoder.config, "{name}");
        assert_eq!(unpacked.description.architecture, start.description.architecture, "{name}");
        assert_eq!(unpacked.decoder.logits(&tokens, seqs, &mut state), want, "{name}");
        assert!(measure::verify(dir.path(), &mut |_| {}).unwrap().pass, "{name}");

        let mut cache = start.decoder.cache(KvFormat::F32);
        let vocab = start.decoder.config.vocab_size;
        let mut stepped = start.decoder.read(&tokens[..5], &mut cache, &mut state);
        for token in &tokens[5..seqs.len] {
            stepped = start.decoder.step(&[*token], &mut cache, &mut state);
        }
        same(&stepped, &want[(seqs.len - 1) * vocab..seqs.len * vocab], bound, name);

        for density in [Density::TwoBit, Density::Base3] {
            let file = dir.path().join("model.tern");
            let trits = model::load_trits(dir.path()).unwrap();
            model::save_packed(&file, &trits.decoder, &trits.description, Vec::new(), density).unwrap();
            let packed = model::load(&file, None).unwrap();
            assert_eq!(packed.decoder.config, start.decoder.config, "{name}");
            assert!(measure::verify(&file, &mut |_| {}).unwrap().pass, "{name}");
            // Embedding and head are stored in f16.
            same(&packed.decoder.logits(&tokens, seqs, &mut state), &want, 2e-3 * largest(&want), name);
        }
    }
}

/// BitNet as it is published: ternary projections with one scale each, 8-bit inputs.
#[test]
fn bitnet_is_itself_in_packed_files() {
    let _one_at_a_time = common::on_this_isa();
    let (tokens, seqs) = tokens("bitnet-int8");
    let want = tensor(&folder("bitnet-int8").join("ref.safetensors"), "logits");
    let trits = model::load_trits(&folder("bitnet-int8")).unwrap();
    let (dir, mut state) = (tempfile::tempdir().unwrap(), State::default());
    for density in [Density::TwoBit, Density::Base3] {
        let file = dir.path().join(format!("{density}.tern"));
        model::save_packed(&file, &trits.decoder, &trits.description, Vec::new(), density).unwrap();
        assert!(measure::verify(&file, &mut |_| {}).unwrap().pass);
        let packed = decoder_at(&file);
        assert_eq!((packed.inputs(), packed.grouping), (Inputs::Int8, Grouping::Tensor));
        same(&packed.logits(&tokens, seqs, &mut state), &want, 1e-4, "all tokens at once");
        let mut cache = packed.cache(KvFormat::F32);
        let stepped = tokens[..seqs.len].iter().map(|token| packed.step(&[*token], &mut cache, &mut state));
        let stepped = stepped.collect::<Vec<_>>().concat();
        same(&stepped, &want[..stepped.len()], 1e-4, "token by token");
    }
}

/// The layout of the published file: two bits a weight, a number for each matrix.
#[test]
fn bitnet_is_read_as_it_is_packed() {
    let _one_at_a_time = common::on_this_isa();
    let (tokens, seqs) = tokens("bitnet-int8");
    let decoder = decoder_at(&folder("bitnet-packed"));
    assert_eq!((decoder.inputs(), decoder.grouping), (Inputs::Int8, Grouping::Tensor));
    let want = tensor(&folder("bitnet-int8").join("ref.safetensors"), "logits");
    same(&decoder.logits(&tokens, seqs, &mut State::default()), &want, 1e-4, "packed by Hugging Face");
}

/// BitNet from its master weights, trained further.
#[test]
fn bitnet_learns() {
    let _one_at_a_time = common::on_this_isa();
    let (tokens, seqs) = tokens("bitnet-online");
    let targets: Vec<u32> =
        tokens.chunks(seqs.len).flat_map(|row| row[1..].iter().copied().chain([IGNORE])).collect();
    let (loaded, mut latents) = model::load_to_train(&folder("bitnet-online"), None).unwrap();
    let mut decoder = loaded.decoder;
    assert_eq!(
        (decoder.scope, decoder.grouping, decoder.inputs()),
        (Scope::Blocks, Grouping::Tensor, Inputs::Int8)
    );
    let mut grads = Gradients::zeros(decoder.weights());
    let config = TrainConfig { lr: 3e-3, ..TrainConfig::default() };
    let (mut optimizer, mut state) = (Optimizer::new(&config, &decoder), State::default());
    let scale = 1.0 / (SEQUENCES * (seqs.len - 1)) as f32;
    let mut losses = Vec::new();
    for step in 0..60 {
        let loss = decoder.loss_and_gradient(&tokens, &targets, seqs, scale, &mut state, &mut grads);
        losses.push(loss.mean());
        let trained = Trained { decoder: &mut decoder, latents: &mut latents, grads: &mut grads };
        optimizer.step(trained, &config, At::step(step), None).unwrap();
    }
    let last = losses[losses.len() - 1];
    assert!(last < 0.2 * losses[0], "{} nats a token before, {last} after", losses[0]);
}

/// Sizes that no group and no block of rows divides: `[hidden, feed-forward, heads, kv_heads, head_dim]`.
const SIZES: [[usize; 5]; 4] =
    [[192, 352, 3, 1, 64], [36, 200, 3, 3, 12], [64, 172, 2, 1, 10], [576, 1376, 9, 3, 64]];

/// Trained, exported, packed, proved and decoded on every instruction set; the meaning is that of a model of dense weights
/// with the same values.
#[test]
fn sizes_that_groups_do_not_divide() {
    common::on_every_isa(|rng| {
        for [hidden_size, intermediate_size, heads, kv_heads, head_dim] in SIZES {
            let what = format!("hidden {hidden_size}, feed-forward {intermediate_size}, heads of {head_dim}");
            let read = ModelFiles::open(&folder("smollm2")).unwrap().description;
            let config = ModelConfig {
                vocab_size: 70,
                layers: 1,
                hidden_size,
                intermediate_size,
                heads,
                kv_heads,
                head_dim,
                tie_embeddings: rng.below(2) == 0,
                ..read.model
            };
            let mut decoder = Decoder::new(&config, Scope::All, Grouping::default());
            let mut latents = Latents::random(decoder.weights_mut(), 3, None).unwrap();
            let tokens: Vec<u32> = (0..24).map(|_| rng.below(70) as u32).collect();
            let targets: Vec<u32> = (0..24).map(|_| rng.below(70) as u32).collect();
            let (seqs, mut state) = (Sequences::new(2, 12), State::default());
            let mut grads = Gradients::zeros(decoder.weights());
            let mut optimizer = Optimizer::new(&TrainConfig::default(), &decoder);
            let mut losses = Vec::new();
            for step in 0..4 {
                let loss =
                    decoder.loss_and_gradient(&tokens, &targets, seqs, 1.0 / 24.0, &mut state, &mut grads);
                losses.push(loss.mean());
                let trained = Trained { decoder: &mut decoder, latents: &mut latents, grads: &mut grads };
                optimizer.step(trained, &TrainConfig::default(), At::step(step), None).unwrap();
            }
            assert!(losses[3] < losses[0], "{what}: {losses:?}");

            // The same values, dense: logits, and the gradients that a training steps by.
            let mut dense = Decoder::new(&config, Scope::None, Grouping::default());
            for (dense, ternary) in dense.weights_mut().zip(decoder.weights()) {
                match ternary.ternary() {
                    Some(trits) => {
                        let rows = dense.dense_mut().chunks_mut(trits.cols());
                        rows.enumerate().for_each(|(row, out)| trits.unpack_row(row, out));
                    }
                    None => dense.dense_mut().copy_from_slice(ternary.dense()),
                }
            }
            let gradients = |decoder: &Decoder, grads: &mut Gradients| {
                decoder.loss_and_gradient(&tokens, &targets, seqs, 1.0, &mut State::default(), grads);
                decoder.weights().map(|weight| grads.get(weight).to_vec()).collect::<Vec<_>>()
            };
            let (got, want) =
                (gradients(&decoder, &mut grads), gradients(&dense, &mut Gradients::zeros(dense.weights())));
            for ((weight, got), want) in decoder.weights().zip(&got).zip(&want) {
                same(got, want, 2e-5 * largest(want), &format!("{what}: gradient of {}", weight.name));
            }
            let want = dense.logits(&tokens, seqs, &mut state);
            same(&decoder.logits(&tokens, seqs, &mut state), &want, 2e-5 * largest(&want), &what);

            // Files: the latents, the weights, both packings.
            let dir = tempfile::tempdir().unwrap();
            let description = Description::new(config.clone());
            model::save(dir.path(), &decoder, &description, Some(&latents)).unwrap();
            assert_eq!(decoder_at(dir.path()).logits(&tokens, seqs, &mut state).len(), want.len());
            model::save(dir.path(), &decoder, &description, None).unwrap();
            let trits = model::load_trits(dir.path()).unwrap();
            let mut files = vec![dir.path().to_path_buf()];
            for density in [Density::TwoBit, Density::Base3] {
                files.push(dir.path().join(format!("{density}.tern")));
                let file = files.last().unwrap();
                model::save_packed(file, &trits.decoder, &description, Vec::new(), density).unwrap();
            }
            let mut rounded: Option<Vec<f32>> = None;
            for file in files {
                let proof = measure::verify(&file, &mut |_| {}).unwrap();
                assert!(proof.pass && proof.max_error() == 0.0, "{what}: {:?}", proof.reasons);
                let mut stored = decoder_at(&file);
                let what = format!("{what}: {}", file.file_name().unwrap().to_string_lossy());
                same(&stored.logits(&tokens, seqs, &mut state), &want, 2e-5 * largest(&want), &what);
                let mut step = |stored: &Decoder| {
                    let mut cache = stored.cache(KvFormat::F32);
                    let steps = tokens[..12].iter();
                    steps.flat_map(|token| stored.step(&[*token], &mut cache, &mut state)).collect::<Vec<_>>()
                };
                same(&step(&stored), &want[..12 * 70], 2e-5 * largest(&want), &what);
                // In 8 bits products are exact: the same bits from every file.
                stored.set_inputs(Inputs::Int8);
                let got = step(&stored);
                assert!(rounded.get_or_insert_with(|| got.clone()) == &got, "{what}: 8-bit inputs");
            }
        }
    });
}
