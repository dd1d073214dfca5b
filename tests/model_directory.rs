//! Nothing in a model directory is ignored: what would change the function is used or refused by name, and what does
//! nothing is let through. Every directory that is let through must give the logits that Hugging Face's implementation
//! gives (`fixtures/make_qwen3_tiny.py`).

mod common;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use ternlm::config::{Scope, TernaryConfig};
use ternlm::files::Bundle;
use ternlm::formats::manifest::Manifest;
use ternlm::formats::tensors::{Data, Dtype, FILE_NAME, INDEX_NAME, Tensor, TensorFiles, write_safetensors};
use ternlm::formats::{Form, ModelFiles, Stored, hf, npy};
use ternlm::measure::verify;
use ternlm::model::{self, Sequences, State};
use ternlm::ternary::Grouping;
use ternlm::text::Tokenizer;

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

struct Named {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    dtype: Dtype,
}

fn named(name: &str, shape: &[usize], value: f32) -> Named {
    let values = vec![value; shape.iter().product()];
    Named { name: name.into(), shape: shape.into(), values, dtype: Dtype::F32 }
}

/// The fixture's tensors.
fn tensors() -> Vec<Named> {
    let stored = TensorFiles::open(common::fixture("qwen3-tiny")).unwrap();
    let read = |name: &str| {
        let mut tensor = named(name, stored.shape(name).unwrap(), 0.0);
        stored.read_f32_into(name, &tensor.shape, &mut tensor.values).unwrap();
        tensor.dtype = Dtype::BF16;
        tensor
    };
    stored.names().map(read).collect()
}

fn write(path: PathBuf, tensors: &[Named]) {
    let stored = tensors.iter().map(|t| {
        let data = match t.dtype {
            Dtype::F32 => Data::F32(&t.values),
            _ => Data::F32AsBf16(&t.values),
        };
        Tensor { name: t.name.clone(), shape: t.shape.clone(), data }
    });
    write_safetensors(path, &stored.collect::<Vec<_>>(), &Default::default()).unwrap();
}

