//! The kernels of a step beside the linear products, at the shapes of `wiki-75m`, against what the machine can do at most: the
//! FMA peak for attention, the speed of reading memory for the rest. Each result is checked before it is timed. Run it
//! with `cargo bench --bench kernels`, or with a part of a name for some: `cargo bench --bench kernels -- attention`.
//!
//! Before a round, all that a kernel overwrites is filled with new numbers and a buffer larger than the caches is read:
//! every operand then comes from memory, each call of a round has operands of its own, and none is touched twice. That
//! is what the optimizer meets, whose tensors take gigabytes, and the backward pass, which reads what blocks kept long
//! before. A kernel that follows the product which made its input finds part of that in a cache, and is faster there.
//!
//! Shares of the speed of reading are no shares of one limit: a line that is only written is usually read first, which is
//! not counted, and one that is read and written again is written back while the next is read, which is. So a kernel that
//! keeps up with memory is at two thirds to all of it when it writes to other places, and above it when in place.

#[path = "../common/mod.rs"]
mod common;
mod harness;
mod optimizer;
/// The bound of `close`, and formulas in f64.
#[path = "../../tests/common/mod.rs"]
mod tests;

use common::noise;
use harness::{Bench, Limit, Operand, ROUND, both, read, written};
use std::cell::Cell;
use ternlm::config::{Inputs, Precision};
use ternlm::kernels::{
    self, Attended, AttentionGradients, AttentionShape, Matrix, Objective, RopeTable, To, Turn, reference,
};
use ternlm::model::cross_entropy::rows_at_once;
use ternlm::ternary::{Grouping, TernaryMatrix};
use tests::{At, attention_gradient_rows, attention_row, close, wide};

/// As in the program: buffers are aligned, and large ones on large pages.
#[global_allocator]
static MEMORY: ternlm::kernels::LargePages = ternlm::kernels::LargePages;

/// Rows of a step, and how many of them make a sequence.
const N: usize = 2048;
const SEQ: usize = 128;
const WIDTH: usize = 512;
const HEADS: usize = 8;
const KV_HEADS: usize = 4;
const DIM: usize = 64;
const FFN: usize = 1376;
const VOCAB: usize = 50257;
/// Weights of the embedding, and of the head.
const WEIGHTS: usize = VOCAB * WIDTH;
const EPS: f32 = 1e-6;

fn main() {
    // Cargo passes flags of its own, as `--bench`.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut bench = Bench::new(filter);
    for seq in [SEQ, 512, 1024, 2048] {
        attention(&mut bench, seq);
    }
    cross_entropy(&mut bench);
    norm(&mut bench, "width 512", WIDTH, N, To::Add);
    norm(&mut bench, "8 heads of 64", DIM, N * HEADS, To::Set);
    rope(&mut bench);
    activations(&mut bench);
    embedding(&mut bench);
    optimizer::optimizers(&mut bench);
    optimizer::projection(&mut bench);
    sums(&mut bench);
    if bench.matched == 0 {
        eprintln!("no kernel's name contains {:?}", bench.filter);
        std::process::exit(2);
    }
}

