//! What the benchmarks share: numbers to compute with, a clock, a table.
#![allow(dead_code)]

use std::time::Instant;

/// Numbers in [-1, 1), other ones for another seed.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    fill(&mut x, seed);
    x
}

/// [`noise`] over what is there.
pub fn fill(x: &mut [f32], seed: u64) {
    let mut state = seed;
    for x in x {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *x = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    }
}

/// Seconds that `f` takes.
pub fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// The median of seven rounds.
pub fn median(round: impl FnMut() -> f64) -> f64 {
    let mut rounds: Vec<f64> = std::iter::repeat_with(round).take(7).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[3]
}

/// Prints one line of a table: every column as wide as it says and aligned right.
pub fn line<const N: usize>(widths: [usize; N], cells: [&str; N]) {
    let cells: Vec<String> = widths.iter().zip(cells).map(|(w, cell)| format!("{cell:>w$}")).collect();
    println!("{}", cells.join(" "));
}
