//! Scaled dot-product attention in tiles: no more than a tile of the `T x T` scores exists at a time.
//!
//! Forward with a running soft-max (Dao et al., "FlashAttention", arXiv 2205.14135); backward recomputes the scores of
//! each tile from the saved log-sum-exp. Heads of queries in groups share a key/value head (arXiv 2305.13245): a tile has
//! rows for all heads of a group, query by query, so that keys and values are packed once for the group.
//!
//! A few queries of a cached sequence (decode) take keys and values as they are stored, each read once for three rows, and
//! every row gets the same bits however many there are; a long sequence is cut into parts, which threads share.

mod backward;
mod forward;
mod products;

use std::ops::Range;

use super::isa::kernel;
use super::kv::{KvPage, KvRows, PAGE};
use super::reference::AttentionShape;
use super::scratch::{self, Aligned};
use crate::config::Precision;

pub use backward::attention_backward;
pub use forward::{QUERIES_ALIKE, attention, attention_spans};
use products::KEYS;

/// Rows of a tile, unless a group has more heads.
const ROWS: usize = 256;
/// Queries of a tile at most: many are multiplied faster, few leave less on the diagonal that is multiplied for nothing.
const FEW: usize = 32;
const MANY: usize = 128;
/// Partial sums of a row.
const LANES: usize = 16;
impl AttentionShape {
    pub fn heads(&self, precision: Precision) -> Heads {
        let AttentionShape { heads, kv_heads, dim, causal, .. } = *self;
        Heads { heads, kv_heads, dim, causal, precision }
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
    /// What queries, keys, values, weights and gradients are rounded to where they are multiplied. Scores, soft-max and sums
    /// are f32. What runs with a cache in pages has f32 here: nothing is rounded again.
    pub precision: Precision,
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

/// Keys or values: `[positions, kv_heads, dim]`, or in pages of [`PAGE`] positions.
#[derive(Clone, Copy)]
pub enum Positions<'a> {
    Rows(&'a [f32]),
    Pages(&'a [KvPage<'a>]),
}

impl<'a> Positions<'a> {
    /// Of head `kv` from position `at` on, the first of a page, to the end of the page or further; and how far a row is from
    /// the next.
    fn of_head(self, at: usize, kv: usize, heads: &Heads) -> (KvRows<'a>, usize) {
        match self {
            Positions::Rows(rows) => {
                (KvRows::F32(&rows[at * heads.k_stride() + kv * heads.dim..]), heads.k_stride())
            }
            Positions::Pages(pages) => (pages[at / PAGE].head(kv), heads.dim),
        }
    }

    fn hold(self, keys: usize, heads: &Heads) -> bool {
        match self {
            Positions::Rows(rows) => rows.len() >= keys * heads.k_stride(),
            Positions::Pages(pages) => {
                pages.len() >= keys.div_ceil(PAGE)
                    && pages.iter().all(|page| page.is_of(heads.kv_heads, heads.dim))
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
        assert!(span.k.hold(keys, &heads) && span.v.hold(keys, &heads), "{keys} keys and values, {heads:?}");
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
    /// Keys that its last query sees, and none of its rows more.
    fn seen(&self) -> usize {
        self.place.visible(self.i0 + self.queries - 1)
    }
    /// The first of each tile of these keys, which begin with a tile, and what the rows see of it.
    fn sights(self, keys: Range<usize>) -> impl Iterator<Item = (usize, Sight)> {
        let p = self.place;
        keys.clone().step_by(KEYS).map(move |j0| {
            let (keys, first) = (KEYS.min(keys.end - j0), p.visible(self.i0));
            (j0, Sight { keys, share: p.heads.share(), first, before: j0, causal: p.heads.causal })
        })
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
