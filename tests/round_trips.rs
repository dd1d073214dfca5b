//! Every format that loses nothing into every other: the same weights to the bit, ternary throughout.

mod common;

use common::models::{self, logits, off};
use common::program;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use ternlm::config::{Inputs, ModelConfig, Scope, TernaryConfig};
use ternlm::formats::{Description, ModelFiles};
use ternlm::measure;
use ternlm::model::{self, Decoder, Latents, Role};
use ternlm::ternary::Grouping;

/// Options of `ternlm export`, and the name of what they write.
type Format = (&'static str, &'static [&'static str]);

/// One scale for 128 inputs.
const ALL: [Format; 8] = [
    ("base3.tern", &["--density", "base3"]),
    ("2bit.tern", &["--density", "2bit"]),
    ("unpacked", &["--format", "unpacked"]),
    ("mlx", &["--format", "mlx"]),
    ("q2_0.gguf", &["--format", "gguf", "--type", "q2_0"]),
    ("pq2_0.gguf", &["--format", "gguf", "--type", "pq2_0"]),
    ("f16.gguf", &["--format", "gguf", "--type", "f16"]),
    ("f32.gguf", &["--format", "gguf", "--type", "f32"]),
];
/// One scale for a matrix: what has one for 256, too.
const OF_MATRICES: [Format; 6] = [
    ALL[0],
    ALL[2],
    ALL[3],
    ALL[4],
    ("tq2_0.gguf", &["--format", "gguf", "--type", "tq2_0"]),
    ("tq1_0.gguf", &["--format", "gguf", "--type", "tq1_0"]),
];

fn run(from: &Path, (name, options): Format, to: &Path) -> (PathBuf, Output) {
    let to = to.join(name);
    let mut run = program::command(&["export"]);
    let out = run.arg(from).args(options).arg("--out").arg(&to).output().unwrap();
    (to, out)
}

#[track_caller]
fn export(from: &Path, format: Format, to: &Path) -> PathBuf {
    let (to, out) = run(from, format, to);
    assert!(out.status.success(), "{}: {}", from.display(), String::from_utf8_lossy(&out.stderr));
    to
}

/// Why nothing was written.
#[track_caller]
fn refused(from: &Path, format: Format, to: &Path) -> String {
    let (to, out) = run(from, format, to);
    assert!(!out.status.success() && !to.exists(), "{}", to.display());
    String::from_utf8(out.stderr).unwrap()
}

/// The bits of every weight, and whether it is ternary.
fn weights(path: &Path) -> Vec<(String, bool, Vec<u32>)> {
    let decoder = model::load_trits(path).unwrap().decoder;
    let bits = |values: &[f32]| values.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>();
    let of = |weight: &model::Weight| match weight.ternary() {
        None => (weight.name.clone(), false, bits(weight.dense())),
        Some(matrix) => {
            let mut values = vec![0.0; weight.len()];
            values.chunks_mut(matrix.cols()).enumerate().for_each(|(row, out)| matrix.unpack_row(row, out));
            (weight.name.clone(), true, bits(&values))
        }
    };
    decoder.weights().map(of).collect()
}

/// A wholly ternary model of random weights in the folder `first`.
fn random(dir: &Path, grouping: Grouping, inputs: Inputs) -> PathBuf {
    let first = dir.join("first");
    std::fs::create_dir(&first).unwrap();
    let config = models::llama();
    let mut decoder = Decoder::new(&config, Scope::All, grouping);
    decoder.set_inputs(inputs);
    Latents::random(decoder.weights_mut(), 3, None).unwrap();
    model::save(&first, &decoder, &Description::new(config), None).unwrap();
    first
}

#[test]
fn every_way_there_and_back_keeps_every_bit() {
    for (grouping, formats) in [(Grouping::Size(128), &ALL[..]), (Grouping::Tensor, &OF_MATRICES)] {
        let dir = tempfile::tempdir().unwrap();
        let first = random(dir.path(), grouping, Inputs::F32);
        let want = weights(&first);
        assert!(want.iter().filter(|(_, ternary, _)| *ternary).count() == 16);
        for by in formats {
            let there = export(&first, *by, dir.path());
            assert!(weights(&there) == want, "{grouping}: {}", by.0);
            assert!(measure::verify(&there, &mut |_| {}).unwrap().pass, "{grouping}: {}", by.0);
            for back in formats {
                let further = tempfile::tempdir().unwrap();
                let back = export(&there, *back, further.path());
                assert!(weights(&back) == want, "{grouping}: {} to {}", by.0, back.display());
            }
        }
    }
}

/// What its inputs are rounded to is part of a model's function.
#[test]
fn inputs_of_eight_bits_stay_so_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let first = random(dir.path(), Grouping::Size(128), Inputs::Int8);
    for format in ALL {
        let there = export(&first, format, dir.path());
        let note = ModelFiles::open(&there).unwrap().description.ternary.unwrap();
        assert_eq!(note.activations, Inputs::Int8, "{}", format.0);
    }
}

/// A pretrained model in full precision, turned by Hadamard matrices before it became ternary, as `ternary.rotate` does.
fn rotated(dir: &Path, config: &ModelConfig, scope: Scope) -> PathBuf {
    let mut dense = Decoder::new(config, Scope::None, Grouping::default());
    Latents::random(dense.weights_mut(), 5, None).unwrap();
    for weight in dense.weights_mut().filter(|w| w.role == Role::Gain) {
        weight.dense_mut().iter_mut().enumerate().for_each(|(i, x)| *x = 1.0 + (i as f32).sin() / 3.0);
    }
    let [pretrained, out] = ["pretrained", "rotated"].map(|name| dir.join(name));
    for dir in [&pretrained, &out] {
        std::fs::create_dir(dir).unwrap();
    }
    model::save(&pretrained, &dense, &Description::new(config.clone()), None).unwrap();
    let ternary = TernaryConfig { scope, ..TernaryConfig::default() };
    let (turned, _) = model::load_rotated_to_train(&pretrained, &ternary).unwrap();
    let (plain, _) = model::load_to_train(&pretrained, Some(&ternary)).unwrap();
    // It is another start, with a head of its own.
    assert!(off(&logits(&turned.decoder), &logits(&plain.decoder)) > 0.05);
    assert!(config.tie_embeddings && !turned.decoder.config.tie_embeddings);
    model::save(&out, &turned.decoder, &turned.description, None).unwrap();
    out
}

#[test]
fn a_rotated_start_is_the_same_function_in_every_format() {
    let _one_at_a_time = common::on_this_isa();
    let configs = [models::qwen3(), ModelConfig { tie_embeddings: true, ..models::llama() }];
    for (config, scope) in configs.iter().flat_map(|config| [(config, Scope::All), (config, Scope::Blocks)]) {
        let dir = tempfile::tempdir().unwrap();
        let from = rotated(dir.path(), config, scope);
        let want = logits(&model::load(&from, None).unwrap().decoder);
        let all = weights(&from);
        for by in ALL {
            let what = format!("{scope:?}: {}", by.0);
            let to = export(&from, by, dir.path());
            let read = model::load(&to, None).unwrap();
            assert!(!read.decoder.config.tie_embeddings, "{what}");
            let off = off(&logits(&read.decoder), &want);
            println!("{what}: logits off by {off:.1e} of the largest");
            // A packed file rounds embedding and head to f16 where they are not ternary.
            if scope == Scope::Blocks && by.0.ends_with(".tern") {
                assert!(off < 1e-3, "{what}: {off}");
            } else {
                assert!(off < 1e-6 && weights(&to) == all, "{what}: {off}");
            }
            assert!(measure::verify(&to, &mut |_| {}).unwrap().pass, "{what}");
        }
    }
}

/// What has no ternary weight at all is written as numbers, every one of them, or refused.
#[test]
fn a_model_of_numbers_is_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    std::fs::create_dir(&first).unwrap();
    let config = models::llama();
    let mut decoder = Decoder::new(&config, Scope::None, Grouping::default());
    Latents::random(decoder.weights_mut(), 3, None).unwrap();
    for (at, weight) in decoder.weights_mut().filter(|w| w.role.is_matrix()).enumerate() {
        // Those that f16 holds, those that bf16 holds, and others.
        let keep = [!0x1FFF_u32, !0xFFFF, !0][at % 3];
        let scale = if at % 3 == 1 { 2f32.powi(-40) } else { 1.0 };
        for x in weight.dense_mut() {
            let y = f32::from_bits((*x * 16.0).to_bits() & keep);
            *x = if y.abs() < 0.001 { 0.0 } else { y * scale };
        }
    }
    model::save(&first, &decoder, &Description::new(config), None).unwrap();
    let want = weights(&first);
    let numbers = ["unpacked", "f16.gguf", "f32.gguf"];
    for by in ALL {
        if !numbers.contains(&by.0) {
            let said = refused(&first, by, dir.path());
            assert!(
                said.contains("model: found none that is ternary, wanted")
                    && said.contains("--format unpacked"),
                "{said}"
            );
            continue;
        }
        let to = export(&first, by, dir.path());
        assert!(weights(&to) == want, "{}", by.0);
        let stored = ModelFiles::open(&to).unwrap();
        let kinds: BTreeSet<String> =
            stored.names().map(|name| stored.tensor(name).unwrap().coding()).collect();
        let narrow: BTreeSet<String> = ["F16", "BF16", "F32"].map(String::from).into();
        assert_eq!(kinds, if by.0 == "f32.gguf" { ["F32".to_string()].into() } else { narrow }, "{}", by.0);
        assert!(measure::verify(&to, &mut |_| {}).is_err() || by.0 == "unpacked", "{}", by.0);
    }
    // With --lossy all of them in the type that was asked for.
    let lossy = ("lossy.gguf", &["--format", "gguf", "--type", "f16", "--lossy"][..]);
    let stored = ModelFiles::open(&export(&first, lossy, dir.path())).unwrap();
    let matrices = stored.names().filter(|name| stored.tensor(name).unwrap().shape().len() == 2);
    assert!(matrices.map(|name| stored.tensor(name).unwrap().coding()).all(|kind| kind == "F16"));
}
