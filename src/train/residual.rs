//! What is left of the latents in the products of a step, while weights become ternary.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

use crate::config::{Scope, TernaryConfig};
use crate::model::Role;

/// The share of the latents in what `step` of `steps`, counted from 0, multiplies with: 1 over the first `start` of them, then
/// from 1 to 0 on half a cosine over `anneal` of them (Sherry's decaying residual), then 0. The last step is always one of 0.
///
/// ```
/// use ternlm::train::residual;
/// assert_eq!([residual(0.0, 0.25, 400, 0), residual(0.0, 0.25, 400, 100), residual(0.0, 0.0, 400, 0)], [1.0, 0.0, 0.0]);
/// assert!((residual(0.0, 0.25, 400, 50) - 0.5).abs() < 1e-6);
/// assert_eq!([residual(0.5, 0.0, 400, 199), residual(0.5, 0.0, 400, 200)], [1.0, 0.0]);
/// assert!((residual(0.5, 0.25, 400, 250) - 0.5).abs() < 1e-6);
/// ```
pub fn residual(start: f32, anneal: f32, steps: u64, step: u64) -> f32 {
    // 0.2 is above a fifth in f32: a step that begins there is none before it.
    let steps_of = |share: f64| {
        let rounded = (share * steps as f64 * (1.0 - f32::EPSILON as f64)).ceil() as u64;
        rounded.min(steps.saturating_sub(1))
    };
    let (first, end) = (steps_of(start as f64), steps_of(start as f64 + anneal as f64));
    let Some(step) = step.checked_sub(first) else { return 1.0 };
    let length = (end - first) as f64;
    if step as f64 >= length {
        return 0.0;
    }
    (0.5 * (1.0 + (PI * step as f64 / length).cos())) as f32
}

/// The [`residual`] of each kind of ternary weight in a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Residuals {
    pub feed_forward: f32,
    pub attention: f32,
    /// Embedding and output head, where they are ternary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<f32>,
}

impl Residuals {
    /// Of a training that does not begin with trits.
    pub fn at(ternary: &TernaryConfig, steps: u64, step: u64) -> Option<Self> {
        let TernaryConfig { scope, anneal, start, .. } = *ternary;
        if scope == Scope::None || (anneal == 0.0 && start.is_at_once()) {
            return None;
        }
        let of = |start| residual(start, anneal, steps, step);
        Some(Self {
            feed_forward: of(start.feed_forward),
            attention: of(start.attention),
            ends: (scope == Scope::All).then(|| of(start.ends)),
        })
    }

    /// The first of `steps`, counted from 0, that every weight takes part in with its trits alone.
    pub fn end(ternary: &TernaryConfig, steps: u64) -> u64 {
        let soft = |step| Self::at(ternary, steps, step).is_some_and(|left| left.largest() > 0.0);
        let (mut first, mut end) = (0, steps);
        while first < end {
            let middle = first + (end - first) / 2;
            if soft(middle) { first = middle + 1 } else { end = middle }
        }
        end
    }

    pub fn of(&self, role: Role) -> f32 {
        match role {
            Role::FeedForward => self.feed_forward,
            Role::Attention => self.attention,
            Role::Embedding | Role::Head => self.ends.unwrap_or(0.0),
            Role::Gain | Role::Bias => 0.0,
        }
    }

    pub fn largest(&self) -> f32 {
        self.feed_forward.max(self.attention).max(self.ends.unwrap_or(0.0))
    }

    /// Each by its key in `ternary.start`.
    pub fn by_key(&self) -> impl Iterator<Item = (&'static str, f32)> {
        let blocks = [("feed_forward", self.feed_forward), ("attention", self.attention)];
        blocks.into_iter().chain(self.ends.map(|left| ("ends", left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StartConfig;

    /// Sixteen steps: `1` latents, `/` in between, `0` trits.
    #[test]
    fn each_kind_of_weight_has_its_stages() {
        let start = StartConfig { feed_forward: 0.0, attention: 0.25, ends: 0.625 };
        let stages = |anneal: f32, of: fn(Residuals) -> f32| -> String {
            let ternary = TernaryConfig { anneal, start, ..TernaryConfig::default() };
            let each = (0..16).map(|step| of(Residuals::at(&ternary, 16, step).unwrap()));
            each.map(|left| {
                if left == 1.0 {
                    '1'
                } else if left == 0.0 {
                    '0'
                } else {
                    '/'
                }
            })
            .collect()
        };
        // Annealed over two steps: all of the latents in the first, half of them in the second.
        assert_eq!(stages(0.125, |r| r.feed_forward), "1/00000000000000");
        assert_eq!(stages(0.125, |r| r.attention), "11111/0000000000");
        assert_eq!(stages(0.125, |r| r.ends.unwrap()), "11111111111/0000");
        assert_eq!(stages(0.0, |r| r.feed_forward), "0000000000000000");
        assert_eq!(stages(0.0, |r| r.attention), "1111000000000000");
        assert_eq!(stages(0.0, |r| r.ends.unwrap()), "1111111111000000");
    }

    #[test]
    fn however_few_the_steps_the_last_is_of_trits() {
        let ternary = TernaryConfig { anneal: 0.9, ..TernaryConfig::default() };
        assert_eq!([1, 2, 5, 9, 10, 100].map(|steps| Residuals::end(&ternary, steps)), [0, 1, 4, 8, 9, 90]);
        assert_eq!(Residuals::end(&TernaryConfig::default(), 100), 0);
    }

    #[test]
    fn what_is_ternary_at_once_or_never_has_no_residual() {
        let mut ternary = TernaryConfig::default();
        assert_eq!(Residuals::at(&ternary, 10, 0), None);
        ternary.start.ends = 0.5;
        assert_eq!(Residuals::at(&ternary, 10, 0).unwrap().of(Role::Head), 1.0);
        ternary.scope = Scope::Blocks;
        assert_eq!(Residuals::at(&ternary, 10, 0).unwrap().largest(), 0.0);
        ternary.scope = Scope::None;
        assert_eq!(Residuals::at(&ternary, 10, 0), None);
    }

    #[test]
    fn a_share_is_as_many_steps_as_it_says_in_decimals() {
        for steps in [10, 100, 1000, 2400, 1_000_000] {
            for tenths in 1..=9u64 {
                let start = tenths as f32 / 10.0;
                let first = steps * tenths / 10;
                let around = [first - 1, first].map(|step| residual(start, 0.0, steps, step));
                assert_eq!(around, [1.0, 0.0], "{start} of {steps}");
                let around = [first - 1, first].map(|step| residual(0.0, start, steps, step) > 0.0);
                assert_eq!(around, [true, false], "annealed over {start} of {steps}");
            }
            // Together nine tenths, each of which is no whole number of ten steps.
            assert_eq!(residual(0.65, 0.25, steps, steps * 9 / 10), 0.0, "{steps}");
        }
    }
}
