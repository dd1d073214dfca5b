//! LLaMA 3's stretched rotation, of which a GGUF file keeps a factor for each frequency and not what made it.

use super::names::ROPE_FACTORS;
use super::view::View;
use crate::error::{Error, Result};

use serde_json::{Value as Json, json};

/// What LLaMA 3.1, 3.2 and 3.3 have, besides the factor.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL: u32 = 8192;

/// `rope_scaling` of a Hugging Face configuration, whose factors are those of `tensor` (`[dim / 2]`): null where they
/// are all 1.
///
/// # Errors
/// Factors of another shape, or that no such rotation has.
pub(super) fn scaling(tensor: &View<'_>, theta: f64, dim: u64) -> Result<Json> {
    let shape = [usize::try_from(dim / 2).unwrap_or(usize::MAX)];
    if tensor.shape != shape {
        let field = format!("tensor {ROPE_FACTORS:?} shape");
        return Err(Error::input(tensor.file, field, format!("{:?}", tensor.shape), format!("{shape:?}")));
    }
    let mut factors = vec![0.0; shape[0]];
    tensor.read_f32_into(&shape, &mut factors)?;
    if factors.iter().all(|x| *x == 1.0) {
        return Ok(Json::Null);
    }
    // That of the lowest frequency.
    let factor = f64::from(factors.last().copied().unwrap_or(1.0));
    let wanted = |i: usize| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / dim as f64);
        let turns = f64::from(ORIGINAL) / wavelength;
        match turns {
            _ if turns > HIGH => 1.0,
            _ if turns < LOW => factor,
            _ => {
                let smooth = (turns - LOW) / (HIGH - LOW);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        }
    };
    let off = |(i, x): &(usize, &f32)| {
        let wanted = wanted(*i);
        // Made in f32.
        !(f64::from(**x) - wanted).abs().le(&(1e-4 * wanted))
    };
    match factors.iter().enumerate().find(off) {
        None => Ok(json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL,
        })),
        Some((i, found)) => {
            let field = format!("tensor {ROPE_FACTORS:?} number {i}");
            let wanted =
                format!("{:.6}, or 1 throughout: LLaMA 3's factors for {ORIGINAL} positions", wanted(i));
            Err(Error::input(tensor.file, field, found, wanted))
        }
    }
}
