//! The two inner loops: making the tables of a chunk, and looking them up.

use super::plan::{CHUNK, ENTRIES, Record, TABLES};
use super::{CHUNK_ENTRIES, Lanes, TILE};
use crate::config::Precision;
use crate::kernels::simd::Simd;

/// All 27 signed sums of each three `inputs`, times their `factors` where there are some, then rounded to `precision`:
/// entry `9 i + 3 j + k` of a table is `(i-1) a + (j-1) b + (k-1) c`.
#[inline(always)]
pub(super) fn build<S: Simd>(
    inputs: &[Lanes],
    factors: Option<&[f32]>,
    precision: Precision,
    tables: &mut [Lanes],
) {
    assert!(
        inputs.len() == CHUNK && tables.len() == CHUNK_ENTRIES && factors.is_none_or(|f| f.len() == CHUNK)
    );
    for (q, table) in tables.chunks_exact_mut(ENTRIES).enumerate() {
        for v in (0..TILE).step_by(S::LANES) {
            // SAFETY: entries hold 16 values, `v + LANES <= 16`, and the table has 27 of them.
            unsafe {
                let [i, j, k] = [3 * q, 3 * q + 1, 3 * q + 2];
                let a = input::<S>(&inputs[i], v, factors, i, precision);
                let b = input::<S>(&inputs[j], v, factors, j, precision);
                let c = input::<S>(&inputs[k], v, factors, k, precision);
                let out = table.as_mut_ptr().cast::<f32>().add(v);
                for (i, x) in [S::sub(S::zero(), a), S::zero(), a].into_iter().enumerate() {
                    for (j, y) in [S::sub(x, b), x, S::add(x, b)].into_iter().enumerate() {
                        let entry = out.add((9 * i + 3 * j) * TILE);
                        S::store(entry, S::sub(y, c));
                        S::store(entry.add(TILE), y);
                        S::store(entry.add(2 * TILE), S::add(y, c));
                    }
                }
            }
        }
    }
}

/// A vector of an input, times the factor at `at`, rounded.
///
/// # Safety
/// A vector lies between `v` and the entry's end.
#[inline(always)]
unsafe fn input<S: Simd>(
    entry: &Lanes,
    v: usize,
    factors: Option<&[f32]>,
    at: usize,
    precision: Precision,
) -> S::V {
    unsafe {
        let x = S::load(entry.0.as_ptr().add(v));
        let x = match factors {
            Some(f) => S::mul(x, S::splat(f[at])),
            None => x,
        };
        match precision {
            Precision::F32 => x,
            Precision::Bf16 => S::bf16(x),
        }
    }
}

/// Calls a function that is generic over the vectors of an entry, which are 16 values or 32 integers.
macro_rules! by_vectors {
    ($f:ident::<$S:ident>($($arg:expr),*)) => {
        if const { $S::LANES == 16 } {
            $f::<$S, 1>($($arg),*)
        } else if const { $S::LANES == 8 } {
            $f::<$S, 2>($($arg),*)
        } else {
            $f::<$S, 4>($($arg),*)
        }
    };
}
pub(super) use by_vectors;

/// `sums[r] += scale of r * sum over the tables of the entry that r chooses`
#[inline(always)]
pub(super) fn look_up_all<S: Simd>(records: &[Record], tables: &[Lanes], sums: &mut [Lanes]) {
    assert!(tables.len() == CHUNK_ENTRIES && records.len() == sums.len());
    // SAFETY: a record's offsets lie inside a table, and there are as many sums as records.
    unsafe { by_vectors!(look_up::<S>(records, tables.as_ptr().cast(), sums.as_mut_ptr().cast())) }
}

/// [`look_up_all`] with `V` vectors to an entry. The vectors of an entry are read in turn: neighbours lie in different
/// banks of the cache, so that two loads go in one cycle; a whole entry apart they would often collide.
///
/// # Safety
/// `tables` holds a chunk's tables, `sums` an entry for each record; `V * LANES` is 16.
#[inline(always)]
unsafe fn look_up<S: Simd, const V: usize>(records: &[Record], tables: *const f32, sums: *mut f32) {
    assert!(V * S::LANES == TILE);
    unsafe {
        for (r, record) in records.iter().enumerate() {
            let words = record.words();
            let entry = |q: usize| {
                let offset = (words[q / 4] >> (16 * (q % 4))) as u16;
                tables.add(q * ENTRIES * TILE).byte_add(offset as usize)
            };
            // Even and odd tables apart: two chains of additions hide each other's latency.
            let mut even = [S::zero(); V];
            let mut odd = [S::zero(); V];
            for (v, sum) in even.iter_mut().enumerate() {
                *sum = S::load(entry(0).add(v * S::LANES));
            }
            for (v, sum) in odd.iter_mut().enumerate() {
                *sum = S::load(entry(1).add(v * S::LANES));
            }
            for q in 2..TABLES {
                let from = entry(q);
                let chain = if q % 2 == 0 { &mut even } else { &mut odd };
                for (v, sum) in chain.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(from.add(v * S::LANES)));
                }
            }
            let scale = S::splat(record.scale());
            for v in 0..V {
                let to = sums.add(r * TILE + v * S::LANES);
                S::store(to, S::fma(S::add(even[v], odd[v]), scale, S::load(to)));
            }
        }
    }
}
