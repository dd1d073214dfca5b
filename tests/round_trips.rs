//! Every format that loses nothing into every other: the same weights to the bit, ternary throughout.

mod common;

use common::models;
use std::path::{Path, PathBuf};
use std::process::Command;
use ternlm::config::Scope;
use ternlm::formats::Description;
use ternlm::measure;
use ternlm::model::{self, Decoder, Latents};
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

#[track_caller]
fn export(from: &Path, (name, options): Format, to: &Path) -> PathBuf {
    let to = to.join(name);
    let mut run = Command::new(env!("CARGO_BIN_EXE_ternlm"));
    let out = run.arg("export").arg(from).args(options).arg("--out").arg(&to).output().unwrap();
    assert!(out.status.success(), "{}: {}", from.display(), String::from_utf8_lossy(&out.stderr));
    to
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

#[test]
fn every_way_there_and_back_keeps_every_bit() {
    for (grouping, formats) in [(Grouping::Size(128), &ALL[..]), (Grouping::Tensor, &OF_MATRICES)] {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("first");
        std::fs::create_dir(&first).unwrap();
        let config = models::llama();
        let mut decoder = Decoder::new(&config, Scope::All, grouping);
        Latents::random(decoder.weights_mut(), 3, None).unwrap();
        model::save(&first, &decoder, &Description::new(config), None).unwrap();
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
