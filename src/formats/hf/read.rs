//! From JSON to [`Description`].

use serde_json::{Map, Value};
use std::collections::HashSet;

use super::{Architecture, FILE_NAME, GENERATION_NAME, packing, refuse, rope};
use crate::config::{Activation, ModelConfig};
use crate::error::{Error, Result};
use crate::files::Bundle;
use crate::formats::description::{Description, Kept, NOTE_FORMAT, TernaryNote};
use crate::formats::json::{self, Fields, as_f32, as_size, as_type};
use crate::formats::{Form, any_of, quoted};

/// Reads `config.json` among `files`, and `generation_config.json` when it is there.
///
/// # Errors
/// A lacking or impossible value; a setting that changes the function and is not supported (a partial rope, a sliding
/// window, another activation, factors, soft caps, experts, another tool's packed weights, code of its own); an
/// unknown key in the rotation's settings or in the key `ternlm`.
pub fn read_config(files: &Bundle) -> Result<Description> {
    let [file, generation_file] = [FILE_NAME, GENERATION_NAME].map(|name| files.path_of(name));
    let config = json::parse_object(&file, &files.need(FILE_NAME, json::MAX_BYTES)?)?;
    let f = Fields::new(&file, &config);
    let known = |v: &Value| Architecture::from_name(v.as_str()?);
    let architecture = f.need("model_type", &Architecture::names(), known)?;
    let packing = packing::read(&f)?;
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
        packing,
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
    if architecture == Bitnet && heads.checked_mul(head_dim) != Some(hidden_size) {
        // The norm of attention's output is as wide as the residual stream.
        return Err(f.bad("head_dim", head_dim, format!("hidden_size {hidden_size} over {heads} heads")));
    }
    let ours = |key| if architecture == Ternlm { f.flag(key) } else { Ok(None) };
    let usual = if architecture == Bitnet { Activation::Relu2Glu } else { Activation::SwiGlu };
    let activation = match architecture {
        Ternlm => f.maybe("ffn", "\"swiglu\", \"relu2glu\", \"gelu\" or \"relu2\"", as_type)?,
        _ => f.maybe("ffn", "nothing", |v| (as_type(v) == Some(usual)).then_some(usual))?,
    };
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    let (rope_theta, rope_scaling) = rope::read(f, architecture)?;
    // The reference implementation's own default.
    let usual_eps = if architecture == Bitnet { 1e-5 } else { 1e-6 };
    Ok(ModelConfig {
        vocab_size: f.size("vocab_size")?,
        hidden_size,
        layers: f.size("num_hidden_layers")?,
        heads,
        kv_heads: f.maybe("num_key_value_heads", "a whole number", as_size)?.unwrap_or(heads),
        head_dim,
        intermediate_size: f.size("intermediate_size")?,
        activation: activation.unwrap_or(usual),
        qk_norm: ours("qk_norm")?.unwrap_or(architecture == Qwen3),
        qkv_bias: ours("qkv_bias")?.unwrap_or(architecture == Qwen2 || attention_bias),
        o_bias: ours("o_bias")?.unwrap_or(attention_bias),
        mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
        sub_norm: ours("sub_norm")?.unwrap_or(architecture == Bitnet),
        causal: ours("causal")?.unwrap_or(true),
        tie_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(false),
        rope_theta,
        rms_norm_eps: f.maybe("rms_norm_eps", "a number", as_f32)?.unwrap_or(usual_eps),
        max_positions: f.size("max_position_embeddings")?,
        rope_scaling,
    })
}

fn refuse_unsupported(f: &Fields<'_>, architecture: Architecture) -> Result<()> {
    use Architecture::*;
    for (key, theirs) in [("attention_bias", &[Llama, Qwen3, Bitnet][..]), ("mlp_bias", &[Llama, Ternlm])] {
        if f.flag(key)? == Some(true) && !theirs.contains(&architecture) {
            return Err(f.bad(key, true, "false: the architecture has no such biases"));
        }
    }
    rope::only_whole_rotation(f)?;
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
            if some { window.or(absent.then_some(4096)) } else { None }
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
        form: note.need("form", &any_of(Form::ALL), as_type)?,
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
                "rope_scaling.original_max_positions" => "rope_scaling.original_max_position_embeddings",
                same => same,
            };
            Error::Input { file, field: field.into(), found, wanted }
        }
        other => other,
    }
}
