//! One block of a decoder, and what is kept of it for the backward pass.

use super::attention::{Attention, AttentionSaved, Cached};
use super::dropout;
use super::feed_forward::{FeedForward, FeedForwardSaved};
use super::{Context, Gradients, RmsNorm, Weight};
use crate::config::ModelConfig;
use crate::kernels::{self, Buffer, To};
use crate::ternary::Grouping;

/// One block: `x += attention(norm(x)); x += feed_forward(norm(x))`.
#[derive(Clone, Debug)]
pub struct Block {
    pub input_layernorm: RmsNorm,
    pub self_attn: Attention,
    pub post_attention_layernorm: RmsNorm,
    pub mlp: FeedForward,
}

/// What the backward pass of a block needs.
#[derive(Debug, Default)]
pub(super) struct BlockSaved {
    /// The residual stream at the block's input, `[N, C]`.
    pub x: Buffer,
    pub attention: AttentionSaved,
    /// The residual stream between the two halves.
    pub mid: Buffer,
    pub feed_forward: FeedForwardSaved,
}

impl BlockSaved {
    /// In the order in which the forward pass made them.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &Buffer)> {
        [("input", &self.x)]
            .into_iter()
            .chain(self.attention.parts())
            .chain([("sum after attention", &self.mid)])
            .chain(self.feed_forward.parts())
    }
}

impl Block {
    pub(super) fn new(name: &str, c: &ModelConfig, grouping: Option<Grouping>) -> Self {
        let norm = |part: &str| RmsNorm::new(&format!("{name}.{part}"), c.hidden_size, c.rms_norm_eps);
        Self {
            input_layernorm: norm("input_layernorm"),
            self_attn: Attention::new(&format!("{name}.self_attn"), c, grouping),
            post_attention_layernorm: norm("post_attention_layernorm"),
            mlp: FeedForward::new(&format!("{name}.mlp"), c, grouping),
        }
    }

    pub(super) fn forward(
        &self,
        layer: usize,
        x: &mut Buffer,
        cx: &mut Context<'_>,
        saved: &mut BlockSaved,
        cached: Option<Cached<'_, '_>>,
    ) {
        let mut h = cx.ws.take(x.len());
        set(&mut saved.x, x);
        self.input_layernorm.forward(x, &mut h);
        dropout::forward(cx, dropout::after_attention(layer), x, |cx, x| {
            self.self_attn.forward(&h, cx, &mut saved.attention, cached, x)
        });
        set(&mut saved.mid, x);
        self.post_attention_layernorm.forward(x, &mut h);
        dropout::forward(cx, dropout::after_feed_forward(layer), x, |cx, x| {
            self.mlp.forward(&h, cx, &mut saved.feed_forward, x)
        });
        cx.ws.give(h);
    }

    /// Mirror of [`Block::forward`], to be read upward against it: `dx` comes in as the gradient by the block's output
    /// and leaves as the gradient by its input.
    pub(super) fn backward(
        &self,
        layer: usize,
        dx: &mut Buffer,
        cx: &mut Context<'_>,
        saved: &BlockSaved,
        grads: &mut Gradients,
    ) {
        let (mut h, mut dh) = (cx.ws.take(dx.len()), cx.ws.take(dx.len()));
        self.post_attention_layernorm.forward(&saved.mid, &mut h);
        dropout::backward(cx, dropout::after_feed_forward(layer), dx, |cx, dx| {
            self.mlp.backward(&h, cx, &saved.feed_forward, dx, &mut dh, grads)
        });
        self.post_attention_layernorm.backward(&saved.mid, &dh, dx, To::Add, grads);
        self.input_layernorm.forward(&saved.x, &mut h);
        dropout::backward(cx, dropout::after_attention(layer), dx, |cx, dx| {
            self.self_attn.backward(&h, cx, &saved.attention, dx, &mut dh, grads)
        });
        self.input_layernorm.backward(&saved.x, &dh, dx, To::Add, grads);
        cx.ws.give(h);
        cx.ws.give(dh);
    }

    /// Shows what the projections multiplied in the last forward pass, in its order.
    pub(super) fn inputs(&self, cx: &mut Context<'_>, saved: &BlockSaved, mut see: impl FnMut(&Buffer)) {
        let mut h = cx.ws.take(saved.x.len());
        self.input_layernorm.forward(&saved.x, &mut h);
        self.self_attn.inputs(&h, cx, &saved.attention, &mut see);
        self.post_attention_layernorm.forward(&saved.mid, &mut h);
        self.mlp.inputs(&h, cx, &saved.feed_forward, &mut see);
        cx.ws.give(h);
    }

    /// The weights that multiply each of [`Block::inputs`].
    pub(super) fn readers_mut(&mut self) -> impl Iterator<Item = Vec<&mut Weight>> {
        self.self_attn.readers_mut().into_iter().chain(self.mlp.readers_mut())
    }

    pub(super) fn weights(&self) -> impl Iterator<Item = &Weight> {
        let (a, b) = (&self.input_layernorm.gain, &self.post_attention_layernorm.gain);
        [a].into_iter().chain(self.self_attn.weights()).chain([b]).chain(self.mlp.weights())
    }

    pub(super) fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        let (a, b) = (&mut self.input_layernorm.gain, &mut self.post_attention_layernorm.gain);
        [a].into_iter().chain(self.self_attn.weights_mut()).chain([b]).chain(self.mlp.weights_mut())
    }
}

pub(super) fn set(to: &mut Buffer, from: &Buffer) {
    to.resize(from.len());
    kernels::copy(to, from);
}

/// Whose activations stay after a pass; all other blocks share one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    /// Those of one block.
    Block(usize),
    /// For the backward pass.
    Everything,
}

impl Keep {
    /// Sets of activations of so many blocks.
    pub(super) fn sets(self, blocks: usize) -> usize {
        match self {
            Keep::Nothing => 1,
            Keep::Block(_) => 2,
            Keep::Everything => blocks,
        }
    }

    /// The set of a block.
    pub(super) fn set(self, block: usize) -> usize {
        match self {
            Keep::Nothing => 0,
            Keep::Block(kept) => (block == kept) as usize,
            Keep::Everything => block,
        }
    }
}
