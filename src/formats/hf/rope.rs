//! The rotation's settings: of released models (`rope_theta`, `rope_scaling`), or nested (`rope_parameters`).

use serde_json::{Map, Value, json};

use super::Architecture;
use crate::config::RopeScaling;
use crate::error::Result;
use crate::formats::any_of;
use crate::formats::json::{self, Fields, as_f32, as_size};

/// The kinds of rotation that are understood.
const KINDS: [&str; 5] = ["default", "linear", "dynamic", "yarn", "llama3"];

/// Keys of a scaled rotation, and the kinds that read them. The reference implementation passes over them elsewhere; here
/// they must be `null` there.
const OF_SCALED: &[(&str, &[&str])] = &[
    ("factor", &["linear", "dynamic", "yarn", "llama3"]),
    ("original_max_position_embeddings", &["linear", "dynamic", "yarn", "llama3"]),
    ("attention_factor", &["yarn"]),
    ("beta_fast", &["yarn"]),
    ("beta_slow", &["yarn"]),
    ("mscale", &["yarn"]),
    ("mscale_all_dim", &["yarn"]),
    ("truncate", &["yarn"]),
    ("low_freq_factor", &["llama3"]),
    ("high_freq_factor", &["llama3"]),
    ("short_factor", &[]),
    ("long_factor", &[]),
    // Of YaRN before it was in Hugging Face's library; the last says nothing of the function.
    ("attn_factor", &[]),
    ("extrapolation_factor", &[]),
    ("finetuned", &["yarn"]),
];

/// Kinds of layers that may have rotations of their own, one level deeper.
const LAYER_TYPES: &[&str] = &["full_attention", "sliding_attention", "chunked_attention"];

/// Base, and how the rotation is stretched.
pub(super) fn read(f: &Fields<'_>, architecture: Architecture) -> Result<(f32, Option<RopeScaling>)> {
    let mut theta = f.maybe("rope_theta", "a number", as_f32)?;
    let mut scaling = None;
    for key in ["rope_scaling", "rope_parameters"] {
        // An empty object is none, as in the reference implementation.
        let Some(rope) = f.object(key)?.filter(|rope| !rope.map.is_empty()) else { continue };
        let by_layer = LAYER_TYPES.iter().any(|kind| rope.get(kind).is_some());
        if key == "rope_scaling" && kind(&rope)?.is_none() && !by_layer {
            let wanted = format!("null, or rope_type {}", any_of(KINDS));
            return Err(f.bad(key, "an object without rope_type", wanted));
        }
        let here = rotation(f, &rope, &mut theta, true)?;
        if scaling.is_some() && here != scaling {
            return Err(f.bad(key, "another rotation", "that of rope_scaling"));
        }
        scaling = here;
    }
    match theta {
        Some(theta) => Ok((theta, scaling)),
        // LLaMA files older than the key.
        None if architecture == Architecture::Llama => Ok((10_000.0, scaling)),
        // The reference implementation's own default.
        None if architecture == Architecture::Bitnet => Ok((500_000.0, scaling)),
        None => Err(f.bad("rope_theta", "nothing", "a number, here or in rope_parameters")),
    }
}

fn kind<'a>(rope: &Fields<'a>) -> Result<Option<&'a str>> {
    let known = |v: &'a Value| v.as_str().filter(|kind| KINDS.contains(kind));
    let wanted = format!("{}: no other rope is supported", any_of(KINDS));
    let (new, old) = (rope.maybe("rope_type", &wanted, known)?, rope.maybe("type", &wanted, known)?);
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            Err(rope.bad("type", format!("{old:?}"), format!("rope_type's {new:?}")))
        }
        _ => Ok(new.or(old)),
    }
}