/// Causal, in groups of two heads. Products alone are counted, two forward and five backward (the scores are made
/// again), of the scores that are seen: soft-max and the unseen half of a tile on the diagonal count nothing.
fn attention(bench: &mut Bench, seq: usize) {
    let (batch, causal) = (N / seq, true);
    let s =
        AttentionShape { batch, queries: seq, keys: seq, heads: HEADS, kv_heads: KV_HEADS, dim: DIM, causal };
    let (q_len, k_len, lse_len) = (N * HEADS * DIM, N * KV_HEADS * DIM, N * HEADS);
    let product = 2.0 * (batch * HEADS * DIM) as f64 * (seq * (seq + 1) / 2) as f64;
    bench.run(
        &format!("attention, {batch} x {seq}"),
        Limit::Flop(2.0 * product),
        [read(q_len), read(k_len), read(k_len), written(q_len), written(lse_len)],
        |_, [q, k, v, out, lse]| kernels::attention(&s, Precision::F32, q, k, v, out, lse),
        |_, [q, k, v, out, _]| {
            let (q, k, v) = (wide(q), wide(k), wide(v));
            for (b, i) in [(0, 0), (batch - 1, seq / 2), (0, seq - 1)] {
                let row = (b * seq + i) * HEADS * DIM;
                let want = attention_row(&s, &q, &k, &v, b, i);
                close(&out[row..][..HEADS * DIM], &want, DIM + seq, "attention");
            }
        },
    );
    let inputs = [read(q_len), read(k_len), read(k_len), read(q_len), read(lse_len), read(q_len)];
    let [q, k, v, out, lse, dout] = inputs;
    bench.run_prepared(
        &format!("attention_backward, {batch} x {seq}"),
        Limit::Flop(5.0 * product),
        [q, k, v, out, lse, dout, written(q_len), written(k_len), written(k_len)],
        // Output and log-sum-exp are those of the forward pass.
        |[q, k, v, out, lse, ..]| kernels::attention(&s, Precision::F32, q, k, v, out, lse),
        |_, [q, k, v, out, lse, dout, dq, dk, dv]| {
            kernels::attention_backward(
                &s,
                Precision::F32,
                Attended { q, k, v, out, lse },
                dout,
                AttentionGradients { dq, dk, dv },
            )
        },
        |_, [q, k, v, _, _, dout, dq, dk, dv]| {
            let (q, k, v, dout) = (wide(q), wide(k), wide(v), wide(dout));
            let share = HEADS / KV_HEADS;
            for at in
                [At { b: 0, kv: 1, i: seq / 3, j: 3 * seq / 4 }, At { b: batch - 1, kv: 3, i: seq - 1, j: 0 }]
            {
                let [want_q, want_k, want_v] = attention_gradient_rows(&s, &q, &k, &v, &dout, at);
                let query = ((at.b * seq + at.i) * HEADS + at.kv * share) * DIM;
                let key = ((at.b * seq + at.j) * KV_HEADS + at.kv) * DIM;
                close(&dq[query..][..share * DIM], &want_q, DIM + share * seq, "attention_backward, queries");
                close(&dk[key..][..DIM], &want_k, DIM + share * seq, "attention_backward, keys");
                close(&dv[key..][..DIM], &want_v, DIM + share * seq, "attention_backward, values");
            }
        },
    );
}

/// As many rows of logits as the loss makes at a time. An exponential for every value comes on top of the memory.
fn cross_entropy(bench: &mut Bench) {
    let rows = rows_at_once(VOCAB);
    let targets = tokens(rows);
    let scale = 1.0 / N as f32;
    let objective = Objective::scaled(scale);
    bench.run(
        "cross_entropy with gradient",
        Limit::Memory,
        [both(rows * VOCAB), written(rows)],
        |_, [logits, loss]| kernels::cross_entropy(logits, VOCAB, VOCAB, &targets, Some(objective), loss),
        |[logits, _], [gradient, loss]| {
            for r in some_of(rows) {
                let (row, target) = (wide(&logits[r * VOCAB..][..VOCAB]), targets[r] as usize);
                close(&loss[r..=r], &[reference::cross_entropy(&row, target)], 16, "cross_entropy");
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                let mut want: Vec<f64> = row.iter().map(|x| scale as f64 * x.exp() / sum).collect();
                want[target] -= scale as f64;
                close(&gradient[r * VOCAB..][..VOCAB], &want, 16, "the gradient of cross_entropy");
            }
        },
    );
}

/// Norms of the residual stream, whose gradient is added to, or of queries.
fn norm(bench: &mut Bench, what: &str, width: usize, rows: usize, to: To) {
    let gain = noise(width, 1);
    let len = rows * width;
    let gain64 = wide(&gain);
    bench.run(
        &format!("rms_norm, {what}"),
        Limit::Memory,
        [read(len), written(len)],
        |_, [x, y]| kernels::rms_norm(x, &gain, EPS, y),
        |_, [x, y]| {
            let want = reference::rms_norm(&wide(x), &gain64, EPS as f64);
            some_of(rows).for_each(|r| {
                close(&y[r * width..][..width], &want[r * width..][..width], width, "rms_norm")
            });
        },
    );
    bench.run(
        &format!("rms_norm_backward, {what}"),
        Limit::Memory,
        [read(len), read(len), if to == To::Add { both(len) } else { written(len) }, both(width)],
        |_, [x, dy, dx, dgain]| kernels::rms_norm_backward(x, &gain, EPS, dy, dx, dgain, to),
        |[_, _, dx_before, dgain_before], [x, dy, dx, dgain]| {
            let (x, dy) = (wide(x), wide(dy));
            let inverse =
                |x: &[f64]| 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + EPS as f64).sqrt();
            for r in some_of(rows) {
                let row = r * width..(r + 1) * width;
                let (x, dy, r) = (&x[row.clone()], &dy[row.clone()], inverse(&x[row.clone()]));
                let mean = (0..width).map(|i| gain64[i] * dy[i] * x[i]).sum::<f64>() / width as f64;
                let before = |i: usize| if to == To::Add { dx_before[row.start + i] as f64 } else { 0.0 };
                let want: Vec<f64> =
                    (0..width).map(|i| before(i) + r * gain64[i] * dy[i] - x[i] * r * r * r * mean).collect();
                close(&dx[row.clone()], &want, width, "rms_norm_backward");
            }
            let mut want = wide(dgain_before);
            for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
                let r = inverse(x);
                (0..width).for_each(|i| want[i] += dy[i] * x[i] * r);
            }
            close(dgain, &want, rows, "rms_norm_backward, the gain");
        },
    );
}

