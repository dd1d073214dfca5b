//! What several test files share.
#![allow(dead_code)]

pub mod gguf;
pub mod lab;
pub mod models;
pub mod program;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use ternlm::kernels::{AdamW, AttentionShape, Isa, reference};
use ternlm::model::{Weight, number};

/// A small deterministic generator (SplitMix64), written once more: a test draws by other code than it tests.
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

/// Those of a plain rotation of heads `dim` wide.
pub fn frequencies(dim: usize, theta: f64) -> Vec<f32> {
    (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64) as f32).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

pub fn transpose<T: Copy>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// Gives dense weights random values and their places.
pub fn randomise<'a>(weights: impl IntoIterator<Item = &'a mut Weight>, rng: &mut Rng) {
    let mut weights: Vec<&mut Weight> = weights.into_iter().collect();
    number(weights.iter_mut().map(|weight| &mut **weight));
    for weight in weights {
        let values = rng.normal(weight.len());
        weight.dense_mut().copy_from_slice(&values);
    }
}

/// The largest, and no number where one of them is none: `max` passes over those.
pub fn most(all: impl IntoIterator<Item = f64>) -> f64 {
    all.into_iter().fold(0.0, |most: f64, x| if x > most || x.is_nan() { x } else { most })
}

/// The largest difference. No number is below no bound.
#[track_caller]
pub fn apart<T: Copy + Into<f64>>(got: &[T], want: &[T]) -> f64 {
    assert_eq!(got.len(), want.len());
    most(got.iter().zip(want).map(|(&a, &b)| (a.into() - b.into()).abs()))
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

/// The central difference quotient of `f` by `x[i]`.
pub fn difference(x: &mut [f64], i: usize, step: f64, mut f: impl FnMut(&[f64]) -> f64) -> f64 {
    let old = x[i];
    x[i] = old + step;
    let up = f(x);
    x[i] = old - step;
    let down = f(x);
    x[i] = old;
    (up - down) / (2.0 * step)
}

/// The gradient of `f` by [`difference`]s.
pub fn differences(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = at.to_vec();
    (0..x.len()).map(|i| difference(&mut x, i, 1e-5, &f)).collect()
}

/// Panics unless `got` is the gradient `want`. Probabilities are subtracted from each other and multiplied with `factor`, so no
/// value is more exact than a few roundings of that.
#[track_caller]
pub fn is_gradient(what: &str, got: &[f32], want: &[f64], factor: f64) {
    let norm = want.iter().fold(0f64, |a, b| a.max(b.abs()));
    assert!(norm > 1e-6, "{what}: the gradient is zero, which tests nothing");
    assert_eq!(got.len(), want.len(), "{what}");
    let bound = 3e-5 * norm + 8.0 * f32::EPSILON as f64 * factor;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((*got as f64 - want).abs() <= bound, "{what}[{i}]: {got} by hand, {want} by differences");
    }
}

/// Row `i` of sequence `b` of [`reference::attention`], `[heads * dim]`: the whole of a long case takes too long.
pub fn attention_row(s: &AttentionShape, q: &[f64], k: &[f64], v: &[f64], b: usize, i: usize) -> Vec<f64> {
    let (width, kv_width) = (s.heads * s.dim, s.kv_heads * s.dim);
    // A query sees what a last query sees when the keys end where its sight does.
    let keys = if s.causal { s.keys - s.queries + i + 1 } else { s.keys };
    let seen = b * s.keys * kv_width..(b * s.keys + keys) * kv_width;
    let q = &q[(b * s.queries + i) * width..][..width];
    let one = AttentionShape { batch: 1, queries: 1, keys, ..*s };
    reference::attention(&one, q, &k[seen.clone()], &v[seen])
}

/// Which rows of attention's gradients are wanted: of sequence `b` and key/value head `kv`, query `i` and key `j`.
#[derive(Clone, Copy, Debug)]
pub struct At {
    pub b: usize,
    pub kv: usize,
    pub i: usize,
    pub j: usize,
}

