//! The feed-forward network of a block: SwiGLU or gated ReLU² with three matrices, or GELU or ReLU² with two; for BitNet
//! with a norm before the last one.

use super::rms_norm::{normed, normed_backward};
use super::{Context, Gradients, Linear, RmsNorm, Role, Weight};
use crate::config::{Activation, ModelConfig};
use crate::kernels::{self, Buffer, To};
use crate::ternary::Grouping;

#[derive(Clone, Debug)]
pub struct FeedForward {
    /// Where the activation is gated.
    pub gate_proj: Option<Linear>,
    pub up_proj: Linear,
    pub down_proj: Linear,
    pub ffn_sub_norm: Option<RmsNorm>,
    activation: Activation,
}

/// What the backward pass needs: both projections as they came, unless it makes them again; the activation is done again.
#[derive(Debug, Default)]
pub struct FeedForwardSaved {
    gate: Buffer,
    up: Buffer,
}

impl FeedForwardSaved {
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &Buffer)> {
        [("gate", &self.gate), ("up projection", &self.up)].into_iter()
    }

    fn give(self, cx: &mut Context<'_>) {
        cx.ws.give(self.gate);
        cx.ws.give(self.up);
    }
}

impl FeedForward {
    pub fn new(name: &str, c: &ModelConfig, grouping: Option<Grouping>) -> Self {
        let linear = |part: &str, inputs, out| {
            Linear::new(&format!("{name}.{part}"), inputs, out, Role::FeedForward, grouping, c.mlp_bias)
        };
        let norm = |part: &str| RmsNorm::new(&format!("{name}.{part}"), c.intermediate_size, c.rms_norm_eps);
        let gated = c.activation.is_gated();
        Self {
            gate_proj: gated.then(|| linear("gate_proj", c.hidden_size, c.intermediate_size)),
            up_proj: linear("up_proj", c.hidden_size, c.intermediate_size),
            down_proj: linear("down_proj", c.intermediate_size, c.hidden_size),
            ffn_sub_norm: c.sub_norm.then(|| norm("ffn_sub_norm")),
            activation: c.activation,
        }
    }

    /// `out += down(norm(act(h)))` for `h` `[n, C]`.
    pub fn forward(&self, h: &[f32], cx: &mut Context<'_>, saved: &mut FeedForwardSaved, out: &mut [f32]) {
        let mut passing = cx.recompute.then(|| self.take(cx));
        let saved = passing.as_mut().unwrap_or(saved);
        self.project(h, cx.rows.count(), saved);
        let len = saved.up.len();
        let (mut act, mut h) = (cx.ws.take(len), cx.ws.take(self.normed_len(len)));
        self.activate(saved, &mut act);
        self.down_proj.forward(normed(&self.ffn_sub_norm, &act, &mut h), out, To::Add);
        cx.ws.give(act);
        cx.ws.give(h);
        passing.into_iter().for_each(|passing| passing.give(cx));
    }

    /// Gate and up projection of `n` rows.
    fn project(&self, h: &[f32], n: usize, projected: &mut FeedForwardSaved) {
        let len = n * self.up_proj.weight.shape[0];
        let FeedForwardSaved { gate, up } = projected;
        gate.resize(if self.gate_proj.is_some() { len } else { 0 });
        up.resize(len);
        let gated = self.gate_proj.iter().zip([gate]);
        Linear::forward_each(h, gated.chain([(&self.up_proj, up)]));
    }

    /// Room for both projections, for as long as they are needed.
    fn take(&self, cx: &mut Context<'_>) -> FeedForwardSaved {
        let len = cx.rows.count() * self.up_proj.weight.shape[0];
        let gate = if self.gate_proj.is_some() { len } else { 0 };
        FeedForwardSaved { gate: cx.ws.take(gate), up: cx.ws.take(len) }
    }

