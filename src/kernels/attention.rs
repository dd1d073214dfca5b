//! Scaled dot-product attention in tiles: no more than a tile of the `T x T` scores exists at a time.
//!
//! Forward with a running soft-max (Dao et al., "FlashAttention", arXiv 2205.14135); backward recomputes the scores of
//! each tile from the saved log-sum-exp. Heads of queries in groups share a key/value head (arXiv 2305.13245): a tile has
//! rows for all heads of a group, query by query, so that keys and values are packed once for the group.

use rayon::prelude::*;
use std::ops::Range;

use super::attention_products::{KEYS, Passing, mix, scores_of};
use super::elementwise::{add_assign, exp};
use super::isa::kernel;
use super::product::{Rhs, Target, Threads, View, gemm};
use super::profile::{Phase, scope};
use super::reference::AttentionShape;
use super::scratch::{self, Aligned};
use super::simd::dot;
use super::to::To;
use super::{team, threads};

/// Rows of a tile, unless a group has more heads.
const ROWS: usize = 256;
/// Queries of a tile at most: many are multiplied faster, few leave less on the diagonal that is multiplied for nothing.
const FEW: usize = 32;
const MANY: usize = 128;
/// Rows of a pass below which its tiles are shared out by threads that are awake.
const FEW_QUERIES: usize = 16;
/// Partial sums of a row.
const LANES: usize = 16;
/// The backward pass over a sequence is cut into parts of as many queries at least, and into so many at most. Neither
/// depends on the number of threads, because gradients of keys are summed part by part.
const PART: usize = 512;
const PARTS: usize = 8;

/// Positions of a page of keys or values.
pub const PAGE: usize = KEYS;

impl AttentionShape {
    pub fn heads(&self) -> Heads {
        Heads { heads: self.heads, kv_heads: self.kv_heads, dim: self.dim, causal: self.causal }
    }

    /// One span for each sequence.
    fn spans<'a>(&self, k: &'a [f32], v: &'a [f32]) -> Vec<AttentionSpan<'a>> {
        let size = self.keys * self.kv_heads * self.dim;
        assert_eq!(k.len(), self.batch * size, "keys of {self:?}");
        assert_eq!(v.len(), k.len(), "values of {self:?}");
        let span = |b: usize| AttentionSpan {
            queries: self.queries,
            keys: self.keys,
            k: Positions::Rows(&k[b * size..(b + 1) * size]),
            v: Positions::Rows(&v[b * size..(b + 1) * size]),
        };
        (0..self.batch).map(span).collect()
    }
}

/// The heads of an attention: `heads` of queries in groups that share one of `kv_heads` of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub causal: bool,
}

/// Queries of one sequence, rows that follow those of the span before, and what they see: the keys and values of `keys`
/// positions. When causal, the last query stands at the last of them.
#[derive(Clone, Copy)]
pub struct AttentionSpan<'a> {
    pub queries: usize,
    pub keys: usize,
    pub k: Positions<'a>,
    pub v: Positions<'a>,
}

/// Keys or values, `[positions, kv_heads, dim]`: in one piece, or in pages of [`PAGE`] positions.
#[derive(Clone, Copy)]
pub enum Positions<'a> {
    Rows(&'a [f32]),
    Pages(&'a [&'a [f32]]),
}

impl<'a> Positions<'a> {
    /// From position `at`, the first of a page, to the end of the page or further.
    fn from(self, at: usize, width: usize) -> &'a [f32] {
        match self {
            Positions::Rows(rows) => &rows[at * width..],
            Positions::Pages(pages) => pages[at / PAGE],
        }
    }

    fn hold(self, keys: usize, width: usize) -> bool {
        match self {
            Positions::Rows(rows) => rows.len() >= keys * width,
            Positions::Pages(pages) => {
                pages.len() >= keys.div_ceil(PAGE) && pages.iter().all(|page| page.len() >= PAGE * width)
            }
        }
    }
}

impl Heads {
    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
    /// Heads that share a key/value head.
    fn share(&self) -> usize {
        self.heads / self.kv_heads
    }
    /// Values of a query, all heads.
    fn q_stride(&self) -> usize {
        self.heads * self.dim
    }
    /// Values of a key, all heads.
    fn k_stride(&self) -> usize {
        self.kv_heads * self.dim
    }
}

/// Where the queries of a span stand, and how many keys there are.
#[derive(Clone, Copy)]
struct Place {
    heads: Heads,
    /// Of the first query.
    row: usize,
    queries: usize,
    keys: usize,
}