/// A copy of the fixture, its configuration with `changes` (`"absent"` removes a key).
fn copy(changes: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture = common::fixture("qwen3-tiny");
    fs::copy(fixture.join(FILE_NAME), dir.path().join(FILE_NAME)).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(fixture.join("config.json")).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value == "absent" {
            true => drop(config.as_object_mut().unwrap().shift_remove(key)),
            false => config[key] = value.clone(),
        }
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// [`copy`] with other tensors.
fn with(changes: Value, edit: impl FnOnce(&mut Vec<Named>)) -> tempfile::TempDir {
    let dir = copy(changes);
    let mut list = tensors();
    edit(&mut list);
    write(dir.path().join(FILE_NAME), &list);
    dir
}

fn remove(list: &mut Vec<Named>, name: &str) -> Named {
    let at = list.iter().position(|t| t.name == name).unwrap();
    list.remove(at)
}

fn error(dir: &Path) -> String {
    match model::load(dir, None) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

/// The model computes what the reference implementation did.
#[track_caller]
fn computes(dir: &Path, logits: &str, what: &dyn std::fmt::Debug) {
    let fixture = common::fixture("qwen3-tiny");
    let reference: Value = serde_json::from_slice(&fs::read(fixture.join("ref.json")).unwrap()).unwrap();
    let rows: Vec<Vec<u32>> = serde_json::from_value(reference["input_ids"].clone()).unwrap();
    let decoder = match model::load(dir, None) {
        Ok(model) => model.decoder,
        Err(error) => panic!("{what:?}: {error}"),
    };
    let seqs = Sequences::new(rows.len(), rows[0].len());
    let got = decoder.logits(&rows.concat(), seqs, &mut State::default());
    let want = npy::read(fixture.join(logits)).unwrap().1;
    assert_eq!(got.len(), want.len());
    let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-4, "{what:?}: logits differ by {error}");
}

const UNTIED: &str = "ref_logits.npy";
const TIED: &str = "ref_logits_tied.npy";

#[test]
fn settings_that_do_nothing_are_let_through() {
    let per_layer = json!({"rope_type": "default", "rope_theta": 10000});
    for changes in [
        json!({}),
        json!({"architectures": null, "auto_map": null, "text_config": null, "quantization_config": null}),
        json!({"architectures": [], "auto_map": {"AutoTokenizer": ["a.B", null], "AutoModel": null}, "text_config": {}}),
        json!({"final_logit_softcapping": null, "attn_logit_softcapping": 0, "logit_soft_cap": 0.0, "clip_qkv": null}),
        json!({"logit_scale": 1, "logits_scaling": 1.0, "embedding_multiplier": 1, "scale_emb": 1, "residual_multiplier": 1.0}),
        json!({"attention_multiplier": 0.25, "query_pre_attn_scalar": 16, "mlp_multipliers": [1, 1.0], "dim_model_base": 24}),
        json!({"partial_rotary_factor": 1.0, "rotary_pct": 1, "rotary_dim": 16, "rotary_emb_base": 10000, "use_rope": true}),
        json!({"num_experts": 0, "num_local_experts": 1, "n_routed_experts": null, "num_experts_per_tok": 2}),
        json!({"no_rope_layers": [1, 1], "no_rope_layer_interval": 2, "use_mrope": false}),
        json!({"no_rope_layers": null, "no_rope_layer_interval": 3, "rope_interleaved": false}),
        json!({"mlp_bias": false, "attention_out_bias": false, "qkv_bias": false, "use_bias": null, "use_qk_norm": true}),
        json!({"hidden_activation": "silu", "hidden_act": "swish", "activation_function": null, "is_causal": true}),
        json!({"use_sliding_window": true, "sliding_window": "absent", "max_position_embeddings": 8192}),
        json!({"sliding_window": 8, "attention_chunk_size": 64, "window_size": [-1, -1], "max_window_layers": 0}),
        json!({"layer_types": null, "pretraining_tp": 4, "attention_dropout": 0.1, "ffn_dim_multiplier": 1.3}),
        json!({"tie_word_embeddings": "absent", "rms_norm_eps": "absent", "norm_eps": 1e-6, "europe": {"x": 1}}),
        json!({"original_max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "is_decoder": true}),
        json!({"rope_theta": 10000.0, "rope_scaling": {}, "rope_parameters": {"partial_rotary_factor": 1}}),
        json!({"rope_scaling": {"type": "default", "factor": 8, "low_freq_factor": 1, "rope_theta": 10000}}),
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "beta_fast": 32, "truncate": null, "x": null}}),
        json!({"rope_parameters": {"full_attention": per_layer, "sliding_attention": null}}),
        json!({"rope_parameters": {"full_attention": per_layer, "rope_theta": 1e4}, "rope_theta": 1e4}),
    ] {
        let dir = copy(changes.clone());
        computes(dir.path(), UNTIED, &changes);
        // And what is written of it says the same.
        let read = hf::read_config(&Bundle::folder(dir.path())).unwrap();
        hf::write_config(dir.path(), &read, Dtype::F32).unwrap();
        assert_eq!(hf::read_config(&Bundle::folder(dir.path())).unwrap().model, read.model, "{changes}");
    }
}

