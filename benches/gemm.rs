//! The three products of a linear layer at the shapes of `wiki-75m`, against the FMA peak measured in the same process.
//! Each result is checked before it is timed. Run it with `cargo bench --bench gemm`.

use std::time::Instant;
use ternlm::kernels::{Isa, Matrix, linear, peak, project};
use ternlm::ternary::{Grouping, TernaryMatrix};

/// Rows, inputs, outputs.
const SHAPES: [(usize, usize, usize); 5] =
    [(2048, 512, 512), (2048, 512, 256), (2048, 512, 1376), (2048, 1376, 512), (320, 512, 50257)];

fn main() {
    let limit = peak::fma_gflops();
    println!("{}, {} threads, FMA peak {limit:.0} GFLOP/s", Isa::current(), rayon::current_num_threads());
    println!(
        "{:>22} {:>16} {:>16} {:>16}",
        "rows x in x out", "forward", "input gradient", "weight gradient"
    );
    for (n, inputs, out) in SHAPES {
        let (x, dy) = (noise(n * inputs, 1), noise(n * out, 2));
        let mut w = TernaryMatrix::zeros(out, inputs, Grouping::default());
        project("w", &noise(out * inputs, 3), Grouping::default(), &mut w).expect("finite numbers");
        let (mut y, mut dx, mut dw) = (vec![0.0; n * out], vec![0.0; n * inputs], vec![0.0; out * inputs]);
        linear::forward(&x, Matrix::Ternary(&w), &mut y, false);
        for (row, col) in [(0, 0), (n / 2, out / 3), (n - 1, out - 1)] {
            let want: f64 = (0..inputs)
                .map(|k| x[row * inputs + k] as f64 * w.trit(col, k) as f64 * w.scale(col, k) as f64)
                .sum();
            assert!((y[row * out + col] as f64 - want).abs() < 1e-3, "forward is wrong at {row}, {col}");
        }
        let flop = 2.0 * (n * inputs * out) as f64;
        let share = |gflops: f64| format!("{gflops:.0} ({:.0} %)", 100.0 * gflops / limit);
        let forward = time(flop, || linear::forward(&x, Matrix::Ternary(&w), &mut y, false));
        let input = time(flop, || linear::backward_input(&dy, Matrix::Ternary(&w), &mut dx, false));
        let weight = time(flop, || linear::backward_weight(&dy, &x, &mut dw, out, inputs));
        let shape = format!("{n} x {inputs} x {out}");
        println!("{shape:>22} {:>16} {:>16} {:>16}", share(forward), share(input), share(weight));
    }
}

/// GFLOP/s of the median of seven rounds.
fn time(flop: f64, mut f: impl FnMut()) -> f64 {
    let calls = (3e10 / flop).ceil() as usize;
    let mut rounds: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            (0..calls).for_each(|_| f());
            start.elapsed().as_secs_f64() / calls as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    flop / rounds[3] / 1e9
}

/// Numbers in [-1, 1), other ones for another seed.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
