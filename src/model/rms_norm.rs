//! RMSNorm, never ternary.

use super::{Gradients, Weight};
use crate::kernels::{self, Buffer, To};

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

/// What stands behind a norm takes: `x` through the norm into `out`, made as long, or `x` itself where there is none.
pub(super) fn normed<'a>(norm: &Option<RmsNorm>, x: &'a Buffer, out: &'a mut Buffer) -> &'a Buffer {
    match norm {
        Some(norm) => {
            out.resize(x.len());
            norm.forward(x, out);
            out
        }
        None => x,
    }
}

/// Mirror of [`normed`]: `d`, the gradient by what the projection took, becomes that by `x`. `scratch` is as long.
pub(super) fn normed_backward(
    norm: &Option<RmsNorm>,
    x: &Buffer,
    d: &mut Buffer,
    scratch: &mut Buffer,
    grads: &mut Gradients,
) {
    if let Some(norm) = norm {
        norm.backward(x, d, scratch, To::Set, grads);
        std::mem::swap(d, scratch);
    }
}
