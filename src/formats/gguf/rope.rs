//! LLaMA 3's stretched rotation, of which a GGUF file keeps a factor for each frequency and not what made it.

use serde_json::Value as Json;

use super::file::GgufFile;
use super::view::View;
use crate::config::RopeScaling;
use crate::error::{Error, Result};
use crate::formats::hf;

/// Our own key for what made the factors, where it is not the published models' numbers: `rope_scaling` as a Hugging Face
/// configuration has it. Other programs pass over it.
pub const NOTE: &str = "ternlm.rope_scaling";

/// What LLaMA 3.1, 3.2 and 3.3 have, besides the factor.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL: usize = 8192;

/// What divides frequency number `i` of heads of `dim` values by the base `theta`; 1 under another rotation than LLaMA 3's.
pub fn factor(scaling: RopeScaling, theta: f64, dim: usize, i: usize) -> f64 {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = scaling
    else {
        return 1.0;
    };
    let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / dim as f64);
    let turns = original_max_positions as f64 / wavelength;
    let high = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
    // Where it is 1 the factor is exactly 1.
    match high.clamp(0.0, 1.0) {
        1.0 => 1.0,
        high => 1.0 / ((1.0 - high) / factor + high),
    }
}

/// What a file needs beside the factors, so that they are read as this rotation: nothing for the published models' numbers.
pub fn note(scaling: RopeScaling, theta: f64, dim: usize) -> Option<String> {
    let last = factor(scaling, theta, dim, (dim / 2).saturating_sub(1)) as f32;
    (scaling != usual(last.into())).then(|| hf::rope_scaling(&scaling).to_string())
}

fn usual(factor: f64) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_freq_factor: LOW,
        high_freq_factor: HIGH,
        original_max_positions: ORIGINAL,
    }
}

/// `rope_scaling` of a Hugging Face configuration, whose factors are those of `tensor` (`[dim / 2]`): null where they
/// are all 1.
///
/// # Errors
/// Factors of another shape, or that no such rotation has.
pub(super) fn scaling(file: &GgufFile, tensor: &View<'_>, theta: f64, dim: u64) -> Result<Json> {
    let half = usize::try_from(dim / 2).unwrap_or(usize::MAX);
    if tensor.shape != [half] {
        return Err(tensor.bad("shape", format!("{:?}", tensor.shape), format!("[{half}]")));
    }
    let mut factors = vec![0.0; half];
    tensor.read_f32_into(&[half], &mut factors)?;
    let (scaling, whose) = match noted(file)? {
        Some(scaling) => (scaling, format!("that of {NOTE:?}")),
        None if factors.iter().all(|x| *x == 1.0) => return Ok(Json::Null),
        // The lowest frequency has the whole factor.
        None => {
            let whose = format!("or 1 throughout: LLaMA 3's factors for {ORIGINAL} positions");
            (usual(factors.last().copied().unwrap_or(1.0).into()), whose)
        }
    };
    let wanted = |i: usize| factor(scaling, theta, half * 2, i);
    // Made in f32.
    let off = |(i, x): &(usize, &f32)| !(f64::from(**x) - wanted(*i)).abs().le(&(1e-4 * wanted(*i)));
    match factors.iter().enumerate().find(off) {
        None => Ok(hf::rope_scaling(&scaling)),
        Some((i, found)) => {
            Err(tensor.bad(&format!("number {i}"), found, format!("{:.6}, {whose}", wanted(i))))
        }
    }
}

/// What our own key says.
fn noted(file: &GgufFile) -> Result<Option<RopeScaling>> {
    let Some(value) = file.get(NOTE) else { return Ok(None) };
    let read = |text: &str| -> Option<RopeScaling> {
        let json: Json = serde_json::from_str(text).ok()?;
        let number = |key: &str| json[key].as_f64().filter(|x| x.is_finite());
        let original = json["original_max_position_embeddings"].as_u64()?;
        (json["rope_type"] == "llama3").then_some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_positions: usize::try_from(original).ok()?,
        })
    };
    let found = value.as_str().and_then(read);
    found.map(Some).ok_or_else(|| {
        let wanted = "the settings of LLaMA 3's rotation, as JSON";
        Error::input(file.path(), format!("key {NOTE:?}"), value, wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    /// The factors are the plain frequencies over those that the model turns by.
    #[test]
    fn factors_are_those_of_the_rotation() {
        for (low, high, original) in [(1.0, 4.0, 8192), (1.0, 2.0, 64), (0.5, 1.5, 300)] {
            let scaling = RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            };
            let theta = 5e4;
            let rotation = |rope_scaling| {
                let recipe: toml::Table = toml::from_str(include_str!("../../../recipes/copy.toml")).unwrap();
                let model: ModelConfig = recipe["model"].clone().try_into().unwrap();
                ModelConfig { head_dim: 64, rope_theta: theta, rope_scaling, ..model }.rotation().frequencies
            };
            let (plain, stretched) = (rotation(None), rotation(Some(scaling)));
            let mut between = 0;
            for (i, (a, b)) in plain.iter().zip(&stretched).enumerate() {
                let (want, got) = (f64::from(a / b), factor(scaling, theta.into(), 64, i));
                assert!((got / want - 1.0).abs() < 1e-6, "{i}: {got}, {want}");
                between += usize::from(got > 1.0 && got < 8.0);
            }
            assert!(between > 1, "{between}");
            assert_eq!(note(scaling, theta.into(), 64).is_none(), original == 8192);
        }
    }
}
