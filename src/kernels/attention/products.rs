//! The two products of a tile of attention, queries by keys and weights by values: for many rows the blocked product, for a
//! few straight from keys and values as they are stored, which are then not packed.

use half::f16;

use crate::config::Precision;
use crate::kernels::isa::kernel;
use crate::kernels::kv::{KvRows, PAGE, Stored};
use crate::kernels::product::{Rhs, Target, Threads, View, gemm};
use crate::kernels::simd::{SUMS, Simd};
use crate::kernels::to::To;

/// Columns of a tile of scores, keys: a multiple of the partial sums of a row, up to which a row is computed on.
pub(super) const KEYS: usize = PAGE;
/// Rows that a key or a value is read once for, of few.
const TOGETHER: usize = 3;

/// Keys or values of one head, as many rows as the tile sees of them.
#[derive(Clone, Copy)]
pub(super) struct Passing<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub count: usize,
    /// Of the product with them.
    pub precision: Precision,
}

/// The same as they are stored.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    pub rows: KvRows<'a>,
    pub stride: usize,
    pub dim: usize,
    pub count: usize,
}

impl<'a> HeadRows<'a> {
    /// In f32, where they stand if they are, otherwise in `wide`, which has room for a tile of them.
    pub fn dense(self, wide: &'a mut [f32], precision: Precision) -> Passing<'a> {
        let HeadRows { rows, stride, dim, count } = self;
        match rows {
            KvRows::F32(data) => Passing { data, stride, count, precision },
            _ => {
                widen(rows, stride, dim, &mut wide[..count * dim]);
                Passing { data: wide, stride: dim, count, precision }
            }
        }
    }
}

/// `scores[i, j] = q[i] . k[j]`, rows of the queries one after the other, rows of the result `KEYS` apart.
pub(super) fn scores_of(m: usize, dim: usize, q: &[f32], keys: Passing<'_>, scores: &mut [f32]) {
    let Passing { data: k, stride: k_stride, count: n, precision } = keys;
    let target = Target { data: scores, stride: KEYS, to: To::Set };
    let view = |data, stride| View::rows(data, stride).rounded(precision);
    gemm(m, n, dim, view(q, dim), Rhs::Dense(view(k, k_stride).t()), target, Threads::One);
}

/// `acc[i] (+)= sum of scores[i, j] v[j]`, rows of the scores `KEYS` apart.
pub(super) fn mix(m: usize, dim: usize, scores: &[f32], values: Passing<'_>, acc: &mut [f32], to: To) {
    let Passing { data: v, stride: v_stride, count: n, precision } = values;
    let target = Target { data: acc, stride: dim, to };
    let view = |data, stride| View::rows(data, stride).rounded(precision);
    gemm(m, dim, n, view(scores, KEYS), Rhs::Dense(view(v, v_stride)), target, Threads::One);
}

/// [`scores_of`] for a few rows, each of which gets the same bits alone.
pub(super) fn few_scores(m: usize, q: &[f32], keys: HeadRows<'_>, scores: &mut [f32]) {
    let HeadRows { rows, stride, dim, count } = keys;
    for first in (0..m).step_by(TOGETHER) {
        let some = TOGETHER.min(m - first);
        few_dots(some, count, dim, &q[first * dim..], rows, stride, &mut scores[first * KEYS..]);
    }
}

/// [`mix`] for a few rows, each of which gets the same bits alone. Scores of values with a scale are multiplied by it.
pub(super) fn few_mix(m: usize, scores: &mut [f32], values: HeadRows<'_>, acc: &mut [f32], to: To) {
    let HeadRows { rows, stride, dim, count } = values;
    for first in (0..m).step_by(TOGETHER) {
        let some = TOGETHER.min(m - first);
        few_sums(some, count, dim, &mut scores[first * KEYS..], rows, stride, &mut acc[first * dim..], to);
    }
}

kernel! {
    fn widen<S>(rows: KvRows<'_>, stride: usize, dim: usize, to: &mut [f32]) {
        match rows {
            KvRows::F32(x) => widen_rows::<S, f32>(x, stride, dim, to),
            KvRows::F16(x) => widen_rows::<S, f16>(x, stride, dim, to),
            KvRows::Int8 { codes, scales } => {
                widen_rows::<S, i8>(codes, stride, dim, to);
                for (row, scale) in to.chunks_exact_mut(dim).zip(scales) {
                    row.iter_mut().for_each(|x| *x *= scale);
                }
            }
        }
    }
}

#[inline(always)]
fn widen_rows<S: Simd, T: Stored>(x: &[T], stride: usize, dim: usize, to: &mut [f32]) {
    for (j, to) in to.chunks_exact_mut(dim).enumerate() {
        let from = &x[j * stride..][..dim];
        let whole = dim / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            // SAFETY: a vector from `at` on lies inside of both rows.
            unsafe { S::store(to.as_mut_ptr().add(at), T::load::<S>(from.as_ptr().add(at))) };
        }
        to[whole..].iter_mut().zip(&from[whole..]).for_each(|(to, x)| *to = x.wide());
    }
}

