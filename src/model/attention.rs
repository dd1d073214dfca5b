//! Grouped-query self-attention with rotary positions and, for Qwen3, norms on queries and keys.

use super::{Gradients, Linear, RmsNorm, Role, Sequences, Weight, Workspace};
use crate::config::ModelConfig;
use crate::kernels::{self, AttentionShape, RopeTable, To};
use crate::ternary::Grouping;

#[derive(Clone, Debug)]
pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    pub q_norm: Option<RmsNorm>,
    pub k_norm: Option<RmsNorm>,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    causal: bool,
}

/// What the backward pass needs of the forward pass. Queries and keys are kept as projected; norm and rotation are
/// cheap enough to be done again.
#[derive(Debug, Default)]
pub struct AttentionSaved {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Before the output projection.
    out: Vec<f32>,
    /// Log-sum-exp of the scores, `[B, H, T]`.
    lse: Vec<f32>,
}

impl AttentionSaved {
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        [("queries", &self.q), ("keys", &self.k), ("values", &self.v), ("attention", &self.out)]
            .into_iter()
            .map(|(name, x)| (name, &x[..]))
    }
}

/// Keys and values of the positions seen so far, `[positions, KV * D]`.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl LayerCache {
    /// Forgets all positions from `len` on; `width` is `KV * D`.
    pub fn truncate(&mut self, len: usize, width: usize) {
        self.keys.truncate(len * width);
        self.values.truncate(len * width);
    }
}

impl Attention {
    pub fn new(name: &str, c: &ModelConfig, grouping: Option<Grouping>) -> Self {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let linear = |part: &str, inputs, out, bias| {
            Linear::new(&format!("{name}.{part}"), inputs, out, Role::Attention, grouping, bias)
        };
        let norm = |part: &str| {
            c.qk_norm.then(|| RmsNorm::new(&format!("{name}.{part}"), c.head_dim, c.rms_norm_eps))
        };
        Self {
            q_proj: linear("q_proj", c.hidden_size, q, c.qkv_bias),
            k_proj: linear("k_proj", c.hidden_size, kv, c.qkv_bias),
            v_proj: linear("v_proj", c.hidden_size, kv, c.qkv_bias),
            o_proj: linear("o_proj", q, c.hidden_size, false),
            q_norm: norm("q_norm"),
            k_norm: norm("k_norm"),
            heads: c.heads,
            kv_heads: c.kv_heads,
            dim: c.head_dim,
            causal: c.causal,
        }
    }

    fn shape(&self, batch: usize, queries: usize, keys: usize) -> AttentionShape {
        let Self { heads, kv_heads, dim, causal, .. } = *self;
        AttentionShape { batch, queries, keys, heads, kv_heads, dim, causal }
    }