impl Place {
    /// Queries of a tile.
    fn tile(&self) -> usize {
        (ROWS / self.heads.share()).clamp(1, (self.keys / 8).clamp(FEW, MANY))
    }
    /// Keys that query `i` sees.
    fn visible(&self, i: usize) -> usize {
        if self.heads.causal { self.keys - self.queries + i + 1 } else { self.keys }
    }
}

/// Places of the spans, one after the other; panics unless queries, log-sum-exps, keys and values are as many as they say.
fn places(heads: Heads, spans: &[AttentionSpan<'_>], q: &[f32], lse: &[f32]) -> Vec<Place> {
    assert!(heads.heads.is_multiple_of(heads.kv_heads), "{heads:?}");
    let mut row = 0;
    let place = |span: &AttentionSpan<'_>| {
        let AttentionSpan { queries, keys, .. } = *span;
        assert!(!heads.causal || keys >= queries, "{queries} queries of {keys} keys, {heads:?}");
        let width = heads.k_stride();
        assert!(span.k.hold(keys, width) && span.v.hold(keys, width), "{keys} keys and values, {heads:?}");
        row += queries;
        Place { heads, row: row - queries, queries, keys }
    };
    let places: Vec<Place> = spans.iter().map(place).collect();
    assert_eq!((q.len(), lse.len()), (row * heads.q_stride(), row * heads.heads), "{row} rows of {heads:?}");
    places
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
    place: Place,
    kv: usize,
    /// The first query, and how many.
    i0: usize,
    queries: usize,
}

impl Tile {
    fn new(place: Place, kv: usize, i0: usize, end: usize) -> Self {
        Self { place, kv, i0, queries: place.tile().min(end - i0) }
    }
    fn rows(&self) -> usize {
        self.queries * self.place.heads.share()
    }
    /// Where its rows start in the queries.
    fn at(&self) -> usize {
        let heads = &self.place.heads;
        (self.place.row + self.i0) * heads.q_stride() + self.kv * self.width()
    }
    /// Values of a query.
    fn width(&self) -> usize {
        self.place.heads.share() * self.place.heads.dim
    }
    /// Where the log-sum-exp of a row stands.
    fn lse_at(&self, row: usize) -> usize {
        let (p, heads, share) = (&self.place, self.place.heads.heads, self.place.heads.share());
        p.row * heads + (self.kv * share + row % share) * p.queries + self.i0 + row / share
    }
    /// The first key of each tile that is seen, and what the rows see of it.
    fn sights(self) -> impl Iterator<Item = (usize, Sight)> {
        let (p, seen) = (self.place, self.place.visible(self.i0 + self.queries - 1));
        (0..seen).step_by(KEYS).map(move |j0| {
            let (keys, first) = (KEYS.min(seen - j0), p.visible(self.i0));
            (j0, Sight { keys, share: p.heads.share(), first, before: j0, causal: p.heads.causal })
        })
    }
    /// The values of its key/value head from position `at` on, the first of a page.
    fn of_head<'a>(&self, x: Positions<'a>, at: usize) -> &'a [f32] {
        let heads = &self.place.heads;
        &x.from(at, heads.k_stride())[self.kv * heads.dim..]
    }
    /// Its rows, one after the other, times `factor`.
    fn gather(&self, x: &[f32], factor: f32, to: &mut [f32]) {
        gather(&x[self.at()..], self.width(), self.place.heads.q_stride(), factor, to);
    }
}

/// Parts of tiles.
#[derive(Default)]
struct Scratch(Aligned<f32>);

/// Calls `f` on parts of these sizes of a buffer that this thread keeps. What is in them is left from before.
fn with_scratch<const N: usize>(sizes: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    let sizes = sizes.map(|size| size.next_multiple_of(LANES));
    scratch::with(|scratch: &mut Scratch| {
        let mut rest = scratch.0.first(sizes.iter().sum());
        f(sizes.map(|size| rest.split_off_mut(..size).expect("as long as all together")));
    });
}

/// `out = softmax(q kᵀ / sqrt(D)) v` of equal sequences; `lse`, `[batch, heads, queries]`, gets the log-sum-exp of each
/// row's scores.
pub fn attention(shape: &AttentionShape, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: &mut [f32]) {
    attention_spans(shape.heads(), &shape.spans(k, v), q, out, lse);
}