kernel! {
    fn few_sums<S>(
        m: usize, n: usize, dim: usize, scores: &mut [f32], v: KvRows<'_>, stride: usize, acc: &mut [f32], to: To,
    ) {
        match v {
            KvRows::F32(v) => sums_of::<S, f32>(m, n, dim, scores, v, stride, acc, to),
            KvRows::F16(v) => sums_of::<S, f16>(m, n, dim, scores, v, stride, acc, to),
            KvRows::Int8 { codes, scales } => {
                scale_rows(m, n, scores, scales);
                sums_of::<S, i8>(m, n, dim, scores, codes, stride, acc, to);
            }
        }
    }
}

kernel! {
    fn few_dots<S>(m: usize, n: usize, dim: usize, q: &[f32], k: KvRows<'_>, stride: usize, scores: &mut [f32]) {
        match k {
            KvRows::F32(k) => dots_of::<S, f32>(m, n, dim, q, k, stride, scores),
            KvRows::F16(k) => dots_of::<S, f16>(m, n, dim, q, k, stride, scores),
            KvRows::Int8 { codes, scales } => {
                dots_of::<S, i8>(m, n, dim, q, codes, stride, scores);
                scale_rows(m, n, scores, scales);
            }
        }
    }
}

/// Multiplies column `j` by the scale of row `j` of the keys or values.
#[inline(always)]
fn scale_rows(m: usize, n: usize, scores: &mut [f32], scales: &[f32]) {
    for row in scores.chunks_mut(KEYS).take(m) {
        row[..n].iter_mut().zip(scales).for_each(|(score, scale)| *score *= scale);
    }
}

/// As many rows as a constant: what is computed stays in registers.
macro_rules! of_rows {
    ($m:ident, $f:ident::<$S:ident, $T:ident, $V:literal>($($arg:expr),*)) => {
        match $m {
            1 => $f::<$S, $T, $V, 1>($($arg),*),
            2 => $f::<$S, $T, $V, 2>($($arg),*),
            _ => $f::<$S, $T, $V, TOGETHER>($($arg),*),
        }
    };
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn sums_of<S: Simd, T: Stored>(
    m: usize,
    n: usize,
    dim: usize,
    scores: &[f32],
    v: &[T],
    v_stride: usize,
    acc: &mut [f32],
    to: To,
) {
    assert!((1..=TOGETHER).contains(&m) && scores.len() >= (m - 1) * KEYS + n && acc.len() >= m * dim);
    assert!(n == 0 || v.len() >= (n - 1) * v_stride + dim);
    let vectors = dim / S::LANES;
    let mut at = 0;
    // SAFETY: by the assertions all vectors lie inside of the slices.
    unsafe {
        while at < vectors {
            at += match vectors - at {
                8.. if S::REGISTERS >= 32 => {
                    of_rows!(m, sums::<S, T, 8>(n, dim, at, scores, v, v_stride, acc, to))
                }
                4.. => of_rows!(m, sums::<S, T, 4>(n, dim, at, scores, v, v_stride, acc, to)),
                _ => of_rows!(m, sums::<S, T, 1>(n, dim, at, scores, v, v_stride, acc, to)),
            };
        }
    }
    let whole = vectors * S::LANES;
    for i in 0..m {
        let acc = &mut acc[i * dim + whole..(i + 1) * dim];
        if !to.adds() {
            acc.fill(0.0);
        }
        for j in 0..n {
            let p = scores[i * KEYS + j];
            for (acc, v) in acc.iter_mut().zip(&v[j * v_stride + whole..]) {
                *acc += p * v.wide();
            }
        }
    }
}

/// Sums of `V` vectors from vector `at` on, for `M` rows: each value is read once for all of them. Returns `V`.
///
/// # Safety
/// The vectors lie inside of the slices.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn sums<S: Simd, T: Stored, const V: usize, const M: usize>(
    n: usize,
    dim: usize,
    at: usize,
    scores: &[f32],
    v: &[T],
    v_stride: usize,
    acc: &mut [f32],
    to: To,
) -> usize {
    let first = at * S::LANES;
    // SAFETY: by the caller's word.
    unsafe {
        let mut sums = [[S::zero(); V]; M];
        if to.adds() {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (at, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(acc.as_ptr().add(i * dim + first + at * S::LANES));
                }
            }
        }
        for j in 0..n {
            let row = v.as_ptr().add(j * v_stride + first);
            let weights: [S::V; M] = std::array::from_fn(|i| S::splat(*scores.as_ptr().add(i * KEYS + j)));
            for at in 0..V {
                let x = T::load::<S>(row.add(at * S::LANES));
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    sums[at] = S::fma(weight, x, sums[at]);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (at, sum) in sums.into_iter().enumerate() {
                S::store(acc.as_mut_ptr().add(i * dim + first + at * S::LANES), sum);
            }
        }
    }
    V
}

