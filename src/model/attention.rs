//! Grouped-query self-attention with rotary positions; for Qwen3 with norms on queries and keys, for BitNet with one
//! before the output projection.

use super::cache::{KvCache, Part};
use super::rms_norm::{normed, normed_backward};
use super::{Context, Gradients, Linear, RmsNorm, Role, Weight};
use crate::config::{ModelConfig, Precision};
use crate::kernels::{
    self, Attended, AttentionGradients, AttentionShape, AttentionSpan, Buffer, Heads, KvPage, Positions, To,
    Turn,
};
use crate::ternary::Grouping;

#[derive(Clone, Debug)]
pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    pub q_norm: Option<RmsNorm>,
    pub k_norm: Option<RmsNorm>,
    pub attn_sub_norm: Option<RmsNorm>,
    heads: Heads,
}

/// The caches of the spans of a pass, for one layer.
pub struct Cached<'a, 'b> {
    pub(super) caches: &'a mut [&'b mut KvCache],
    pub(super) layer: usize,
}

/// What the backward pass needs of the forward pass.
#[derive(Debug, Default)]
pub struct AttentionSaved {
    pub(super) projected: Projected,
    /// Before the output projection and its norm.
    out: Buffer,
    /// Log-sum-exp of the scores, `[B, H, T]`.
    lse: Buffer,
}

/// Queries, keys and values as projected, which the backward pass may make again; norm and rotation are always done again.
#[derive(Debug, Default)]
pub(super) struct Projected {
    q: Buffer,
    k: Buffer,
    v: Buffer,
}

impl Projected {
    fn give(self, cx: &mut Context<'_>) {
        [self.q, self.k, self.v].into_iter().for_each(|buffer| cx.ws.give(buffer));
    }
}

impl AttentionSaved {
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &Buffer)> {
        let Projected { q, k, v } = &self.projected;
        [("queries", q), ("keys", k), ("values", v), ("attention", &self.out)].into_iter()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.parts().map(|(_, x)| x.len()).sum::<usize>() + self.lse.len()
    }
}

impl Attention {
    pub fn new(name: &str, c: &ModelConfig, grouping: Option<Grouping>) -> Self {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let linear = |part: &str, inputs, out, bias| {
            Linear::new(&format!("{name}.{part}"), inputs, out, Role::Attention, grouping, bias)
        };
        let norm = |there: bool, part: &str, width| {
            there.then(|| RmsNorm::new(&format!("{name}.{part}"), width, c.rms_norm_eps))
        };
        Self {
            q_proj: linear("q_proj", c.hidden_size, q, c.qkv_bias),
            k_proj: linear("k_proj", c.hidden_size, kv, c.qkv_bias),
            v_proj: linear("v_proj", c.hidden_size, kv, c.qkv_bias),
            o_proj: linear("o_proj", q, c.hidden_size, c.o_bias),
            q_norm: norm(c.qk_norm, "q_norm", c.head_dim),
            k_norm: norm(c.qk_norm, "k_norm", c.head_dim),
            attn_sub_norm: norm(c.sub_norm, "attn_sub_norm", q),
            heads: Heads {
                heads: c.heads,
                kv_heads: c.kv_heads,
                dim: c.head_dim,
                causal: c.causal,
                precision: Precision::F32,
            },
        }
    }

    /// What the operands of its own two products are rounded to; those of its projections are the weights'.
    pub(super) fn set_precision(&mut self, precision: Precision) {
        self.heads.precision = precision;
    }

    /// The shape of equal sequences that see themselves alone.
    fn shape(&self, cx: &Context<'_>) -> AttentionShape {
        let ((batch, len), Heads { heads, kv_heads, dim, causal, .. }) = (cx.rows.equal(), self.heads);
        AttentionShape { batch, queries: len, keys: len, heads, kv_heads, dim, causal }
    }

