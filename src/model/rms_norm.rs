//! RMSNorm, never ternary.

use super::{Gradients, Weight};
use crate::kernels::{self, To};

/// `y = x * gain / sqrt(mean(x^2) + eps)` over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[width]`
    pub gain: Weight,
    pub eps: f32,
}

impl RmsNorm {
    pub fn new(name: &str, width: usize, eps: f32) -> Self {
        Self { gain: Weight::ones(format!("{name}.weight"), width), eps }
    }

    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        kernels::rms_norm(x, self.gain.dense(), self.eps, y);
    }

    /// `dx (+)=` the gradient by `x`; the gain's is added to its gradient.
    pub fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], to: To, grads: &mut Gradients) {
        let (gain, dgain) = (self.gain.dense(), grads.of(&self.gain));
        kernels::rms_norm_backward(x, gain, self.eps, dy, dx, dgain, to);
    }
}