fn rope(bench: &mut Bench) {
    let frequencies = tests::frequencies(DIM, 1e4);
    let table = RopeTable::new(SEQ, &frequencies, 1.0);
    let positions: Vec<u32> = (0..N as u32).map(|row| row % SEQ as u32).collect();
    let width = HEADS * DIM;
    bench.run(
        "rope, 8 heads of 64",
        Limit::Memory,
        [both(N * width)],
        |_, [x]| kernels::rope(x, HEADS, &table, &positions, Turn::Forward),
        |[before], [x]| {
            let want = reference::rope(&wide(before), HEADS, &frequencies, 1.0, SEQ);
            some_of(N)
                .for_each(|r| close(&x[r * width..][..width], &want[r * width..][..width], SEQ, "rope"));
        },
    );
}

/// SwiGLU's gate, which `wiki-75m` has, and the two activations that other models have, on as many values.
fn activations(bench: &mut Bench) {
    type Kernel = fn(&[f32], &mut [f32]);
    type Meaning = fn(f64) -> f64;
    let len = N * FFN;
    let slope = |f: Meaning, x: f32| (f(x as f64 + 1e-5) - f(x as f64 - 1e-5)) / 2e-5;
    bench.run(
        "silu_mul",
        Limit::Memory,
        [read(len), read(len), written(len)],
        |_, [gate, up, out]| kernels::silu_mul(gate, up, out),
        |_, [gate, up, out]| {
            at_some(len, out, "silu_mul", |i| reference::silu(gate[i] as f64) * up[i] as f64);
        },
    );
    bench.run(
        "silu_mul_backward",
        Limit::Memory,
        [read(len), read(len), both(len), written(len)],
        |_, [gate, up, d, dgate]| kernels::silu_mul_backward(gate, up, d, dgate),
        |[_, _, dout, _], [gate, up, dup, dgate]| {
            let d = |i: usize| dout[i] as f64;
            at_some(len, dup, "silu_mul_backward, up", |i| reference::silu(gate[i] as f64) * d(i));
            at_some(len, dgate, "silu_mul_backward, gate", |i| {
                slope(reference::silu, gate[i]) * up[i] as f64 * d(i)
            });
        },
    );
    let others: [(&str, Kernel, Kernel, Meaning); 2] = [
        ("gelu", kernels::gelu, kernels::gelu_backward, reference::gelu),
        ("relu2", kernels::relu2, kernels::relu2_backward, reference::relu2),
    ];
    for (name, forward, backward, meaning) in others {
        bench.run(
            name,
            Limit::Memory,
            [read(len), written(len)],
            |_, [x, out]| forward(x, out),
            |_, [x, out]| at_some(len, out, name, |i| meaning(x[i] as f64)),
        );
        let name = &format!("{name}_backward");
        bench.run(
            name,
            Limit::Memory,
            [read(len), both(len)],
            |_, [x, d]| backward(x, d),
            |[_, dout], [x, dx]| at_some(len, dx, name, |i| slope(meaning, x[i]) * dout[i] as f64),
        );
    }
}

