//! Choosing the next token.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

use crate::error::{Error, Result};

/// How the next token is drawn from the logits. The default is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Divides the logits; 0: greedy (the most probable token, the lowest id among equals).
    pub temperature: f32,
    /// Keep that many most probable tokens; 0: all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens that reaches this probability; 1: all.
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the greatest probability; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the history (CTRL); 1: off.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that were made before; 0: off.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time that it was made before; 0: off.
    pub frequency_penalty: f32,
    /// Equal seeds and logits give equal tokens.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// Judges the values, as they come from a command line or a recipe.
    pub fn validate(&self) -> Result<()> {
        for (name, value, low, high) in [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
        ] {
            if !(low..=high).contains(&value) {
                return Err(Error::usage(format!("{name}: found {value}, wanted {low} to {high}")));
            }
        }
        Ok(())
    }
}

/// A token that may still be chosen. `weight` is its logit first and later its probability times a constant.
#[derive(Clone, Copy)]
struct Candidate {
    weight: f32,
    id: u32,
}

/// Most probable first, the lower id first among equals: a total order, so the result never depends on an algorithm.
fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Draws tokens with one random stream.
///
/// ```
/// use ternlm::generate::{Sampler, SamplingConfig};
/// let logits = [0.5, 3.0, -1.0, 2.5];
/// // The default is greedy; what was said before counts only with a repetition penalty.
/// assert_eq!(Sampler::new(SamplingConfig::default()).sample(&mut logits.clone(), &[]), 1);
///
/// let config = SamplingConfig { temperature: 0.8, top_k: 2, seed: 7, ..SamplingConfig::default() };
/// config.validate()?;
/// let draw = || {
///     let mut sampler = Sampler::new(config.clone());
///     (0..50).map(|_| sampler.sample(&mut logits.clone(), &[])).collect::<Vec<u32>>()
/// };
/// assert!(draw().iter().all(|token| [1, 3].contains(token)), "the two most probable ones");
/// assert_eq!(draw(), draw(), "a seed decides");
/// # Ok::<(), ternlm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: ChaCha8Rng,
    candidates: Vec<Candidate>,
    seen: Vec<u32>,
    /// Added to logits.
    bias: Vec<(u32, f32)>,
    /// Where in the history the tokens begin that were made.
    made_from: usize,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.id, self.weight)
    }
}

impl Sampler {
    /// A sampler at the start of the stream of `config.seed`. The configuration must have been validated.
    pub fn new(config: SamplingConfig) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        Self { config, rng, candidates: Vec::new(), seen: Vec::new(), bias: Vec::new(), made_from: 0 }
    }

    /// Adds to the logit of each of these tokens from now on; of one outside the vocabulary nothing comes.
    pub fn with_bias(self, bias: Vec<(u32, f32)>) -> Self {
        Self { bias, ..self }
    }

    /// Of every history the first `prompt` tokens were given, not made: presence and frequency do not count them.
    pub fn set_prompt(&mut self, prompt: usize) {
        self.made_from = prompt;
    }

    /// The token that follows `history`, given the `[V]` logits of the model. The logits are changed.
    ///
    /// A logit that is NaN counts as impossible; of nothing but impossible tokens the first is returned. Greedy
    /// choices use no randomness. Panics on empty logits.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> u32 {
        assert!(!logits.is_empty(), "no logits to choose from");
        for logit in logits.iter_mut() {
            // +inf would make every difference to it NaN.
            *logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
        }
        self.penalize(logits, history);
        let best = argmax(logits);
        let max = logits[best];
        if self.config.temperature <= 0.0 || max == f32::NEG_INFINITY {
            return best as u32;
        }
        self.fill(logits);
        let scale = self.config.temperature.recip().min(f32::MAX);
        for c in &mut self.candidates {
            // 0 * inf, when the temperature is tiny, must not become NaN.
            let below = c.weight - max;
            c.weight = if below == 0.0 { 1.0 } else { (below * scale).exp() };
        }
        self.keep_top_p();
        if self.config.min_p > 0.0 {
            // The greatest weight is 1.
            self.candidates.retain(|c| c.weight >= self.config.min_p);
        }
        self.draw()
    }

    fn penalize(&mut self, logits: &mut [f32], history: &[u32]) {
        self.penalize_repeated(logits, history);
        let SamplingConfig { presence_penalty, frequency_penalty, .. } = self.config;
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            self.seen.clear();
            let made = history.get(self.made_from..).unwrap_or_default();
            self.seen.extend(made.iter().filter(|&&id| (id as usize) < logits.len()));
            self.seen.sort_unstable();
            for same in self.seen.chunk_by(|a, b| a == b) {
                logits[same[0] as usize] -= presence_penalty + frequency_penalty * same.len() as f32;
            }
        }
        for &(id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    fn penalize_repeated(&mut self, logits: &mut [f32], history: &[u32]) {
        let penalty = self.config.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.seen.clear();
        self.seen.extend(history.iter().filter(|&&id| (id as usize) < logits.len()));
        self.seen.sort_unstable();
        self.seen.dedup();
        for &id in &self.seen {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }

    /// The `top_k` best tokens with their logits.
    fn fill(&mut self, logits: &[f32]) {
        self.candidates.clear();
        let all = logits.iter().enumerate().map(|(id, &weight)| Candidate { weight, id: id as u32 });
        self.candidates.extend(all.filter(|c| c.weight > f32::NEG_INFINITY));
        let k = self.config.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, by_weight);
            self.candidates.truncate(k);
            self.candidates.sort_unstable_by(by_weight);
        }
    }

    fn keep_top_p(&mut self) {
        if self.config.top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let wanted = f64::from(self.config.top_p) * total;
        // Usually a few hundred tokens suffice: sort only as many as are needed.
        let mut sorted = 256;
        loop {
            if sorted < self.candidates.len() {
                self.candidates.select_nth_unstable_by(sorted - 1, by_weight);
            } else {
                sorted = self.candidates.len();
            }
            self.candidates[..sorted].sort_unstable_by(by_weight);
            let mut sum = 0.0;
            let reached = self.candidates[..sorted].iter().position(|c| {
                sum += f64::from(c.weight);
                sum >= wanted
            });
            if let Some(last) = reached {
                self.candidates.truncate(last + 1);
                return;
            }
            if sorted == self.candidates.len() {
                return;
            }
            sorted *= 8;
        }
    }

    fn draw(&mut self) -> u32 {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        // 53 random bits: uniform in [0, 1).
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * total;
        let mut chosen = self.candidates[0].id;
        for c in self.candidates.iter().filter(|c| c.weight > 0.0) {
            chosen = c.id;
            left -= f64::from(c.weight);
            if left < 0.0 {
                break;
            }
        }
        chosen
    }
}

