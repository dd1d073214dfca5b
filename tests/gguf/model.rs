//! Whole models: the same weights in a GGUF file and in another.

use std::path::{Path, PathBuf};
use ternlm::config::{ModelConfig, RopeScaling, Scope};
use ternlm::formats::{Description, ModelFiles, Stored, hf};
use ternlm::model::{self, Decoder, Sequences, State};
use ternlm::ternary::{Density, Grouping, TernaryMatrix};
use ternlm::{files, measure};

use super::common::gguf::{self, File, Shape, f32_bytes};
use super::common::{data, fixture};

const QWEN3_TINY: Shape = Shape {
    architecture: "qwen3",
    width: 24,
    layers: 2,
    heads: 2,
    kv_heads: 1,
    head_dim: 16,
    feed_forward: 40,
    context: 64,
};

/// The name in a GGUF file, from llama.cpp's table.
fn gguf_name(hf: &str) -> String {
    let of_block = |part: &str| {
        for (ours, theirs) in [
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ] {
            if let Some(kind) = part.strip_prefix(ours) {
                return format!("{theirs}{kind}");
            }
        }
        panic!("{part}")
    };
    match hf {
        "model.embed_tokens.weight" => "token_embd.weight".into(),
        "model.norm.weight" => "output_norm.weight".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => {
            let (layer, part) = hf.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
            format!("blk.{layer}.{}", of_block(part))
        }
    }
}

fn values(stored: &ModelFiles, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = stored.tensor(name).unwrap();
    let shape = tensor.shape().to_vec();
    let mut out = vec![0.0; shape.iter().product()];
    tensor.read_f32_into(&shape, &mut out).unwrap();
    (shape, out)
}

/// llama.cpp's own conversion: `w.reshape(heads, 2, dim / 2, cols).swapaxes(1, 2)`.
fn permuted(rows: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let dim = rows.len() / cols / heads;
    let mut out = Vec::new();
    for head in 0..heads {
        for i in 0..dim / 2 {
            for half in 0..2 {
                let row = head * dim + half * (dim / 2) + i;
                out.extend_from_slice(&rows[row * cols..][..cols]);
            }
        }
    }
    out
}

/// The model in `dir` as F32, `permute`d as LLaMA's are.
fn f32_file(shape: &Shape, dir: &Path) -> File {
    let stored = ModelFiles::open(dir).unwrap();
    let mut file = shape.file();
    for name in stored.names() {
        let (dims, mut all) = values(&stored, name);
        let cols = dims.get(1).copied().unwrap_or(1);
        if shape.architecture == "llama" && (name.contains("q_proj") || name.contains("k_proj")) {
            let heads = if name.contains("q_proj") { shape.heads } else { shape.kv_heads };
            all = permuted(&all, heads, cols);
        }
        file.tensor(&gguf_name(name), &dims, gguf::F32, f32_bytes(&all));
    }
    file
}

struct Put {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn put(file: &File) -> Put {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Put { _dir: dir, path }
}

#[track_caller]
fn same_model(a: &Path, b: &Path) {
    let [a, b] = [a, b].map(|path| ModelFiles::open(path).unwrap());
    assert_eq!(a.description.model, b.description.model);
    assert_eq!(a.names().collect::<Vec<_>>(), b.names().collect::<Vec<_>>());
    a.names().for_each(|name| assert_eq!(values(&a, name), values(&b, name), "{name}"));
}

fn config(biased: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 64,
        hidden_size: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        intermediate_size: 512,
        qkv_bias: biased,
        tie_embeddings: true,
        max_positions: 64,
        ..ModelConfig::default()
    }
}

const LLAMA: Shape = Shape {
    architecture: "llama",
    width: 256,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    feed_forward: 512,
    context: 64,
};