/// [`attention`] of sequences that differ: `q` and `out` are `[rows, heads, dim]` with the rows of all spans one after the
/// other, `lse` `[heads, queries]` for each span.
pub fn attention_spans(
    heads: Heads,
    spans: &[AttentionSpan<'_>],
    q: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let _time = scope(Phase::Attention);
    let places = places(heads, spans, q, lse);
    assert_eq!(out.len(), q.len(), "outputs and queries of {heads:?}");
    let (out, lse) = (Rows(out.as_mut_ptr()), Rows(lse.as_mut_ptr()));
    let tile = |(span, place): (usize, &Place)| {
        let place = *place;
        let starts = move |kv| (0..place.queries).step_by(place.tile()).map(move |i0| (kv, i0));
        (0..heads.kv_heads)
            .flat_map(starts)
            .map(move |(kv, i0)| (span, Tile::new(place, kv, i0, place.queries)))
            .collect::<Vec<_>>()
    };
    let tiles: Vec<(usize, Tile)> = places.iter().enumerate().flat_map(tile).collect();
    let run = |&(span, tile): &(usize, Tile)| forward_tile(tile, &spans[span], q, out, lse);
    if q.len() < FEW_QUERIES * heads.q_stride() && threads::count() > 1 {
        team::share(tiles.len(), |i| run(&tiles[i]));
    } else {
        tiles.par_iter().for_each(run);
    }
}

fn forward_tile(tile: Tile, span: &AttentionSpan<'_>, q: &[f32], out: Rows, lse: Rows) {
    let (heads, m) = (tile.place.heads, tile.rows());
    let (dim, stride) = (heads.dim, heads.k_stride());
    let sizes = [m * dim, m * KEYS, m * dim, m, m];
    with_scratch(sizes, |[queries, scores, acc, max, sum]| {
        tile.gather(q, heads.scale(), &mut queries[..m * dim]);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for (j0, sight) in tile.sights() {
            let n = sight.keys;
            let (k, v) = (tile.of_head(span.k, j0), tile.of_head(span.v, j0));
            let [k, v] = [k, v].map(|data| Passing { data, stride, count: n });
            scores_of(m, dim, queries, k, scores);
            softmax(m, sight, dim, scores, max, sum, acc);
            mix(m, dim, scores, v, acc, To::Set.part(j0 == 0));
        }
        divide(dim, &mut acc[..m * dim], sum);
        // SAFETY: these rows belong to this task alone, and `places` has seen the sizes.
        unsafe {
            out.put(&acc[..m * dim], tile.width(), tile.at(), heads.q_stride());
            for r in 0..m {
                lse.put(&[max[r] + sum[r].ln()], 1, tile.lse_at(r), 1);
            }
        }
    });
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

/// What [`attention`] was given and gave, as its backward pass reads it.
#[derive(Clone, Copy)]
pub struct Attended<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
}

/// The gradients by queries, keys and values, which are overwritten.
pub struct AttentionGradients<'a> {
    pub dq: &'a mut [f32],
    pub dk: &'a mut [f32],
    pub dv: &'a mut [f32],
}

/// Backward of [`attention`]: with `P` the soft-max, `dP = dout vᵀ`, `dS = P (dP - rowsum(dout out)) / sqrt(D)`:
/// `dv = Pᵀ dout`, `dq = dS k`, `dk = dSᵀ q`.
pub fn attention_backward(
    shape: &AttentionShape,
    forward: Attended<'_>,
    dout: &[f32],
    grads: AttentionGradients<'_>,
) {
    let _time = scope(Phase::Attention);
    let Attended { q, k, v, out, lse } = forward;
    let AttentionGradients { dq, dk, dv } = grads;
    let spans = shape.spans(k, v);
    let places = places(shape.heads(), &spans, q, lse);
    assert_eq!([out.len(), dout.len(), dq.len()], [q.len(); 3], "outputs and gradients of {shape:?}");
    assert_eq!([dk.len(), dv.len()], [k.len(); 2], "gradients of {shape:?}");
    let s = *shape;
    let (dim, stride) = (s.dim, s.kv_heads * s.dim);
    let (dq, dk, dv) = (Rows(dq.as_mut_ptr()), Rows(dk.as_mut_ptr()), Rows(dv.as_mut_ptr()));
    (0..s.batch * s.kv_heads).into_par_iter().for_each(|task| {
        let (b, kv) = (task / s.kv_heads, task % s.kv_heads);
        let place = places[b];
        let part = |queries: &Range<usize>| {
            let keys = if queries.is_empty() { 0 } else { place.visible(queries.end - 1) };
            let mut sums = [vec![0f32; keys * dim], vec![0f32; keys * dim]];
            for i0 in queries.clone().step_by(place.tile()) {
                let tile = Tile::new(place, kv, i0, queries.end);
                backward_tile(tile, &spans[b], forward, dout, dq, &mut sums);
            }
            sums
        };
        let mut sums: Vec<[Vec<f32>; 2]> = place.parts().par_iter().map(part).collect();
        // The last part sees all keys.
        let [mut sum_dk, mut sum_dv] = sums.pop().expect("at least one part");
        sums.iter().for_each(|[dk, dv]| {
            add_assign(&mut sum_dk[..dk.len()], dk);
            add_assign(&mut sum_dv[..dv.len()], dv);
        });
        // Unless there are no queries.
        sum_dk.resize(s.keys * dim, 0.0);
        sum_dv.resize(s.keys * dim, 0.0);
        let at = b * s.keys * stride + kv * dim;
        // SAFETY: the rows of this key/value head belong to this task alone.
        unsafe {
            dk.put(&sum_dk, dim, at, stride);
            dv.put(&sum_dv, dim, at, stride);
        }
    });
}

