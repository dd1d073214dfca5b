//! Scaled dot-product attention in tiles: no more than a tile of the `T x T` scores exists at a time.
//!
//! Forward with a running soft-max (Dao et al., "FlashAttention", arXiv 2205.14135); backward recomputes the scores of
//! each tile from the saved log-sum-exp. Heads of queries in groups share a key/value head (arXiv 2305.13245).

use rayon::prelude::*;

use super::elementwise::exp;
use super::gemm::{Target, Threads, gemm};
use super::isa::kernel;
use super::linear::dot;
use super::pack::{Rhs, View};
use super::profile::{Phase, scope};

/// Rows and columns of a tile.
const TILE: usize = 64;

/// Shapes of one attention: queries `[batch, queries, heads, dim]`, keys and values `[batch, keys, kv_heads, dim]`.
/// When `causal`, query `i` stands at key position `keys - queries + i` and sees no key after it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub causal: bool,
}

impl AttentionShape {
    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
    /// Keys that query `i` sees.
    fn visible(&self, i: usize) -> usize {
        if self.causal { self.keys - self.queries + i + 1 } else { self.keys }
    }
    fn q_stride(&self) -> usize {
        self.heads * self.dim
    }
    fn k_stride(&self) -> usize {
        self.kv_heads * self.dim
    }
    /// Where the first value of query `i` of head `h` stands.
    fn q_at(&self, b: usize, i: usize, h: usize) -> usize {
        (b * self.queries + i) * self.q_stride() + h * self.dim
    }
    fn k_at(&self, b: usize, j: usize, kv: usize) -> usize {
        (b * self.keys + j) * self.k_stride() + kv * self.dim
    }
    /// Sizes of queries, keys and log-sum-exps.
    fn check(&self, q: &[f32], k: &[f32], v: &[f32], lse: &[f32]) {
        assert_eq!(q.len(), self.batch * self.queries * self.q_stride(), "queries of {self:?}");
        assert_eq!(k.len(), self.batch * self.keys * self.k_stride(), "keys of {self:?}");
        assert_eq!(v.len(), k.len(), "values of {self:?}");
        assert_eq!(lse.len(), self.batch * self.heads * self.queries, "log-sum-exps of {self:?}");
        assert!(!self.causal || self.keys >= self.queries, "more queries than keys in {self:?}");
        assert!(self.heads.is_multiple_of(self.kv_heads), "heads in {self:?}");
    }
}

/// A pointer that tasks write disjoint rows through.
#[derive(Clone, Copy)]
struct Rows(*mut f32);
// SAFETY: a task writes only the rows of its own (batch, head, tile).
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    /// Copies rows of `width` values to `offset`, `stride` apart.
    ///
    /// # Safety
    /// The rows lie inside the slice that the pointer came from, and no other task touches them.
    unsafe fn put(self, src: &[f32], width: usize, offset: usize, stride: usize) {
        for (i, row) in src.chunks_exact(width).enumerate() {
            unsafe { self.0.add(offset + i * stride).copy_from_nonoverlapping(row.as_ptr(), width) };
        }
    }
}