/// The place of the greatest value, the first among equals; no NaN is one.
pub(super) fn argmax(values: &[f32]) -> usize {
    const LANES: usize = 16;
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    // How great it is, in lanes that become vectors, and then where.
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut tops = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (top, value) in tops.iter_mut().zip(chunk) {
            *top = greater(*top, *value);
        }
    }
    let top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, value| greater(top, *value));
    values.iter().position(|value| *value == top).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(temperature: f32) -> SamplingConfig {
        SamplingConfig { temperature, ..Default::default() }
    }

    /// How often each of the tokens comes in `n` draws.
    fn frequencies(config: SamplingConfig, logits: &[f32], n: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(config);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(&mut logits.to_vec(), &[]) as usize] += 1.0 / n as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.5f32, -1.0, 2.0, 1.0];
        for temperature in [0.7f32, 1.0, 2.0] {
            let weights = logits.map(|l| f64::from(l / temperature).exp());
            let total: f64 = weights.iter().sum();
            let found = frequencies(config(temperature), &logits, 40_000);
            for (weight, found) in weights.iter().zip(found) {
                assert!((weight / total - found).abs() < 0.012, "T {temperature}: {weight} {found}");
            }
        }
    }

    #[test]
    fn filters_keep_the_right_tokens_and_renormalize() {
        // Probabilities 0.4, 0.3, 0.2, 0.1 in a scrambled order.
        let logits = [0.2f32, 0.4, 0.1, 0.3].map(f32::ln);
        let kept = |c: SamplingConfig| frequencies(c, &logits, 20_000);
        let near = |found: Vec<f64>, wanted: [f64; 4]| {
            for (f, w) in found.iter().zip(wanted) {
                assert!((f - w).abs() < 0.015 && (w > 0.0 || *f == 0.0), "{found:?} {wanted:?}");
            }
        };
        near(kept(SamplingConfig { top_k: 2, ..config(1.0) }), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        near(kept(SamplingConfig { top_p: 0.65, ..config(1.0) }), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // 0.7 is not reached by 0.4 alone; 0.75 needs a third token.
        near(kept(SamplingConfig { top_p: 0.75, ..config(1.0) }), [2.0 / 9.0, 4.0 / 9.0, 0.0, 3.0 / 9.0]);
        near(kept(SamplingConfig { top_p: 0.0, ..config(1.0) }), [0.0, 1.0, 0.0, 0.0]);
        near(kept(SamplingConfig { min_p: 0.45, ..config(1.0) }), [2.0 / 9.0, 4.0 / 9.0, 0.0, 3.0 / 9.0]);
        // top_p works on what top_k left: 0.4 of 0.9 is below 0.5, 0.7 of 0.9 above.
        let both = SamplingConfig { top_k: 3, top_p: 0.5, ..config(1.0) };
        near(kept(both), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    }

    #[test]
    fn penalty_divides_positive_and_multiplies_negative_once() {
        let mut sampler = Sampler::new(SamplingConfig { repetition_penalty: 2.0, ..config(0.0) });
        let mut logits = [3.0, 2.0, -1.0, -1.0];
        assert_eq!(sampler.sample(&mut logits, &[0, 0, 2, 99]), 1);
        assert_eq!(logits, [1.5, 2.0, -2.0, -1.0]);
    }

    #[test]
    fn presence_counts_a_made_token_once_and_frequency_each_time() {
        let config = SamplingConfig { presence_penalty: 0.5, frequency_penalty: 0.25, ..config(0.0) };
        let mut sampler = Sampler::new(config).with_bias(vec![(3, 2.0), (9, 1.0)]);
        sampler.set_prompt(2);
        let mut logits = [1.0, 1.0, 1.0, -1.5];
        // 0 stands in the prompt alone; 99 is no token of the model.
        assert_eq!(sampler.sample(&mut logits, &[0, 0, 1, 2, 2, 99]), 0);
        assert_eq!(logits, [1.0, 0.25, 0.0, 0.5]);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_survives_nan() {
        let mut greedy = Sampler::new(config(0.0));
        assert_eq!(greedy.sample(&mut [1.0, 5.0, 5.0, f32::NAN], &[]), 1);
        assert_eq!(greedy.sample(&mut [f32::NAN; 3], &[]), 0);
        let mut hot = Sampler::new(config(1.0));
        assert_eq!(hot.sample(&mut [f32::NAN, f32::NEG_INFINITY], &[]), 0);
        assert_eq!(hot.sample(&mut [f32::NAN, -3.0], &[]), 1);
        assert_eq!(hot.sample(&mut [0.0, f32::INFINITY], &[]), 1);
        let mut cold = Sampler::new(config(f32::from_bits(1)));
        assert_eq!(cold.sample(&mut [1.0, 2.0], &[]), 1);
    }

    #[test]
    fn same_seed_same_tokens() {
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplingConfig { seed, ..config(1.0) });
            (0..64).map(|_| sampler.sample(&mut [0.0; 50], &[])).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn partial_sorting_equals_a_full_sort_on_a_flat_vocabulary() {
        // 4096 nearly equal tokens: top_p must go beyond the first selections.
        let logits: Vec<f32> = (0..4096).map(|i| (i * 2654435761u64 % 4096) as f32 * 1e-4).collect();
        let mut sampler = Sampler::new(SamplingConfig { top_p: 0.8, ..config(1.0) });
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        sampler.sample(&mut logits.clone(), &[]);
        let mut all: Vec<_> =
            (0..4096u32).map(|id| Candidate { weight: (logits[id as usize] - max).exp(), id }).collect();
        all.sort_by(by_weight);
        let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
        let mut sum = 0.0;
        let n = all.iter().take_while(|c| {
            let more = sum < 0.8f32 as f64 * total;
            sum += f64::from(c.weight);
            more
        });
        let wanted: Vec<u32> = n.map(|c| c.id).collect();
        assert!(wanted.len() > 2048 && wanted.len() < 4000);
        assert_eq!(sampler.candidates.iter().map(|c| c.id).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn validate_names_the_bad_value() {
        assert!(SamplingConfig::default().validate().is_ok());
        for (bad, name) in [
            (config(f32::NAN), "temperature"),
            (config(-1.0), "temperature"),
            (SamplingConfig { top_p: 1.5, ..config(1.0) }, "top_p"),
            (SamplingConfig { min_p: -0.1, ..config(1.0) }, "min_p"),
            (SamplingConfig { repetition_penalty: 0.0, ..config(1.0) }, "repetition_penalty"),
        ] {
            assert!(bad.validate().unwrap_err().to_string().starts_with(name));
        }
    }

    fn any_logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => -30.0f32..30.0,
            1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0]),
        ]
    }

    proptest! {
        #[test]
        fn never_panics_and_respects_top_k_and_min_p(
            logits in prop::collection::vec(any_logit(), 1..400),
            history in prop::collection::vec(0u32..500, 0..20),
            temperature in 0.01f32..3.0, top_k in 0usize..50, top_p in 0.0f32..=1.0,
            min_p in 0.0f32..=1.0, seed: u64,
        ) {
            let config = SamplingConfig { temperature, top_k, top_p, min_p, seed, ..Default::default() };
            let token = Sampler::new(config.clone()).sample(&mut logits.clone(), &history) as usize;
            prop_assert!(token < logits.len());
            prop_assert_eq!(token as u32, Sampler::new(config).sample(&mut logits.clone(), &history));
            let clean: Vec<f32> =
                logits.iter().map(|l| if l.is_nan() { f32::NEG_INFINITY } else { l.min(f32::MAX) }).collect();
            let better = clean.iter().filter(|&&l| l > clean[token]).count();
            prop_assert!(top_k == 0 || better < top_k);
            let max = clean.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let ratio = if max == clean[token] { 1.0 } else { ((clean[token] - max) / temperature).exp() };
            prop_assert!(ratio >= min_p * 0.999);
        }
    }
}
