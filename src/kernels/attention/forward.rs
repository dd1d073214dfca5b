//! The forward pass.

use rayon::prelude::*;
use std::ops::Range;

use super::products::{HeadRows, KEYS, few_mix, few_scores, mix, scores_of};
use super::{AttentionSpan, Heads, LANES, Place, Positions, Rows, Sight, Tile, places, with_scratch};
use crate::config::Precision;
use crate::kernels::elementwise::exp;
use crate::kernels::isa::kernel;
use crate::kernels::profile::{Phase, scope};
use crate::kernels::reference::AttentionShape;
use crate::kernels::to::To;
use crate::kernels::{team, threads};

/// Queries of a cached sequence below which keys and values are taken as they are stored; rows of a pass below which its
/// tiles are shared out by threads that are awake.
const FEW_QUERIES: usize = 16;
/// Rows of a tile below which packing keys and values would cost more than reading them.
const FEW_ROWS: usize = 4;
/// Keys of a part of a tile of few queries: whole tiles of keys, and no function of the number of threads, which sums would
/// otherwise depend on.
const PART: usize = 8 * KEYS;

/// `out = softmax(q kᵀ / sqrt(D)) v` of equal sequences; `lse`, `[batch, heads, queries]`, gets the log-sum-exp of each
/// row's scores.
pub fn attention(
    shape: &AttentionShape,
    precision: Precision,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    attention_spans(shape.heads(precision), &shape.spans(k, v), q, out, lse);
}

/// Queries of a span, over a cache, up to which each gets the bits that it gets alone.
pub const QUERIES_ALIKE: usize = FEW_QUERIES - 1;

/// Some keys of a tile: all, or a part.
#[derive(Clone)]
struct Task {
    span: usize,
    tile: Tile,
    keys: Range<usize>,
    /// Where its result stands among those of parts; `None` if it is no part.
    part: Option<usize>,
}

impl Task {
    /// Values of a part's result: sums, maxima, and sums of weights of its rows.
    fn size(&self) -> usize {
        self.tile.rows() * (self.tile.place.heads.dim + 2)
    }
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
    let (tasks, size) = tasks(heads, spans, &places);
    let mut parts = vec![0f32; size];
    let (out, lse) = (Rows(out.as_mut_ptr()), Rows(lse.as_mut_ptr()));
    let kept = Rows(parts.as_mut_ptr());
    let run = |task: &Task| forward_tile(task, &spans[task.span], q, kept, out, lse);
    if q.len() < FEW_QUERIES * heads.q_stride() && threads::count() > 1 {
        team::share(tasks.len(), |i| run(&tasks[i]));
    } else {
        tasks.par_iter().for_each(run);
    }
    for parts_of_a_tile in tasks.chunk_by(|_, next| next.part.is_some() && next.keys.start > 0) {
        join(parts_of_a_tile, &parts, out, lse);
    }
}

