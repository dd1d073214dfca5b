//! Models of random weights, everything ternary.

use super::apart;
use std::fs;
use std::path::{Path, PathBuf};
use ternlm::config::{ModelConfig, RopeScaling, Scope};
use ternlm::formats::Description;
use ternlm::model::{self, Decoder, Latents, Sequences, State};
use ternlm::ternary::Grouping;
use ternlm::text::Tokenizer;

/// Two layers of a LLaMA, of whose vocabulary the tokenizer of bytes leaves five.
pub fn llama() -> ModelConfig {
    ModelConfig {
        vocab_size: 261,
        hidden_size: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        intermediate_size: 256,
        max_positions: 256,
        ..ModelConfig::default()
    }
}

/// The same as Qwen3 has it.
pub fn qwen3() -> ModelConfig {
    ModelConfig { qk_norm: true, tie_embeddings: true, ..llama() }
}

/// For four times 32 positions.
pub fn yarn(attention_factor: Option<f64>, mscale: Option<f64>, beta_fast: f64) -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 32,
        attention_factor,
        mscale,
        mscale_all_dim: mscale.map(|m| m / 2.0),
        beta_fast,
        beta_slow: 1.0,
        truncate: true,
    }
}

pub fn llama3(factor: f64, high_freq_factor: f64, original_max_positions: usize) -> RopeScaling {
    RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor, original_max_positions }
}

/// A directory `name` in `dir` with such a model and the tokenizer of bytes.
pub fn random(dir: &Path, name: &str, config: &ModelConfig) -> PathBuf {
    let mut decoder = Decoder::new(config, Scope::All, Grouping::Size(128));
    Latents::random(decoder.weights_mut(), 1, None).unwrap();
    let vectors = decoder.weights_mut().filter(|w| !w.role.is_matrix());
    for (i, weight) in vectors.enumerate() {
        let around = if weight.name.ends_with("bias") { 0.0 } else { 1.0 };
        weight
            .dense_mut()
            .iter_mut()
            .enumerate()
            .for_each(|(j, x)| *x = around + ((i + j) as f32).sin() / 5.0);
    }
    let out = dir.join(name);
    fs::create_dir_all(&out).unwrap();
    model::save(&out, &decoder, &Description::new(config.clone()), None).unwrap();
    Tokenizer::bytes().save(&out).unwrap();
    out
}

/// Some tokens that the model has.
pub fn tokens(decoder: &Decoder) -> Vec<u32> {
    (0..21).map(|i| (i * 37 % decoder.config.vocab_size) as u32).collect()
}

/// Of [`tokens`].
pub fn logits(decoder: &Decoder) -> Vec<f32> {
    let tokens = tokens(decoder);
    decoder.logits(&tokens, Sequences::new(1, tokens.len()), &mut State::default())
}

/// The largest difference, of the largest number.
pub fn off(got: &[f32], want: &[f32]) -> f32 {
    apart(got, want) as f32 / want.iter().fold(0f32, |a, x| a.max(x.abs()))
}