#[test]
fn models_are_those_of_a_hugging_face_directory() {
    let file = put(&f32_file(&QWEN3_TINY, &fixture("qwen3-tiny")));
    same_model(&file.path, &fixture("qwen3-tiny"));
    for biased in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut decoder = Decoder::new(&config(biased), Scope::None, Grouping::default());
        for weight in decoder.weights_mut() {
            let values = weight.normal(0.5, 9);
            weight.set(&values).unwrap();
        }
        model::save(dir.path(), &decoder, &Description::new(config(biased)), None).unwrap();
        let file = put(&f32_file(&LLAMA, dir.path()));
        same_model(&file.path, dir.path());
        let logits = |path: &Path| {
            let decoder = model::load(path, None).unwrap().decoder;
            decoder.logits(&[1, 5, 9, 33], Sequences::new(1, 4), &mut State::default()).to_vec()
        };
        assert_eq!(logits(&file.path), logits(dir.path()));
    }
}

/// The tiny models of every family, against which `tests/architectures.rs` holds the reference implementation.
#[test]
fn families_are_those_of_their_directories() {
    for (family, architecture) in [
        ("qwen3", "qwen3"),
        ("qwen2", "qwen2"),
        ("mistral", "llama"),
        ("smollm2", "llama"),
        ("llama", "llama"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let from = fixture("architectures").join(family);
        for name in [hf::FILE_NAME, "model.safetensors"] {
            std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
        }
        if family == "llama" {
            // The factors of a file are LLaMA 3's, for 8,192 positions.
            let path = dir.path().join(hf::FILE_NAME);
            let text =
                std::fs::read_to_string(&path).unwrap().replace("embeddings\": 16", "embeddings\": 8192");
            std::fs::write(path, text.replace("embeddings\": 64", "embeddings\": 131072")).unwrap();
        }
        let model = ModelFiles::open(dir.path()).unwrap().description.model;
        let shape = Shape {
            architecture,
            width: model.hidden_size,
            layers: model.layers,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            feed_forward: model.intermediate_size,
            context: model.max_positions,
        };
        let mut file = f32_file(&shape, dir.path());
        file.f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), model.rms_norm_eps);
        file.f32(&format!("{architecture}.rope.freq_base"), model.rope_theta);
        if family == "llama" {
            assert!(model.rope_scaling.is_some() && model.o_bias && model.mlp_bias);
            // As llama.cpp's converter makes them.
            let factor = |i: usize| {
                let wavelength = std::f32::consts::TAU * 500_000f32.powf(2.0 * i as f32 / 16.0);
                let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
                match wavelength {
                    w if w < 8192.0 / 4.0 => 1.0,
                    w if w > 8192.0 => 4.0,
                    _ => 1.0 / ((1.0 - smooth) / 4.0 + smooth),
                }
            };
            let factors: Vec<f32> = (0..8).map(factor).collect();
            assert!(factors.iter().any(|x| *x > 1.0 && *x < 4.0), "{factors:?}");
            file.tensor("rope_freqs.weight", &[8], gguf::F32, f32_bytes(&factors));
        }
        same_model(&put(&file).path, dir.path());
    }
    // YaRN's settings are keys.
    let dir = fixture("qwen3-tiny");
    let mut file = f32_file(&QWEN3_TINY, &dir);
    file.text("qwen3.rope.scaling.type", "yarn").f32("qwen3.rope.scaling.factor", 4.0);
    file.u32("qwen3.rope.scaling.original_context_length", 16);
    let found = ModelFiles::open(&put(&file).path).unwrap().description.model;
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 16,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    assert_eq!(found.rope_scaling, Some(yarn));
    // What multiplies the factor that YaRN has of itself.
    file.f32("qwen3.rope.scaling.attn_factor", 0.5);
    let found = ModelFiles::open(&put(&file).path).unwrap().description.model.rotation().factor;
    assert_eq!(found, 0.5 * (0.1 * 4f32.ln() + 1.0));
    // llama.cpp takes a factor without a name for a linear one, and multiplies with none there.
    let mut file = f32_file(&QWEN3_TINY, &dir);
    file.f32("qwen3.rope.scaling.factor", 4.0);
    let read =
        |file: &File| ModelFiles::open(&put(file).path).map(|files| files.description.model.rope_scaling);
    assert_eq!(read(&file).unwrap(), Some(RopeScaling::Linear { factor: 4.0 }));
    file.text("qwen3.rope.scaling.type", "none");
    assert_eq!(read(&file).unwrap(), None);
    file.text("qwen3.rope.scaling.type", "linear").f32("qwen3.rope.scaling.factor", 1.0);
    assert_eq!(read(&file).unwrap(), None);
    file.f32("qwen3.rope.scaling.attn_factor", 0.5);
    assert!(read(&file).unwrap_err().to_string().contains("attn_factor\": found 0.5"));
}

