//! By which angles positions turn: plain rotations, and those stretched over more positions than a model was first
//! trained for.

use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;
use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};

/// How a rotation is stretched: fields and meaning as in Hugging Face's `rope_parameters`, of the same names but for
/// `original_max_positions` (`original_max_position_embeddings`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every frequency over `factor` (position interpolation, arXiv 2306.15595).
    Linear { factor: f64 },
    /// Frequencies that shrink with a sequence longer than `max_positions` (dynamic NTK). None here is longer, so every
    /// rotation is the plain one; the factor is kept for programs that go further.
    Dynamic { factor: f64 },
    /// Low frequencies over `factor`, high ones as they are (arXiv 2309.00071).
    Yarn {
        factor: f64,
        original_max_positions: usize,
        /// Of the rotated queries and keys, each. Without it, what follows from the next two and `factor`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attention_factor: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mscale: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mscale_all_dim: Option<f64>,
        /// What turns so often in the original positions, or more often, is a high frequency.
        #[serde(default = "default_beta_fast")]
        beta_fast: f64,
        /// What turns so often, or less often, is a low one.
        #[serde(default = "default_beta_slow")]
        beta_slow: f64,
        /// Whether the ramp between the two begins and ends at whole frequencies.
        #[serde(default = "yes")]
        truncate: bool,
    },
    /// As YaRN, by wavelength (LLaMA 3.1).
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_positions: usize },
}

fn default_beta_fast() -> f64 {
    32.0
}
fn default_beta_slow() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}

/// What positions turn by.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Radians a position, of each pair of a head's values, `[D / 2]`.
    pub frequencies: Vec<f32>,
    /// Of everything that is rotated.
    pub factor: f32,
}

/// Positions that a model was first trained for, at most.
const MOST_POSITIONS: usize = 1 << 24;

impl Rotation {
    /// Of heads of `head_dim` values by the base `theta`; the scaling has been validated.
    pub(super) fn new(theta: f32, head_dim: usize, scaling: Option<RopeScaling>) -> Self {
        let (theta, dim) = (theta as f64, head_dim as f64);
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim));
        let frequencies: Vec<f64> = match scaling {
            None | Some(RopeScaling::Dynamic { .. }) => plain.collect(),
            Some(RopeScaling::Linear { factor }) => plain.map(|f| f / factor).collect(),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            }) => {
                let stretched = |f: f64| {
                    let turns = original_max_positions as f64 * f / TAU;
                    let high = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    mix(f / factor, f, high)
                };
                plain.map(stretched).collect()
            }
            Some(RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                truncate,
                ..
            }) => {
                // Which frequency turns so often in the original positions.
                let index = |turns: f64| {
                    dim * (original_max_positions as f64 / (turns * TAU)).ln() / (2.0 * theta.ln())
                };
                let (mut first, mut last) = (index(beta_fast), index(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, last) = (first.max(0.0), last.min(dim - 1.0));
                // As the reference implementation: a ramp has a length.
                let length = if first == last { 0.001 } else { last - first };
                let stretched = |(i, f): (usize, f64)| mix(f, f / factor, (i as f64 - first) / length);
                plain.enumerate().map(stretched).collect()
            }
        };
        let factor = scaling.map_or(1.0, |scaling| scaling.attention_factor());
        Rotation { frequencies: frequencies.into_iter().map(|f| f as f32).collect(), factor: factor as f32 }
    }
}

/// From `a`, where `part` is 0 or less, to `b`, where it is 1 or more.
fn mix(a: f64, b: f64, part: f64) -> f64 {
    let part = part.clamp(0.0, 1.0);
    a * (1.0 - part) + b * part
}

impl fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Linear { factor } => write!(f, "linear, factor {factor}"),
            Self::Dynamic { factor } => write!(f, "dynamic, factor {factor}"),
            Self::Yarn { factor, original_max_positions, .. } => {
                write!(f, "yarn, factor {factor} from {original_max_positions} positions on")
            }
            Self::Llama3 { factor, original_max_positions, .. } => {
                write!(f, "llama3, factor {factor} from {original_max_positions} positions on")
            }
        }
    }
}

impl RopeScaling {
    /// What YaRN multiplies rotated queries and keys by, each, where nothing else is said.
    pub fn yarn_attention(factor: f64) -> f64 {
        Self::yarn_mscale(factor, 1.0)
    }

    fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// Of everything that is rotated.
    pub fn attention_factor(self) -> f64 {
        let Self::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = self else { return 1.0 };
        let of = |mscale: f64| Self::yarn_mscale(factor, mscale);
        let both = mscale.zip(mscale_all_dim).filter(|&(a, b)| a != 0.0 && b != 0.0);
        attention_factor.unwrap_or_else(|| both.map_or(of(1.0), |(scale, all)| of(scale) / of(all)))
    }

