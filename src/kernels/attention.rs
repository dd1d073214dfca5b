//! Scaled dot-product attention in tiles: no more than a tile of the `T x T` scores exists at a time.
//!
//! Forward with a running soft-max (Dao et al., "FlashAttention", arXiv 2205.14135); backward recomputes the scores of
//! each tile from the saved log-sum-exp. Heads of queries in groups share a key/value head (arXiv 2305.13245): a tile has
//! rows for all heads of a group, query by query, so that keys and values are packed once for the group.

use rayon::prelude::*;
use std::ops::Range;

use super::elementwise::{add_assign, exp};
use super::isa::kernel;
use super::product::{Rhs, Target, Threads, View, gemm};
use super::profile::{Phase, scope};
use super::reference::AttentionShape;
use super::scratch::{self, Buffer};
use super::simd::dot;
use super::to::To;

/// Columns of a tile, keys: a multiple of [`LANES`], up to which a row is computed on.
const KEYS: usize = 128;
/// Rows of a tile, unless a group has more heads.
const ROWS: usize = 256;
/// Queries of a tile at most: many are multiplied faster, few leave less on the diagonal that is multiplied for nothing.
const FEW: usize = 32;
const MANY: usize = 128;
/// Partial sums of a row.
const LANES: usize = 16;
/// The backward pass over a sequence is cut into pieces of as many queries at least, and into so many at most. Neither
/// depends on the number of threads, because gradients of keys are summed piece by piece.
const PIECE: usize = 512;
const PIECES: usize = 8;