/// `out = softmax(q kᵀ / sqrt(D)) v`; `lse`, `[batch, heads, queries]`, gets the log-sum-exp of each row's scores.
pub fn attention(shape: &AttentionShape, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let _time = scope(Phase::Attention);
    shape.check(q, k, v, lse);
    assert_eq!(out.len(), q.len(), "output of {shape:?}");
    let s = *shape;
    let (out, lse) = (Rows(out.as_mut_ptr()), Rows(lse.as_mut_ptr()));
    let tiles = s.queries.div_ceil(TILE);
    (0..s.batch * s.heads * tiles).into_par_iter().for_each(|task| {
        let (b, h, i0) = (task / tiles / s.heads, task / tiles % s.heads, task % tiles * TILE);
        let m = TILE.min(s.queries - i0);
        let kv = h / (s.heads / s.kv_heads);
        let q = &q[s.q_at(b, i0, h)..];
        let mut scores = [0f32; TILE * TILE];
        let mut acc = vec![0f32; m * s.dim];
        let mut max = [f32::NEG_INFINITY; TILE];
        let mut sum = [0f32; TILE];
        for j0 in (0..s.visible(i0 + m - 1)).step_by(TILE) {
            let n = TILE.min(s.keys - j0);
            let (k, v) = (&k[s.k_at(b, j0, kv)..], &v[s.k_at(b, j0, kv)..]);
            product_t(m, n, s.dim, q, s.q_stride(), k, s.k_stride(), &mut scores);
            for i in 0..m {
                let seen = s.visible(i0 + i).saturating_sub(j0).min(n);
                let row = &mut scores[i * TILE..i * TILE + n];
                softmax_step(
                    row,
                    seen,
                    s.scale(),
                    &mut max[i],
                    &mut sum[i],
                    &mut acc[i * s.dim..(i + 1) * s.dim],
                );
            }
            let target = Target { data: &mut acc, stride: s.dim, add: true };
            let v = Rhs::Dense(View::rows(v, s.k_stride()));
            gemm(m, s.dim, n, View::rows(&scores, TILE), v, target, Threads::One);
        }
        let mut logs = [0f32; TILE];
        for i in 0..m {
            let inv = 1.0 / sum[i];
            acc[i * s.dim..(i + 1) * s.dim].iter_mut().for_each(|x| *x *= inv);
            logs[i] = max[i] + sum[i].ln();
        }
        // SAFETY: these rows belong to this task alone, and `check` has seen the sizes.
        unsafe {
            out.put(&acc, s.dim, s.q_at(b, i0, h), s.q_stride());
            lse.put(&logs[..m], m, (b * s.heads + h) * s.queries + i0, m);
        }
    });
}

/// `scores[i, j] = q[i] . k[j]`, rows of the result `TILE` apart.
#[allow(clippy::too_many_arguments)]
fn product_t(
    m: usize,
    n: usize,
    dim: usize,
    q: &[f32],
    q_stride: usize,
    k: &[f32],
    k_stride: usize,
    scores: &mut [f32],
) {
    if m < 4 {
        return few_dots(m, n, dim, q, q_stride, k, k_stride, scores);
    }
    let target = Target { data: scores, stride: TILE, add: false };
    let k = Rhs::Dense(View::rows(k, k_stride).t());
    gemm(m, n, dim, View::rows(q, q_stride), k, target, Threads::One);
}

kernel! {
    /// [`product_t`] for a few queries (decode): packing the keys would cost more than reading them.
    fn few_dots<S>(m: usize, n: usize, dim: usize, q: &[f32], q_stride: usize, k: &[f32], k_stride: usize, scores: &mut [f32]) {
        for i in 0..m {
            for j in 0..n {
                scores[i * TILE + j] = dot::<S>(&q[i * q_stride..][..dim], &k[j * k_stride..][..dim]);
            }
        }
    }
}

kernel! {
    /// One row of a tile: scores become `e^(scale s - max)`, places not seen 0; what was summed before is rescaled to
    /// the new maximum.
    fn softmax_step<S>(row: &mut [f32], seen: usize, scale: f32, max: &mut f32, sum: &mut f32, acc: &mut [f32]) {
        let (live, masked) = row.split_at_mut(seen);
        masked.fill(0.0);
        let mut top = *max;
        for s in live.iter_mut() {
            *s *= scale;
            top = if *s > top { *s } else { top };
        }
        if live.is_empty() {
            return;
        }
        if top > *max {
            let keep = exp::<S>(*max - top);
            *sum *= keep;
            acc.iter_mut().for_each(|x| *x *= keep);
            *max = top;
        }
        for s in live.iter_mut() {
            *s = exp::<S>(*s - top);
        }
        *sum += live.iter().sum::<f32>();
    }
}

