//! From JSON to [`HfConfig`].

use serde_json::Value;
use std::path::Path;

use super::{Architecture, FILE_NAME, GENERATION_NAME, HfConfig, NOTE_FORMAT, TernaryNote};
use crate::config::{Activation, ModelConfig};
use crate::error::{Error, Result};
use crate::formats::json::{self, Fields, as_f32, as_size, as_type};

/// Reads `config.json` in `folder`, and `generation_config.json` when it is there.
///
/// # Errors
/// A lacking or impossible value; a setting that changes the function and is not supported (a scaled rope, a sliding
/// window, biases, another activation, another tool's packed weights).
pub fn read_config(folder: impl AsRef<Path>) -> Result<HfConfig> {
    let [file, generation_file] = [FILE_NAME, GENERATION_NAME].map(|name| folder.as_ref().join(name));
    let raw = json::read_object(&file)?;
    let f = Fields::new(&file, &raw);
    let architecture = f.need("model_type", Architecture::NAMES, |v| Architecture::from_name(v.as_str()?))?;
    refuse_unsupported(&f, architecture)?;
    let model = model(&f, architecture)?;
    model.validate(&file).map_err(in_their_words)?;

    let mut eos = token_ids(&f, "eos_token_id", &model)?;
    let mut bos = token_ids(&f, "bos_token_id", &model)?;
    let ternary = note(&f)?;
    let generation =
        if generation_file.exists() { json::read_object(&generation_file)? } else { Default::default() };
    let g = Fields::new(&generation_file, &generation);
    for id in token_ids(&g, "eos_token_id", &model)? {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    bos.extend(token_ids(&g, "bos_token_id", &model)?);
    Ok(HfConfig { model, ternary, eos, bos: bos.first().copied(), raw, generation })
}

fn model(f: &Fields<'_>, architecture: Architecture) -> Result<ModelConfig> {
    use Architecture::*;
    let [hidden_size, heads] = [f.size("hidden_size")?, f.size("num_attention_heads")?];
    let head_dim = match f.maybe("head_dim", "a whole number", as_size)? {
        Some(head_dim) => head_dim,
        // The reference implementation's own default.
        None if architecture == Qwen3 => 128,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let wanted = format!("a number, as hidden_size {hidden_size} is no multiple of {heads} heads");
            return Err(f.bad("head_dim", "nothing", wanted));
        }
    };
    let ours = |key| if architecture == Ternlm { f.flag(key) } else { Ok(None) };
    let activation = match architecture {
        Ternlm => f.maybe("ffn", "\"swiglu\", \"gelu\" or \"relu2\"", as_type)?,
        _ => None,
    };
    Ok(ModelConfig {
        vocab_size: f.size("vocab_size")?,
        hidden_size,
        layers: f.size("num_hidden_layers")?,
        heads,
        kv_heads: f.maybe("num_key_value_heads", "a whole number", as_size)?.unwrap_or(heads),
        head_dim,
        intermediate_size: f.size("intermediate_size")?,
        activation: activation.unwrap_or(Activation::SwiGlu),
        qk_norm: ours("qk_norm")?.unwrap_or(architecture == Qwen3),
        qkv_bias: ours("qkv_bias")?.unwrap_or(architecture == Qwen2),
        causal: ours("causal")?.unwrap_or(true),
        tie_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(false),
        rope_theta: rope_theta(f, architecture)?,
        rms_norm_eps: f.maybe("rms_norm_eps", "a number", as_f32)?.unwrap_or(1e-6),
        max_positions: f.size("max_position_embeddings")?,
    })
}

/// From the released form (`rope_theta`, `rope_scaling`) or the nested one (`rope_parameters`).
fn rope_theta(f: &Fields<'_>, architecture: Architecture) -> Result<f32> {
    let mut theta = f.maybe("rope_theta", "a number", as_f32)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = f.object(key)? else { continue };
        for kind in ["rope_type", "type"] {
            rope.maybe(kind, "\"default\": a scaled rope is not supported", |v| {
                (v == "default").then_some(())
            })?;
        }
        only_whole_rotation(&rope)?;
        if key == "rope_scaling" {
            if rope.get("rope_type").or(rope.get("type")).is_none() {
                return Err(f.bad(key, "an object without rope_type", "null, or rope_type \"default\""));
            }
            continue;
        }
        let nested = rope.maybe("rope_theta", "a number", as_f32)?;
        if let (Some(nested), Some(theta)) = (nested, theta)
            && nested != theta
        {
            return Err(rope.bad("rope_theta", nested, format!("rope_theta's {theta}")));
        }
        theta = theta.or(nested);
    }
    match theta {
        Some(theta) => Ok(theta),
        // LLaMA files older than the key.
        None if architecture == Architecture::Llama => Ok(10_000.0),
        None => Err(f.bad("rope_theta", "nothing", "a number, here or in rope_parameters")),
    }
}

