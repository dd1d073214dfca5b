//! From JSON to [`Description`].

use serde_json::{Map, Value};
use std::collections::HashSet;

use super::{Architecture, FILE_NAME, GENERATION_NAME, refuse};
use crate::config::{Activation, ModelConfig};
use crate::error::{Error, Result};
use crate::files::Bundle;
use crate::formats::description::{Description, Kept, NOTE_FORMAT, TernaryNote};
use crate::formats::json::{self, Fields, as_f32, as_size, as_type};
use crate::formats::quoted;

/// Reads `config.json` among `files`, and `generation_config.json` when it is there.
///
/// # Errors
/// A lacking or impossible value; a setting that changes the function and is not supported (a scaled rope, a sliding
/// window, biases, another activation, factors, soft caps, experts, another tool's packed weights, code of its own); an
/// unknown key in the rotation's settings or in the key `ternlm`.
pub fn read_config(files: &Bundle) -> Result<Description> {
    let [file, generation_file] = [FILE_NAME, GENERATION_NAME].map(|name| files.path_of(name));
    let config = json::parse_object(&file, &files.need(FILE_NAME, json::MAX_BYTES)?)?;
    let f = Fields::new(&file, &config);
    let architecture = f.need("model_type", Architecture::NAMES, |v| Architecture::from_name(v.as_str()?))?;
    refuse::other_models(&f, architecture)?;
    refuse_unsupported(&f, architecture)?;
    let model = model(&f, architecture)?;
    model.validate(&file).map_err(in_their_words)?;
    refuse::settings(&f, &model)?;

    let mut eos = token_ids(&f, "eos_token_id", &model)?;
    let mut bos = token_ids(&f, "bos_token_id", &model)?;
    let ternary = note(&f)?;
    let generation = match files.read(GENERATION_NAME, json::MAX_BYTES)? {
        Some(text) => json::parse_object(&generation_file, &text)?,
        None => Map::new(),
    };
    let g = Fields::new(&generation_file, &generation);
    for id in token_ids(&g, "eos_token_id", &model)? {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    bos.extend(token_ids(&g, "bos_token_id", &model)?);
    Ok(Description {
        said_tied: model.tie_embeddings,
        model,
        ternary,
        eos,
        bos: bos.first().copied(),
        architecture: architecture.name(),
        kept: Kept { config, generation },
    })
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
        _ => f.maybe("ffn", "\"swiglu\"", |v| (v == "swiglu").then_some(Activation::SwiGlu))?,
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
        // An empty object is none, as in the reference implementation.
        let Some(rope) = f.object(key)?.filter(|rope| !rope.map.is_empty()) else { continue };
        let typed = rope.get("rope_type").or(rope.get("type")).is_some();
        let by_layer = LAYER_TYPES.iter().any(|kind| rope.get(kind).is_some());
        if key == "rope_scaling" && !typed && !by_layer {
            return Err(f.bad(key, "an object without rope_type", "null, or rope_type \"default\""));
        }
        plain_rotation(&rope, &mut theta, true)?;
    }
    match theta {
        Some(theta) => Ok(theta),
        // LLaMA files older than the key.
        None if architecture == Architecture::Llama => Ok(10_000.0),
        None => Err(f.bad("rope_theta", "nothing", "a number, here or in rope_parameters")),
    }
}

/// Keys of the scaled rotations, which do nothing beside `rope_type` "default".
const OF_SCALED: &[&str] = &[
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    // Of YaRN before it was in Hugging Face's library.
    "attn_factor",
    "extrapolation_factor",
    "finetuned",
];

/// Kinds of layers that may have rotations of their own, one level deeper.
const LAYER_TYPES: &[&str] = &["full_attention", "sliding_attention", "chunked_attention"];

