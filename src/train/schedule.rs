//! Where a training stands at a step, and its learning rate there.

use crate::config::{ScheduleKind, TrainConfig};
use crate::kernels::AdamW;
use std::f64::consts::PI;

/// Where a training stands at a step.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Counted from 0.
    pub step: u64,
    /// The schedule's, of the learning rate.
    pub factor: f32,
    /// Each gradient is taken times this.
    pub grad_scale: f32,
}

impl At {
    /// Step `step` without schedule and clipping.
    pub fn step(step: u64) -> At {
        At { step, factor: 1.0, grad_scale: 1.0 }
    }

    /// The rule of what AdamW updates without decay.
    pub(super) fn adamw(self, t: &TrainConfig) -> AdamW {
        let (lr, grad_scale, step) = (t.lr * self.factor, self.grad_scale, self.step + 1);
        AdamW { lr, beta1: t.beta1, beta2: t.beta2, eps: t.eps, weight_decay: 0.0, grad_scale, step }
    }
}

/// The factor on the learning rate at `step`, counted from 0: a straight line from `1 / warmup` to 1 over the warm-up,
/// then what [`ScheduleKind`] says.
///
/// ```
/// use ternlm::config::{ScheduleKind, TrainConfig};
/// use ternlm::train::schedule;
/// let t = TrainConfig { steps: 110, warmup: 10, schedule: ScheduleKind::Cosine, floor: 0.1, ..Default::default() };
/// assert_eq!(schedule(&t, 0), 0.1);
/// assert_eq!(schedule(&t, 10), 1.0);
/// assert!((schedule(&t, 60) - 0.55).abs() < 1e-6);
/// assert!((schedule(&t, 110) - 0.1).abs() < 1e-6);
/// ```
pub fn schedule(t: &TrainConfig, step: u64) -> f32 {
    if step < t.warmup {
        return (step + 1) as f32 / t.warmup as f32;
    }
    let floor = t.floor as f64;
    let factor = match t.schedule {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Cosine => {
            let done = (step - t.warmup) as f64 / t.steps.saturating_sub(t.warmup).max(1) as f64;
            floor + (1.0 - floor) * 0.5 * (1.0 + (PI * done.min(1.0)).cos())
        }
        ScheduleKind::Linear => {
            let length = (t.decay_fraction as f64 * t.steps as f64).max(1.0);
            let left = t.steps.saturating_sub(step) as f64 / length;
            floor + (1.0 - floor) * left.min(1.0)
        }
    };
    factor as f32
}

/// Weight decay at `step`, counted from 0.
pub fn weight_decay(t: &TrainConfig, step: u64) -> f32 {
    if t.weight_decay_until.is_some_and(|until| step >= until) { 0.0 } else { t.weight_decay }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_decay_covers_the_last_part() {
        let t = TrainConfig {
            steps: 100,
            schedule: ScheduleKind::Linear,
            decay_fraction: 0.2,
            floor: 0.0,
            ..Default::default()
        };
        assert_eq!([0, 79, 80].map(|s| schedule(&t, s)), [1.0; 3]);
        assert!((schedule(&t, 90) - 0.5).abs() < 1e-6);
        assert!((schedule(&t, 99) - 0.05).abs() < 1e-6);
    }

    #[test]
    fn weight_decay_is_switched_off() {
        let t = TrainConfig { weight_decay: 0.1, weight_decay_until: Some(5), ..Default::default() };
        assert_eq!([0, 4, 5, 9].map(|s| weight_decay(&t, s)), [0.1, 0.1, 0.0, 0.0]);
        assert_eq!(weight_decay(&TrainConfig { weight_decay: 0.1, ..Default::default() }, 1 << 40), 0.1);
    }
}