/// Backward of [`attention`]: with `P` the soft-max, `dP = dout vᵀ`, `dS = P (dP - rowsum(dout out)) / sqrt(D)`:
/// `dv = Pᵀ dout`, `dq = dS k`, `dk = dSᵀ q`. The three gradients are overwritten.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let _time = scope(Phase::Attention);
    shape.check(q, k, v, lse);
    assert!(out.len() == q.len() && dout.len() == q.len() && dq.len() == q.len(), "gradients of {shape:?}");
    assert!(dk.len() == k.len() && dv.len() == v.len(), "gradients of {shape:?}");
    let s = *shape;
    let (dq, dk, dv) = (Rows(dq.as_mut_ptr()), Rows(dk.as_mut_ptr()), Rows(dv.as_mut_ptr()));
    let share = s.heads / s.kv_heads;
    (0..s.batch * s.kv_heads).into_par_iter().for_each(|task| {
        let (b, kv) = (task / s.kv_heads, task % s.kv_heads);
        let mut p = [0f32; TILE * TILE];
        let mut ds = [0f32; TILE * TILE];
        let mut sum_dk = vec![0f32; s.keys * s.dim];
        let mut sum_dv = vec![0f32; s.keys * s.dim];
        for h in kv * share..(kv + 1) * share {
            for i0 in (0..s.queries).step_by(TILE) {
                let m = TILE.min(s.queries - i0);
                let at = s.q_at(b, i0, h);
                let (q, out, dout) = (&q[at..], &out[at..], &dout[at..]);
                let lse = &lse[(b * s.heads + h) * s.queries + i0..][..m];
                let mut delta = [0f32; TILE];
                for (i, delta) in delta.iter_mut().enumerate().take(m) {
                    let row = i * s.q_stride()..i * s.q_stride() + s.dim;
                    *delta = out[row.clone()].iter().zip(&dout[row]).map(|(o, d)| o * d).sum();
                }
                let mut sum_dq = vec![0f32; m * s.dim];
                for j0 in (0..s.visible(i0 + m - 1)).step_by(TILE) {
                    let n = TILE.min(s.keys - j0);
                    let (k, v) = (&k[s.k_at(b, j0, kv)..], &v[s.k_at(b, j0, kv)..]);
                    product_t(m, n, s.dim, q, s.q_stride(), k, s.k_stride(), &mut p);
                    product_t(m, n, s.dim, dout, s.q_stride(), v, s.k_stride(), &mut ds);
                    for i in 0..m {
                        let seen = s.visible(i0 + i).saturating_sub(j0).min(n);
                        let row = i * TILE..i * TILE + n;
                        softmax_backward(
                            &mut p[row.clone()],
                            &mut ds[row],
                            seen,
                            s.scale(),
                            lse[i],
                            delta[i],
                        );
                    }
                    let rows = j0 * s.dim..(j0 + n) * s.dim;
                    let add = |data| Target { data, stride: s.dim, add: true };
                    let dout = Rhs::Dense(View::rows(dout, s.q_stride()));
                    let (p, ds) = (View::rows(&p, TILE), View::rows(&ds, TILE));
                    gemm(n, s.dim, m, p.t(), dout, add(&mut sum_dv[rows.clone()]), Threads::One);
                    let q = Rhs::Dense(View::rows(q, s.q_stride()));
                    gemm(n, s.dim, m, ds.t(), q, add(&mut sum_dk[rows]), Threads::One);
                    let k = Rhs::Dense(View::rows(k, s.k_stride()));
                    gemm(m, s.dim, n, ds, k, add(&mut sum_dq), Threads::One);
                }
                // SAFETY: the rows of these queries belong to this task alone.
                unsafe { dq.put(&sum_dq, s.dim, at, s.q_stride()) };
            }
        }
        // SAFETY: the rows of this key/value head belong to this task alone.
        unsafe {
            dk.put(&sum_dk, s.dim, s.k_at(b, 0, kv), s.k_stride());
            dv.put(&sum_dv, s.dim, s.k_at(b, 0, kv), s.k_stride());
        }
    });
}

kernel! {
    /// One row of a tile: scores become probabilities, `ds` (holding `dP`) becomes the gradient of the dot products.
    fn softmax_backward<S>(p: &mut [f32], ds: &mut [f32], seen: usize, scale: f32, lse: f32, delta: f32) {
        let (live, masked) = p.split_at_mut(seen);
        masked.fill(0.0);
        ds[seen..].fill(0.0);
        for (p, ds) in live.iter_mut().zip(ds) {
            *p = exp::<S>(*p * scale - lse);
            *ds = *p * (*ds - delta) * scale;
        }
    }
}
