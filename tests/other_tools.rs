//! Ternary models in other tools' layouts: read as those tools read them, written so that they do. What
//! `fixtures/make_ternary_tiny.py` made is the reference.

mod common;

use common::program::{ok, ternlm};
use common::{edit_json, models};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use ternlm::config::{Activation, Inputs, KvFormat, ModelConfig, RopeScaling, Scope, TernaryConfig};
use ternlm::formats::tensors::TensorFiles;
use ternlm::formats::{Form, ModelFiles, npy};
use ternlm::measure;
use ternlm::model::{self, Decoder, Rounding, Sequences, State};
use ternlm::ternary::{Grouping, TernaryMatrix};
use ternlm::text::Tokenizer;

const Q: &str = "model.layers.0.self_attn.q_proj";
const FILE: &str = "model.safetensors";

fn tiny(name: &str) -> PathBuf {
    common::fixture("ternary-tiny").join(name)
}

#[track_caller]
fn export(from: &Path, format: &str, to: &Path) -> String {
    ok(&[&"export", &from, &"--format", &format, &"--out", &to])
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let tokens: Vec<u32> = (0..21).map(|i| (i * 7 % decoder.config.vocab_size) as u32).collect();
    decoder.logits(&tokens, Sequences::new(1, tokens.len()), &mut State::default())
}

#[track_caller]
fn near(got: &[f32], want: &[f32], bound: f32) {
    let size = want.iter().fold(0f32, |a, x| a.max(x.abs())) as f64;
    let off = common::apart(got, want);
    println!("off by {:.1e} of the largest logit", off / size);
    assert!(off <= bound as f64 * size, "off by {off}, largest {size}");
}

/// A copy of a fixture.
fn copy(name: &str, to: &Path) -> PathBuf {
    let dir = to.join(name);
    fs::create_dir_all(&dir).unwrap();
    for file in ["config.json", FILE] {
        fs::copy(tiny(name).join(file), dir.join(file)).unwrap();
    }
    dir
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    edit_json(&dir.join("config.json"), edit);
}

