//! What the machine can do at most, measured here and now: the yardstick of every benchmark.

use rayon::prelude::*;
use std::time::Instant;

use super::isa::kernel;

/// Fused multiply-adds of f32 in registers, all threads at once: the best of five rounds, in GFLOP/s (two a
/// multiply-add).
pub fn fma_gflops() -> f64 {
    const ROUNDS: usize = 2_000_000;
    kernel! {
        /// Independent sums: enough of them to hide the latency. Returns something, so that it is not left out.
        fn spin<S>(rounds: usize) -> (f32, usize) {
            // SAFETY: values only, no memory.
            unsafe {
                let (a, b) = (S::splat(std::hint::black_box(0.999_9)), S::splat(std::hint::black_box(1e-4)));
                let mut sums = [S::splat(1.0); 12];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = S::fma(*sum, a, b);
                    }
                }
                let mut total = 0.0;
                for sum in sums {
                    total += S::sum(sum);
                }
                (total, 2 * 12 * S::LANES * rounds)
            }
        }
    }
    (0..5)
        .map(|_| {
            let start = Instant::now();
            let flops: usize = rayon::broadcast(|_| std::hint::black_box(spin(ROUNDS)).1).iter().sum();
            flops as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .fold(0.0, f64::max)
}

/// Reading 512 MiB, all threads at once: the best of five rounds, in GB/s.
pub fn read_gbps() -> f64 {
    let data = vec![1.0f32; 1 << 27];
    (0..5)
        .map(|_| {
            let start = Instant::now();
            let sum: f32 = data.par_chunks(1 << 18).map(sum).sum();
            std::hint::black_box(sum);
            4.0 * data.len() as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .fold(0.0, f64::max)
}

kernel! {
    fn sum<S>(x: &[f32]) -> f32 {
        let mut sums = [0f32; 64];
        for chunk in x.chunks_exact(64) {
            for i in 0..64 {
                sums[i] += chunk[i];
            }
        }
        sums.iter().sum()
    }
}