    /// Judges the values for a model of base `theta`. `file` is named in the error.
    pub(super) fn validate(&self, theta: f32, file: &Path) -> Result<()> {
        let bad = |field: &str, found: f64, wanted: &str| {
            Err(Error::input(file, format!("rope_scaling.{field}"), found, wanted))
        };
        let (Self::Linear { factor }
        | Self::Dynamic { factor }
        | Self::Yarn { factor, .. }
        | Self::Llama3 { factor, .. }) = *self;
        if !(factor.is_finite() && factor >= 1.0) {
            return bad("factor", factor, "1 or more");
        }
        if let Self::Yarn { original_max_positions: n, .. } | Self::Llama3 { original_max_positions: n, .. } =
            *self
            && (n == 0 || n > MOST_POSITIONS)
        {
            return bad("original_max_positions", n as f64, &format!("1 to {MOST_POSITIONS}"));
        }
        match *self {
            Self::Llama3 { low_freq_factor: low, .. } if !(low.is_finite() && low > 0.0) => {
                return bad("low_freq_factor", low, "a positive number");
            }
            Self::Llama3 { low_freq_factor: low, high_freq_factor: high, .. }
                if !(high.is_finite() && high > low) =>
            {
                return bad("high_freq_factor", high, &format!("more than low_freq_factor's {low}"));
            }
            Self::Yarn { attention_factor: Some(x), .. } if !(x.is_finite() && x > 0.0) => {
                return bad("attention_factor", x, "a positive number");
            }
            Self::Yarn { beta_slow: slow, .. } if !(slow.is_finite() && slow > 0.0) => {
                return bad("beta_slow", slow, "a positive number");
            }
            Self::Yarn { beta_fast: fast, beta_slow: slow, .. } if !(fast.is_finite() && fast >= slow) => {
                return bad("beta_fast", fast, &format!("beta_slow's {slow} or more"));
            }
            _ => {}
        }
        let factor = self.attention_factor() as f32;
        if !(factor.is_finite() && factor > 0.0) {
            return bad(
                "mscale",
                factor as f64,
                "such that the factor of queries and keys is a positive number",
            );
        }
        if matches!(self, Self::Yarn { .. }) && theta == 1.0 {
            return Err(Error::input(
                file,
                "rope_theta",
                1,
                "another number under yarn: nothing turns slower",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelConfig, Recipe};

    fn config(scaling: &str) -> std::result::Result<ModelConfig, String> {
        let mut recipe: toml::Table = toml::from_str(include_str!("../../recipes/copy.toml")).unwrap();
        let scaling: toml::Table = toml::from_str(scaling).map_err(|error| error.to_string())?;
        let model = recipe["model"].as_table_mut().unwrap();
        model.insert("rope_scaling".into(), scaling.into());
        model.insert("head_dim".into(), 16.into());
        let recipe: Recipe = recipe.try_into().map_err(|error: toml::de::Error| error.to_string())?;
        let model = recipe.model.clone().unwrap();
        model.validate(Path::new("r.toml")).map_err(|error| error.to_string())?;
        // As a run writes its recipe, and reads it again.
        let again: Recipe = toml::from_str(&toml::to_string(&recipe).unwrap()).unwrap();
        assert_eq!(again, recipe);
        Ok(model)
    }

    /// Against Hugging Face's implementation: `tests/architectures.rs`. Here, values that follow from the definitions.
    #[test]
    fn factors_are_those_of_the_definitions() {
        let factor = |text: &str| config(text).unwrap().rotation().factor;
        let yarn = "type = 'yarn'\nfactor = 4\noriginal_max_positions = 32\n";
        assert_eq!(factor(yarn), 1.138_629_4);
        assert_eq!(factor(&format!("{yarn}attention_factor = 0.5")), 0.5);
        assert_eq!(factor(&format!("{yarn}mscale = 2.0\nmscale_all_dim = 2")), 1.0);
        assert_eq!(factor(&format!("{yarn}mscale = 2.0")), 1.138_629_4);
        assert_eq!(factor("type = 'linear'\nfactor = 4"), 1.0);
        let plain = ModelConfig { rope_scaling: None, ..config("type = 'dynamic'\nfactor = 4").unwrap() };
        assert_eq!(config("type = 'dynamic'\nfactor = 4").unwrap().rotation(), plain.rotation());
        let halved: Vec<f32> = plain.rotation().frequencies.iter().map(|f| f / 2.0).collect();
        assert_eq!(config("type = 'linear'\nfactor = 2").unwrap().rotation().frequencies, halved);
        // With an original length beyond every wavelength nothing is stretched; with one position everything is.
        let llama3 = "type = 'llama3'\nfactor = 2\nlow_freq_factor = 1\nhigh_freq_factor = 4\n";
        let of = |n: usize| {
            config(&format!("{llama3}original_max_positions = {n}")).unwrap().rotation().frequencies
        };
        assert_eq!((of(1 << 24), of(1)), (plain.rotation().frequencies, halved));
    }

    #[test]
    fn impossible_values_are_named() {
        let yarn = "type = 'yarn'\nfactor = 4\n";
        for (text, wanted) in [
            ("type = 'linear'\nfactor = 0.5", "rope_scaling.factor: found 0.5, wanted 1 or more"),
            ("type = 'dynamic'\nfactor = inf", "rope_scaling.factor: found inf"),
            ("type = 'linear'", "missing field `factor`"),
            ("type = 'linear'\nfactor = 2\nbeta_fast = 3", "unknown field `beta_fast`"),
            ("type = 'longrope'\nfactor = 2", "unknown variant `longrope`"),
            (yarn, "missing field `original_max_positions`"),
            (&format!("{yarn}original_max_positions = 0"), "rope_scaling.original_max_positions: found 0"),
            (
                &format!("{yarn}original_max_positions = 9\nbeta_fast = 0.5"),
                "rope_scaling.beta_fast: found 0.5",
            ),
            (&format!("{yarn}original_max_positions = 9\nbeta_slow = 0"), "rope_scaling.beta_slow: found 0"),
            (
                &format!("{yarn}original_max_positions = 9\nmscale = -9e99\nmscale_all_dim = 1"),
                "rope_scaling.mscale: found",
            ),
            (
                "type = 'llama3'\nfactor = 8\nlow_freq_factor = 4\nhigh_freq_factor = 4\noriginal_max_positions = 9",
                "rope_scaling.high_freq_factor: found 4, wanted more than low_freq_factor's 4",
            ),
        ] {
            let message = config(text).unwrap_err();
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }
}