/// Tokens are all equally likely, other ones for each call. Those of a text repeat, and find their rows in a cache.
fn embedding(bench: &mut Bench) {
    // As many as there are calls in a round.
    let calls = ROUND.div_ceil(4 * N * WIDTH);
    let tokens = tokens(calls * N);
    let of = |i: usize| &tokens[i * N..(i + 1) * N];
    let mut w = TernaryMatrix::zeros(VOCAB, WIDTH, Grouping::default());
    kernels::project("w", &noise(WEIGHTS, 1), Grouping::default(), &mut w).expect("finite numbers");
    let codes = N * (w.row_words() + w.row_groups());
    bench.run(
        "gather, ternary",
        Limit::Memory,
        [Operand { moved: N * WIDTH + codes, ..written(N * WIDTH) }],
        |i, [x]| kernels::gather(Matrix::ternary(&w, Inputs::F32), of(i), x),
        |_, [x]| {
            let mut want = vec![0.0; WIDTH];
            for r in some_of(N) {
                w.unpack_row(tokens[r] as usize, &mut want);
                assert_eq!(x[r * WIDTH..][..WIDTH], want, "gather is wrong at row {r}");
            }
        },
    );
    bench.run(
        "scatter_add",
        Limit::Memory,
        [Operand { moved: 2 * N * WIDTH, ..both(WEIGHTS) }, read(N * WIDTH)],
        |i, [dw, dx]| kernels::scatter_add(dw, WIDTH, of(i), dx),
        |[before, _], [dw, dx]| {
            for r in some_of(N) {
                let row = tokens[r] as usize * WIDTH..(tokens[r] as usize + 1) * WIDTH;
                let mut want = wide(&before[row.clone()]);
                let same = of(0).iter().zip(dx.chunks(WIDTH)).filter(|(t, _)| **t == tokens[r]);
                same.for_each(|(_, dx)| want.iter_mut().zip(dx).for_each(|(w, d)| *w += *d as f64));
                close(&dw[row], &want, N, "scatter_add");
            }
        },
    );
}

fn sums(bench: &mut Bench) {
    let sum = Cell::new(0.0);
    bench.run(
        "sum_squares, 25.7 M weights",
        Limit::Memory,
        [read(WEIGHTS)],
        |_, [x]| sum.set(kernels::sum_squares(x)),
        |_, [x]| {
            // In parts: one sum over so many would round worse than the kernel's.
            let part = |x: &[f32]| x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>();
            let want: f64 = x.chunks(4096).map(part).sum();
            assert!((sum.get() - want).abs() <= 1e-12 * want, "sum_squares is {}, not {want}", sum.get());
        },
    );
    let finite = Cell::new(false);
    bench.run(
        "all_finite, 25.7 M weights",
        Limit::Memory,
        [read(WEIGHTS)],
        |_, [x]| finite.set(kernels::all_finite(x)),
        |_, _| assert!(finite.get(), "all_finite does not believe that noise is finite"),
    );
    bench.run(
        "fill_zero, 25.7 M weights",
        Limit::Memory,
        // Filled anew, so that there is something to overwrite.
        [Operand { moved: WEIGHTS, ..both(WEIGHTS) }],
        |_, [x]| kernels::fill_zero(x),
        |_, [x]| assert!(x.iter().all(|x| *x == 0.0), "fill_zero left something"),
    );
    bench.run(
        "add_assign",
        Limit::Memory,
        [both(N * WIDTH), read(N * WIDTH)],
        |_, [out, x]| kernels::add_assign(out, x),
        |[before, x], [out, _]| at_some(N * WIDTH, out, "add_assign", |i| before[i] as f64 + x[i] as f64),
    );
}

/// The first, the last and one between of `n`.
fn some_of(n: usize) -> impl Iterator<Item = usize> {
    [0, n / 2 + 1, n - 1].into_iter()
}

/// Compares about a thousand of `len` values, the last ones among them, with what they mean.
#[track_caller]
fn at_some(len: usize, got: &[f32], what: &str, want: impl Fn(usize) -> f64) {
    let places: Vec<usize> = (0..len).step_by(len / 1000).chain(len - 33..len).collect();
    let got: Vec<f32> = places.iter().map(|i| got[*i]).collect();
    close(&got, &places.iter().map(|i| want(*i)).collect::<Vec<_>>(), 64, what);
}

/// Random ones of the vocabulary.
fn tokens(n: usize) -> Vec<u32> {
    noise(n, 9).iter().map(|x| ((x + 1.0) / 2.0 * VOCAB as f32) as u32 % VOCAB as u32).collect()
}