/// Judges an object of rotary settings. `theta` is what was read so far: every place that states it must agree.
fn plain_rotation(rope: &Fields<'_>, theta: &mut Option<f32>, by_layer: bool) -> Result<()> {
    for kind in ["rope_type", "type"] {
        rope.maybe(kind, "\"default\": a scaled rope is not supported", |v| (v == "default").then_some(()))?;
    }
    let typed = rope.get("rope_type").or(rope.get("type")).is_some();
    only_whole_rotation(rope)?;
    let here = rope.maybe("rope_theta", "a number", as_f32)?;
    if let (Some(here), Some(theta)) = (here, *theta)
        && here != theta
    {
        return Err(rope.bad("rope_theta", here, format!("rope_theta's {theta}")));
    }
    *theta = theta.or(here);
    for (key, value) in rope.map.iter().filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            "rope_type" | "type" | "rope_theta" | "partial_rotary_factor" => {}
            of_scaled if OF_SCALED.contains(&of_scaled) => {
                if !typed {
                    return Err(rope.bad(key, json::brief(value), "rope_type \"default\" beside it"));
                }
            }
            layer if by_layer && LAYER_TYPES.contains(&layer) => {
                if let Some(rope) = rope.object(layer)? {
                    plain_rotation(&rope, theta, false)?;
                }
            }
            _ => return Err(rope.bad(key, "an unknown field", "rope_theta and rope_type \"default\"")),
        }
    }
    Ok(())
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
    refuse_sliding_window(f, architecture)
}

/// A window as long as the longest sequence is no window.
fn refuse_sliding_window(f: &Fields<'_>, architecture: Architecture) -> Result<()> {
    let whole = "full attention: a sliding window is not supported";
    let layer_types = f.maybe("layer_types", "a list", Value::as_array)?;
    if let Some(other) = layer_types.into_iter().flatten().find(|&kind| kind != "full_attention") {
        return Err(f.bad("layer_types", json::brief(other), whole));
    }
    let layers = f.size("num_hidden_layers")?;
    if let Some(list) = layer_types.filter(|list| list.len() != layers) {
        return Err(f.bad("layer_types", format!("a list of {}", list.len()), format!("{layers} layers")));
    }
    let longest = f.size("max_position_embeddings")?;
    let window = f.maybe("sliding_window", "null or a whole number", as_size)?;
    let absent = !f.map.contains_key("sliding_window");
    let window = match architecture {
        Architecture::Qwen3 | Architecture::Qwen2 if f.flag("use_sliding_window")? == Some(true) => {
            // The reference implementation's defaults. Layers before the first windowed one see everything.
            let first = f.maybe("max_window_layers", "a whole number", as_size)?.unwrap_or(28);
            let some = layer_types.is_none() && layers > first;
            window.or((absent && some).then_some(4096))
        }
        Architecture::Qwen3 | Architecture::Qwen2 => None,
        // The reference implementation's default where the key is absent altogether.
        Architecture::Mistral if absent => Some(4096),
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
    note.only(&["format", "form", "scope", "group", "activations", "tensors"])?;
    let format = |v: &Value| v.as_u64().filter(|&n| n == u64::from(NOTE_FORMAT));
    note.need("format", &NOTE_FORMAT.to_string(), format)?;
    let names = |v: &Value| v.as_array()?.iter().map(|name| Some(name.as_str()?.to_string())).collect();
    let tensors: Vec<String> = note.need("tensors", "a list of names", names)?;
    let mut seen = HashSet::new();
    if let Some(twice) = tensors.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(note.bad("tensors", format!("{} twice", quoted(twice)), "every name once"));
    }
    Ok(Some(TernaryNote {
        format: NOTE_FORMAT,
        form: note.need("form", "\"latent\" or \"unpacked\"", as_type)?,
        scope: note.need("scope", "\"none\", \"blocks\" or \"all\"", as_type)?,
        group: note.need("group", "a number, 1 or more, or \"tensor\"", as_type)?,
        activations: note.maybe("activations", "\"f32\" or \"int8\"", as_type)?.unwrap_or_default(),
        tensors,
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
