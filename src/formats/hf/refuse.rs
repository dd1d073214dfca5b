//! Settings that change the function in a way that is not supported.
//!
//! A configuration carries many keys that say nothing about the function, so an unknown key is no error. Those here are
//! what relatives of our architectures compute differently; each is refused unless its value does nothing.

use serde_json::Value;

use super::Architecture;
use crate::config::{Activation, ModelConfig};
use crate::error::Result;
use crate::formats::json::{self, Fields, as_size};

/// The value, besides `null`, at which a setting does nothing.
#[derive(Clone, Copy)]
enum Idle {
    /// `false`, 0, or empty.
    Off,
    On,
    /// 1, or a list of ones.
    One,
    /// A dense network: at most one expert.
    OneExpert,
    /// The model's own value of the same thing.
    Causal,
    QkNorm,
    QkvBias,
    Activation,
    HeadDim,
    HiddenSize,
    RopeTheta,
    /// The factor of the attention scores, `head_dim^-1/2`.
    ScoreScale,
    /// At least the longest sequence; also 0 or less.
    Window,
    /// Bits of weights that are not quantised.
    FullBits,
    RmsNorm,
    Rope,
    DenseLayers,
}

use Idle::*;

/// By what they change, with the models that have them where the name does not say it.
const SETTINGS: &[(&str, Idle)] = &[
    // Factors of embedding, residual stream, attention and logits: Granite, MiniCPM, Cohere, Falcon-H1, Grok.
    ("logit_scale", One),
    ("logit_scaling", One),
    ("logits_scale", One),
    ("logits_scaling", One),
    ("logit_multiplier", One),
    ("lm_head_multiplier", One),
    ("output_scale", One),
    ("output_multiplier_scale", One),
    ("embedding_multiplier", One),
    ("embedding_multiplier_scale", One),
    ("embedding_scale", One),
    ("embed_scale", One),
    ("emb_scale", One),
    ("scale_emb", One),
    ("residual_multiplier", One),
    ("residual_scale", One),
    ("residual_scaling", One),
    ("key_multiplier", One),
    ("attention_in_multiplier", One),
    ("attention_out_multiplier", One),
    ("attn_output_multiplier", One),
    ("mlp_multipliers", One),
    ("scale_depth", Off),
    ("dim_model_base", HiddenSize),
    ("use_mup", Off),
    ("mup_enabled", Off),
    ("scale_embedding", Off),
    ("scale_embeddings", Off),
    ("normalize_embedding", Off),
    ("normalize_embeddings", Off),
    ("attention_multiplier", ScoreScale),
    ("attention_scale", ScoreScale),
    ("attn_scale", ScoreScale),
    ("softmax_scale", ScoreScale),
    ("query_pre_attn_scalar", HeadDim),
    ("scale_attn_weights", On),
    ("scale_attn_by_inverse_layer_idx", Off),
    ("attn_temperature_tuning", Off),
    ("use_logn_attn", Off),
    ("clip_qkv", Off),
    // The mask.
    ("causal", Causal),
    ("is_causal", Causal),
    ("bidirectional", Off),
    ("is_bidirectional", Off),
    ("use_bidirectional_attention", Off),
    ("attention_chunk_size", Window),
    ("attention_window", Window),
    ("attention_window_size", Window),
    ("interleaved_sliding_window", Window),
    ("local_attention_window", Window),
    ("sliding_window_size", Window),
    ("window_size", Window),
    ("attention_sinks", Off),
    ("use_attention_sinks", Off),
    // Layers of another make.
    ("qk_norm", QkNorm),
    ("use_qk_norm", QkNorm),
    ("qk_layernorm", QkNorm),
    ("use_qk_l2norm", Off),
    ("qkv_bias", QkvBias),
    ("use_qkv_bias", QkvBias),
    ("add_qkv_bias", QkvBias),
    ("attention_qkv_bias", QkvBias),
    ("attn_bias", Off),
    ("attention_out_bias", Off),
    ("attention_output_bias", Off),
    ("o_proj_bias", Off),
    ("bias", Off),
    ("use_bias", Off),
    ("add_bias_linear", Off),
    ("ffn_bias", Off),
    ("feed_forward_bias", Off),
    ("lm_head_bias", Off),
    ("norm_bias", Off),
    ("norm_type", RmsNorm),
    ("normalization_type", RmsNorm),
    ("add_unit_offset", Off),
    ("rms_norm_unit_offset", Off),
    ("post_norm", Off),
    ("use_post_norm", Off),
    ("sandwich_norm", Off),
    ("parallel_attn", Off),
    ("parallel_residual", Off),
    ("use_parallel_residual", Off),
    ("attn_output_gate", Off),
    ("hidden_act", Activation),
    ("hidden_activation", Activation),
    ("activation_function", Activation),
    ("mlp_layer_types", DenseLayers),
    ("num_experts", OneExpert),
    ("num_local_experts", OneExpert),
    ("num_moe_experts", OneExpert),
    ("moe_num_experts", OneExpert),
    ("n_experts", OneExpert),
    ("n_routed_experts", OneExpert),
    ("num_routed_experts", OneExpert),
    ("n_shared_experts", OneExpert),
    ("num_shared_experts", OneExpert),
    ("layer_sharing", Off),
    ("pruned_heads", Off),
    ("is_encoder_decoder", Off),
    ("add_cross_attention", Off),
    // Weights that another tool packed, and BitNet's own rounding.
    ("compression_config", Off),
    ("sparsity_config", Off),
    ("quant_config", Off),
    ("weight_bits", FullBits),
    ("input_bits", FullBits),
    // A model inside a model.
    ("text_config", Off),
    ("llm_config", Off),
    ("language_config", Off),
    ("vision_config", Off),
    ("audio_config", Off),
    // Rotary positions under other names. `unlisted` finds the rest.
    ("partial_rotary_factor", One),
    ("rotary_pct", One),
    ("rotary_percent", One),
    ("rope_pct", One),
    ("rope_percent", One),
    ("rope_ratio", One),
    ("rope_factor", One),
    ("rope_scaling_factor", One),
    ("rotary_dim", HeadDim),
    ("rotary_ndims", HeadDim),
    ("rope_dim", HeadDim),
    ("qk_rope_head_dim", HeadDim),
    ("qk_nope_head_dim", Off),
    ("rotary_base", RopeTheta),
    ("rotary_emb_base", RopeTheta),
    ("rope_base", RopeTheta),
    ("rope_freq_base", RopeTheta),
    ("rope_local_base_freq", RopeTheta),
    ("global_rope_theta", RopeTheta),
    ("local_rope_theta", RopeTheta),
    ("use_rope", On),
    ("use_rotary", On),
    ("use_rotary_embeddings", On),
    ("use_rotary_position_embeddings", On),
    ("rope_is_neox_style", On),
    ("is_neox_style", On),
    ("position_embedding_type", Rope),
    ("rope_type", Rope),
    ("rope_scaling_type", Rope),
];