impl AttentionShape {
    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
    /// Heads that share a key/value head.
    fn share(&self) -> usize {
        self.heads / self.kv_heads
    }
    /// Queries of a tile.
    fn tile(&self) -> usize {
        (ROWS / self.share()).clamp(1, (self.keys / 8).clamp(FEW, MANY))
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

/// Which keys the rows of a tile see: row `r` is that of query `r / share` of the tile.
#[derive(Clone, Copy)]
struct Sight {
    /// Keys of the tile.
    keys: usize,
    share: usize,
    /// How many the first query sees; none of the tile where that is not above `before`.
    first: usize,
    before: usize,
    causal: bool,
}

impl Sight {
    #[inline(always)]
    fn of(&self, row: usize) -> usize {
        if self.causal {
            (self.first + row / self.share).saturating_sub(self.before).min(self.keys)
        } else {
            self.keys
        }
    }
}

/// One tile of queries of a group of heads.
#[derive(Clone, Copy)]
struct Tile {
    shape: AttentionShape,
    b: usize,
    kv: usize,
    /// The first query, and how many.
    i0: usize,
    queries: usize,
}

impl Tile {
    fn rows(&self) -> usize {
        self.queries * self.shape.share()
    }
    /// Where its rows start in the queries.
    fn at(&self) -> usize {
        self.shape.q_at(self.b, self.i0, self.kv * self.shape.share())
    }
    /// Values of a query.
    fn width(&self) -> usize {
        self.shape.share() * self.shape.dim
    }
    /// Where the log-sum-exp of a row stands.
    fn lse_at(&self, row: usize) -> usize {
        let (s, share) = (&self.shape, self.shape.share());
        (self.b * s.heads + self.kv * share + row % share) * s.queries + self.i0 + row / share
    }
    /// The first key of each tile that is seen, and what the rows see of it.
    fn sights(self) -> impl Iterator<Item = (usize, Sight)> {
        let (s, seen) = (self.shape, self.shape.visible(self.i0 + self.queries - 1));
        (0..seen).step_by(KEYS).map(move |j0| {
            let (keys, first) = (KEYS.min(seen - j0), s.visible(self.i0));
            (j0, Sight { keys, share: s.share(), first, before: j0, causal: s.causal })
        })
    }
    /// Its rows, one after the other, times `factor`.
    fn gather(&self, x: &[f32], factor: f32, to: &mut [f32]) {
        gather(&x[self.at()..], self.width(), self.shape.q_stride(), factor, to);
    }
}

/// Parts of tiles.
#[derive(Default)]
struct Scratch(Buffer<f32>);

/// Calls `f` on parts of these sizes of a buffer that this thread keeps. What is in them is left from before.
fn with_scratch<const N: usize>(sizes: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    let sizes = sizes.map(|size| size.next_multiple_of(LANES));
    scratch::with(|scratch: &mut Scratch| {
        let mut rest = scratch.0.first(sizes.iter().sum());
        f(sizes.map(|size| rest.split_off_mut(..size).expect("as long as all together")));
    });
}

/// `out = softmax(q kᵀ / sqrt(D)) v`; `lse`, `[batch, heads, queries]`, gets the log-sum-exp of each row's scores.
pub fn attention(shape: &AttentionShape, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let _time = scope(Phase::Attention);
    shape.check(q, k, v, lse);
    assert_eq!(out.len(), q.len(), "output of {shape:?}");
    let s = *shape;
    let (out, lse) = (Rows(out.as_mut_ptr()), Rows(lse.as_mut_ptr()));
    let tiles = s.queries.div_ceil(s.tile());
    (0..s.batch * s.kv_heads * tiles).into_par_iter().for_each(|task| {
        let (b, kv, i0) = (task / tiles / s.kv_heads, task / tiles % s.kv_heads, task % tiles * s.tile());
        let tile = Tile { shape: s, b, kv, i0, queries: s.tile().min(s.queries - i0) };
        let m = tile.rows();
        let sizes = [m * s.dim, m * KEYS, m * s.dim, m, m];
        with_scratch(sizes, |[queries, scores, acc, max, sum]| {
            tile.gather(q, s.scale(), &mut queries[..m * s.dim]);
            max.fill(f32::NEG_INFINITY);
            sum.fill(0.0);
            for (j0, sight) in tile.sights() {
                let n = sight.keys;
                let (k, v) = (&k[s.k_at(b, j0, kv)..], &v[s.k_at(b, j0, kv)..]);
                product_t(m, n, s.dim, queries, k, s.k_stride(), scores);
                softmax(m, sight, s.dim, scores, max, sum, acc);
                let target = Target { data: acc, stride: s.dim, to: To::Set.part(j0 == 0) };
                let v = Rhs::Dense(View::rows(v, s.k_stride()));
                gemm(m, s.dim, n, View::rows(scores, KEYS), v, target, Threads::One);
            }
            divide(s.dim, &mut acc[..m * s.dim], sum);
            // SAFETY: these rows belong to this task alone, and `check` has seen the sizes.
            unsafe {
                out.put(&acc[..m * s.dim], tile.width(), tile.at(), s.q_stride());
                for r in 0..m {
                    lse.put(&[max[r] + sum[r].ln()], 1, tile.lse_at(r), 1);
                }
            }
        });
    });
}

/// `scores[i, j] = q[i] . k[j]`, rows of the queries one after the other, rows of the result `KEYS` apart.
fn product_t(m: usize, n: usize, dim: usize, q: &[f32], k: &[f32], k_stride: usize, scores: &mut [f32]) {
    if m < 4 {
        return few_dots(m, n, dim, q, k, k_stride, scores);
    }
    let target = Target { data: scores, stride: KEYS, to: To::Set };
    let k = Rhs::Dense(View::rows(k, k_stride).t());
    gemm(m, n, dim, View::rows(q, dim), k, target, Threads::One);
}

kernel! {
    /// [`product_t`] for a few queries (decode): packing the keys would cost more than reading them.
    fn few_dots<S>(m: usize, n: usize, dim: usize, q: &[f32], k: &[f32], k_stride: usize, scores: &mut [f32]) {
        for j in 0..n {
            let k = &k[j * k_stride..][..dim];
            for i in 0..m {
                scores[i * KEYS + j] = dot::<S>(&q[i * dim..][..dim], k);
            }
        }
    }
}

kernel! {
    /// Rows of `width` values, `stride` apart, one after the other and times `factor`.
    fn gather<S>(from: &[f32], width: usize, stride: usize, factor: f32, to: &mut [f32]) {
        for (i, to) in to.chunks_exact_mut(width).enumerate() {
            for (to, x) in to.iter_mut().zip(&from[i * stride..][..width]) {
                *to = x * factor;
            }
        }
    }
}

kernel! {
    /// The rows of a tile: scores become `e^(s - max)`, places not seen 0; what was summed before is rescaled to the new
    /// maximum.
    fn softmax<S>(m: usize, sight: Sight, dim: usize, scores: &mut [f32], max: &mut [f32], sum: &mut [f32], acc: &mut [f32]) {
        let rows = scores.chunks_exact_mut(KEYS).zip(acc.chunks_exact_mut(dim)).zip(max.iter_mut().zip(sum));
        for (r, ((row, acc), (max, sum))) in rows.enumerate().take(m) {
            let seen = sight.of(r);
            let whole = seen.next_multiple_of(LANES);
            // A row is computed on in whole vectors. What is not seen is no maximum, and adds nothing to a sum of 1 or
            // more.
            row[seen..whole].fill(f32::NEG_INFINITY);
            let mut tops = [f32::NEG_INFINITY; LANES];
            for chunk in row[..whole].as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    tops[i] = larger(chunk[i], tops[i]);
                }
            }
            let top = larger(fold(tops, larger), *max);
            if top > *max {
                if *max > f32::NEG_INFINITY {
                    let keep = exp::<S>(*max - top);
                    *sum *= keep;
                    acc.iter_mut().for_each(|x| *x *= keep);
                }
                *max = top;
            }
            let mut sums = [0f32; LANES];
            for chunk in row[..whole].as_chunks_mut::<LANES>().0 {
                for i in 0..LANES {
                    chunk[i] = exp::<S>(chunk[i] - top);
                    sums[i] += chunk[i];
                }
            }
            *sum += fold(sums, |a, b| a + b);
            row[seen..whole.max(sight.keys)].fill(0.0);
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Partial results made one, halves with halves.
#[inline(always)]
fn fold(mut x: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

kernel! {
    fn divide<S>(dim: usize, acc: &mut [f32], sum: &[f32]) {
        for (row, sum) in acc.chunks_exact_mut(dim).zip(sum) {
            let inverse = 1.0 / sum;
            row.iter_mut().for_each(|x| *x *= inverse);
        }
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
    let pieces = s.pieces();
    (0..s.batch * s.kv_heads).into_par_iter().for_each(|task| {
        let (b, kv) = (task / s.kv_heads, task % s.kv_heads);
        let piece = |queries: &Range<usize>| {
            let keys = if queries.is_empty() { 0 } else { s.visible(queries.end - 1) };
            let (mut sum_dk, mut sum_dv) = (vec![0f32; keys * s.dim], vec![0f32; keys * s.dim]);
            for i0 in queries.clone().step_by(s.tile()) {
                let tile = Tile { shape: s, b, kv, i0, queries: s.tile().min(queries.end - i0) };
                backward_tile(tile, q, k, v, out, lse, dout, dq, &mut sum_dk, &mut sum_dv);
            }
            [sum_dk, sum_dv]
        };
        let mut sums: Vec<[Vec<f32>; 2]> = pieces.par_iter().map(piece).collect();
        // The last piece sees all keys.
        let [mut sum_dk, mut sum_dv] = sums.pop().expect("at least one piece");
        sums.iter().for_each(|[dk, dv]| {
            add_assign(&mut sum_dk[..dk.len()], dk);
            add_assign(&mut sum_dv[..dv.len()], dv);
        });
        // Unless there are no queries.
        sum_dk.resize(s.keys * s.dim, 0.0);
        sum_dv.resize(s.keys * s.dim, 0.0);
        // SAFETY: the rows of this key/value head belong to this task alone.
        unsafe {
            dk.put(&sum_dk, s.dim, s.k_at(b, 0, kv), s.k_stride());
            dv.put(&sum_dv, s.dim, s.k_at(b, 0, kv), s.k_stride());
        }
    });
}

impl AttentionShape {
    /// Pieces of the queries that take about the same time.
    fn pieces(&self) -> Vec<Range<usize>> {
        let pieces = (self.queries / PIECE).clamp(1, PIECES);
        let end = |piece: usize| {
            let part = piece as f64 / pieces as f64;
            // A piece of a triangle from its tip grows with the square.
            let part = if self.causal { part.sqrt() } else { part };
            if piece == pieces {
                self.queries
            } else {
                (part * self.queries as f64) as usize / self.tile() * self.tile()
            }
        };
        (0..pieces).map(|piece| end(piece)..end(piece + 1)).collect()
    }
}

/// Writes the gradient of the tile's queries, and adds those of the keys and values that it sees.
#[allow(clippy::too_many_arguments)]
fn backward_tile(
    tile: Tile,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dq: Rows,
    sum_dk: &mut [f32],
    sum_dv: &mut [f32],
) {
    let (s, m) = (tile.shape, tile.rows());
    let size = m * s.dim;
    let sizes = [size, size, size, m * KEYS, m * KEYS, m, m];
    with_scratch(sizes, |[queries, douts, sum_dq, p, ds, logs, delta]| {
        // What the rows gave, for `delta` alone: where their gradient will be.
        tile.gather(out, 1.0, &mut sum_dq[..size]);
        tile.gather(dout, 1.0, &mut douts[..size]);
        tile.gather(q, s.scale(), &mut queries[..size]);
        dots(s.dim, &sum_dq[..size], douts, delta);
        (0..m).for_each(|r| logs[r] = lse[tile.lse_at(r)]);
        for (j0, sight) in tile.sights() {
            let n = sight.keys;
            let (k, v) = (&k[s.k_at(tile.b, j0, tile.kv)..], &v[s.k_at(tile.b, j0, tile.kv)..]);
            product_t(m, n, s.dim, queries, k, s.k_stride(), p);
            product_t(m, n, s.dim, douts, v, s.k_stride(), ds);
            softmax_backward(m, sight, p, ds, logs, delta);
            let rows = j0 * s.dim..(j0 + n) * s.dim;
            let into = |data, to| Target { data, stride: s.dim, to };
            let dense = |x, stride| Rhs::Dense(View::rows(x, stride));
            let (p, ds) = (View::rows(p, KEYS), View::rows(ds, KEYS));
            gemm(
                n,
                s.dim,
                m,
                p.t(),
                dense(douts, s.dim),
                into(&mut sum_dv[rows.clone()], To::Add),
                Threads::One,
            );
            gemm(n, s.dim, m, ds.t(), dense(queries, s.dim), into(&mut sum_dk[rows], To::Add), Threads::One);
            gemm(m, s.dim, n, ds, dense(k, s.k_stride()), into(sum_dq, To::Set.part(j0 == 0)), Threads::One);
        }
        // The queries were scaled, so the gradient of the keys is right; theirs is not yet.
        scale(&mut sum_dq[..size], s.scale());
        // SAFETY: the rows of these queries belong to this task alone.
        unsafe { dq.put(&sum_dq[..size], tile.width(), tile.at(), s.q_stride()) };
    });
}

kernel! {
    fn scale<S>(x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

kernel! {
    /// Products of matching rows.
    fn dots<S>(dim: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((a, b), out) in a.chunks_exact(dim).zip(b.chunks_exact(dim)).zip(out) {
            *out = dot::<S>(a, b);
        }
    }
}

kernel! {
    /// The rows of a tile: scores become probabilities, `ds` (holding `dP`) becomes the gradient of the scores.
    fn softmax_backward<S>(m: usize, sight: Sight, p: &mut [f32], ds: &mut [f32], lse: &[f32], delta: &[f32]) {
        let rows = p.chunks_exact_mut(KEYS).zip(ds.chunks_exact_mut(KEYS)).zip(lse.iter().zip(delta));
        for (r, ((p, ds), (&lse, &delta))) in rows.enumerate().take(m) {
            let seen = sight.of(r);
            let whole = seen.next_multiple_of(LANES);
            for (p, ds) in p[..whole].iter_mut().zip(&mut ds[..whole]) {
                *p = exp::<S>(*p - lse);
                *ds = *p * (*ds - delta);
            }
            p[seen..whole.max(sight.keys)].fill(0.0);
            ds[seen..whole.max(sight.keys)].fill(0.0);
        }
    }
}
