//! The three products of a linear layer at the shapes of `wiki-75m`, against the FMA peak measured in the same process.
//! Each forward result is checked before it is timed. Run it with `cargo bench --bench gemm`.

mod common;

use common::{line, median, noise, seconds};
use ternlm::config::{Inputs, Precision};
use ternlm::kernels::{Isa, Matrix, To, linear, peak, project};
use ternlm::ternary::{Grouping, TernaryMatrix};

/// As in the program: buffers are aligned, and large ones on large pages.
#[global_allocator]
static MEMORY: ternlm::kernels::LargePages = ternlm::kernels::LargePages;

/// Rows, inputs, outputs.
const SHAPES: [(usize, usize, usize); 5] =
    [(2048, 512, 512), (2048, 512, 256), (2048, 512, 1376), (2048, 1376, 512), (320, 512, 50257)];

const COLUMNS: [usize; 4] = [22, 16, 16, 16];

fn main() {
    let limit = peak::fma_gflops();
    println!("{}, {} threads, FMA peak {limit:.0} GFLOP/s", Isa::current(), rayon::current_num_threads());
    line(COLUMNS, ["rows x in x out", "forward", "input gradient", "weight gradient"]);
    for (n, inputs, out) in SHAPES {
        let (x, dy) = (noise(n * inputs, 1), noise(n * out, 2));
        let mut w = TernaryMatrix::zeros(out, inputs, Grouping::default());
        project("w", &noise(out * inputs, 3), Grouping::default(), &mut w).expect("finite numbers");
        let (mut y, mut dx, mut dw) = (vec![0.0; n * out], vec![0.0; n * inputs], vec![0.0; out * inputs]);
        linear::forward(&x, Matrix::ternary(&w, Inputs::F32), &mut y, To::Set);
        for (row, col) in [(0, 0), (n / 2, out / 3), (n - 1, out - 1)] {
            let want: f64 = (0..inputs)
                .map(|k| x[row * inputs + k] as f64 * w.trit(col, k) as f64 * w.scale(col, k) as f64)
                .sum();
            assert!((y[row * out + col] as f64 - want).abs() < 1e-3, "forward is wrong at {row}, {col}");
        }
        let flop = 2.0 * (n * inputs * out) as f64;
        let share = |gflops: f64| format!("{gflops:.0} ({:.0} %)", 100.0 * gflops / limit);
        let forward = time(flop, || linear::forward(&x, Matrix::ternary(&w, Inputs::F32), &mut y, To::Set));
        let input =
            time(flop, || linear::backward_input(&dy, Matrix::ternary(&w, Inputs::F32), &mut dx, To::Set));
        let weight = time(flop, || linear::backward_weight(&dy, &x, &mut dw, [out, inputs], Precision::F32));
        let shape = format!("{n} x {inputs} x {out}");
        line(COLUMNS, [&shape, &share(forward), &share(input), &share(weight)]);
    }
}

/// GFLOP/s of the median round.
fn time(flop: f64, mut f: impl FnMut()) -> f64 {
    let calls = (3e10 / flop).ceil() as usize;
    flop / median(|| seconds(|| (0..calls).for_each(|_| f())) / calls as f64) / 1e9
}
