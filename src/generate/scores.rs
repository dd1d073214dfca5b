//! Log-probabilities of tokens, as the model gives them: before temperature, penalties and filters.

use std::cmp::Ordering;

/// A token, its log-probability, and the most likely ones in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    pub token: u32,
    pub log_probability: f32,
    /// Most likely first.
    pub top: Vec<(u32, f32)>,
}

/// The score of `token` under the `[V]` logits of its place, with the `top` most likely tokens. A logit that is NaN counts as
/// impossible.
///
/// ```
/// use ternlm::generate::score;
/// let scored = score(&[0.0, 1.0, f32::NAN], 0, 1);
/// assert!((scored.log_probability - (1.0 / (1.0 + 1f32.exp())).ln()).abs() < 1e-6);
/// assert_eq!(scored.top[0].0, 1);
/// ```
///
/// # Panics
/// A token outside the vocabulary.
pub fn score(logits: &[f32], token: u32, top: usize) -> Scored {
    let clean = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
    let max = logits.iter().copied().map(clean).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(clean(logit) - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    let of = |logit: f32| (f64::from(clean(logit)) - norm) as f32;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    for (id, &logit) in logits.iter().enumerate() {
        let logit = clean(logit);
        if top == 0 || best.len() == top && best.last().is_some_and(|worst| worst.1 >= logit) {
            continue;
        }
        let at = best.partition_point(|b| b.1.total_cmp(&logit) != Ordering::Less);
        best.insert(at, (id as u32, logit));
        best.truncate(top);
    }
    let top = best.into_iter().map(|(id, logit)| (id, of(logit))).collect();
    Scored { token, log_probability: of(logits[token as usize]), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_the_best_come_first() {
        let logits = [0.5f32, -2.0, 3.0, 3.0, f32::NEG_INFINITY];
        let sum: f32 = (0..5).map(|token| score(&logits, token, 0).log_probability.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        let top = score(&logits, 4, 3);
        assert_eq!(top.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 3, 0], "equal ones by id");
        assert_eq!(top.log_probability, f32::NEG_INFINITY);
        assert_eq!(score(&logits, 2, 9).top.len(), 5);
    }
}