    /// `out += o_proj(attention(h))` for `h` `[N, C]`. With a cache (one sequence) the keys and values of earlier
    /// positions come from it, and these are added to it.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        h: &[f32],
        seqs: Sequences,
        rope: &RopeTable,
        saved: &mut AttentionSaved,
        cache: Option<&mut LayerCache>,
        ws: &mut Workspace,
        out: &mut [f32],
    ) {
        let n = seqs.rows();
        let (width, kv_width) = (self.heads * self.dim, self.kv_heads * self.dim);
        saved.q.resize(n * width, 0.0);
        saved.k.resize(n * kv_width, 0.0);
        saved.v.resize(n * kv_width, 0.0);
        saved.out.resize(n * width, 0.0);
        saved.lse.resize(n * self.heads, 0.0);
        self.q_proj.forward(h, &mut saved.q, To::Set);
        self.k_proj.forward(h, &mut saved.k, To::Set);
        self.v_proj.forward(h, &mut saved.v, To::Set);
        let (mut q, mut k) = (ws.take(n * width), ws.take(n * kv_width));
        rotate(&self.q_norm, &saved.q, self.heads, seqs, rope, &mut q);
        rotate(&self.k_norm, &saved.k, self.kv_heads, seqs, rope, &mut k);
        match cache {
            None => {
                let shape = self.shape(seqs.batch, seqs.len, seqs.len);
                kernels::attention(&shape, &q, &k, &saved.v, &mut saved.out, &mut saved.lse);
            }
            Some(cache) => {
                assert_eq!(
                    (seqs.batch, cache.keys.len()),
                    (1, seqs.start * kv_width),
                    "a cache holds one sequence"
                );
                cache.keys.extend_from_slice(&k);
                cache.values.extend_from_slice(&saved.v);
                let shape = self.shape(1, seqs.len, seqs.start + seqs.len);
                kernels::attention(&shape, &q, &cache.keys, &cache.values, &mut saved.out, &mut saved.lse);
            }
        }
        ws.give(q);
        ws.give(k);
        self.o_proj.forward(&saved.out, out, To::Add);
    }

    /// Mirror of [`Attention::forward`] without a cache: from `dout` the gradients of all weights, and `dh`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        h: &[f32],
        seqs: Sequences,
        rope: &RopeTable,
        saved: &AttentionSaved,
        ws: &mut Workspace,
        dout: &[f32],
        dh: &mut [f32],
        grads: &mut Gradients,
    ) {
        let mut dmixed = ws.take(saved.out.len());
        self.o_proj.backward(&saved.out, dout, &mut dmixed, To::Set, grads);

        let (mut q, mut k) = (ws.take(saved.q.len()), ws.take(saved.k.len()));
        rotate(&self.q_norm, &saved.q, self.heads, seqs, rope, &mut q);
        rotate(&self.k_norm, &saved.k, self.kv_heads, seqs, rope, &mut k);
        let (mut dq, mut dk, mut dv) =
            (ws.take(saved.q.len()), ws.take(saved.k.len()), ws.take(saved.v.len()));
        let shape = self.shape(seqs.batch, seqs.len, seqs.len);
        let (v, out, lse) = (&saved.v, &saved.out, &saved.lse);
        kernels::attention_backward(&shape, &q, &k, v, out, lse, &dmixed, &mut dq, &mut dk, &mut dv);

        // The rotated queries and keys are no longer needed: their buffers take the gradients before the rotation.
        rotate_backward(&self.k_norm, &saved.k, self.kv_heads, seqs, rope, &mut dk, &mut k, grads);
        rotate_backward(&self.q_norm, &saved.q, self.heads, seqs, rope, &mut dq, &mut q, grads);
        self.v_proj.backward(h, &dv, dh, To::Set, grads);
        self.k_proj.backward(h, &k, dh, To::Add, grads);
        self.q_proj.backward(h, &q, dh, To::Add, grads);
        for buffer in [dmixed, q, k, dq, dk, dv] {
            ws.give(buffer);
        }
    }

    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let norms = self.q_norm.iter().chain(&self.k_norm).map(|n| &n.gain);
        linears.into_iter().flat_map(Linear::weights).chain(norms)
    }

    pub fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        let linears = [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj];
        let norms = self.q_norm.iter_mut().chain(&mut self.k_norm).map(|n| &mut n.gain);
        linears.into_iter().flat_map(Linear::weights_mut).chain(norms)
    }
}

/// `out = rope(norm(x))`, head by head.
fn rotate(
    norm: &Option<RmsNorm>,
    x: &[f32],
    heads: usize,
    seqs: Sequences,
    rope: &RopeTable,
    out: &mut [f32],
) {
    match norm {
        Some(norm) => norm.forward(x, out),
        None => kernels::copy(out, x),
    }
    kernels::rope(out, heads, rope, seqs.len, seqs.start, false);
}

/// Mirror of [`rotate`]: `dout` is rotated back in place, then goes through the norm to `dx`.
#[allow(clippy::too_many_arguments)]
fn rotate_backward(
    norm: &Option<RmsNorm>,
    x: &[f32],
    heads: usize,
    seqs: Sequences,
    rope: &RopeTable,
    dout: &mut [f32],
    dx: &mut [f32],
    grads: &mut Gradients,
) {
    kernels::rope(dout, heads, rope, seqs.len, seqs.start, true);
    match norm {
        Some(norm) => norm.backward(x, dout, dx, To::Set, grads),
        None => kernels::copy(dx, dout),
    }
}