/// Changes bytes of a tensor where they lie.
fn edit_tensor(dir: &Path, name: &str, edit: impl FnOnce(&mut [u8])) {
    let file = dir.join(FILE);
    let mut bytes = fs::read(&file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let [begin, end] = [0, 1].map(|i| start + header[name]["data_offsets"][i].as_u64().unwrap() as usize);
    edit(&mut bytes[begin..end]);
    // A new file: what is mapped of the old one stays.
    fs::remove_file(&file).unwrap();
    fs::write(file, bytes).unwrap();
}

fn error(dir: &Path) -> String {
    match model::load(dir, None) {
        Ok(_) => panic!("{} was loaded", dir.display()),
        Err(error) => error.to_string(),
    }
}

/// Tensors by name, whatever file they lie in.
fn same_tensors(a: &Path, b: &Path) {
    let [a, b] = [a, b].map(|dir| TensorFiles::open(dir).unwrap());
    assert_eq!(a.names().collect::<Vec<_>>(), b.names().collect::<Vec<_>>());
    for name in a.names() {
        let [x, y] = [&a, &b].map(|file| file.tensor(name).unwrap());
        assert_eq!((x.dtype, x.shape), (y.dtype, y.shape), "{name}");
        assert!(x.bytes == y.bytes, "{name}");
    }
}

#[test]
fn a_model_of_mlx_computes_what_mlx_computes() {
    let loaded = model::load(&tiny("mlx"), None).unwrap();
    let note = loaded.description.ternary.as_ref().unwrap();
    assert_eq!((note.form, note.scope, note.group), (Form::Mlx, Scope::All, Grouping::Size(32)));
    let (shape, want) = npy::read(tiny("mlx_logits.npy")).unwrap();
    assert_eq!(shape, [21, 48]);
    near(&logits(&loaded.decoder), &want, 2e-5);
    let proof = measure::verify(&tiny("mlx"), &mut |_| {}).unwrap();
    assert!(proof.pass && proof.max_error() == 0.0, "{:?}", proof.reasons);
    assert!(proof.recognised.unwrap().contains("packed by MLX: every matrix"));
    // To train further, nothing is projected again.
    let (model, latents) = model::load_to_train(&tiny("mlx"), None).unwrap();
    for weight in model.decoder.weights().filter(|w| w.ternary().is_some()) {
        let (rows, cols) = (weight.shape[0], weight.shape[1]);
        let again = TernaryMatrix::project("w", latents.of(weight), rows, cols, note.group).unwrap();
        assert_eq!(&again, weight.ternary().unwrap(), "{}", weight.name);
    }
    let other = TernaryConfig { scope: Scope::All, group: Grouping::Size(128), ..TernaryConfig::default() };
    let error = model::load_to_train(&tiny("mlx"), Some(&other)).unwrap_err().to_string();
    assert!(error.contains("found 32, wanted groups of 128"), "{error}");
}

#[test]
fn every_lossless_way_there_and_back_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let said = export(&tiny("mlx"), "mlx", &at("mlx"));
    assert!(said.contains("bits each") && said.contains("Read back"), "{said}");
    export(&tiny("mlx"), "packed", &at("a.tern"));
    export(&at("a.tern"), "unpacked", &at("unpacked"));
    export(&at("unpacked"), "mlx", &at("mlx2"));
    export(&at("mlx2"), "packed", &at("b.tern"));
    assert_eq!(fs::read(at("a.tern")).unwrap(), fs::read(at("b.tern")).unwrap());
    same_tensors(&at("mlx"), &at("mlx2"));
    // With groups of 32 throughout, as what was read is taken; gains that f16 does not hold stay f32.
    let (first, ours) = (model::load_trits(&tiny("mlx")).unwrap(), at("mlx"));
    model::check(&ours, &first.decoder, Rounding::Nothing, &mut |_, _| {}).unwrap();
    let proof = measure::verify(&ours, &mut |_| {}).unwrap();
    assert!(proof.pass && proof.recognised.is_none(), "{:?}", proof.reasons);

    // Without note and manifest the weights speak for themselves, and stay what they are.
    fs::remove_file(at("unpacked").join("ternary.json")).unwrap();
    edit_config(&at("unpacked"), |c| drop(c.as_object_mut().unwrap().remove("ternlm")));
    export(&at("unpacked"), "mlx", &at("mlx3"));
    same_tensors(&at("mlx"), &at("mlx3"));
    let proof = measure::verify(&at("unpacked"), &mut |_| {}).unwrap();
    assert!(proof.pass && proof.recognised.unwrap().contains("one scale for 32 inputs"));
}

#[test]
fn the_check_finds_a_weight_that_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (model::load_trits(&tiny("mlx")).unwrap(), dir.path().join("out"));
    let check = |dir: &Path| model::check(dir, &model.decoder, Rounding::Nothing, &mut |_, _| {});
    export(&tiny("mlx"), "mlx", &out);
    check(&out).unwrap();
    // The trit of row 1, column 3, becomes another one; then a gain changes by its last bit.
    edit_tensor(&out, &format!("{Q}.weight"), |b| b[32] = (b[32] & 0x3F) | (((b[32] >> 6) + 1) % 3) << 6);
    let message = check(&out).unwrap_err().to_string();
    assert!(message.contains(&format!("{Q}.weight row 1 holds other weights")), "{message}");
    fs::remove_dir_all(&out).unwrap();
    export(&tiny("mlx"), "mlx", &out);
    edit_tensor(&out, "model.norm.weight", |b| b[4] ^= 1);
    assert!(check(&out).unwrap_err().to_string().contains("model.norm.weight row 0 holds"), "a gain");
}