/// A ternary model, and every matrix of it as blocks of `kind` by `encode`.
fn ternary(
    scope: Scope,
    group: usize,
    kind: u32,
    encode: impl Fn(&TernaryMatrix) -> Vec<u8>,
) -> (Decoder, File) {
    let mut decoder = Decoder::new(&config(false), scope, Grouping::Size(group));
    for (i, weight) in decoder.weights_mut().enumerate() {
        let values = weight.normal(0.5, i as u64);
        weight.set(&values).unwrap();
    }
    let mut file = LLAMA.file();
    for weight in decoder.weights() {
        let heads = match weight.name.as_str() {
            name if name.contains("q_proj") => 4,
            name if name.contains("k_proj") => 2,
            _ => 0,
        };
        let cols = weight.shape.get(1).copied().unwrap_or(1);
        match weight.ternary() {
            None => {
                file.tensor(&gguf_name(&weight.name), &weight.shape, gguf::F32, f32_bytes(weight.dense()))
            }
            Some(matrix) => {
                let mut rows = vec![0.0; weight.len()];
                rows.chunks_mut(cols).enumerate().for_each(|(row, out)| matrix.unpack_row(row, out));
                if heads > 0 {
                    rows = permuted(&rows, heads, cols);
                }
                let grouping = Grouping::Size(group);
                let matrix = TernaryMatrix::from_values(&rows, weight.shape[0], cols, grouping).unwrap();
                file.tensor(&gguf_name(&weight.name), &weight.shape, kind, encode(&matrix))
            }
        };
    }
    (decoder, file)
}

fn trits(decoder: &Decoder) -> Vec<(String, TernaryMatrix)> {
    decoder.weights().filter_map(|w| Some((w.name.clone(), w.ternary()?.clone()))).collect()
}