    /// `out += o_proj(attention(h))` for `h` `[N, C]`. With caches, one for each span, the keys and values of earlier
    /// positions come from there, and these are added to them.
    pub fn forward(
        &self,
        h: &[f32],
        cx: &mut Context<'_>,
        saved: &mut AttentionSaved,
        cached: Option<Cached<'_, '_>>,
        out: &mut [f32],
    ) {
        let (n, Heads { heads, kv_heads, dim, .. }) = (cx.rows.count(), self.heads);
        let AttentionSaved { projected, out: mixed, lse } = saved;
        let mut passing = cx.recompute.then(|| self.take(cx));
        let projected = passing.as_mut().unwrap_or(projected);
        self.project(h, n, projected);
        mixed.resize(n * heads * dim);
        lse.resize(n * heads);
        let (mut q, mut k) = (cx.ws.take(projected.q.len()), cx.ws.take(projected.k.len()));
        rotate(&self.q_norm, &projected.q, heads, cx, &mut q);
        rotate(&self.k_norm, &projected.k, kv_heads, cx, &mut k);
        match cached {
            None => {
                let shape = self.shape(cx);
                kernels::attention(&shape, self.heads.precision, &q, &k, &projected.v, mixed, lse);
            }
            Some(cached) => self.attend_cached(cached, cx, [&q, &k, &projected.v], mixed, lse),
        }
        cx.ws.give(k);
        passing.into_iter().for_each(|passing| passing.give(cx));
        // The rotated queries are no longer needed: their buffer takes the norm of what attention gave.
        self.o_proj.forward(normed(&self.attn_sub_norm, mixed, &mut q), out, To::Add);
        cx.ws.give(q);
    }

    /// Queries, keys and values of `n` rows.
    fn project(&self, h: &[f32], n: usize, projected: &mut Projected) {
        let Heads { heads, kv_heads, dim, .. } = self.heads;
        let Projected { q, k, v } = projected;
        q.resize(n * heads * dim);
        k.resize(n * kv_heads * dim);
        v.resize(n * kv_heads * dim);
        Linear::forward_each(h, [(&self.q_proj, q), (&self.k_proj, k), (&self.v_proj, v)]);
    }

    /// Room for all three, for as long as they are needed.
    fn take(&self, cx: &mut Context<'_>) -> Projected {
        let (n, Heads { heads, kv_heads, dim, .. }) = (cx.rows.count(), self.heads);
        let mut room = |heads| cx.ws.take(n * heads * dim);
        Projected { q: room(heads), k: room(kv_heads), v: room(kv_heads) }
    }