/// What there is to do, and the values of parts' results.
fn tasks(heads: Heads, spans: &[AttentionSpan<'_>], places: &[Place]) -> (Vec<Task>, usize) {
    let (mut tasks, mut size) = (Vec::new(), 0);
    for (span, place) in places.iter().enumerate() {
        for kv in 0..heads.kv_heads {
            for i0 in (0..place.queries).step_by(place.tile()) {
                let tile = Tile::new(*place, kv, i0, place.queries);
                let seen = tile.seen();
                let cut = if few(&tile, &spans[span]) { PART } else { seen.max(1) };
                for start in (0..seen.max(1)).step_by(cut) {
                    let keys = start..seen.min(start + cut);
                    let part = (seen > cut).then_some(size);
                    tasks.push(Task { span, tile, keys, part });
                    size += part.map_or(0, |_| tasks[tasks.len() - 1].size());
                }
            }
        }
    }
    (tasks, size)
}

/// Whether keys and values are taken as they are stored.
fn few(tile: &Tile, span: &AttentionSpan<'_>) -> bool {
    tile.rows() < FEW_ROWS && tile.place.heads.precision == Precision::F32
        || matches!(span.k, Positions::Pages(_)) && span.queries < FEW_QUERIES
}

fn forward_tile(task: &Task, span: &AttentionSpan<'_>, q: &[f32], parts: Rows, out: Rows, lse: Rows) {
    let tile = task.tile;
    let (heads, m) = (tile.place.heads, tile.rows());
    let (dim, few) = (heads.dim, few(&tile, span));
    let wide = if few { 0 } else { KEYS * dim };
    let sizes = [m * dim, m * KEYS, m * dim, m, m, wide, wide];
    with_scratch(sizes, |[queries, scores, acc, max, sum, wide_k, wide_v]| {
        let (acc, max, sum) = (&mut acc[..m * dim], &mut max[..m], &mut sum[..m]);
        tile.gather(q, heads.scale(), &mut queries[..m * dim]);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for (j0, sight) in tile.sights(task.keys.clone()) {
            let [k, v] = [span.k, span.v].map(|x| {
                let (rows, stride) = x.of_head(j0, tile.kv, &heads);
                HeadRows { rows, stride, dim, count: sight.keys }
            });
            let to = To::Set.part(j0 == task.keys.start);
            if few {
                few_scores(m, queries, k, scores);
                softmax(m, sight, dim, scores, max, sum, acc);
                few_mix(m, scores, v, acc, to);
            } else {
                scores_of(m, dim, queries, k.dense(wide_k, heads.precision), scores);
                softmax(m, sight, dim, scores, max, sum, acc);
                mix(m, dim, scores, v.dense(wide_v, heads.precision), acc, to);
            }
        }
        // SAFETY: the rows of this tile, or this part of them, belong to this task alone, and `places` has seen the sizes.
        unsafe {
            match task.part {
                None => put(tile, acc, max, sum, out, lse),
                Some(at) => {
                    let mut at = at;
                    for values in [&*acc, max, sum] {
                        parts.put(values, values.len(), at, 0);
                        at += values.len();
                    }
                }
            }
        }
    });
}

/// Divides a tile's sums by those of their weights, and writes them and the log-sum-exps.
///
/// # Safety
/// No other task touches these rows.
unsafe fn put(tile: Tile, acc: &mut [f32], max: &[f32], sum: &[f32], out: Rows, lse: Rows) {
    let heads = tile.place.heads;
    divide(heads.dim, acc, sum);
    unsafe {
        out.put(acc, tile.width(), tile.at(), heads.q_stride());
        for r in 0..tile.rows() {
            lse.put(&[max[r] + sum[r].ln()], 1, tile.lse_at(r), 1);
        }
    }
}

/// Makes one of the parts of a tile. A row of which a part saw nothing is, to the bit, what it would be without it.
fn join(tasks: &[Task], parts: &[f32], out: Rows, lse: Rows) {
    let [first, rest @ ..] = tasks else { return };
    let Some(at) = first.part else { return };
    let (tile, dim, m) = (first.tile, first.tile.place.heads.dim, first.tile.rows());
    let mut whole = parts[at..at + first.size()].to_vec();
    let (acc, max, sum) = split(&mut whole, m * dim, m);
    for at in rest.iter().filter_map(|task| task.part) {
        let part = &parts[at..at + first.size()];
        for r in 0..m {
            let (top, weight) = (part[m * dim + r], part[m * dim + m + r]);
            if weight == 0.0 {
                continue;
            }
            let greater = max[r].max(top);
            let (keep, take) = ((max[r] - greater).exp(), (top - greater).exp());
            max[r] = greater;
            sum[r] = sum[r] * keep + weight * take;
            let rows = acc[r * dim..(r + 1) * dim].iter_mut().zip(&part[r * dim..(r + 1) * dim]);
            rows.for_each(|(acc, x)| *acc = *acc * keep + x * take);
        }
    }
    // SAFETY: the tasks are done.
    unsafe { put(tile, acc, max, sum, out, lse) };
}

fn split(values: &mut [f32], acc: usize, rows: usize) -> (&mut [f32], &mut [f32], &mut [f32]) {
    let (acc, rest) = values.split_at_mut(acc);
    let (max, sum) = rest.split_at_mut(rows);
    (acc, max, sum)
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
