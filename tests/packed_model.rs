//! Packed files: the same model as the directory they were made from, proved like it, and nothing worse than an error when
//! they are damaged.

mod common;

use common::Rng;
use common::program::{Arg, ok, ternlm};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use ternlm::config::{Inputs, KvFormat, Scope, TernaryConfig};
use ternlm::formats::packed::{EMBEDDED, PackedFile};
use ternlm::formats::tensors::{Data, Tensor, TensorFiles, write_safetensors};
use ternlm::measure;
use ternlm::model::{self, Form, Sequences, State};
use ternlm::ternary::{Density, Grouping, TernaryMatrix};

const DENSITIES: [Density; 2] = [Density::TwoBit, Density::Base3];

/// A trained model as a directory of weights that other tools read, of the fixture's shape.
fn unpacked(dir: &Path, scope: Scope) -> PathBuf {
    let config = TernaryConfig { scope, group: Grouping::Size(48), ..TernaryConfig::default() };
    let (model, _) = model::load_to_train(&common::fixture("qwen3-tiny"), Some(&config)).unwrap();
    let out = dir.join(format!("{scope:?}"));
    std::fs::create_dir_all(&out).unwrap();
    model::save(&out, &model.decoder, &model.description, None).unwrap();
    out
}

fn export(from: &Path, to: &Path, density: Density) {
    ok(&[&"export", &from, &"--out", &to, &"--density", &density.to_string()]);
}

fn logits(path: &Path, inputs: Inputs) -> Vec<f32> {
    let mut decoder = model::load(path, None).unwrap().decoder;
    decoder.set_inputs(inputs);
    let vocab = decoder.config.vocab_size;
    let tokens: Vec<u32> = (0..21).map(|i| (i * 7 % vocab) as u32).collect();
    let mut state = State::default();
    let mut all = decoder.logits(&tokens, Sequences::new(1, tokens.len()), &mut state);
    // Token by token too, which other products compute.
    let mut cache = decoder.cache(KvFormat::F32);
    tokens.iter().for_each(|token| all.extend(decoder.step(&[*token], &mut cache, &mut state)));
    all
}

#[test]
fn a_packed_file_is_the_model_that_it_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    for scope in [Scope::All, Scope::Blocks] {
        let from = unpacked(dir.path(), scope);
        for density in DENSITIES {
            let file = dir.path().join(format!("{scope:?}-{density}.tern"));
            export(&from, &file, density);
            let loaded = model::load(&file, None).unwrap();
            let packed = loaded.decoder.weights().filter(|w| matches!(w.form, Form::Packed(_))).count();
            let ternary = loaded.decoder.weights().filter(|w| w.grouping().is_some()).count();
            assert!(packed > 0 && packed == ternary, "{packed} of {ternary} stay where the file is mapped");
            let proof = measure::verify(&file, &mut |_| {}).unwrap();
            assert!(proof.pass && proof.max_error() == 0.0, "{:?}", proof.reasons);
            assert_eq!(proof.tensors.len(), ternary);
            // A matrix that is not ternary is rounded to f16 once.
            let bound = if scope == Scope::All { 1e-5 } else { 2e-3 };
            let (got, want) = (logits(&file, Inputs::F32), logits(&from, Inputs::F32));
            let size = want.iter().fold(0f32, |a, x| a.max(x.abs()));
            for (a, b) in got.iter().zip(&want) {
                assert!((a - b).abs() <= bound * size, "{scope:?}, {density}: {a}, wanted {b}");
            }
            if scope == Scope::All {
                assert_eq!(logits(&file, Inputs::Int8), logits(&from, Inputs::Int8), "integers are exact");
            }
            // Back again: the same trits, and latents whose projection they are.
            let again = dir.path().join("again.tern");
            let _ = std::fs::remove_file(&again);
            export(&file, &again, density);
            assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&again).unwrap());
            let (model, latents) = model::load_to_train(&file, None).unwrap();
            for weight in model.decoder.weights().filter(|w| w.ternary().is_some()) {
                let grouping = weight.grouping().unwrap();
                let (rows, cols) = (weight.shape[0], weight.shape[1]);
                let projected =
                    TernaryMatrix::project("w", latents.of(weight), rows, cols, grouping).unwrap();
                assert_eq!(&projected, weight.ternary().unwrap(), "{}", weight.name);
            }
        }
    }
}