#[test]
fn what_mlx_packed_and_is_not_ternary_is_refused_by_place() {
    let dir = tempfile::tempdir().unwrap();
    type Change = fn(&Path);
    let cases: [(Change, &str); 9] = [
        (
            |dir| edit_tensor(dir, &format!("{Q}.weight"), |b| b[3 * 32 + 5] |= 0b11 << 4),
            "tensor \"model.layers.0.self_attn.q_proj.weight\" row 3, column 22: found code 3, wanted 0, 1 or 2",
        ),
        (|dir| edit_tensor(dir, &format!("{Q}.biases"), |b| b[5] ^= 0x80), "row 2, group 0: found scale"),
        (|dir| edit_tensor(dir, "lm_head.scales", |b| b[0] ^= 1), "\"lm_head.weight\" row 0, group 0"),
        (
            |dir| {
                ["scales", "biases"].iter().for_each(|part| {
                    edit_tensor(dir, &format!("{Q}.{part}"), |b| b[3] ^= 0x80);
                });
            },
            "row 1, group 0: found scale -",
        ),
        (|dir| edit_config(dir, |c| c["quantization"]["bits"] = json!(4)), "quantization_config: found"),
        (
            |dir| {
                edit_config(dir, |c| {
                    c["quantization"]["bits"] = json!(4);
                    c["quantization_config"] = Value::Null;
                });
            },
            "quantization.bits: found 4, wanted 2",
        ),
        (
            |dir| {
                edit_config(dir, |c| {
                    c["quantization"][Q] = json!({"group_size": 64, "bits": 2});
                    c["quantization_config"] = Value::Null;
                });
            },
            "tensor \"model.layers.0.self_attn.q_proj.scales\": found shape [128, 1], wanted [128, 2]",
        ),
        (
            |dir| {
                let wrong = json!({"group_size": 128, "bits": 2});
                edit_config(dir, |c| {
                    c["quantization"] = wrong.clone();
                    c["quantization_config"] = wrong;
                });
            },
            "mlp.down_proj.weight\": found 160 inputs, wanted a multiple of group_size 128",
        ),
        (
            |dir| {
                edit_config(dir, |c| {
                    c["ternlm"] =
                        json!({"format": 1, "form": "unpacked", "scope": "all", "group": 32, "tensors": []});
                })
            },
            "ternlm.form: found \"unpacked\", wanted \"mlx\" in a folder",
        ),
    ];
    for (at, (change, wanted)) in cases.into_iter().enumerate() {
        let copy = copy("mlx", &dir.path().join(at.to_string()));
        change(&copy);
        let message = error(&copy);
        assert!(message.contains(wanted), "{at}: {message}");
    }
}

#[test]
fn bitnet_is_read_by_both_conventions() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = model::load_trits(&tiny("bitnet")).unwrap();
    let note = loaded.description.ternary.as_ref().unwrap();
    assert_eq!((note.form, note.scope, note.group), (Form::BitNet, Scope::Blocks, Grouping::Tensor));
    assert_eq!(loaded.decoder.inputs(), Inputs::Int8);
    // The same weights as numbers, which are recognised.
    let mut plain = model::load_trits(&tiny("plain")).unwrap();
    let found = plain.description.ternary.as_ref().unwrap();
    assert_eq!((found.form, found.scope, found.group), (Form::Unpacked, Scope::Blocks, Grouping::Tensor));
    for (a, b) in loaded.decoder.weights().zip(plain.decoder.weights()) {
        assert_eq!((a.ternary(), &a.name), (b.ternary(), &b.name));
    }
    plain.decoder.set_inputs(Inputs::Int8);
    assert_eq!(logits(&loaded.decoder), logits(&plain.decoder));
    assert!(measure::verify(&tiny("bitnet"), &mut |_| {}).unwrap().pass);
    // What divides is one over it; 10 as a scale is no f16 number, which is said.
    let divided = copy("bitnet", dir.path());
    edit_config(&divided, |c| c["quantization_config"] = json!({"quant_method": "bitnet"}));
    edit_tensor(&divided, &format!("{Q}.weight_scale"), |b| b.copy_from_slice(&0x4120u16.to_le_bytes()));
    let stored = ModelFiles::open(&divided).unwrap();
    assert!(stored.recognised.as_ref().unwrap().contains("scales are rounded to f16, by"), "{stored:?}");
    let scale = model::load_trits(&divided).unwrap().decoder.layers[0].self_attn.q_proj.weight.clone();
    assert_eq!(scale.ternary().unwrap().scales()[0], half::f16::from_f32(0.1).to_f32());
    // Written again in a form that other tools read.
    let out = dir.path().join("unpacked");
    export(&tiny("bitnet"), "unpacked", &out);
    assert!(measure::verify(&out, &mut |_| {}).unwrap().pass);
    for (change, wanted) in [
        (json!({"quant_method": "fp8"}), "quantization_config.quant_method: found \"fp8\""),
        (
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "lazy"}),
            "quantization_mode: found \"lazy\"",
        ),
        (
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
                "modules_to_not_convert": ["model.layers.0.mlp.up_proj"]}),
            "modules_to_not_convert: found a list of 1",
        ),
        (json!({"quant_method": "bitnet", "use_rms_norm": true}), "use_rms_norm: found true"),
        (json!({"quant_method": "bitnet", "linear_class": "other"}), "linear_class: found \"other\""),
    ] {
        edit_config(&divided, |c| c["quantization_config"] = change);
        assert!(error(&divided).contains(wanted), "{wanted}: {}", error(&divided));
    }
}

