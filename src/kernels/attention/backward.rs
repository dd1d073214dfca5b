//! The backward pass, which recomputes the scores of each tile.

use rayon::prelude::*;
use std::ops::Range;

use super::products::{KEYS, Passing, scores_of};
use super::{Attended, AttentionGradients, LANES, Place, Rows, Sight, Tile, places, with_scratch};
use crate::config::Precision;
use crate::kernels::elementwise::{add_assign, exp};
use crate::kernels::isa::kernel;
use crate::kernels::product::{Rhs, Target, Threads, View, gemm};
use crate::kernels::profile::{Phase, scope};
use crate::kernels::reference::AttentionShape;
use crate::kernels::simd::dot;
use crate::kernels::to::To;

/// The backward pass over a sequence is cut into parts of as many queries at least, and into so many at most. Neither
/// depends on the number of threads, because gradients of keys are summed part by part.
const PART: usize = 512;
const PARTS: usize = 8;

/// Backward of [`attention`]: with `P` the soft-max, `dP = dout vᵀ`, `dS = P (dP - rowsum(dout out)) / sqrt(D)`:
/// `dv = Pᵀ dout`, `dq = dS k`, `dk = dSᵀ q`.
pub fn attention_backward(
    shape: &AttentionShape,
    precision: Precision,
    forward: Attended<'_>,
    dout: &[f32],
    grads: AttentionGradients<'_>,
) {
    let _time = scope(Phase::Attention);
    let Attended { q, k, v, out, lse } = forward;
    let AttentionGradients { dq, dk, dv } = grads;
    let spans = shape.spans(k, v);
    let places = places(shape.heads(precision), &spans, q, lse);
    assert_eq!([out.len(), dout.len(), dq.len()], [q.len(); 3], "outputs and gradients of {shape:?}");
    assert_eq!([dk.len(), dv.len()], [k.len(); 2], "gradients of {shape:?}");
    let s = *shape;
    let (dim, stride) = (s.dim, s.kv_heads * s.dim);
    let size = s.keys * stride;
    let (dq, dk, dv) = (Rows(dq.as_mut_ptr()), Rows(dk.as_mut_ptr()), Rows(dv.as_mut_ptr()));
    (0..s.batch * s.kv_heads).into_par_iter().for_each(|task| {
        let (b, kv) = (task / s.kv_heads, task % s.kv_heads);
        let place = places[b];
        let part = |queries: &Range<usize>| {
            let keys = if queries.is_empty() { 0 } else { place.visible(queries.end - 1) };
            let mut sums = [vec![0f32; keys * dim], vec![0f32; keys * dim]];
            for i0 in queries.clone().step_by(place.tile()) {
                let tile = Tile::new(place, kv, i0, queries.end);
                backward_tile(tile, [k, v].map(|x| &x[b * size..]), forward, dout, dq, &mut sums);
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
        let at = b * size + kv * dim;
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

/// Writes the gradient of the tile's queries, and adds those of the keys and values that it sees, of its sequence's, to
/// `sums`.
fn backward_tile(
    tile: Tile,
    [k, v]: [&[f32]; 2],
    forward: Attended<'_>,
    dout: &[f32],
    dq: Rows,
    [sum_dk, sum_dv]: &mut [Vec<f32>; 2],
) {
    let (heads, m) = (tile.place.heads, tile.rows());
    let (dim, stride, precision) = (heads.dim, heads.k_stride(), heads.precision);
    let size = m * dim;
    let sizes = [size, size, size, m * KEYS, m * KEYS, m, m];
    with_scratch(sizes, |[queries, douts, sum_dq, p, ds, logs, delta]| {
        // What the rows gave, for `delta` alone: where their gradient will be.
        tile.gather(forward.out, 1.0, &mut sum_dq[..size]);
        tile.gather(dout, 1.0, &mut douts[..size]);
        tile.gather(forward.q, heads.scale(), &mut queries[..size]);
        dots(dim, &sum_dq[..size], douts, delta);
        (0..m).for_each(|r| logs[r] = forward.lse[tile.lse_at(r)]);
        for (j0, sight) in tile.sights(0..tile.seen()) {
            let n = sight.keys;
            let [k, v] = [k, v].map(|x| &x[j0 * stride + tile.kv * dim..]);
            let passing = |data| Passing { data, stride, count: n, precision };
            scores_of(m, dim, queries, passing(k), p);
            scores_of(m, dim, douts, passing(v), ds);
            softmax_backward(m, sight, p, ds, logs, delta);
            let rows = j0 * dim..(j0 + n) * dim;
            let into = |data, to| Target { data, stride: dim, to };
            let view = |x, stride| View::rows(x, stride).rounded(precision);
            let dense = |x, stride| Rhs::Dense(view(x, stride));
            let (p, ds) = (view(p, KEYS), view(ds, KEYS));
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
