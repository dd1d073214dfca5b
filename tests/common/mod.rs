//! What several test files share.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use ternlm::kernels::Isa;

/// A small deterministic generator (SplitMix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// In (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// Standard normal numbers.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let (a, b) = (self.uniform(), self.uniform());
                ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
            })
            .collect()
    }
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

/// Panics unless `got` equals `want` to the rounding of `terms` operations in f32, relative to the largest value.
#[track_caller]
pub fn close(got: &[f32], want: &[f64], terms: usize, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let norm = want.iter().fold(0f64, |a, b| a.max(b.abs())).max(1e-3);
    let bound = 4.0 * (terms as f64).sqrt().max(2.0) * f32::EPSILON as f64 * norm;
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (*g as f64 - w).abs();
        assert!(error <= bound, "{what}[{i}] = {g}, wanted {w}: off by {error:.2e}, allowed {bound:.2e}");
    }
}

static ISA: Mutex<()> = Mutex::new(());

/// Runs `test` once for every instruction set of this machine, with fresh numbers, and says which they were.
pub fn on_every_isa(test: impl Fn(&mut Rng)) {
    let _one_at_a_time = ISA.lock().unwrap_or_else(|e| e.into_inner());
    let all = Isa::available();
    for isa in &all {
        isa.force();
        println!("instruction set: {isa}");
        test(&mut Rng::new(7 + *isa as u64));
    }
    all.last().unwrap().force();
}

/// A file of the shared test data: `TERNLM_DATA`, else `../shared/data` beside the checkout. Says so when it is absent.
pub fn data(path: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("TERNLM_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
    };
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not here (set TERNLM_DATA to the folder of test data)", path.display());
    None
}