#[test]
fn a_model_of_other_numbers_is_not_called_ternary() {
    let dir = tempfile::tempdir().unwrap();
    let normal = ModelFiles::open(&common::fixture("qwen3-tiny")).unwrap();
    assert!(normal.recognised.is_none() && normal.description.ternary.is_none());
    // One weight of the last row that is another one.
    let near = copy("plain", dir.path());
    edit_tensor(&near, "model.layers.0.mlp.up_proj.weight", |b| {
        let last = b.len() - 2;
        b[last..].copy_from_slice(&0x3F80u16.to_le_bytes());
    });
    let stored = ModelFiles::open(&near).unwrap();
    assert!(stored.recognised.is_none() && stored.description.ternary.is_none(), "{stored:?}");
    assert!(model::load(&near, None).is_ok(), "it is a model of numbers");
    let verified = measure::verify(&near, &mut |_| {}).unwrap_err().to_string();
    assert!(verified.contains("weights that are not ternary"), "{verified}");
    // A scale that f16 cannot hold: said, and read as numbers.
    let far = copy("plain", &dir.path().join("far"));
    let names: Vec<String> = TensorFiles::open(&far).unwrap().names().map(String::from).collect();
    for name in names.iter().filter(|name| name.contains("_proj")) {
        edit_tensor(&far, name, |b| {
            for bits in b.chunks_mut(2).filter(|bits| bits[1] & 0x7F != 0) {
                bits.copy_from_slice(&(0x3080 | u16::from(bits[1] & 0x80) << 8).to_le_bytes());
            }
        });
    }
    let stored = ModelFiles::open(&far).unwrap();
    assert!(stored.recognised.unwrap().contains("no f16 numbers") && stored.description.ternary.is_none());
}

#[test]
fn what_mlx_cannot_hold_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = TernaryConfig { scope: Scope::All, group: Grouping::Size(48), ..TernaryConfig::default() };
    let (model, _) = model::load_to_train(&common::fixture("qwen3-tiny"), Some(&config)).unwrap();
    let (from, out) = (dir.path().join("from"), dir.path().join("out"));
    fs::create_dir(&from).unwrap();
    model::save(&from, &model.decoder, &model.description, None).unwrap();
    let failed = ternlm(&[&"export", &from, &"--format", &"mlx", &"--out", &out]);
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("model.embed_tokens.weight: found [48, 24] by groups of 24"), "{said}");
    assert!(!failed.status.success() && !out.exists());

    let rotated = |scaling| ModelConfig { rope_scaling: Some(scaling), ..models::qwen3() };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 64,
        attention_factor: Some(0.75),
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    let bitnet = ModelConfig { sub_norm: true, tie_embeddings: true, ..models::llama() };
    for (config, wanted) in [
        (
            ModelConfig { activation: Activation::Relu2Glu, ..bitnet.clone() },
            "error: config.json: model_type: found norms before the output and down projections, wanted a model without \
             these norms: mlx-lm's bitnet reads Hugging Face's BitNet layout, one scale a matrix, and not MLX's two bits\n",
        ),
        (
            bitnet,
            "model_type: found norms before the output and down projections, wanted a model without these norms",
        ),
        (
            ModelConfig { activation: Activation::Gelu, ..models::llama() },
            "config.json: model_type: found ternlm, wanted",
        ),
        (rotated(RopeScaling::Dynamic { factor: 2.0 }), "config.json: rope_scaling: found Dynamic"),
        (rotated(yarn), "\"yarn\" with its usual factor of attention"),
    ] {
        let from = models::random(dir.path(), "refused", &config);
        let failed = ternlm(&[&"export", &from, &"--format", &"mlx", &"--out", &out]);
        let said = String::from_utf8_lossy(&failed.stderr);
        assert!(said.contains(wanted), "{said}");
        assert!(!failed.status.success() && !out.exists());
    }
    // The packed weights of the real architecture.
    let from = common::fixture("architectures/bitnet-packed");
    let failed = ternlm(&[&"export", &from, &"--format", &"mlx", &"--out", &out]);
    assert!(
        String::from_utf8_lossy(&failed.stderr)
            .contains("mlx-lm's bitnet reads Hugging Face's BitNet layout")
    );
}