#[test]
fn trits_are_taken_over_and_never_projected() {
    let by = |block: usize| move |matrix: &TernaryMatrix| gguf::two_bits(matrix, block);
    for (scope, group, kind, (decoder, file)) in [
        (Scope::All, 128, "Q2_0", ternary(Scope::All, 128, gguf::Q2_0, by(64))),
        (Scope::Blocks, 128, "Q2_0", ternary(Scope::Blocks, 128, gguf::Q2_0, by(64))),
        (Scope::All, 64, "Q2_0", ternary(Scope::All, 64, gguf::Q2_0, by(64))),
        (Scope::All, 128, "PQ2_0", ternary(Scope::All, 128, gguf::PQ2_0, by(128))),
        (Scope::All, 128, "Q2_0 of 128", ternary(Scope::All, 128, gguf::Q2_0, by(128))),
        (Scope::All, 256, "TQ2_0", ternary(Scope::All, 256, gguf::TQ2_0, gguf::tq2_0)),
    ] {
        let what = format!("{kind}, {scope:?}, {group}");
        let file = put(&file);
        let stored = ModelFiles::open(&file.path).unwrap();
        let note = stored.description.ternary.clone().unwrap();
        assert_eq!((note.scope, note.group), (scope, Grouping::Size(group)), "{what}");
        assert_eq!(stored.tensor("model.layers.1.mlp.up_proj.weight").unwrap().coding(), kind);
        let loaded = model::load(&file.path, None).unwrap();
        assert!(trits(&loaded.decoder) == trits(&decoder), "{what}: other trits or scales");
        // The proof has no digests to hold against.
        let proof = measure::verify(&file.path, &mut |_| {}).unwrap();
        assert!(
            proof.pass && proof.recognised.is_some() && proof.tensors.len() == note.tensors.len(),
            "{what}: {:?}",
            proof.reasons
        );
        // A training goes on from the same trits.
        let (trained, _) = model::load_to_train(&file.path, None).unwrap();
        assert!(trits(&trained.decoder) == trits(&decoder), "{what}: to train");
        // To our own files and back.
        let dir = tempfile::tempdir().unwrap();
        for density in [Density::TwoBit, Density::Base3] {
            let packed = dir.path().join("x.tern");
            model::save_packed(&packed, &loaded.decoder, &loaded.description, Vec::new(), density).unwrap();
            let back = model::load_trits(&packed).unwrap();
            assert!(trits(&back.decoder) == trits(&decoder), "{what}: packed");
        }
        let folder = dir.path().join("unpacked");
        std::fs::create_dir(&folder).unwrap();
        model::save(&folder, &loaded.decoder, &loaded.description, None).unwrap();
        let back = model::load(&folder, None).unwrap();
        assert!(trits(&back.decoder) == trits(&decoder), "{what}: unpacked");
    }
}

#[test]
fn what_is_only_partly_ternary_is_held_as_values() {
    let (decoder, mut file) = ternary(Scope::All, 128, gguf::Q2_0, |matrix| gguf::two_bits(matrix, 64));
    let at = file.tensors.iter().position(|t| t.name == "blk.1.attn_v.weight").unwrap();
    file.tensors[at].kind = gguf::F32;
    file.tensors[at].bytes = f32_bytes(&vec![0.25; 128 * 256]);
    let file = put(&file);
    let stored = ModelFiles::open(&file.path).unwrap();
    assert!(stored.description.ternary.is_none());
    let error = measure::verify(&file.path, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("x.gguf: tensor types: found F32, Q2_0, wanted a ternary type"), "{error}");
    let weight = decoder.weights().find(|w| w.name.contains("1.self_attn.k_proj")).unwrap();
    let mut wanted = vec![0.0; weight.len()];
    let rows = wanted.chunks_mut(256).enumerate();
    rows.for_each(|(row, out)| weight.ternary().unwrap().unpack_row(row, out));
    assert!(matches!(stored.tensor(&weight.name).unwrap(), Stored::Blocks(_)));
    assert!(values(&stored, &weight.name).1 == wanted);
}