#[test]
fn other_tools_get_the_weights_back() {
    let dir = tempfile::tempdir().unwrap();
    let from = unpacked(dir.path(), Scope::All);
    let (file, back) = (dir.path().join("m.tern"), dir.path().join("back"));
    export(&from, &file, Density::Base3);
    let args: [Arg; 6] = [&"export", &file, &"--format", &"unpacked", &"--out", &back];
    ok(&args);
    // Of other types, perhaps: a gain of 0.5 is the same in f16.
    let [had, have] = [&from, &back].map(|dir| TensorFiles::open(dir).unwrap());
    assert!(had.names().eq(have.names()));
    for name in had.names() {
        let [was, is] = [&had, &have].map(|files| files.tensor(name).unwrap());
        assert!(was.same_values(&is).unwrap(), "{name}");
    }
    // What is there is not replaced without being asked for.
    let out = ternlm(&args);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("--force"));
}

/// The file's tensors with some bytes changed, and what its header says.
fn rewrite(file: &Path, to: &Path, metadata: impl Fn(&str) -> String, change: impl Fn(&str, &mut Vec<u8>)) {
    let stored = TensorFiles::open_file(file).unwrap();
    let mut bytes: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for name in stored.names() {
        let mut data = stored.bytes(name).unwrap().to_vec();
        change(name, &mut data);
        bytes.insert(name.to_string(), data);
    }
    let (f32s, others): (Vec<_>, Vec<_>) =
        bytes.iter().partition(|(name, _)| stored.dtype(name).unwrap().to_string() == "F32");
    let floats: Vec<(&String, Vec<f32>)> = f32s
        .into_iter()
        .map(|(name, b)| (name, b.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()))
        .collect();
    let mut tensors: Vec<Tensor> = others
        .into_iter()
        .map(|(name, b)| Tensor { name: name.clone(), shape: vec![b.len()], data: Data::U8(b) })
        .collect();
    tensors.extend(floats.iter().map(|(name, x)| Tensor {
        name: (*name).clone(),
        shape: stored.shape(name).unwrap().to_vec(),
        data: Data::F32(x),
    }));
    let text = metadata(stored.metadata("ternlm.packed").unwrap());
    write_safetensors(to, &tensors, &BTreeMap::from([("ternlm.packed".to_string(), text)])).unwrap();
}

#[test]
fn a_scale_off_by_the_last_place_is_found_and_so_is_a_trit() {
    let dir = tempfile::tempdir().unwrap();
    let from = unpacked(dir.path(), Scope::All);
    for density in DENSITIES {
        let (file, bad) = (dir.path().join(format!("{density}.tern")), dir.path().join("bad.tern"));
        export(&from, &file, density);
        const NAME: &str = "model.layers.0.self_attn.q_proj.weight";
        let block = PackedFile::open(&file).unwrap().0.matrix(NAME).unwrap().0.layout().block_bytes();
        // The last scale of the first block; its first byte.
        for (what, at, by) in [("nothing", 0, 0), ("a scale", block - 2, 1), ("a trit", 0, 1)] {
            rewrite(&file, &bad, str::to_string, |name, bytes| {
                if name == NAME {
                    // Down where that makes other trits, up where 0 is the lowest code.
                    bytes[at] = if bytes[at] >= by { bytes[at] - by } else { bytes[at] + by };
                }
            });
            let proof = measure::verify(&bad, &mut |_| {}).unwrap();
            assert_eq!(proof.pass, what == "nothing", "{density}, {what}: {:?}", proof.reasons);
        }
    }
}