fn only_whole_rotation(f: &Fields<'_>) -> Result<()> {
    let whole = |v: &Value| (v.as_f64() == Some(1.0)).then_some(());
    f.maybe("partial_rotary_factor", "1: a partial rope is not supported", whole).map(|_| ())
}

fn refuse_unsupported(f: &Fields<'_>, architecture: Architecture) -> Result<()> {
    for key in ["attention_bias", "mlp_bias"] {
        if f.flag(key)? == Some(true) {
            return Err(f.bad(key, true, "false: these biases are not supported"));
        }
    }
    only_whole_rotation(f)?;
    if architecture != Architecture::Ternlm {
        let silu = |v: &Value| matches!(v.as_str()?, "silu" | "swish").then_some(());
        f.maybe("hidden_act", "\"silu\"", silu)?;
    }
    for key in ["quantization_config", "quantization"] {
        if f.get(key).is_some() {
            return Err(f.bad(key, "an object", "null: weights packed by another tool are not read"));
        }
    }
    refuse_sliding_window(f, architecture)
}

/// A window as long as the longest sequence is no window.
fn refuse_sliding_window(f: &Fields<'_>, architecture: Architecture) -> Result<()> {
    let whole = "full attention: a sliding window is not supported";
    let layer_types = f.maybe("layer_types", "a list", Value::as_array)?;
    if let Some(other) = layer_types.into_iter().flatten().find(|&kind| kind != "full_attention") {
        return Err(f.bad("layer_types", json::brief(other), whole));
    }
    let longest = f.size("max_position_embeddings")?;
    let window = f.maybe("sliding_window", "null or a whole number", as_size)?;
    let window = match architecture {
        Architecture::Qwen3 | Architecture::Qwen2 if f.flag("use_sliding_window")? == Some(true) => window,
        Architecture::Qwen3 | Architecture::Qwen2 => None,
        // The reference implementation's default where the key is absent altogether.
        Architecture::Mistral if !f.map.contains_key("sliding_window") => Some(4096),
        _ => window,
    };
    match window {
        Some(window) if window < longest => Err(f.bad("sliding_window", window, whole)),
        _ => Ok(()),
    }
}

/// One id, a list of ids, or none.
fn token_ids(f: &Fields<'_>, key: &str, model: &ModelConfig) -> Result<Vec<u32>> {
    let id = |v: &Value| u32::try_from(v.as_u64()?).ok().filter(|&id| (id as usize) < model.vocab_size);
    let ids = |v: &Value| match v {
        Value::Array(list) => list.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    let wanted = format!("token ids below {}", model.vocab_size);
    Ok(f.maybe(key, &wanted, ids)?.unwrap_or_default())
}

fn note(f: &Fields<'_>) -> Result<Option<TernaryNote>> {
    let Some(note) = f.object("ternlm")? else { return Ok(None) };
    let format = |v: &Value| v.as_u64().filter(|&n| n == u64::from(NOTE_FORMAT));
    note.need("format", &NOTE_FORMAT.to_string(), format)?;
    let names = |v: &Value| v.as_array()?.iter().map(|name| Some(name.as_str()?.to_string())).collect();
    Ok(Some(TernaryNote {
        format: NOTE_FORMAT,
        form: note.need("form", "\"latent\" or \"unpacked\"", as_type)?,
        scope: note.need("scope", "\"none\", \"blocks\" or \"all\"", as_type)?,
        group: note.need("group", "a number, 1 or more, or \"tensor\"", as_type)?,
        activations: note.maybe("activations", "\"f32\" or \"int8\"", as_type)?.unwrap_or_default(),
        tensors: note.need("tensors", "a list of names", names)?,
    }))
}

/// [`ModelConfig::validate`] speaks of our fields; the file has Hugging Face's.
fn in_their_words(error: Error) -> Error {
    match error {
        Error::Input { file, field, found, wanted } => {
            let field = match field.as_str() {
                "layers" => "num_hidden_layers",
                "heads" => "num_attention_heads",
                "kv_heads" => "num_key_value_heads",
                "max_positions" => "max_position_embeddings",
                same => same,
            };
            Error::Input { file, field: field.into(), found, wanted }
        }
        other => other,
    }
}