impl Place {
    /// Parts of the queries that take about the same time.
    fn parts(&self) -> Vec<Range<usize>> {
        let parts = (self.queries / PART).clamp(1, PARTS);
        let end = |part: usize| {
            let share = part as f64 / parts as f64;
            // A part of a triangle from its tip grows with the square.
            let share = if self.heads.causal { share.sqrt() } else { share };
            if part == parts {
                self.queries
            } else {
                (share * self.queries as f64) as usize / self.tile() * self.tile()
            }
        };
        (0..parts).map(|part| end(part)..end(part + 1)).collect()
    }
}

/// Writes the gradient of the tile's queries, and adds those of the keys and values that it sees to `sums`.
fn backward_tile(
    tile: Tile,
    span: &AttentionSpan<'_>,
    forward: Attended<'_>,
    dout: &[f32],
    dq: Rows,
    [sum_dk, sum_dv]: &mut [Vec<f32>; 2],
) {
    let (heads, m) = (tile.place.heads, tile.rows());
    let (dim, stride) = (heads.dim, heads.k_stride());
    let size = m * dim;
    let sizes = [size, size, size, m * KEYS, m * KEYS, m, m];
    with_scratch(sizes, |[queries, douts, sum_dq, p, ds, logs, delta]| {
        // What the rows gave, for `delta` alone: where their gradient will be.
        tile.gather(forward.out, 1.0, &mut sum_dq[..size]);
        tile.gather(dout, 1.0, &mut douts[..size]);
        tile.gather(forward.q, heads.scale(), &mut queries[..size]);
        dots(dim, &sum_dq[..size], douts, delta);
        (0..m).for_each(|r| logs[r] = forward.lse[tile.lse_at(r)]);
        for (j0, sight) in tile.sights() {
            let n = sight.keys;
            let (k, v) = (tile.of_head(span.k, j0), tile.of_head(span.v, j0));
            let passing = |data| Passing { data, stride, count: n };
            scores_of(m, dim, queries, passing(k), p);
            scores_of(m, dim, douts, passing(v), ds);
            softmax_backward(m, sight, p, ds, logs, delta);
            let rows = j0 * dim..(j0 + n) * dim;
            let into = |data, to| Target { data, stride: dim, to };
            let dense = |x, stride| Rhs::Dense(View::rows(x, stride));
            let (p, ds) = (View::rows(p, KEYS), View::rows(ds, KEYS));
            let (dv, dk) = (&mut sum_dv[rows.clone()], &mut sum_dk[rows]);
            gemm(n, dim, m, p.t(), dense(douts, dim), into(dv, To::Add), Threads::One);
            gemm(n, dim, m, ds.t(), dense(queries, dim), into(dk, To::Add), Threads::One);
            gemm(m, dim, n, ds, dense(k, stride), into(sum_dq, To::Set.part(j0 == 0)), Threads::One);
        }
        // The queries were scaled, so the gradient of the keys is right; theirs is not yet.
        scale(&mut sum_dq[..size], heads.scale());
        // SAFETY: the rows of these queries belong to this task alone.
        unsafe { dq.put(&sum_dq[..size], tile.width(), tile.at(), heads.q_stride()) };
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