/// The gradients of `sum dout * attention(q, k, v)` at a few rows, from the formulas, over whole rows of scores: those
/// by query `i`, `[heads of the group, dim]`, by key `j` and by value `j`, `[dim]` each. `tests/gradients.rs` holds the
/// kernel against differences of the reference at short sequences, and so these formulas.
pub fn attention_gradient_rows(
    s: &AttentionShape,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    dout: &[f64],
    at: At,
) -> [Vec<f64>; 3] {
    let (share, scale) = (s.heads / s.kv_heads, 1.0 / (s.dim as f64).sqrt());
    let key = |j: usize| ((at.b * s.keys + j) * s.kv_heads + at.kv) * s.dim;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let add = |out: &mut [f64], factor: f64, x: &[f64]| {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += factor * x);
    };
    let (mut dq, mut dk, mut dv) = (vec![0.0; share * s.dim], vec![0.0; s.dim], vec![0.0; s.dim]);
    for i in 0..s.queries {
        let seen = if s.causal { s.keys - s.queries + i + 1 } else { s.keys };
        if i != at.i && at.j >= seen {
            continue;
        }
        for h in 0..share {
            let row = ((at.b * s.queries + i) * s.heads + at.kv * share + h) * s.dim;
            let (q, dout) = (&q[row..][..s.dim], &dout[row..][..s.dim]);
            let scores: Vec<f64> = (0..seen).map(|j| scale * dot(q, &k[key(j)..][..s.dim])).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|x| (x - max).exp() / sum).collect();
            let dp: Vec<f64> = (0..seen).map(|j| dot(dout, &v[key(j)..][..s.dim])).collect();
            let delta = dot(&p, &dp);
            let ds = |j: usize| p[j] * (dp[j] - delta) * scale;
            if i == at.i {
                (0..seen).for_each(|j| add(&mut dq[h * s.dim..][..s.dim], ds(j), &k[key(j)..][..s.dim]));
            }
            if at.j < seen {
                add(&mut dk, ds(at.j), q);
                add(&mut dv, p[at.j], dout);
            }
        }
    }
    [dq, dk, dv]
}

/// Value, first and second moment after a step of AdamW, from value, gradient and moments before it.
pub fn adamw(a: &AdamW, [p, g, m, v]: [f64; 4]) -> [f64; 3] {
    let (g, [b1, b2], lr) = (a.grad_scale as f64 * g, [a.beta1, a.beta2].map(f64::from), a.lr as f64);
    let (m, v) = (b1 * m + (1.0 - b1) * g, b2 * v + (1.0 - b2) * g * g);
    let (mh, vh) = (m / (1.0 - b1.powi(a.step as i32)), v / (1.0 - b2.powi(a.step as i32)));
    [p * (1.0 - lr * a.weight_decay as f64) - lr * mh / (vh.sqrt() + a.eps as f64), m, v]
}

static ISA: Mutex<()> = Mutex::new(());

/// Runs `test` once for every instruction set of this machine, with fresh numbers, and says which they were.
pub fn on_every_isa(test: impl Fn(&mut Rng)) {
    let _one_at_a_time = ISA.lock().unwrap_or_else(|e| e.into_inner());
    let found = Isa::current();
    // SAFETY: what computes in a test program holds the lock, here and below.
    let force = |isa: Isa| unsafe { isa.force() };
    for isa in Isa::available() {
        force(isa);
        println!("instruction set: {isa}");
        test(&mut Rng::new(7 + isa as u64));
    }
    force(found);
}

/// Keeps [`on_every_isa`] out while a test of the same program computes on the instruction set that it found.
pub fn on_this_isa() -> impl Drop {
    ISA.lock().unwrap_or_else(|e| e.into_inner())
}

/// A file or folder of the test data that is not part of the project: under `TERNLM_DATA`, else `../shared/data` beside
/// the checkout. Says so when it is absent; where `CI` is set and there is such data, that is a failure.
pub fn data(path: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let root = std::env::var_os("TERNLM_DATA").map_or(beside.clone(), PathBuf::from);
    let ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    look(&root.join(path), ci && (root.exists() || beside.exists()))
}

/// `path` if it is there; what must be there panics otherwise.
pub fn look(path: &Path, must: bool) -> Option<PathBuf> {
    if path.exists() {
        return Some(path.into());
    }
    let said =
        format!("SKIPPED: {} is not here (set TERNLM_DATA to the folder of test data)", path.display());
    assert!(!must, "{said}");
    eprintln!("{said}");
    None
}

/// Changes a file of JSON.
pub fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