#[test]
fn a_header_that_does_not_fit_its_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let from = unpacked(dir.path(), Scope::All);
    let (file, bad) = (dir.path().join("good.tern"), dir.path().join("bad.tern"));
    export(&from, &file, Density::Base3);
    let q = "\"model.layers.0.self_attn.q_proj.weight\":[";
    type Case<'a> = (&'a dyn Fn(&str) -> String, &'a str);
    let cases: [Case; 9] = [
        (&|h| h.replace("\"format\":1", "\"format\":2"), "found 2, wanted 1"),
        (&|h| h.replace("base3", "base4"), "unknown variant `base4`"),
        (&|h| h.replace("base3", "2bit"), "wanted the size of its shape"),
        (&|h| h.replace("\"group\":48", "\"group\":0"), "found group \"0\""),
        (&|h| h.replace("\"group\":48", "\"group\":1"), "wanted the size of its shape"),
        (&|h| h.replace(q, "\"absent\":[1,2],\"x\":["), "tensor \"absent\""),
        (&|h| h.replace(q, &format!("{q}18446744073709551615,")), "metadata \"ternlm.packed\""),
        (&|h| h.replace("\"format\"", "\"new\":0,\"format\""), "unknown field `new`"),
        (&|_| "[]".into(), "metadata \"ternlm.packed\""),
    ];
    for (change, wanted) in cases {
        rewrite(&file, &bad, change, |_, _| {});
        let error = model::load(&bad, None).unwrap_err().to_string();
        assert!(error.contains("bad.tern") && error.contains(wanted), "{error}, wanted {wanted}");
    }
    for huge in ["[1,18446744073709551615]", "[18446744073709551615,1]", "[0,0]", "[4294967296,4294967296]"] {
        let change = |h: &str| {
            let at = h.find(q).unwrap() + q.len() - 1;
            let end = at + h[at..].find(']').unwrap() + 1;
            format!("{}{huge}{}", &h[..at], &h[end..])
        };
        rewrite(&file, &bad, change, |_, _| {});
        let error = model::load(&bad, None).unwrap_err().to_string();
        assert!(error.contains("wanted the size of its shape"), "{error}");
    }
    // A folder that says it were packed.
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    std::fs::write(from.join("config.json"), config.replace("\"unpacked\"", "\"packed\"")).unwrap();
    assert!(model::load(&from, None).unwrap_err().to_string().contains("ternlm.form: found \"packed\""));
    // Another file, and a folder's weights, are no packed models.
    std::fs::write(&bad, b"not a model at all").unwrap();
    assert!(model::load(&bad, None).unwrap_err().to_string().contains("kind: found neither"));
    let error = model::load(&from.join("model.safetensors"), None).unwrap_err().to_string();
    assert!(error.contains("wanted that of a packed model"), "{error}");
}

/// Cut anywhere, and with bytes changed anywhere: an error, or a model that the proof refuses or that computes something.
#[test]
fn damaged_files_do_no_more_than_fail() {
    let dir = tempfile::tempdir().unwrap();
    let from = unpacked(dir.path(), Scope::All);
    let (file, bad) = (dir.path().join("good.tern"), dir.path().join("bad.tern"));
    export(&from, &file, Density::Base3);
    let good = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut rng = Rng::new(11);
    for round in 0..300 {
        let mut bytes = good.clone();
        match round % 3 {
            0 => bytes.truncate(rng.below(good.len())),
            // In the header, where sizes and names stand.
            1 => (0..1 + rng.below(3)).for_each(|_| bytes[rng.below(8 + header)] = rng.below(256) as u8),
            _ => (0..1 + rng.below(3)).for_each(|_| bytes[rng.below(good.len())] ^= 1 << rng.below(8)),
        }
        std::fs::write(&bad, &bytes).unwrap();
        let _ = measure::verify(&bad, &mut |_| {});
        if let Ok(model) = model::load(&bad, None) {
            model.decoder.logits(&[1, 2, 3], Sequences::new(1, 3), &mut State::default());
        }
    }
}

#[test]
fn what_belongs_to_a_model_is_embedded() {
    assert!(["tokenizer.json", "chat_template.jinja", "config.json"].iter().all(|f| EMBEDDED.contains(f)));
}