    /// Mirror of [`FeedForward::forward`]: from `dout` the gradients of all weights, and `dh`.
    pub fn backward(
        &self,
        h: &[f32],
        cx: &mut Context<'_>,
        saved: &FeedForwardSaved,
        dout: &[f32],
        dh: &mut [f32],
        grads: &mut Gradients,
    ) {
        let again = cx.recompute.then(|| {
            let mut again = self.take(cx);
            self.project(h, cx.rows.count(), &mut again);
            again
        });
        let saved = again.as_ref().unwrap_or(saved);
        let len = saved.up.len();
        // `d` is the gradient by the activation, then that by the up projection.
        let (mut act, mut d) = (cx.ws.take(len), cx.ws.take(len));
        let mut scratch = cx.ws.take(self.normed_len(len));
        self.activate(saved, &mut act);
        let inner = normed(&self.ffn_sub_norm, &act, &mut scratch);
        self.down_proj.backward(inner, dout, &mut d, grads);
        normed_backward(&self.ffn_sub_norm, &act, &mut d, &mut scratch, grads);
        match self.activation {
            Activation::Relu2Glu => kernels::relu2_mul_backward(&saved.gate, &saved.up, &mut d, &mut act),
            Activation::SwiGlu => kernels::silu_mul_backward(&saved.gate, &saved.up, &mut d, &mut act),
            Activation::Gelu => kernels::gelu_backward(&saved.up, &mut d),
            Activation::Relu2 => kernels::relu2_backward(&saved.up, &mut d),
        }
        // `act` holds the gate's gradient now.
        let gated = self.gate_proj.iter().map(|gate| (gate, &act));
        let several: Vec<_> = gated.chain([(&self.up_proj, &d)]).collect();
        Linear::backward_each(h, &several, dh, grads);
        for buffer in [act, d, scratch] {
            cx.ws.give(buffer);
        }
        again.into_iter().for_each(|again| again.give(cx));
    }

    /// Shows what the projections multiplied in the last forward pass, `h` first.
    pub(super) fn inputs(
        &self,
        h: &Buffer,
        cx: &mut Context<'_>,
        saved: &FeedForwardSaved,
        see: &mut impl FnMut(&Buffer),
    ) {
        see(h);
        let len = saved.up.len();
        let (mut act, mut scratch) = (cx.ws.take(len), cx.ws.take(self.normed_len(len)));
        self.activate(saved, &mut act);
        see(normed(&self.ffn_sub_norm, &act, &mut scratch));
        cx.ws.give(act);
        cx.ws.give(scratch);
    }

    /// The weights that multiply each of [`FeedForward::inputs`].
    pub(super) fn readers_mut(&mut self) -> [Vec<&mut Weight>; 2] {
        let first = self.gate_proj.iter_mut().chain([&mut self.up_proj]);
        [first.map(|linear| &mut linear.weight).collect(), vec![&mut self.down_proj.weight]]
    }

    /// Values that the norm before the last projection needs room for.
    fn normed_len(&self, len: usize) -> usize {
        if self.ffn_sub_norm.is_some() { len } else { 0 }
    }

    fn activate(&self, saved: &FeedForwardSaved, act: &mut [f32]) {
        match self.activation {
            Activation::SwiGlu => kernels::silu_mul(&saved.gate, &saved.up, act),
            Activation::Relu2Glu => kernels::relu2_mul(&saved.gate, &saved.up, act),
            Activation::Gelu => kernels::gelu(&saved.up, act),
            Activation::Relu2 => kernels::relu2(&saved.up, act),
        }
    }

    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        let norm = self.ffn_sub_norm.iter().map(|n| &n.gain);
        self.gate_proj.iter().chain([&self.up_proj, &self.down_proj]).flat_map(Linear::weights).chain(norm)
    }

    pub fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        let norm = self.ffn_sub_norm.iter_mut().map(|n| &mut n.gain);
        let linears = self.gate_proj.iter_mut().chain([&mut self.up_proj, &mut self.down_proj]);
        linears.flat_map(Linear::weights_mut).chain(norm)
    }
}