#[test]
fn a_setting_that_changes_the_function_is_named() {
    let scaled = json!({"rope_type": "longrope", "factor": 8.0, "rope_theta": 10000});
    for (changes, field) in [
        (json!({"architectures": ["Qwen3ForSequenceClassification"]}), "architectures"),
        (json!({"architectures": ["Qwen3Model"]}), "architectures"),
        (json!({"architectures": ["Qwen3ForCausalLM", "BitnetForCausalLM"]}), "architectures"),
        (json!({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}), "auto_map.AutoModelForCausalLM"),
        (json!({"text_config": {"model_type": "qwen3"}}), "text_config"),
        (json!({"compression_config": {"format": "int-quantized"}}), "compression_config"),
        (json!({"quantization_config": {"quant_method": "fp8"}}), "quantization_config.quant_method"),
        (json!({"weight_bits": 1}), "weight_bits"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"attn_logit_softcapping": 50}), "attn_logit_softcapping"),
        (json!({"logits_soft_cap": 30}), "logits_soft_cap"),
        (json!({"logit_scale": 0.0625}), "logit_scale"),
        (json!({"logits_scaling": 8}), "logits_scaling"),
        (json!({"embedding_multiplier": 12}), "embedding_multiplier"),
        (json!({"scale_emb": 12}), "scale_emb"),
        (json!({"scale_depth": 1.4}), "scale_depth"),
        (json!({"residual_multiplier": 0.22}), "residual_multiplier"),
        (json!({"attention_multiplier": 1.0}), "attention_multiplier"),
        (json!({"mlp_multipliers": [1, 0.5]}), "mlp_multipliers"),
        (json!({"query_pre_attn_scalar": 256}), "query_pre_attn_scalar"),
        (json!({"clip_qkv": 8.0}), "clip_qkv"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"rotary_pct": 0.25}), "rotary_pct"),
        (json!({"rotary_emb_base": 500000}), "rotary_emb_base"),
        (json!({"rope_interleaved": true}), "rope_interleaved"),
        (json!({"use_rope": false}), "use_rope"),
        (json!({"alibi": true}), "alibi"),
        (json!({"use_mrope": true}), "use_mrope"),
        (json!({"rope_config": {"type": "yarn"}}), "rope_config"),
        (json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
        (json!({"no_rope_layer_interval": 2}), "no_rope_layer_interval"),
        (json!({"num_experts": 8}), "num_experts"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (json!({"n_routed_experts": 64}), "n_routed_experts"),
        (json!({"mlp_layer_types": ["dense", "sparse"]}), "mlp_layer_types"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"attention_out_bias": true}), "attention_out_bias"),
        (json!({"qkv_bias": true}), "qkv_bias"),
        (json!({"model_type": "llama", "architectures": null, "qk_norm": true}), "qk_norm"),
        (json!({"hidden_activation": "gelu_pytorch_tanh"}), "hidden_activation"),
        (json!({"hidden_act": "relu2"}), "hidden_act"),
        (json!({"ffn": "gelu"}), "ffn"),
        (json!({"model_type": "ternlm", "architectures": null, "ffn": "gelu"}), "hidden_act"),
        (json!({"is_causal": false}), "is_causal"),
        (json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        (json!({"is_encoder_decoder": true}), "is_encoder_decoder"),
        (json!({"layer_types": ["full_attention"]}), "layer_types"),
        (json!({"layer_types": ["full_attention", "linear_attention"]}), "layer_types"),
        (json!({"attention_chunk_size": 32}), "attention_chunk_size"),
        (
            json!({"use_sliding_window": true, "sliding_window": "absent", "max_position_embeddings": 8192,
                   "max_window_layers": 1, "layer_types": null}),
            "sliding_window",
        ),
        (json!({"rms_norm_eps": null, "norm_eps": 1e-5}), "norm_eps"),
        (json!({"norm_type": "layernorm"}), "norm_type"),
        (json!({"rope_scaling": scaled}), "rope_scaling.rope_type"),
        (json!({"rope_parameters": scaled}), "rope_parameters.rope_type"),
        (json!({"rope_parameters": {"full_attention": scaled}}), "rope_parameters.full_attention.rope_type"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "sliding_attention": scaled}}),
            "rope_parameters.sliding_attention.rope_type",
        ),
        (
            json!({"rope_theta": 1e4, "rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
            "rope_parameters.full_attention.rope_theta",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"full_attention": scaled}}}),
            "rope_parameters.full_attention.full_attention",
        ),
        (
            json!({"rope_theta": 1e4, "rope_parameters": {"rope_scaling": scaled}}),
            "rope_parameters.rope_scaling",
        ),
        (json!({"rope_parameters": {"default": scaled, "rope_theta": 1e4}}), "rope_parameters.default"),
        (
            json!({"rope_scaling": {"type": "default", "full_attention": {"type": "linear", "factor": 2}}, "rope_theta": 1e4}),
            "rope_scaling.full_attention.rope_type",
        ),
        (json!({"rope_scaling": {"rope_scaling": scaled, "type": "default"}}), "rope_scaling.rope_scaling"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "factor": 4}}), "rope_parameters.factor"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}),
            "rope_parameters.mrope_section",
        ),
        (json!({"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}}), "rope_parameters.rope_theta"),
    ] {
        let message = error(copy(changes.clone()).path());
        assert!(message.contains(&format!("config.json: {field}: found ")), "{changes}: {message}");
    }
}

#[test]
fn a_head_that_differs_from_the_embedding_is_used() {
    let tie = json!({"tie_word_embeddings": true});
    let dir = copy(tie.clone());
    computes(dir.path(), UNTIED, &"tied by the configuration, untied by the file");
    let (loaded, latents) = model::load_to_train(dir.path(), None).unwrap();
    assert!(!loaded.decoder.config.tie_embeddings && !loaded.description.model.tie_embeddings);
    let out = tempfile::tempdir().unwrap();
    model::save(out.path(), &loaded.decoder, &loaded.description, Some(&latents)).unwrap();
    assert!(!hf::read_config(&Bundle::folder(out.path())).unwrap().model.tie_embeddings);
    computes(out.path(), UNTIED, &"saved again");

    // Equal to the embedding it says nothing new, in whatever type it is stored; a little less equal, it does.
    let tied = |edit: fn(&mut Named)| {
        with(tie.clone(), |list| {
            let values = list.iter().find(|t| t.name == EMBEDDING).unwrap().values.clone();
            let head = list.iter_mut().find(|t| t.name == HEAD).unwrap();
            head.values = values;
            edit(head);
        })
    };
    let is_tied = |dir: &Path| ModelFiles::open(dir).unwrap().description.model.tie_embeddings;
    for dir in [
        tied(|_| {}),
        tied(|head| head.dtype = Dtype::F32),
        with(tie.clone(), |list| drop(remove(list, HEAD))),
    ] {
        assert!(is_tied(dir.path()));
        computes(dir.path(), TIED, &"a head equal to the embedding, or none");
    }
    let nearly = tied(|head| {
        head.dtype = Dtype::F32;
        head.values[7] *= 1.001;
    });
    assert!(!is_tied(nearly.path()));

    let message = error(with(json!({}), |list| drop(remove(list, HEAD))).path());
    assert!(message.contains("model.safetensors: tensor \"lm_head.weight\": found nothing"), "{message}");
    let message = error(
        with(tie, |list| list.iter_mut().find(|t| t.name == HEAD).unwrap().shape = vec![24, 48]).path(),
    );
    assert!(message.contains("lm_head.weight") && message.contains("[24, 48]"), "{message}");
}

#[test]
fn tensors_without_a_use_are_named() {
    let layer = "model.layers.1";
    for extra in [
        named(&format!("{layer}.self_attn.q_proj.bias"), &[32], 0.0),
        named(&format!("{layer}.self_attn.bias"), &[24], 0.1),
        named(&format!("{layer}.mlp.down_proj.bias"), &[24], 0.1),
        named("model.layers.2.input_layernorm.weight", &[24], 1.0),
        named("model.layers.01.input_layernorm.weight", &[24], 1.0),
        named(&format!("{layer}.self_attn.q_proj.lora_A.weight"), &[4, 24], 0.1),
        named("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[4, 24], 0.1),
        named(&format!("{layer}.self_attn.q_proj.scales"), &[32, 1], 0.1),
        named(&format!("{layer}.mlp.ffn_sub_norm.weight"), &[40], 1.0),
        named("model.language_model.norm.weight", &[24], 1.0),
        named("score.weight", &[2, 24], 1.0),
        named("lm_head.bias", &[48], 0.1),
        named("v_head.summary.weight", &[1, 24], 1.0),
    ] {
        let name = extra.name.clone();
        let dir = with(json!({}), |list| list.push(extra));
        let message = error(dir.path());
        assert!(
            message.contains(&format!("model.safetensors: tensors: found {name:?}, wanted")),
            "{message}"
        );
        let stored = ModelFiles::open(dir.path()).unwrap();
        assert_eq!(model::unused(&stored).unwrap(), [name]);
    }
    let dir = with(json!({}), |list| list.push(named(&"x".repeat(1 << 20), &[1], 1.0)));
    assert!(error(dir.path()).len() < 800);
    // q and k norms under an architecture that has none, and a layer more than the configuration says.
    let llama = json!({"model_type": "llama", "architectures": null});
    let message = error(copy(llama).path());
    assert!(message.contains("k_norm.weight") && message.contains("and 1 more"), "{message}");
    let message = error(copy(json!({"num_hidden_layers": 1, "layer_types": null})).path());
    assert!(
        message.contains("\"model.layers.1.input_layernorm.weight\"") && message.contains("more"),
        "{message}"
    );
}

#[test]
fn tables_that_follow_from_the_configuration_are_let_through() {
    let names = [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", &[8][..]),
        ("model.rotary_emb.inv_freq", &[8]),
        ("model.layers.1.self_attn.rotary_emb.cos_cached", &[1, 1, 64, 16]),
        ("model.layers.1.self_attn.rotary_emb.sin_cached", &[1, 1, 64, 16]),
        ("model.layers.0.self_attn.bias", &[1, 1, 64, 64]),
        ("model.layers.0.attn.masked_bias", &[]),
    ];
    let dir = with(json!({}), |list| list.extend(names.map(|(name, shape)| named(name, shape, 0.5))));
    computes(dir.path(), UNTIED, &names);
}

#[test]
fn tensors_that_are_missing_are_named_with_what_is_there_instead() {
    let rename = |from: &'static str, to: &'static str| {
        with(json!({}), |list| {
            for t in list {
                t.name = t.name.replacen(from, to, 1);
            }
        })
    };
    for (dir, parts) in [
        (
            rename("model.", "model.language_model."),
            [EMBEDDING, "only \"model.language_model.embed_tokens.weight\""],
        ),
        (rename("model.", ""), [EMBEDDING, "only \"embed_tokens.weight\""]),
        (
            rename("0.mlp.up_proj.weight", "0.mlp.up_proj.qweight"),
            ["\"model.layers.0.mlp.up_proj.weight\"", "only \"model.layers.0.mlp.up_proj.qweight\""],
        ),
        (
            copy(json!({"num_hidden_layers": 3, "layer_types": null})),
            ["\"model.layers.2.input_layernorm.weight\"", "nothing"],
        ),
        (
            copy(json!({"model_type": "qwen2", "architectures": null})),
            ["\"model.layers.0.self_attn.q_proj.bias\"", "only \"model.layers.0.self_attn.q_proj.weight\""],
        ),
    ] {
        let message = error(dir.path());
        assert!(parts.iter().all(|part| message.contains(part)), "{message}: wanted {parts:?}");
    }
}

/// The fixture in two shards, `extra` in the second and not in the index.
fn shards(dir: &Path, extra: Option<Named>) {
    let mut list = tensors();
    let mut second = list.split_off(12);
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = serde_json::Map::new();
    for (file, part) in files.into_iter().zip([&list, &second]) {
        map.extend(part.iter().map(|t| (t.name.clone(), json!(file))));
    }
    fs::write(dir.join(INDEX_NAME), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    second.extend(extra);
    write(dir.join(files[0]), &list);
    write(dir.join(files[1]), &second);
}

#[test]
fn weights_beside_the_weights_are_judged() {
    // In shards alone.
    let dir = copy(json!({}));
    shards(dir.path(), None);
    computes(dir.path(), UNTIED, &"shards that agree with the single file");
    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    computes(dir.path(), UNTIED, &"shards");
    fs::write(dir.path().join("model-00003-of-00003.safetensors"), "").unwrap();
    assert!(
        error(dir.path())
            .contains("model-00003-of-00003.safetensors: file: found a shard that no index lists")
    );

    // More in a shard than its index says.
    let dir = copy(json!({}));
    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    shards(dir.path(), Some(named("model.layers.1.mlp.up_proj.bias", &[40], 0.1)));
    assert!(error(dir.path()).contains("index.json: tensors: found \"model.layers.1.mlp.up_proj.bias\""));

    // Both, and they disagree: in a value, in a name.
    let dir = with(json!({}), |list| list[3].values[0] += 1.0);
    shards(dir.path(), None);
    let message = error(dir.path());
    assert!(
        message.contains("index.json: tensor \"model.layers.0.mlp.down_proj.weight\": found not what"),
        "{message}"
    );
    let dir = copy(json!({}));
    shards(dir.path(), Some(named("x", &[1], 0.0)));
    assert!(error(dir.path()).contains("index.json: tensor \"x\": found not what model.safetensors holds"));

    // An index whose shards are gone, and formats that the reference implementation passes over, too.
    let dir = copy(json!({}));
    shards(dir.path(), None);
    for i in 1..3 {
        fs::remove_file(dir.path().join(format!("model-0000{i}-of-00002.safetensors"))).unwrap();
    }
    for name in ["pytorch_model.bin", "consolidated.safetensors", "optimizer.safetensors", "tf_model.h5"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    computes(dir.path(), UNTIED, &"other formats");
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), "").unwrap();
    assert!(error(dir.path()).contains("model-00001-of-00002.safetensors"));

    for name in ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"] {
        let dir = copy(json!({}));
        fs::write(dir.path().join(name), "{}").unwrap();
        let message = error(dir.path());
        assert!(
            message.contains(&format!("{name}: file: found an adapter")) && message.contains("merge"),
            "{message}"
        );
    }
    for (name, part) in [("pytorch_model.bin", "save_pretrained"), ("model.gguf", "wanted model.safetensors")]
    {
        let dir = copy(json!({}));
        fs::rename(dir.path().join(FILE_NAME), dir.path().join(name)).unwrap();
        let message = error(dir.path());
        assert!(message.contains(&format!("weights: found {name:?}")) && message.contains(part), "{message}");
    }
}

#[test]
fn a_claim_names_the_matrices_of_its_scope() {
    let ternary =
        TernaryConfig { scope: Scope::Blocks, group: Grouping::Size(8), ..TernaryConfig::default() };
    let (made, latents) = model::load_to_train(&common::fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    for (form, edit, found) in [
        (Form::Unpacked, "model.layers.9.mlp.up_proj.weight", "\"model.layers.9.mlp.up_proj.weight\""),
        (Form::Latent, "model.norm.weight", "\"model.norm.weight\""),
        (Form::Unpacked, EMBEDDING, "\"model.embed_tokens.weight\""),
        (Form::Unpacked, "", "no \"model.layers.1.mlp.down_proj.weight\""),
        (Form::Latent, "twice", "\"model.layers.0.self_attn.q_proj.weight\" twice"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let stored = (form == Form::Latent).then_some(&latents);
        model::save(dir.path(), &made.decoder, &made.description, stored).unwrap();
        assert!(verify(dir.path(), &mut |_| {}).unwrap().pass);
        let file = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let claimed = config["ternlm"]["tensors"].as_array_mut().unwrap();
        match edit {
            "" => drop(claimed.pop()),
            "twice" => claimed.push(claimed[0].clone()),
            name => claimed.push(json!(name)),
        }
        fs::write(&file, config.to_string()).unwrap();
        let message = error(dir.path());
        assert!(message.contains(&format!("config.json: ternlm.tensors: found {found}")), "{message}");
        config["ternlm"]["rounding"] = json!("up");
        fs::write(&file, config.to_string()).unwrap();
        assert!(error(dir.path()).contains("config.json: ternlm.rounding: found an unknown field"));
    }
}

#[test]
fn the_proof_names_tensors_that_the_model_does_not_use() {
    let ternary = TernaryConfig { group: Grouping::Size(8), ..TernaryConfig::default() };
    let (made, latents) = model::load_to_train(&common::fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model::save(dir.path(), &made.decoder, &made.description, Some(&latents)).unwrap();
    let file = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    // Files, manifest and claim agree about a layer that the configuration leaves out.
    config["num_hidden_layers"] = json!(1);
    config["layer_types"] = json!(null);
    fs::write(&file, config.to_string()).unwrap();
    let proof = verify(dir.path(), &mut |_| {}).unwrap();
    let reason = "model.layers.1.mlp.up_proj.weight is in the file but not in the model";
    assert!(!proof.pass && proof.reasons.iter().any(|r| r == reason), "{:?}", proof.reasons);
    assert!(proof.tensors.iter().all(|t| t.pass));
    config["num_hidden_layers"] = json!(3);
    fs::write(&file, config.to_string()).unwrap();
    let proof = verify(dir.path(), &mut |_| {}).unwrap();
    assert!(!proof.pass && proof.reasons[0].contains("model.layers.2."), "{:?}", proof.reasons);
}

/// Configuration, manifest and tokenizer do not depend on where the small files lie.
#[test]
fn small_files_embedded_in_one_file_say_the_same() {
    let ternary = TernaryConfig { group: Grouping::Size(8), ..TernaryConfig::default() };
    let made = model::load(&common::fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model::save(dir.path(), &made.decoder, &made.description, None).unwrap();
    Tokenizer::bytes().save(dir.path()).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let folder = Bundle::folder(dir.path());
    let read = |name: &str| (name.to_string(), folder.need(name, 1 << 20).unwrap());
    let small = [
        "config.json",
        "generation_config.json",
        "ternary.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    let embedded = |names: &[&str]| Bundle::within("x/model.tern", names.iter().map(|n| read(n)).collect());

    let one = embedded(&small);
    assert_eq!(hf::read_config(&one).unwrap(), hf::read_config(&folder).unwrap());
    assert_eq!(Manifest::read(&one).unwrap(), Manifest::read(&folder).unwrap());
    let [a, b] = [&one, &folder].map(|files| Tokenizer::of(files).unwrap());
    assert_eq!((a.fingerprint(), a.stop_ids(), a.config()), (b.fingerprint(), b.stop_ids(), b.config()));
    let template = Some(("{{ messages }}", Path::new("x/model.tern: chat_template.jinja")));
    assert_eq!((a.name(), a.chat_template_file()), ("x/model.tern: tokenizer.json".into(), template));

    let none = embedded(&[]);
    let errors = [
        hf::read_config(&none).map(drop).unwrap_err(),
        Manifest::read(&none).map(drop).unwrap_err(),
        Tokenizer::of(&none).map(drop).unwrap_err(),
    ];
    for (error, name) in errors.iter().zip(["config.json", "ternary.json", "tokenizer.json"]) {
        let message = error.to_string();
        assert!(message.starts_with(&format!("cannot read x/model.tern: {name}: ")), "{message}");
    }
}

/// Trits arrive as trits, and as weights where these are asked for.
#[test]
fn what_is_ternary_is_handed_over_so() {
    let ternary =
        TernaryConfig { scope: Scope::Blocks, group: Grouping::Size(8), ..TernaryConfig::default() };
    let (made, latents) = model::load_to_train(&common::fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    for form in [Form::Unpacked, Form::Latent] {
        let dir = tempfile::tempdir().unwrap();
        let stored = (form == Form::Latent).then_some(&latents);
        model::save(dir.path(), &made.decoder, &made.description, stored).unwrap();
        let files = ModelFiles::open(dir.path()).unwrap();
        for weight in made.decoder.weights() {
            match (files.tensor(&weight.name).unwrap(), weight.ternary()) {
                (Stored::Trits(trits), Some(matrix)) => {
                    assert_eq!((form, trits.grouping), (Form::Unpacked, Grouping::Size(8)));
                    assert_eq!(&trits.matrix(matrix.rows(), matrix.cols()).unwrap(), matrix);
                    let (mut row, mut all) = (vec![0.0; matrix.cols()], vec![1.0; weight.len()]);
                    Stored::Trits(trits).read_f32_into(&weight.shape, &mut all).unwrap();
                    for (at, values) in all.chunks(matrix.cols()).enumerate() {
                        matrix.unpack_row(at, &mut row);
                        assert_eq!(values, row);
                    }
                }
                (Stored::Values(_), matrix) => assert!(form == Form::Latent || matrix.is_none()),
                (Stored::Trits(_), None) => panic!("{} is no claim", weight.name),
                (Stored::Blocks(_), _) => panic!("{} is in no GGUF file", weight.name),
            }
        }
    }
}

#[test]
fn a_tokenizer_in_another_form_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Tokenizer::open(dir.path().to_str().unwrap()).map_err(|error| error.to_string());
    assert!(open().unwrap_err().contains("cannot read"));
    fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    let message = open().unwrap_err();
    let parts =
        ["tokenizer.json: found only tokenizer.model (SentencePiece)", "AutoTokenizer", "save_pretrained"];
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    Tokenizer::bytes().save(dir.path()).unwrap();
    open().unwrap();
}

#[test]
fn the_program_says_what_it_found() {
    let run = |args: &[&str]| {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_ternlm"))
            .args(args)
            .env_remove("TERNLM_LOG")
            .output();
        let out = out.unwrap();
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let dir = with(json!({}), |list| list.push(named("score.weight", &[2, 24], 1.0)));
    let path = dir.path().to_str().unwrap();
    let info: Value = serde_json::from_str(&run(&["info", path, "--json"]).0).unwrap();
    assert_eq!(info["model"]["unused"], json!(["score.weight"]));
    assert!(run(&["info", path]).0.contains("\nNot used by the model: score.weight\n"));

    // The model has fewer rows than there are bytes, which is judged after its weights.
    let dir = copy(json!({"tie_word_embeddings": true}));
    let path = dir.path().to_str().unwrap();
    let generate = ["generate", path, "--prompt", "x", "--max-tokens", "1"];
    assert!(run(&generate).1.contains("tokenizer.json: found nothing"));
    fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    assert!(run(&generate).1.contains("tokenizer.json: found only tokenizer.model"));
    Tokenizer::bytes().save(dir.path()).unwrap();
    let said = run(&generate).1;
    assert_eq!(said.matches("tie_word_embeddings is true, but lm_head.weight").count(), 1, "{said}");

    // A training that starts from it records what it trains.
    let (text, out) = (dir.path().join("signs.txt"), dir.path().join("run"));
    fs::write(&text, "! \" # $ % & + , - . ".repeat(40)).unwrap();
    let [text, out] = [&text, &out].map(|path| path.to_str().unwrap());
    let short = ["--set", "train.seq=8", "--set", "train.steps=1", "--set", "report.prompts=[]"];
    let train =
        [&["train", "qwen3-0.6b-blocks", "--init", path, "--data", text, "--out", out], &short[..]].concat();
    let said = run(&train);
    let recorded = fs::read_to_string(dir.path().join("run/recipe.toml")).unwrap_or_default();
    assert!(recorded.contains("tie_embeddings = false"), "{said:?}");
}