/// Read elsewhere.
const READ: &[&str] =
    &["rope_theta", "rope_scaling", "rope_parameters", "no_rope_layers", "no_rope_layer_interval"];

/// Refuses what makes the file another kind of model, before its sizes are read.
pub(super) fn other_models(f: &Fields<'_>, architecture: Architecture) -> Result<()> {
    class(f, architecture)?;
    if let Some(map) = f.object("auto_map")? {
        // The published BitNet names classes that are Hugging Face's own by now, and carries no code.
        let released = ["configuration_bitnet.BitNetConfig", "modeling_bitnet.BitNetForCausalLM"];
        let native = |key: &str| {
            architecture == Architecture::Bitnet
                && map.map[key].as_str().is_some_and(|v| released.contains(&v))
        };
        let code = |key: &&String| (key.starts_with("AutoModel") || *key == "AutoConfig") && !native(key);
        if let Some(key) = map.map.keys().filter(|key| map.get(key).is_some()).find(code) {
            let wanted = format!("no code of its own: the model is computed as {:?}", architecture.name());
            return Err(map.bad(key, json::brief(&map.map[key]), wanted));
        }
    }
    Ok(())
}

/// `architectures` names the class that the weights belong to: a classifier or a bare trunk is no language model.
fn class(f: &Fields<'_>, architecture: Architecture) -> Result<()> {
    use Architecture::*;
    let classes = f.maybe("architectures", "a list of classes", Value::as_array)?;
    let known: &[Architecture] = match architecture {
        // The same function.
        Llama | Mistral => &[Llama, Mistral],
        ref one => std::slice::from_ref(one),
    };
    let is_known = |class: &Value| {
        class.as_str().is_some_and(|c| known.iter().any(|k| c.eq_ignore_ascii_case(k.class())))
    };
    match classes.into_iter().flatten().find(|class| !is_known(class)) {
        Some(other) => Err(f.bad("architectures", json::brief(other), architecture.class())),
        None => Ok(()),
    }
}

/// Refuses every setting that `model` does not have and that does something.
pub(super) fn settings(f: &Fields<'_>, model: &ModelConfig) -> Result<()> {
    for (key, value) in f.map.iter().filter(|(_, value)| !value.is_null()) {
        let listed = SETTINGS.iter().find(|(name, _)| name == key).map(|(_, idle)| *idle);
        let Some(idle) = listed.or_else(|| unlisted(key)) else { continue };
        if !idle.allows(value, model) {
            return Err(f.bad(key, json::brief(value), idle.wanted(model)));
        }
    }
    eps(f, model)?;
    layers_without_rope(f, model)
}

/// Soft caps and positions have more names than a list can hold.
fn unlisted(key: &str) -> Option<Idle> {
    let key = key.to_ascii_lowercase();
    if READ.contains(&&*key) {
        return None;
    }
    let positions = ["rope", "rotary", "nope", "mrope", "irope", "alibi", "ntk", "yarn"];
    let about_positions = key.split('_').any(|part| positions.contains(&part));
    (about_positions || key.contains("softcap") || key.contains("soft_cap")).then_some(Off)
}

