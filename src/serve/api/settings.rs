//! Fields that every endpoint that writes text has in common.

use std::hash::{BuildHasher, RandomState};

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, shown};
use super::served::Inner;
use crate::generate::SamplingConfig;
use crate::serve::queue::Generate;

/// Stop strings of a request, and characters of each.
const STOPS: usize = 16;
const STOP_CHARS: usize = 256;
/// Tokens with a bias of their own.
const BIASES: usize = 1024;
/// Most likely tokens that are named beside each.
pub const TOP: u64 = 20;

/// Probabilities that an answer holds at most: some hundred bytes each.
const SCORED: usize = 1 << 20;

/// How answers are to be written.
pub struct Settings {
    pub sampling: SamplingConfig,
    pub bias: Vec<(u32, f32)>,
    pub stop: Vec<String>,
    pub choices: usize,
    pub stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub stream_usage: bool,
}

impl Settings {
    pub fn read(fields: &Fields<'_>, served: &Inner) -> Result<Self, ApiError> {
        let number = |name, range, default: f64| Ok(fields.number(name, range)?.unwrap_or(default) as f32);
        let sampling = SamplingConfig {
            temperature: number("temperature", 0.0..=100.0, 1.0)?,
            top_p: number("top_p", 0.0..=1.0, 1.0)?,
            min_p: number("min_p", 0.0..=1.0, 0.0)?,
            top_k: fields.whole("top_k", 0..=u64::from(u32::MAX))?.unwrap_or(0),
            repetition_penalty: number("repetition_penalty", 0.01..=100.0, 1.0)?,
            presence_penalty: number("presence_penalty", -2.0..=2.0, 0.0)?,
            frequency_penalty: number("frequency_penalty", -2.0..=2.0, 0.0)?,
            seed: seed(fields)?,
        };
        let options = fields.map("stream_options")?;
        let usage = options.map_or(Ok(None), |options| options.flag("include_usage"))?;
        Ok(Self {
            sampling,
            bias: bias(fields, served.vocab)?,
            stop: stops(fields)?,
            choices: fields.whole("n", 1..=served.choices as u64)?.unwrap_or(1),
            stream: fields.flag("stream")?.unwrap_or(false),
            stream_usage: usage.unwrap_or(false),
        })
    }

    /// Refuses more probabilities than a server should hold: `top` of them, and its own, beside each of so many tokens.
    pub fn judge_scores(&self, field: &str, top: usize, tokens: usize) -> Result<(), ApiError> {
        if tokens * self.choices * (top + 1) <= SCORED {
            return Ok(());
        }
        let found = format!("{top} beside each of {tokens} tokens, {} times over", self.choices);
        Err(ApiError::field(
            field,
            found,
            format!("at most {SCORED} probabilities in all (fewer tokens at most, or a smaller n)"),
        ))
    }

    /// What the engine is to do: answers of at most `limit` tokens, without scores and constraint.
    pub fn generate(self, limit: usize) -> Generate {
        let Settings { sampling, bias, stop, choices, .. } = self;
        Generate { choices, sampling, bias, limit, stop, scores: None, prompt_scores: None, constraint: None }
    }
}

/// The seed of a request, or one that nobody chose.
fn seed(fields: &Fields<'_>) -> Result<u64, ApiError> {
    let read = |value: &Value| value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    let seed = fields.maybe("seed", "a whole number of 64 bits", read)?;
    Ok(seed.unwrap_or_else(|| RandomState::new().hash_one(0u8)))
}

fn stops(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let wanted = || fields.wrong("stop", format!("a text, or a list of {STOPS} texts at most"));
    let list = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(one) if one.is_string() => std::slice::from_ref(one),
        Some(list) => &list.as_array().ok_or_else(wanted)?[..],
    };
    if list.len() > STOPS {
        return Err(wanted());
    }
    let text = |(i, value): (usize, &Value)| {
        let wanted = format!("a text of {STOP_CHARS} characters at most");
        let text = value.as_str().filter(|text| text.chars().count() <= STOP_CHARS);
        text.map(String::from).ok_or_else(|| ApiError::field(format!("stop[{i}]"), shown(value), wanted))
    };
    list.iter().enumerate().map(text).collect()
}

/// `logit_bias`: token ids, as texts, and what is added to each one's logit.
fn bias(fields: &Fields<'_>, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.map("logit_bias")? else { return Ok(Vec::new()) };
    if map.object().len() > BIASES {
        return Err(fields.wrong("logit_bias", format!("{BIASES} tokens at most")));
    }
    let one = |id: &String| {
        let token = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocab);
        let wanted = format!("token ids below {vocab} as keys");
        let token = token.ok_or_else(|| ApiError::field("logit_bias", format!("{id:.20?}"), wanted))?;
        let value = map.number(id, -100.0..=100.0)?.unwrap_or(0.0);
        Ok((token, value as f32))
    };
    map.object().keys().map(one).collect()
}

/// Tokens of an answer at most, from the first of `names` that is there.
pub fn limit(fields: &Fields<'_>, names: &[&str], default: usize) -> Result<usize, ApiError> {
    for name in names {
        if let Some(limit) = fields.whole(name, 0..=u64::from(u32::MAX))? {
            return Ok(limit);
        }
    }
    Ok(default)
}