/// Logits of the stock library for the unpacked export of a fixture; `transformers/logits.py` made them.
#[test]
fn an_unpacked_directory_is_what_transformers_computes() {
    let dir = tempfile::tempdir().unwrap();
    export(&tiny("mlx"), "unpacked", &dir.path().join("out"));
    let (shape, want) = npy::read(tiny("unpacked_logits.npy")).unwrap();
    assert_eq!(shape, [21, 48]);
    near(&logits(&model::load(&dir.path().join("out"), None).unwrap().decoder), &want, 2e-5);
}

/// Needs Python with torch and transformers, which `TERNLM_HF_PYTHON` names; `TERNLM_HF_MODELS` names further models,
/// separated by `:`, of which those without a ternary weight are taken, too.
#[test]
fn transformers_computes_what_we_compute() {
    let Some(python) = std::env::var_os("TERNLM_HF_PYTHON") else {
        eprintln!("SKIPPED: TERNLM_HF_PYTHON names no Python with transformers");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let further = std::env::var("TERNLM_HF_MODELS").unwrap_or_default();
    let further = further.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
    for (i, from) in ["mlx", "bitnet"].map(tiny).into_iter().chain(further).enumerate() {
        let out = dir.path().join(i.to_string());
        println!("{}", export(&from, "unpacked", &out).trim_end());
        let mut decoder = model::load(&out, None).unwrap().decoder;
        // What inputs are rounded to is no part of the directory's function there.
        decoder.set_inputs(Inputs::F32);
        let ids: Vec<String> = (0..21).map(|i| (i * 7 % decoder.config.vocab_size).to_string()).collect();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transformers/logits.py");
        let npy = dir.path().join("logits.npy");
        let run = Command::new(&python).arg(script).arg(&out).arg(&npy).args(&ids).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        near(&logits(&decoder), &npy::read(&npy).unwrap().1, 2e-5);
        // The same tokens of a text, where there is a tokenizer.
        let theirs: Value = serde_json::from_slice(&run.stdout).unwrap();
        for (text, ids) in theirs.as_object().unwrap() {
            let tokenizer = Tokenizer::of(&ternlm::formats::files_of(&out).unwrap()).unwrap();
            assert_eq!(json!(tokenizer.encode_prompt(text).unwrap()), *ids, "{text:?}");
        }
    }
}

/// Needs Python with `mlx[cpu]` and `mlx-lm`, which `TERNLM_MLX_PYTHON` names; `TERNLM_MLX_MODEL` names further models.
#[test]
fn mlx_lm_computes_what_we_compute() {
    let Some(python) = std::env::var_os("TERNLM_MLX_PYTHON") else {
        eprintln!("SKIPPED: TERNLM_MLX_PYTHON names no Python with mlx-lm");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let further = std::env::var_os("TERNLM_MLX_MODEL").map(PathBuf::from);
    for (i, from) in [tiny("mlx")].into_iter().chain(further).enumerate() {
        let out = dir.path().join(i.to_string());
        println!("{}", export(&from, "mlx", &out).trim_end());
        let decoder = model::load(&out, None).unwrap().decoder;
        let ids: Vec<String> = (0..21).map(|i| (i * 7 % decoder.config.vocab_size).to_string()).collect();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mlx/logits.py");
        let npy = dir.path().join("logits.npy");
        let run = Command::new(&python).arg(script).arg(&out).arg(&npy).args(&ids).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        near(&logits(&decoder), &npy::read(&npy).unwrap().1, 2e-5);
        // Greedy decoding through a cache, token by token.
        let (mut cache, mut state) = (decoder.cache(KvFormat::F32), State::default());
        let mut new: Vec<u32> = ids.iter().map(|id| id.parse().unwrap()).collect();
        let mut said = Vec::new();
        for _ in 0..24 {
            let row = decoder.step(&new, &mut cache, &mut state);
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            new = vec![best as u32];
            said.push(best.to_string());
        }
        assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), said.join(" "));
    }
}
