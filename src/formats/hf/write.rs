//! From [`Description`] to JSON.

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::path::Path;

use super::{Architecture, FILE_NAME, GENERATION_NAME, packing, refuse, rope};
use crate::error::Result;
use crate::files;
use crate::formats::Description;

/// Writes `config.json`, in the form that released models have, and `generation_config.json` into `folder`. `stored` is
/// the dtype of the weights: F32, F16 or BF16. Unknown keys of a configuration that was read are kept.
pub fn write_config(folder: impl AsRef<Path>, config: &Description, stored: Dtype) -> Result<()> {
    for (name, text) in config_files(config, stored) {
        files::write_bytes(folder.as_ref().join(name), &text)?;
    }
    Ok(())
}

/// What [`write_config`] writes, by name.
pub fn config_files(config: &Description, stored: Dtype) -> [(&'static str, Vec<u8>); 2] {
    let mut generation = config.kept.generation.clone();
    set_tokens(&mut generation, config);
    let config = files::json_text(&config_json(config, stored));
    [(FILE_NAME, config), (GENERATION_NAME, files::json_text(&generation))]
}

fn config_json(config: &Description, stored: Dtype) -> Map<String, Value> {
    let m = &config.model;
    let mut json = config.kept.config.clone();
    let architecture = Architecture::of(m, Architecture::from_name(config.architecture));
    // Said by the released form's keys below, where they apply; two spellings could disagree.
    for key in ["rope_parameters", "dtype", "ternlm", "quantization", "quantization_config"] {
        json.shift_remove(key);
    }
    let torch_dtype = match stored {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        other => panic!("weights are stored as F32, F16 or BF16, not {other}"),
    };
    let known = [
        ("architectures", json!([architecture.class()])),
        ("model_type", json!(architecture.name())),
        ("vocab_size", json!(m.vocab_size)),
        ("hidden_size", json!(m.hidden_size)),
        ("num_hidden_layers", json!(m.layers)),
        ("num_attention_heads", json!(m.heads)),
        ("num_key_value_heads", json!(m.kv_heads)),
        ("head_dim", json!(m.head_dim)),
        ("intermediate_size", json!(m.intermediate_size)),
        ("hidden_act", json!(refuse::names(m.activation)[0])),
        ("max_position_embeddings", json!(m.max_positions)),
        ("rms_norm_eps", shortest(m.rms_norm_eps)),
        ("rope_theta", shortest(m.rope_theta)),
        ("rope_scaling", m.rope_scaling.as_ref().map_or(Value::Null, rope::rope_scaling)),
        ("tie_word_embeddings", json!(m.tie_embeddings)),
        ("torch_dtype", json!(torch_dtype)),
    ];
    json.extend(known.map(|(key, value)| (key.to_string(), value)));
    let extra = match architecture {
        Architecture::Ternlm => vec![
            ("ffn", json!(m.activation)),
            ("causal", json!(m.causal)),
            ("qk_norm", json!(m.qk_norm)),
            ("qkv_bias", json!(m.qkv_bias)),
            ("o_bias", json!(m.o_bias)),
            ("mlp_bias", json!(m.mlp_bias)),
            ("sub_norm", json!(m.sub_norm)),
        ],
        // An absent key would mean a window of 4096.
        Architecture::Mistral => vec![("sliding_window", Value::Null)],
        Architecture::Qwen3 | Architecture::Bitnet => vec![("attention_bias", json!(m.o_bias))],
        Architecture::Llama => vec![("attention_bias", json!(m.o_bias)), ("mlp_bias", json!(m.mlp_bias))],
        Architecture::Qwen2 => vec![],
    };
    // A key that is written again keeps its place, so that a second writing gives the same bytes.
    for key in ["attention_bias", "mlp_bias"] {
        if extra.iter().all(|(written, _)| *written != key) {
            json.shift_remove(key);
        }
    }
    json.extend(extra.into_iter().map(|(key, value)| (key.to_string(), value)));
    set_tokens(&mut json, config);
    if let Some(note) = &config.ternary {
        json.insert("ternlm".into(), json!(note));
    }
    json.extend(packing::written(config.packing.as_ref()));
    json
}

/// `null` where unknown: an absent key would mean an architecture's own default.
fn set_tokens(json: &mut Map<String, Value>, config: &Description) {
    let eos = match config.eos.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    json.insert("bos_token_id".into(), json!(config.bos));
    json.insert("eos_token_id".into(), eos);
}

/// The shortest decimal that reads back as this f32: 1e-6, not 9.999999974752427e-7.
fn shortest(x: f32) -> Value {
    json!(x.to_string().parse::<f64>().expect("a float's own text"))
}
