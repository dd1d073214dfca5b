//! Dropout: values set to zero at random, the same ones whenever they are asked for.

use rayon::prelude::*;

use super::elementwise::CHUNK;
use super::isa::kernel;
use super::profile::{Phase, scope};
use super::simd::fma;
use super::to::To;
use crate::random::{GAMMA, splitmix64};

/// Which values of equal sequences become zero (Srivastava et al., JMLR 2014); the others are divided by the share of those that
/// are left, so that the mean stays. What becomes of a value follows from the seed, the number of its sequence, the place in the
/// model, position and column ([`reference::dropped`](super::reference::dropped)), and from nothing else: nothing has to be
/// kept for the backward pass, and threads, parts of a batch and processes change no bit.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Share of the values that become zero, below 1; rounded to a 65,536th.
    pub rate: f32,
    pub seed: u64,
    /// The number of each sequence, which no other one of the training has.
    pub sequences: &'a [u64],
}

/// `out (+)= x` with values set to zero and scaled: rows of `width` values at that place of the model, as many of each sequence.
pub fn dropout(how: Dropout<'_>, place: usize, width: usize, x: &[f32], out: &mut [f32], to: To) {
    let _time = scope(Phase::Elementwise);
    let Dropout { rate, seed, sequences } = how;
    assert!((0.0..1.0).contains(&rate), "a rate of {rate}");
    assert_eq!(x.len(), out.len(), "values read and written");
    let len = x.len() / width / sequences.len();
    assert_eq!(x.len(), sequences.len() * len * width, "rows of {width} of {} sequences", sequences.len());
    let threshold = ((65_536.0 * rate as f64).round() as u32).min(65_535);
    let scale = 65_536.0 / (65_536 - threshold) as f32;
    let rows = out.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate();
    rows.with_min_len(CHUNK.div_ceil(width)).for_each(|(row, (out, x))| {
        let path = [sequences[row / len], place as u64, (row % len) as u64];
        // Each number picks a stream of the one before.
        let key =
            path.into_iter().fold(seed, |key, n| splitmix64(key.wrapping_add(GAMMA.wrapping_mul(n + 1))));
        drop_some(x, out, key, threshold, scale, to);
    });
}

/// Values whose factors are made together, from four random numbers of 64 bits.
const LANES: usize = 16;

/// 0 or `scale` for [`LANES`] values: each takes 16 bits of a number, lowest first.
#[inline(always)]
fn factors(key: u64, nth: usize, threshold: u32, scale: f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (word, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let number = (4 * nth + word + 1) as u64;
        let bits = splitmix64(key.wrapping_add(GAMMA.wrapping_mul(number)));
        for (lane, factor) in out.iter_mut().enumerate() {
            *factor = if (bits >> (16 * lane)) as u32 & 0xFFFF < threshold { 0.0 } else { scale };
        }
    }
    out
}

kernel! {
    fn drop_some<S>(x: &[f32], out: &mut [f32], key: u64, threshold: u32, scale: f32, to: To) {
        let ((xs, x_rest), (outs, out_rest)) = (x.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
        for (nth, (x, out)) in xs.iter().zip(outs.iter_mut()).enumerate() {
            let factors = factors(key, nth, threshold, scale);
            for i in 0..LANES {
                out[i] = if to.adds() { fma::<S>(factors[i], x[i], out[i]) } else { factors[i] * x[i] };
            }
        }
        let factors = factors(key, xs.len(), threshold, scale);
        for ((x, out), factor) in x_rest.iter().zip(out_rest).zip(factors) {
            *out = if to.adds() { fma::<S>(factor, *x, *out) } else { factor * x };
        }
    }
}
