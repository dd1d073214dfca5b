//! How another tool packed the weights: the keys `quantization` (MLX) and `quantization_config` (MLX, Hugging Face's BitNet).

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use crate::error::Result;
use crate::formats::Packing;
use crate::formats::json::{Fields, as_size, brief};

const MLX: &str = "quantization";
const CONFIG: &str = "quantization_config";

/// What `config.json` says of packed weights; `None`: they are numbers.
///
/// # Errors
/// A packing that cannot hold ternary weights or that is not known.
pub(super) fn read(f: &Fields<'_>) -> Result<Option<Packing>> {
    let (mlx, config) = (f.object(MLX)?, f.object(CONFIG)?);
    match (mlx, config) {
        (Some(mlx), config) => {
            // MLX writes both keys alike and reads the first.
            if let Some(other) = config.filter(|config| config.map != mlx.map) {
                return Err(f.bad(
                    CONFIG,
                    brief(&Value::Object(other.map.clone())),
                    "what quantization says",
                ));
            }
            read_mlx(&mlx).map(Some)
        }
        (None, Some(config)) if config.get("quant_method").is_none() && config.get("bits").is_some() => {
            read_mlx(&config).map(Some)
        }
        (None, Some(config)) => read_bitnet(&config).map(Some),
        (None, None) => Ok(None),
    }
}

fn read_mlx(f: &Fields<'_>) -> Result<Packing> {
    let group = two_bits(f)?;
    let mut groups = BTreeMap::new();
    for (key, value) in f.map.iter().filter(|(key, _)| !["group_size", "bits", "mode"].contains(&&***key)) {
        match value {
            // Matrices that are packed as all others are, or not at all: the file shows which.
            Value::Bool(_) | Value::Null => {}
            _ => {
                let own = f.object(key)?.ok_or_else(|| f.bad(key, brief(value), "an object or false"))?;
                groups.insert(key.clone(), two_bits(&own)?);
            }
        }
    }
    Ok(Packing::Mlx { group, groups })
}

/// The inputs that share a scale.
fn two_bits(f: &Fields<'_>) -> Result<usize> {
    f.need("bits", "2: only two bits hold ternary weights", |v| (as_size(v) == Some(2)).then_some(()))?;
    f.maybe("mode", "\"affine\"", |v| (v == "affine").then_some(()))?;
    f.need("group_size", "32, 64 or 128", |v| as_size(v).filter(|n| [32, 64, 128].contains(n)))
}

fn read_bitnet(f: &Fields<'_>) -> Result<Packing> {
    let known = "\"bitnet\", or MLX's group_size and bits: other packings are not read";
    f.need("quant_method", known, |v| (v == "bitnet").then_some(()))?;
    let divides = f.maybe("linear_class", "\"bitlinear\" or \"autobitlinear\"", |v| match v.as_str()? {
        "bitlinear" => Some(true),
        "autobitlinear" => Some(false),
        _ => None,
    })?;
    let divides = divides.unwrap_or(true);
    let online = f.maybe("quantization_mode", "\"offline\" or \"online\"", |v| match v.as_str()? {
        "offline" => Some(false),
        "online" => Some(true),
        _ => None,
    })?;
    if f.flag("use_rms_norm")? == Some(true) {
        return Err(f.bad("use_rms_norm", true, "false: a norm before every product is not supported"));
    }
    if divides || online != Some(true) {
        return Ok(Packing::BitNet { divides });
    }
    // Of packed weights the file shows which are not.
    let head = |v: &Value| v.as_array()?.iter().all(|name| name == "lm_head").then_some(());
    f.maybe("modules_to_not_convert", "null or [\"lm_head\"]", head)?;
    Ok(Packing::BitNetLatent)
}

/// The keys to write. BitNet's layout is only read.
pub(super) fn written(packing: Option<&Packing>) -> Map<String, Value> {
    let Some(Packing::Mlx { group, groups }) = packing else { return Map::new() };
    let mut object = Map::from_iter([("group_size".into(), json!(group)), ("bits".into(), json!(2))]);
    object.extend(groups.iter().map(|(name, group)| (name.clone(), json!({"group_size": group, "bits": 2}))));
    [MLX, CONFIG].into_iter().map(|key| (key.to_string(), Value::Object(object.clone()))).collect()
}
