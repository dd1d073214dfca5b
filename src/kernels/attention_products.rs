//! The two products of a tile of attention, queries by keys and weights by values: for many rows the blocked product, for a
//! few straight from keys and values, which are then read once and not packed.

use super::isa::kernel;
use super::product::{Rhs, Target, Threads, View, gemm};
use super::to::To;

/// Columns of a tile of scores, keys: a multiple of the partial sums of a row, up to which a row is computed on.
pub(super) const KEYS: usize = 128;
/// Fewer rows of a tile than this are not packed: packing keys and values would cost more than reading them.
const FEW_ROWS: usize = 4;

/// Keys or values of one head, as many rows as the tile sees of them.
#[derive(Clone, Copy)]
pub(super) struct Passing<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub count: usize,
}

/// `scores[i, j] = q[i] . k[j]`, rows of the queries one after the other, rows of the result `KEYS` apart.
pub(super) fn scores_of(m: usize, dim: usize, q: &[f32], keys: Passing<'_>, scores: &mut [f32]) {
    let Passing { data: k, stride: k_stride, count: n } = keys;
    if m < FEW_ROWS {
        return few_dots(m, n, dim, q, k, k_stride, scores);
    }
    let target = Target { data: scores, stride: KEYS, to: To::Set };
    let k = Rhs::Dense(View::rows(k, k_stride).t());
    gemm(m, n, dim, View::rows(q, dim), k, target, Threads::One);
}

/// `acc[i] (+)= sum of scores[i, j] v[j]`, rows of the scores `KEYS` apart.
pub(super) fn mix(m: usize, dim: usize, scores: &[f32], values: Passing<'_>, acc: &mut [f32], to: To) {
    let Passing { data: v, stride: v_stride, count: n } = values;
    if m < FEW_ROWS {
        return few_sums(m, n, dim, scores, v, v_stride, acc, to);
    }
    let target = Target { data: acc, stride: dim, to };
    let v = Rhs::Dense(View::rows(v, v_stride));
    gemm(m, dim, n, View::rows(scores, KEYS), v, target, Threads::One);
}

kernel! {
    /// [`mix`] for a few queries: each value is read once for all of them.
    fn few_sums<S>(m: usize, n: usize, dim: usize, scores: &[f32], v: &[f32], v_stride: usize, acc: &mut [f32], to: To) {
        const VECTORS: usize = 4;
        assert!(m < FEW_ROWS && scores.len() >= (m - 1) * KEYS + n && acc.len() >= m * dim);
        assert!(n == 0 || v.len() >= (n - 1) * v_stride + dim);
        let whole = dim / (VECTORS * S::LANES) * VECTORS * S::LANES;
        for d in (0..whole).step_by(VECTORS * S::LANES) {
            // SAFETY: by the assertions all vectors lie inside of the slices.
            unsafe {
                let mut sums = [[S::zero(); VECTORS]; FEW_ROWS - 1];
                if to.adds() {
                    for (i, sums) in sums.iter_mut().enumerate().take(m) {
                        for (at, sum) in sums.iter_mut().enumerate() {
                            *sum = S::load(acc.as_ptr().add(i * dim + d + at * S::LANES));
                        }
                    }
                }
                for j in 0..n {
                    let row = v.as_ptr().add(j * v_stride + d);
                    for at in 0..VECTORS {
                        let x = S::load(row.add(at * S::LANES));
                        for (i, sums) in sums.iter_mut().enumerate() {
                            if i < m {
                                sums[at] = S::fma(S::splat(scores[i * KEYS + j]), x, sums[at]);
                            }
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate().take(m) {
                    for (at, sum) in sums.iter().enumerate() {
                        S::store(acc.as_mut_ptr().add(i * dim + d + at * S::LANES), *sum);
                    }
                }
            }
        }
        for i in 0..m {
            let acc = &mut acc[i * dim + whole..(i + 1) * dim];
            if !to.adds() {
                acc.fill(0.0);
            }
            for j in 0..n {
                let p = scores[i * KEYS + j];
                for (acc, v) in acc.iter_mut().zip(&v[j * v_stride + whole..]) {
                    *acc += p * v;
                }
            }
        }
    }
}

kernel! {
    /// [`scores_of`] for a few queries (decode): packing the keys would cost more than reading them. Queries stay in
    /// registers, as many values at a time as fit there, while the keys pass by.
    fn few_dots<S>(m: usize, n: usize, dim: usize, q: &[f32], k: &[f32], k_stride: usize, scores: &mut [f32]) {
        const VECTORS: usize = 8;
        assert!(m < FEW_ROWS && q.len() >= m * dim && scores.len() >= (m - 1) * KEYS + n);
        assert!(n == 0 || k.len() >= (n - 1) * k_stride + dim);
        let whole = dim / S::LANES * S::LANES;
        for first in (0..whole).step_by(VECTORS * S::LANES) {
            let vectors = VECTORS.min((whole - first) / S::LANES);
            // SAFETY: by the assertions all vectors lie inside of the slices.
            unsafe {
                let mut queries = [[S::zero(); VECTORS]; FEW_ROWS - 1];
                for (i, queries) in queries.iter_mut().enumerate().take(m) {
                    for (at, query) in queries.iter_mut().enumerate().take(vectors) {
                        *query = S::load(q.as_ptr().add(i * dim + first + at * S::LANES));
                    }
                }
                for j in 0..n {
                    let key = k.as_ptr().add(j * k_stride + first);
                    let mut sums = [[S::zero(); 2]; FEW_ROWS - 1];
                    for at in 0..VECTORS {
                        if at < vectors {
                            let x = S::load(key.add(at * S::LANES));
                            for (i, sums) in sums.iter_mut().enumerate() {
                                if i < m {
                                    sums[at % 2] = S::fma(queries[i][at], x, sums[at % 2]);
                                }
                            }
                        }
                    }
                    for (i, [a, b]) in sums.into_iter().enumerate().take(m) {
                        let score = &mut scores[i * KEYS + j];
                        let sum = S::sum(S::add(a, b));
                        *score = if first == 0 { sum } else { *score + sum };
                    }
                }
            }
        }
        if whole < dim {
            for i in 0..m {
                for j in 0..n {
                    let (q, k) = (&q[i * dim + whole..(i + 1) * dim], &k[j * k_stride + whole..][..dim - whole]);
                    let sum: f32 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    let score = &mut scores[i * KEYS + j];
                    *score = if whole == 0 { sum } else { *score + sum };
                }
            }
        }
    }
}