#[inline(always)]
fn dots_of<S: Simd, T: Stored>(
    m: usize,
    n: usize,
    dim: usize,
    q: &[f32],
    k: &[T],
    k_stride: usize,
    scores: &mut [f32],
) {
    assert!((1..=TOGETHER).contains(&m) && q.len() >= m * dim);
    assert!(scores.len() >= (m - 1) * KEYS + n.next_multiple_of(SUMS));
    assert!(n == 0 || k.len() >= (n - 1) * k_stride + dim);
    let vectors = dim / S::LANES;
    let mut at = 0;
    // SAFETY: by the assertions all vectors lie inside of the slices.
    unsafe {
        while at < vectors {
            at += match vectors - at {
                8.. => of_rows!(m, dots::<S, T, 8>(n, dim, at, q, k, k_stride, scores)),
                4..8 => of_rows!(m, dots::<S, T, 4>(n, dim, at, q, k, k_stride, scores)),
                _ => of_rows!(m, dots::<S, T, 1>(n, dim, at, q, k, k_stride, scores)),
            };
        }
    }
    let whole = vectors * S::LANES;
    if whole < dim {
        for i in 0..m {
            for j in 0..n {
                let (q, k) = (&q[i * dim + whole..(i + 1) * dim], &k[j * k_stride + whole..][..dim - whole]);
                let sum: f32 = q.iter().zip(k).map(|(q, k)| q * k.wide()).sum();
                let score = &mut scores[i * KEYS + j];
                *score = if whole == 0 { sum } else { *score + sum };
            }
        }
    }
}

/// Adds to the scores, up to a multiple of [`SUMS`] keys, what `V` vectors of the `M` queries from vector `at` on give, and returns their number; sets them
/// where `at` is 0. Queries stay in registers while the keys pass by.
///
/// # Safety
/// The vectors lie inside of the slices.
#[inline(always)]
unsafe fn dots<S: Simd, T: Stored, const V: usize, const M: usize>(
    n: usize,
    dim: usize,
    at: usize,
    q: &[f32],
    k: &[T],
    k_stride: usize,
    scores: &mut [f32],
) -> usize {
    let first = at * S::LANES;
    // SAFETY: by the caller's word.
    unsafe {
        let queries: [[S::V; V]; M] = std::array::from_fn(|i| {
            std::array::from_fn(|v| S::load(q.as_ptr().add(i * dim + first + v * S::LANES)))
        });
        for j in (0..n).step_by(SUMS) {
            let mut of_keys = [[S::zero(); SUMS]; M];
            for next in 0..SUMS.min(n - j) {
                let key = k.as_ptr().add((j + next) * k_stride + first);
                let mut sums = [[S::zero(); 2]; M];
                for v in 0..V {
                    let x = T::load::<S>(key.add(v * S::LANES));
                    for (sums, queries) in sums.iter_mut().zip(&queries) {
                        sums[v % 2] = S::fma(queries[v], x, sums[v % 2]);
                    }
                }
                for (of_keys, [a, b]) in of_keys.iter_mut().zip(sums) {
                    of_keys[next] = S::add(a, b);
                }
            }
            for (i, of_keys) in of_keys.into_iter().enumerate() {
                let some = S::sums(of_keys);
                let scores = scores.as_mut_ptr().add(i * KEYS + j);
                for (next, sum) in some.into_iter().enumerate() {
                    let score = scores.add(next);
                    *score = if at == 0 { sum } else { *score + sum };
                }
            }
        }
    }
    V
}
