//! The options of everything that samples, and what is said of the result.

use clap::Args;
use serde_json::{Value, json};

use crate::error::Result;
use crate::generate::{Generated, SamplingConfig};

#[derive(Args)]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the most likely token each time
    #[arg(long, short, default_value_t = 0.0)]
    temperature: f32,
    /// Keep that many most likely tokens; 0: all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the smallest set of tokens that reaches this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Keep tokens with at least this fraction of the greatest probability
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Above 1: tokens that occurred become less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Taken from the logits of tokens that were made before
    #[arg(long, default_value_t = 0.0)]
    presence_penalty: f32,
    /// Taken from the logit of a token for each time that it was made before
    #[arg(long, default_value_t = 0.0)]
    frequency_penalty: f32,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    pub fn config(&self) -> Result<SamplingConfig> {
        let config = SamplingConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
        };
        config.validate()?;
        let idle =
            [("--top-k", self.top_k > 0), ("--top-p", self.top_p < 1.0), ("--min-p", self.min_p > 0.0)];
        if let Some((option, _)) = idle.iter().find(|(_, given)| *given && self.temperature == 0.0) {
            tracing::warn!(
                "{option} changes nothing at --temperature 0, which takes the most likely token each time"
            );
        }
        Ok(config)
    }
}

/// Text, tokens and speed.
pub fn made_json(made: &Generated) -> Value {
    let mut value = json!(made);
    value["decode_tok_per_s"] = made.tok_per_s().into();
    value
}

/// One line for people.
pub fn speed(made: &Generated) -> String {
    let guessed = match made.proposed {
        0 => String::new(),
        proposed => format!(", {} of {proposed} proposed tokens accepted", made.accepted),
    };
    format!(
        "{} prompt tokens in {:.2} s, {} tokens at {:.1} tok/s{guessed}",
        made.prompt_tokens,
        made.prefill_seconds,
        made.tokens.len(),
        made.tok_per_s()
    )
}