#[test]
fn what_the_model_would_not_do_is_refused() {
    let good = f32_file(&QWEN3_TINY, &fixture("qwen3-tiny"));
    let refused = |what: &str, change: &dyn Fn(&mut File), wanted: &str| {
        let mut file = good.clone();
        change(&mut file);
        let file = put(&file);
        let error = model::load(&file.path, None).map(drop).unwrap_err().to_string();
        assert!(error.contains("x.gguf") && error.contains(wanted), "{what}: {error}");
    };
    let tensor = |file: &mut File, name: &str, n: usize| {
        _ = file.tensor(name, &[n], gguf::F32, f32_bytes(&vec![2.0; n]))
    };
    refused(
        "gpt2",
        &|f| _ = f.text("general.architecture", "gpt2"),
        "key \"general.architecture\": found \"gpt2\"",
    );
    refused("none", &|f| _ = f.keys.remove(0), "key \"general.architecture\": found nothing");
    refused(
        "sinks",
        &|f| tensor(f, "blk.0.attn_sinks.weight", 8),
        "tensor \"blk.0.attn_sinks.weight\": found",
    );
    refused(
        "factors",
        &|f| tensor(f, "rope_freqs.weight", 8),
        "tensor \"rope_freqs.weight\" number 0: found 2, wanted 1.000000, or 1 throughout",
    );
    refused(
        "bias",
        &|f| tensor(f, "blk.0.attn_output.bias", 24),
        "tensors: found \"model.layers.0.self_attn.o_proj.bias\"",
    );
    refused(
        "a layer more",
        &|f| tensor(f, "blk.2.attn_norm.weight", 24),
        "model.layers.2.input_layernorm.weight",
    );
    refused("a layer less", &|f| _ = f.u32("qwen3.block_count", 3), "tensor \"model.layers.2.");
    refused(
        "window",
        &|f| _ = f.u32("qwen3.attention.sliding_window", 32),
        "attention.sliding_window\": found 32",
    );
    refused("experts", &|f| _ = f.u32("qwen3.expert_count", 8), "key \"qwen3.expert_count\": found 8");
    refused("scale", &|f| _ = f.f32("qwen3.logit_scale", 0.5), "key \"qwen3.logit_scale\": found 0.5");
    refused(
        "cap",
        &|f| _ = f.f32("qwen3.final_logit_softcapping", 30.0),
        "final_logit_softcapping\": found 30",
    );
    refused(
        "part",
        &|f| _ = f.u32("qwen3.rope.dimension_count", 8),
        "rope.dimension_count\": found 8, wanted 16",
    );
    refused(
        "values",
        &|f| _ = f.u32("qwen3.attention.value_length", 8),
        "attention.value_length\": found 8, wanted 16",
    );
    refused(
        "eps",
        &|f| _ = f.text("qwen3.attention.layer_norm_rms_epsilon", "a"),
        "rms_epsilon\": found \"a\"",
    );
    refused(
        "heads",
        &|f| _ = f.i32s("qwen3.attention.head_count_kv", [1, 1]),
        "head_count_kv\": found a list of 2",
    );
    refused(
        "width",
        &|f| f.keys.retain(|(key, ..)| !key.ends_with("embedding_length")),
        "embedding_length\": found nothing",
    );
    refused("type", &|f| f.tensors[0].kind = 24, "size: found");
    refused("shape", &|f| _ = f.u32("qwen3.feed_forward_length", 32), "shape");
    // Settings that do nothing.
    for change in [
        (|f| _ = f.u32("qwen3.attention.sliding_window", 0)) as fn(&mut File),
        |f| _ = f.u32("qwen3.attention.sliding_window", 64),
        |f| _ = f.u32("qwen3.expert_count", 0),
        |f| _ = f.f32("qwen3.rope.scale_linear", 1.0),
        |f| _ = f.text("qwen3.rope.scaling.type", "none"),
        |f| _ = f.tensor("rope_freqs.weight", &[8], gguf::F32, f32_bytes(&[1.0; 8])),
    ] {
        let mut file = good.clone();
        change(&mut file);
        same_model(&put(&file).path, &fixture("qwen3-tiny"));
    }
}

/// A real file of another writer, if it is here.
#[test]
fn a_real_file_is_read() {
    let Some(path) = data("ckpt/gguf/llama-2-tiny-random.gguf") else { return };
    let stored = ModelFiles::open(&path).unwrap();
    let model = &stored.description.model;
    assert_eq!((model.vocab_size, model.layers, model.heads, model.head_dim), (32_000, 1, 2, 4));
    let logits = model::load(&path, None)
        .unwrap()
        .decoder
        .logits(&[1, 306], Sequences::new(1, 2), &mut State::default())
        .to_vec();
    assert!(logits.len() == 64_000 && logits.iter().all(|x| x.is_finite()));
    assert!(files::if_there(stored.files.need("nothing", 9)).unwrap().is_none());
    assert!(stored.files.contains(hf::FILE_NAME) && stored.files.contains("tokenizer.json"));
}