/// Judges an object of rotary settings, of the configuration `f`. `theta` is what was read so far: every place that
/// states it must agree.
fn rotation(
    f: &Fields<'_>,
    rope: &Fields<'_>,
    theta: &mut Option<f32>,
    by_layer: bool,
) -> Result<Option<RopeScaling>> {
    let kind = kind(rope)?;
    only_whole_rotation(rope)?;
    let here = rope.maybe("rope_theta", "a number", as_f32)?;
    if let (Some(here), Some(theta)) = (here, *theta)
        && here != theta
    {
        return Err(rope.bad("rope_theta", here, format!("rope_theta's {theta}")));
    }
    *theta = theta.or(here);
    for (key, value) in rope.map.iter().filter(|(_, value)| !value.is_null()) {
        let of_scaled = OF_SCALED.iter().find(|(name, _)| name == key);
        match key.as_str() {
            "rope_type" | "type" | "rope_theta" | "partial_rotary_factor" => {}
            layer if by_layer && LAYER_TYPES.contains(&layer) => {
                if let Some(layer) = rope.object(layer)?
                    && rotation(f, &layer, theta, false)?.is_some()
                {
                    return Err(layer.bad("rope_type", "a scaled rope", "one rotation for all layers"));
                }
            }
            _ => match (of_scaled, kind) {
                (Some((_, kinds)), Some(kind)) if kind == "default" || kinds.contains(&kind) => {}
                (Some(_), Some(kind)) => {
                    return Err(rope.bad(key, json::brief(value), format!("null: no field of {kind:?}")));
                }
                (Some(_), None) => {
                    let wanted = format!("rope_type {} beside it", any_of(KINDS));
                    return Err(rope.bad(key, json::brief(value), wanted));
                }
                (None, _) => return Err(rope.bad(key, "an unknown field", "fields of the rotation")),
            },
        }
    }
    scaling(f, rope, kind.unwrap_or("default"))
}

fn scaling(f: &Fields<'_>, rope: &Fields<'_>, kind: &str) -> Result<Option<RopeScaling>> {
    let number = |key| rope.maybe(key, "a number", Value::as_f64);
    let need = |key| rope.need(key, "a number", Value::as_f64);
    // The reference implementation's order: the model's own key, then that of the object.
    let original = || {
        let key = "original_max_position_embeddings";
        let own = f.maybe(key, "a whole number", as_size)?;
        let own = own.map_or_else(|| rope.maybe(key, "a whole number", as_size), |n| Ok(Some(n)))?;
        own.map_or_else(|| f.size("max_position_embeddings"), Ok)
    };
    let some = |x: Option<f64>, usual| x.filter(|x| *x != 0.0).unwrap_or(usual);
    Ok(Some(match kind {
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: need("factor")? },
        "yarn" => RopeScaling::Yarn {
            factor: need("factor")?,
            original_max_positions: original()?,
            attention_factor: number("attention_factor")?,
            mscale: number("mscale")?,
            mscale_all_dim: number("mscale_all_dim")?,
            beta_fast: some(number("beta_fast")?, 32.0),
            beta_slow: some(number("beta_slow")?, 1.0),
            truncate: rope.flag("truncate")?.unwrap_or(true),
        },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_positions: original()?,
        },
        _ => return Ok(None),
    }))
}

pub(super) fn only_whole_rotation(f: &Fields<'_>) -> Result<()> {
    let whole = |v: &Value| (v.as_f64() == Some(1.0)).then_some(());
    f.maybe("partial_rotary_factor", "1: a partial rope is not supported", whole).map(|_| ())
}

/// The value of `rope_scaling` in a configuration.
pub fn rope_scaling(scaling: &RopeScaling) -> Value {
    let (kind, fields) = match *scaling {
        RopeScaling::Linear { factor } => ("linear", vec![("factor", json!(factor))]),
        RopeScaling::Dynamic { factor } => ("dynamic", vec![("factor", json!(factor))]),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => (
            "llama3",
            vec![
                ("factor", json!(factor)),
                ("low_freq_factor", json!(low_freq_factor)),
                ("high_freq_factor", json!(high_freq_factor)),
                ("original_max_position_embeddings", json!(original_max_positions)),
            ],
        ),
        RopeScaling::Yarn {
            factor,
            original_max_positions,
            attention_factor,
            mscale,
            mscale_all_dim,
            beta_fast,
            beta_slow,
            truncate,
        } => {
            let mut fields = vec![
                ("factor", json!(factor)),
                ("original_max_position_embeddings", json!(original_max_positions)),
                ("beta_fast", json!(beta_fast)),
                ("beta_slow", json!(beta_slow)),
                ("truncate", json!(truncate)),
            ];
            let factors = [
                ("attention_factor", attention_factor),
                ("mscale", mscale),
                ("mscale_all_dim", mscale_all_dim),
            ];
            fields.extend(factors.into_iter().filter_map(|(key, x)| Some((key, json!(x?)))));
            ("yarn", fields)
        }
    };
    let kind = [("rope_type".to_string(), json!(kind))];
    let fields = fields.into_iter().map(|(key, value)| (key.to_string(), value));
    Value::Object(kind.into_iter().chain(fields).collect::<Map<_, _>>())
}
