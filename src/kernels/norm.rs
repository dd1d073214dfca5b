//! RMSNorm (Zhang and Sennrich, arXiv 1910.07467).

use rayon::prelude::*;

use super::elementwise::CHUNK;
use super::isa::kernel;
use super::profile::{Phase, scope};
use super::simd::dot;
use super::to::To;

/// Rows a thread takes at a time. Fixed, so that the gain's gradient does not depend on the number of threads.
const ROWS: usize = 64;

/// `y = x * gain / sqrt(mean(x^2) + eps)` for each row of `gain.len()` values.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
            for (x, y) in x.chunks_exact(gain.len()).zip(y.chunks_exact_mut(gain.len())) {
                let inv = 1.0 / (dot::<S>(x, x) / gain.len() as f32 + eps).sqrt();
                for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
                    *y = x * inv * g;
                }
            }
        }
    }
    assert_eq!(x.len(), y.len(), "values in and out");
    assert!(x.len().is_multiple_of(gain.len()), "{} values in rows of {}", x.len(), gain.len());
    let size = ROWS * gain.len();
    if x.len() <= size.max(2 * CHUNK) {
        return run(x, gain, eps, y);
    }
    x.par_chunks(size).zip(y.par_chunks_mut(size)).for_each(|(x, y)| run(x, gain, eps, y));
}

/// Backward of [`rms_norm`]. With `r = 1 / sqrt(mean(x^2) + eps)` and `a = gain * dy`:
/// `dx (+)= r a - x r^3 mean(a x)` and `dgain += sum over rows of dy x r`.
pub fn rms_norm_backward(
    x: &[f32],
    gain: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dgain: &mut [f32],
    to: To,
) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(x: &[f32], gain: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dgain: &mut [f32], to: To) {
            let c = gain.len();
            let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c));
            for ((x, dy), dx) in rows {
                let r = 1.0 / (dot::<S>(x, x) / c as f32 + eps).sqrt();
                let mut sums = [0f32; 16];
                let (g16, dy16, x16) = (gain.as_chunks::<16>(), dy.as_chunks::<16>(), x.as_chunks::<16>());
                for ((g, dy), x) in g16.0.iter().zip(dy16.0).zip(x16.0) {
                    for i in 0..16 {
                        sums[i] += g[i] * dy[i] * x[i];
                    }
                }
                let tail: f32 = g16.1.iter().zip(dy16.1).zip(x16.1).map(|((g, dy), x)| g * dy * x).sum();
                let m = (sums.iter().sum::<f32>() + tail) / c as f32 * r * r * r;
                // A loop for each case, without indices: one that asks in every turn is not made of vectors.
                let values = gain.iter().zip(dy).zip(x).zip(dgain.iter_mut().zip(dx));
                if to.adds() {
                    for (((g, dy), x), (dgain, dx)) in values {
                        *dx += r * g * dy - x * m;
                        *dgain += dy * x * r;
                    }
                } else {
                    for (((g, dy), x), (dgain, dx)) in values {
                        *dx = r * g * dy - x * m;
                        *dgain += dy * x * r;
                    }
                }
            }
        }
    }
    let c = gain.len();
    assert_eq!([dy.len(), dx.len()], [x.len(); 2], "gradients of {} values", x.len());
    assert_eq!(dgain.len(), c, "gradient of the gain");
    assert!(x.len().is_multiple_of(c), "{} values in rows of {c}", x.len());
    let size = ROWS * c;
    let partial: Vec<Vec<f32>> = x
        .par_chunks(size)
        .zip(dy.par_chunks(size))
        .zip(dx.par_chunks_mut(size))
        .map(|((x, dy), dx)| {
            let mut dgain = vec![0f32; c];
            run(x, gain, eps, dy, dx, &mut dgain, to);
            dgain
        })
        .collect();
    for part in partial {
        super::add_assign(dgain, &part);
    }
}