    fn attend_cached(
        &self,
        cached: Cached<'_, '_>,
        cx: &Context<'_>,
        [q, k, v]: [&Buffer; 3],
        out: &mut Buffer,
        lse: &mut Buffer,
    ) {
        let Cached { caches, layer } = cached;
        assert_eq!(caches.len(), cx.rows.spans.len(), "caches of spans");
        let first = cx.rows.spans.iter().scan(0, |end, len| {
            *end += len;
            Some(*end - len)
        });
        kernels::share_each(caches.iter_mut().zip(first).zip(&cx.rows.spans), |((cache, row), &len)| {
            cache.write(layer, Part::Keys, k, row, len);
            cache.write(layer, Part::Values, v, row, len);
        });
        let seen = |(cache, &len): (&&mut KvCache, &usize)| (len, cache.len() + len);
        let seen: Vec<(usize, usize)> = caches.iter().zip(&cx.rows.spans).map(seen).collect();
        let pages = |part| -> Vec<Vec<KvPage<'_>>> {
            caches.iter().zip(&seen).map(|(cache, (_, keys))| cache.read(layer, part, *keys)).collect()
        };
        let (k, v) = (pages(Part::Keys), pages(Part::Values));
        let span = |(i, &(queries, keys)): (usize, &(usize, usize))| AttentionSpan {
            queries,
            keys,
            k: Positions::Pages(&k[i]),
            v: Positions::Pages(&v[i]),
        };
        let spans: Vec<AttentionSpan<'_>> = seen.iter().enumerate().map(span).collect();
        kernels::attention_spans(self.heads, &spans, q, out, lse);
    }

    /// Mirror of [`Attention::forward`] without caches: from `dout` the gradients of all weights, and `dh`.
    pub fn backward(
        &self,
        h: &[f32],
        cx: &mut Context<'_>,
        saved: &AttentionSaved,
        dout: &[f32],
        dh: &mut [f32],
        grads: &mut Gradients,
    ) {
        let Heads { heads, kv_heads, .. } = self.heads;
        let again = cx.recompute.then(|| {
            let mut again = self.take(cx);
            self.project(h, cx.rows.count(), &mut again);
            again
        });
        let AttentionSaved { projected, out, lse } = saved;
        let projected = again.as_ref().unwrap_or(projected);
        let (mut q, mut k) = (cx.ws.take(projected.q.len()), cx.ws.take(projected.k.len()));
        let mut dmixed = cx.ws.take(out.len());
        let mixed = normed(&self.attn_sub_norm, out, &mut q);
        self.o_proj.backward(mixed, dout, &mut dmixed, grads);
        normed_backward(&self.attn_sub_norm, out, &mut dmixed, &mut q, grads);

        rotate(&self.q_norm, &projected.q, heads, cx, &mut q);
        rotate(&self.k_norm, &projected.k, kv_heads, cx, &mut k);
        let (mut dq, mut dk) = (cx.ws.take(q.len()), cx.ws.take(k.len()));
        let mut dv = cx.ws.take(projected.v.len());
        let forward = Attended { q: &q, k: &k, v: &projected.v, out, lse };
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        kernels::attention_backward(&self.shape(cx), self.heads.precision, forward, &dmixed, gradients);

        // The rotated queries and keys are no longer needed: their buffers take the gradients before norm and rotation.
        rotate_back(&mut dk, kv_heads, cx);
        rotate_back(&mut dq, heads, cx);
        self.relate(projected, cx, [&mut q, &mut k], [&mut dq, &mut dk, &mut dv]);
        norm_backward(&self.k_norm, &projected.k, (&dk, &mut k), grads);
        norm_backward(&self.q_norm, &projected.q, (&dq, &mut q), grads);
        let several = [(&self.q_proj, &q), (&self.k_proj, &k), (&self.v_proj, &dv)];
        Linear::backward_each(h, &several, dh, grads);
        for buffer in [dmixed, q, k, dq, dk, dv] {
            cx.ws.give(buffer);
        }
        again.into_iter().for_each(|again| again.give(cx));
    }

    /// Shows what the projections multiplied in the last forward pass, `h` first.
    pub(super) fn inputs(
        &self,
        h: &Buffer,
        cx: &mut Context<'_>,
        saved: &AttentionSaved,
        see: &mut impl FnMut(&Buffer),
    ) {
        see(h);
        let mut scratch = cx.ws.take(saved.out.len());
        see(normed(&self.attn_sub_norm, &saved.out, &mut scratch));
        cx.ws.give(scratch);
    }

    /// The weights that multiply each of [`Attention::inputs`].
    pub(super) fn readers_mut(&mut self) -> [Vec<&mut Weight>; 2] {
        let first = [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj];
        [first.map(|linear| &mut linear.weight).into(), vec![&mut self.o_proj.weight]]
    }

    /// What the relations of positions are made of: queries and keys behind their norms, in `room` where they have any, and
    /// values.
    pub(super) fn related<'a>(
        &self,
        projected: &'a Projected,
        [q, k]: [&'a mut Buffer; 2],
    ) -> [&'a Buffer; 3] {
        [normed(&self.q_norm, &projected.q, q), normed(&self.k_norm, &projected.k, k), &projected.v]
    }

    /// Where relations are learnt: adds their gradients, of a loss that no forward pass has to know.
    fn relate(
        &self,
        projected: &Projected,
        cx: &mut Context<'_>,
        room: [&mut Buffer; 2],
        gradients: [&mut Buffer; 3],
    ) {
        if let Some(relating) = &mut cx.relating {
            relating.learn(self.heads, cx.rows.equal(), self.related(projected, room), gradients);
        }
    }

    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let norms = self.q_norm.iter().chain(&self.k_norm).chain(&self.attn_sub_norm).map(|n| &n.gain);
        linears.into_iter().flat_map(Linear::weights).chain(norms)
    }

    pub fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        let linears = [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj];
        let norms = self.q_norm.iter_mut().chain(&mut self.k_norm).chain(&mut self.attn_sub_norm);
        linears.into_iter().flat_map(Linear::weights_mut).chain(norms.map(|n| &mut n.gain))
    }
}

/// `out = rope(norm(x))`, head by head.
fn rotate(norm: &Option<RmsNorm>, x: &Buffer, heads: usize, cx: &Context<'_>, out: &mut Buffer) {
    match norm {
        Some(norm) => norm.forward(x, out),
        None => kernels::copy(out, x),
    }
    kernels::rope(out, heads, cx.rope, &cx.rows.positions, Turn::Forward);
}

/// Mirror of [`rotate`], in two steps, between which relations are learnt: `dout` is rotated back in place.
fn rotate_back(dout: &mut Buffer, heads: usize, cx: &Context<'_>) {
    kernels::rope(dout, heads, cx.rope, &cx.rows.positions, Turn::Backward);
}

/// Then it goes through the norm to `dx`.
fn norm_backward(
    norm: &Option<RmsNorm>,
    x: &Buffer,
    (dout, dx): (&Buffer, &mut Buffer),
    grads: &mut Gradients,
) {
    match norm {
        Some(norm) => norm.backward(x, dout, dx, To::Set, grads),
        None => kernels::copy(dx, dout),
    }
}