impl Idle {
    fn allows(self, value: &Value, m: &ModelConfig) -> bool {
        let number = value.as_f64();
        let near = |wanted: f64| number.is_some_and(|x| (x - wanted).abs() <= 1e-6 * wanted.abs());
        let all = |one: &dyn Fn(&Value) -> bool| match value {
            Value::Array(list) => list.iter().all(one),
            other => one(other),
        };
        let off = match value {
            Value::Bool(on) => !on,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => matches!(&*text.to_ascii_lowercase(), "" | "none" | "default"),
            _ => number == Some(0.0),
        };
        let flag = |has: bool| off || (has && (*value == true || number == Some(1.0)));
        match self {
            Off => off,
            On => flag(true) && !off,
            One => value == false || all(&|x| x.as_f64() == Some(1.0)),
            OneExpert => off || number.is_some_and(|n| n <= 1.0),
            Causal => value.as_bool() == Some(m.causal),
            QkNorm => flag(m.qk_norm),
            QkvBias => flag(m.qkv_bias),
            Activation => value.as_str().is_some_and(|name| names(m.activation).contains(&name)),
            HeadDim => near(m.head_dim as f64),
            HiddenSize => near(m.hidden_size as f64),
            RopeTheta => near(m.rope_theta.into()),
            ScoreScale => near((m.head_dim as f64).powf(-0.5)),
            Window => off || all(&|x| x.as_f64().is_none_or(|n| n <= 0.0 || n >= m.max_positions as f64)),
            FullBits => number.is_some_and(|n| n >= 16.0),
            RmsNorm => value.as_str().is_some_and(|name| name.to_ascii_lowercase().contains("rms")),
            Rope => {
                let rope = |text: &str| matches!(text, "rope" | "rotary" | "default");
                value.as_str().is_some_and(|text| rope(&text.to_ascii_lowercase()))
            }
            DenseLayers => all(&|kind| kind == "dense"),
        }
    }

    fn wanted(self, m: &ModelConfig) -> String {
        match self {
            Off => "null or false: what this changes is not supported".into(),
            On => "null or true: what this changes is not supported".into(),
            One => "null or 1: what this scales is not supported".into(),
            OneExpert => "null or 0: experts are not supported".into(),
            Causal => format!("{}: another mask is not supported", m.causal),
            QkNorm | QkvBias => "null or false: the architecture has none".into(),
            Activation => format!("\"{}\"", names(m.activation)[0]),
            HeadDim => format!("null or head_dim's {}", m.head_dim),
            HiddenSize => format!("null or hidden_size's {}", m.hidden_size),
            RopeTheta => format!("null or rope_theta's {}", m.rope_theta),
            ScoreScale => format!("null or {}, head_dim^-1/2", (m.head_dim as f64).powf(-0.5)),
            Window => "full attention: a window is not supported".into(),
            FullBits => "null or 16: rounding is not supported".into(),
            RmsNorm => "\"rmsnorm\"".into(),
            Rope => "\"rope\", unscaled".into(),
            DenseLayers => "\"dense\" layers".into(),
        }
    }
}

/// What `hidden_act` and its relatives call the activation; first the name that is written.
pub(super) fn names(activation: Activation) -> &'static [&'static str] {
    match activation {
        Activation::SwiGlu => &["silu", "swish", "swiglu"],
        Activation::Gelu => &["gelu_pytorch_tanh", "gelu_new"],
        Activation::Relu2 | Activation::Relu2Glu => &["relu2", "relu_squared"],
    }
}

/// Another spelling counts only where ours is absent.
fn eps(f: &Fields<'_>, m: &ModelConfig) -> Result<()> {
    if f.get("rms_norm_eps").is_some() {
        return Ok(());
    }
    for key in ["norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "rms_norm_epsilon"] {
        let same = |v: &Value| (v.as_f64()? as f32 == m.rms_norm_eps).then_some(());
        f.maybe(key, &format!("{}; another value as rms_norm_eps", m.rms_norm_eps), same)?;
    }
    Ok(())
}

/// `no_rope_layers` of SmolLM3 and Llama 4: 1 where a layer rotates. Without the list, every `no_rope_layer_interval`-th
/// layer does not.
fn layers_without_rope(f: &Fields<'_>, m: &ModelConfig) -> Result<()> {
    let wanted = "rotation in every layer";
    let rotates = |v: &Value| *v == true || v.as_u64().is_some_and(|n| n > 0);
    let list = f.maybe("no_rope_layers", wanted, |v| v.as_array().filter(|list| list.iter().all(rotates)))?;
    if list.is_none_or(|list| list.is_empty()) {
        let idle = |v: &Value| as_size(v).filter(|&n| n == 0 || n > m.layers);
        f.maybe("no_rope_layer_interval", wanted, idle)?;
    }
    Ok(())
}
