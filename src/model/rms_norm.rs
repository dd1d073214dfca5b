//! RMSNorm, never ternary.

use super::Param;
use crate::kernels;

/// `y = x * gain / sqrt(mean(x^2) + eps)` over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[width]`
    pub gain: Param,
    pub eps: f32,
}

impl RmsNorm {
    pub fn new(name: &str, width: usize, eps: f32) -> Self {
        Self { gain: Param::ones(format!("{name}.weight"), width), eps }
    }

    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        kernels::rms_norm(x, &self.gain.value, self.eps, y);
    }

    /// `dx (+)=` the gradient by `x`; the gain's is added to its gradient.
    pub fn backward(&mut self, x: &[f32], dy: &[f32], dx: &mut [f32], add: bool) {
        let mut grad = std::mem::take(self.gain.grad_mut());
        kernels::rms_norm_backward(x, &self.gain.value, self.eps, dy, dx, &mut grad, add);
        *self.gain.grad_mut() = grad;
    }
}
