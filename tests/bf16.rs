//! Products whose operands are rounded to bf16, on every instruction set of this machine: the rounding to the bit, the sums
//! against f64 sums of the rounded operands, and what a model's gradient loses.

mod common;

use common::{Rng, close, on_every_isa, transpose, wide};
use ternlm::config::{Activation, Inputs, ModelConfig, Precision, Scope};
use ternlm::kernels::{
    self as k, Attended, AttentionGradients, AttentionShape, Matrix, Rhs, Target, Threads, To, View,
    reference,
};
use ternlm::model::{Decoder, Gradients, Latents, Sequences, State};
use ternlm::ternary::{Grouping, TernaryMatrix};

use Precision::Bf16;

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| reference::bf16(*x)).collect()
}

/// Every sign and exponent with some of the digits that decide, and all that is special.
fn every_kind() -> Vec<f32> {
    let digits = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1_8000, 0x1_7FFF, 0x7E_8000, 0x7F_7FFF, 0x7F_8000];
    let more = [0x7F_FFFF, 0x40_0000, 0x12_3456];
    let heads = (0..512u32).map(|head| head << 23);
    heads.flat_map(|head| digits.into_iter().chain(more).map(move |d| f32::from_bits(head | d))).collect()
}

#[test]
fn the_reference_rounds_to_the_nearest_and_even() {
    for (x, want) in [
        (1.0, 1.0),
        // Eight significant bits: the places after 1 are 2^-7 apart.
        (1.0 + 1.0 / 256.0, 1.0),
        (1.0 + 3.0 / 256.0, 1.0 + 2.0 / 128.0),
        (-(1.0 + 1.1 / 256.0), -(1.0 + 1.0 / 128.0)),
        (f32::MAX, f32::INFINITY),
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
        (f32::MIN_POSITIVE, f32::MIN_POSITIVE),
        (f32::MIN_POSITIVE * 0.999_999_9, 0.0),
        (-1e-40, -0.0),
    ] {
        assert_eq!(reference::bf16(x).to_bits(), f32::to_bits(want), "{x}");
    }
    assert!(reference::bf16(f32::from_bits(0x7F80_0001)).is_nan(), "a NaN of low digits alone");
}

#[test]
fn operands_are_rounded_to_the_bit() {
    on_every_isa(|_| {
        let all = every_kind();
        // A product by 1, through the panels of `A` and through those of `B`.
        for (m, n) in [(all.len(), 1), (1, all.len())] {
            let (mut got, one) = (vec![0.0; all.len()], [1.0]);
            let (long, one) = (View::rows(&all, n).rounded(Bf16), View::rows(&one, 1).rounded(Bf16));
            let (a, b) = if n == 1 { (long, one) } else { (one, long) };
            let target = Target { data: &mut got, stride: n, to: To::Set };
            k::gemm(m, n, 1, a, Rhs::Dense(b), target, Threads::One);
            for (x, got) in all.iter().zip(&got) {
                let want = reference::bf16(*x);
                assert!(*got == want || got.is_nan() && want.is_nan(), "{x:e}: {got:e}, wanted {want:e}");
            }
        }
        // Finite ones by a unit matrix, large enough for tiles; rows and columns of each operand contiguous.
        let size = 64;
        let mut finite: Vec<f32> = all.into_iter().filter(|x| reference::bf16(*x).is_finite()).collect();
        finite.resize(finite.len().next_multiple_of(size * size), 0.0);
        let unit: Vec<f32> = (0..size * size).map(|i| (i % (size + 1) == 0) as u8 as f32).collect();
        for values in finite.chunks_exact(size * size) {
            let turned = transpose(values, size, size);
            let view = |x| View::rows(x, size).rounded(Bf16);
            let unit = view(&unit);
            for (a, b) in [
                (view(values), unit),
                (view(&turned).t(), unit),
                (unit, view(values)),
                (unit, view(&turned).t()),
            ] {
                let mut got = vec![f32::NAN; size * size];
                let target = Target { data: &mut got, stride: size, to: To::Set };
                k::gemm(size, size, size, a, Rhs::Dense(b), target, Threads::All);
                assert_eq!(got, rounded(values));
            }
        }
    });
}

/// Rows, outputs, inputs: edges of register tiles, look-ups, tiles and blocks.
const SHAPES: [(usize, usize, usize, Grouping); 13] = [
    (1, 1, 1, Grouping::Size(128)),
    (2, 5, 3, Grouping::Size(2)),
    (5, 33, 17, Grouping::Size(16)),
    (7, 31, 130, Grouping::Size(10)),
    (15, 48, 130, Grouping::Size(128)),
    (32, 64, 64, Grouping::Size(64)),
    (33, 65, 130, Grouping::Size(128)),
    (47, 70, 300, Grouping::Size(100)),
    (64, 96, 257, Grouping::Tensor),
    (40, 1100, 96, Grouping::Size(128)),
    (34, 20, 1030, Grouping::Size(128)),
    (100, 450, 160, Grouping::Size(32)),
    (130, 96, 600, Grouping::Size(128)),
];

#[test]
fn products_equal_the_reference_of_rounded_operands() {
    on_every_isa(|rng| {
        for (n, out, inputs, group) in SHAPES {
            let latent = rng.normal(out * inputs);
            let w = TernaryMatrix::project("w", &latent, out, inputs, group).unwrap();
            let mut unpacked = vec![0.0; out * inputs];
            unpacked.chunks_mut(inputs).enumerate().for_each(|(r, row)| w.unpack_row(r, row));
            let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
            let (x_as_used, dy_as_used, dense) = (rounded(&x), rounded(&dy), rounded(&latent));
            let label = |what: &str| format!("{what}, {n} x {inputs} x {out}, groups of {group}");
            for to in [To::Set, To::Add] {
                let (y0, dx0) = (rng.normal(n * out), rng.normal(n * inputs));
                let plus = |want: Vec<f64>, before: &[f32]| -> Vec<f64> {
                    let before = before.iter().map(|x| if to == To::Add { *x as f64 } else { 0.0 });
                    want.iter().zip(before).map(|(want, before)| want + before).collect()
                };
                for (form, used) in [
                    (Matrix::ternary(&w, Inputs::F32), &unpacked),
                    (Matrix::dense(&latent, out, inputs), &dense),
                ] {
                    let (mut y, form) = (y0.clone(), form.rounded(Bf16));
                    k::linear::forward(&x, form, &mut y, to);
                    let want = reference::linear(&wide(&x_as_used), &wide(used), None, inputs);
                    close(&y, &plus(want, &y0), inputs, &label("forward"));
                }
                let mut dx = dx0.clone();
                k::linear::backward_input(
                    &dy,
                    Matrix::dense(&latent, out, inputs).rounded(Bf16),
                    &mut dx,
                    to,
                );
                let want = reference::matmul(&wide(&dy_as_used), &wide(&dense), n, out, inputs);
                close(&dx, &plus(want, &dx0), out, &label("input gradient"));
                let mut dx = dx0.clone();
                k::linear::backward_input(&dy, Matrix::ternary(&w, Inputs::F32).rounded(Bf16), &mut dx, to);
                let want = reference::input_gradient_bf16(&dy, &w);
                close(&dx, &plus(want, &dx0), out, &label("ternary input gradient"));
            }
            let before = rng.normal(out * inputs);
            let mut dw = before.clone();
            k::linear::backward_weight(&dy, &x, &mut dw, [out, inputs], Bf16);
            let turned = transpose(&dy_as_used, n, out);
            let mut want = reference::matmul(&wide(&turned), &wide(&x_as_used), out, n, inputs);
            want.iter_mut().zip(&before).for_each(|(w, b)| *w += *b as f64);
            close(&dw, &want, n, &label("weight gradient"));
            // Inputs of 8 bits stay these.
            let (mut y, int8) = (vec![0.0; n * out], Matrix::ternary(&w, Inputs::Int8).rounded(Bf16));
            k::linear::forward(&x, int8, &mut y, To::Set);
            assert_eq!(y, reference::linear_int8(&x, &w));
        }
    });
}

#[test]
fn a_symmetric_product_equals_the_reference_of_rounded_operands() {
    on_every_isa(|rng| {
        // Strips of 128 rows.
        for (n, depth) in [(33, 20), (130, 70), (257, 400)] {
            let x = rng.normal(n * depth);
            let turned = transpose(&x, n, depth);
            let want = reference::matmul(&wide(&rounded(&x)), &wide(&rounded(&turned)), n, depth, n);
            for x in [View::rows(&x, depth), View::rows(&turned, n).t()] {
                let (x, mut c) = (x.rounded(Bf16), vec![f32::NAN; n * n]);
                k::symmetric_gemm(n, depth, x, x.t(), &mut c);
                close(&c, &want, depth, "symmetric product");
            }
        }
    });
}

#[test]
fn a_matrix_kept_in_bf16_is_multiplied_by_its_transpose_and_by_square_ones() {
    on_every_isa(|rng| {
        for (rows, cols) in [(8, 20), (33, 40), (40, 33), (96, 96), (130, 300), (300, 130), (1100, 64)] {
            let (x, n) = (rng.normal(rows * cols), rows.min(cols));
            let halves = k::Halves::scaled(0.25, &x, rows, cols);
            let used: Vec<f64> = x.iter().map(|x| reference::bf16(0.25 * x) as f64).collect();
            let turned = transpose(&used, rows, cols);
            let mut gram = vec![f32::NAN; n * n];
            halves.gram(&mut gram);
            let want = if rows <= cols {
                reference::matmul(&used, &turned, rows, cols, rows)
            } else {
                reference::matmul(&turned, &used, cols, rows, cols)
            };
            close(&gram, &want, rows.max(cols), &format!("gram of {rows} x {cols}"));

            // Not symmetric: the side counts.
            let p = rng.normal(n * n);
            let p_used: Vec<f64> = p.iter().map(|p| reference::bf16(*p) as f64).collect();
            let product = if rows <= cols {
                reference::matmul(&p_used, &used, rows, rows, cols)
            } else {
                reference::matmul(&used, &p_used, rows, cols, cols)
            };
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut halves = k::Halves::scaled(0.25, &x, rows, cols);
                let mut got = vec![0.0; rows * cols];
                pool.install(|| halves.multiply_add(&p, -1.5));
                halves.widen(&mut got);
                got
            };
            let got = run(1);
            assert!(got == run(3), "the same for any number of threads");
            for (at, ((got, x), product)) in got.iter().zip(&used).zip(&product).enumerate() {
                let want = product - 1.5 * x;
                // Half of the last of eight digits, and what sums are off by.
                let bound = want.abs() / 256.0 + 1e-4;
                assert!((*got as f64 - want).abs() <= bound, "{rows} x {cols}, {at}: {got}, {want}");
                assert_eq!(reference::bf16(*got), *got);
            }
        }
    });
}

#[test]
fn products_are_the_same_for_any_number_of_threads_and_keep_what_is_not_finite() {
    on_every_isa(|rng| {
        let (n, out, inputs) = (130, 257, 400);
        let latent = rng.normal(out * inputs);
        let w = TernaryMatrix::project("w", &latent, out, inputs, Grouping::Size(128)).unwrap();
        let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
        let run = |x: &[f32], dy: &[f32], threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut y, mut dx, mut dw) =
                (vec![0.5; n * out], vec![0.5; n * inputs], vec![0.5; out * inputs]);
            pool.install(|| {
                for w in [Matrix::ternary(&w, Inputs::F32), Matrix::dense(&latent, out, inputs)] {
                    k::linear::forward(x, w.rounded(Bf16), &mut y, To::Add);
                    k::linear::backward_input(dy, w.rounded(Bf16), &mut dx, To::Add);
                }
                k::linear::backward_weight(dy, x, &mut dw, [out, inputs], Bf16);
            });
            [y, dx, dw]
        };
        let one = run(&x, &dy, 1);
        for threads in [2, 3] {
            assert!(run(&x, &dy, threads) == one, "{threads} threads");
        }
        for bad in [f32::NAN, f32::from_bits(0x7F80_0001), f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let (mut x, mut dy) = (x.clone(), dy.clone());
            (x[3 * inputs + 5], dy[3 * out + 7]) = (bad, bad);
            let [y, dx, dw] = run(&x, &dy, 2);
            for (what, values, cols) in [("y", y, out), ("dx", dx, inputs)] {
                for (row, values) in values.chunks(cols).enumerate() {
                    let seen = values.iter().any(|x| !x.is_finite());
                    assert_eq!(seen, row == 3, "{bad} in row {row} of {what}");
                }
            }
            for (i, dw) in dw.iter().enumerate() {
                assert_eq!(i / inputs == 7 || i % inputs == 5, !dw.is_finite(), "{bad}: dw[{i}] = {dw}");
            }
        }
    });
}

/// Half of the last place of a bf16, relative.
const HALF: f64 = 1.0 / 256.0;

#[test]
fn attention_loses_what_rounding_its_operands_loses() {
    on_every_isa(|rng| {
        for (queries, heads, kv_heads, dim, causal) in
            [(1, 2, 1, 4, true), (5, 4, 2, 12, true), (70, 4, 2, 64, true), (200, 2, 2, 32, false)]
        {
            let s = AttentionShape { batch: 2, queries, keys: queries, heads, kv_heads, dim, causal };
            let (q_len, k_len) = (2 * queries * heads * dim, 2 * queries * kv_heads * dim);
            let [q, kk, v, dout] = [q_len, k_len, k_len, q_len].map(|len| rng.normal(len));
            let run = |precision| {
                let (mut out, mut lse) = (vec![f32::NAN; q_len], vec![f32::NAN; 2 * queries * heads]);
                k::attention(&s, precision, &q, &kk, &v, &mut out, &mut lse);
                let [mut dq, mut dk, mut dv] = [q_len, k_len, k_len].map(|len| vec![f32::NAN; len]);
                let forward = Attended { q: &q, k: &kk, v: &v, out: &out, lse: &lse };
                let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
                k::attention_backward(&s, precision, forward, &dout, gradients);
                [out, dq, dk, dv]
            };
            // Queries are rounded once they are scaled; what is left over is the rounding of the weights.
            let scale = 1.0 / (dim as f32).sqrt();
            let scaled: Vec<f64> =
                q.iter().map(|q| reference::bf16(q * scale) as f64 * (dim as f64).sqrt()).collect();
            let want = reference::attention(&s, &scaled, &wide(&rounded(&kk)), &wide(&rounded(&v)));
            let (bf16, f32) = (run(Bf16), run(Precision::F32));
            let largest = v.iter().fold(0f32, |a, x| a.max(x.abs())) as f64;
            for (got, want) in bf16[0].iter().zip(&want) {
                let error = (*got as f64 - want).abs();
                assert!(error <= HALF * largest, "{s:?}: {got}, wanted {want}");
            }
            for (what, (got, want)) in ["out", "dq", "dk", "dv"].iter().zip(bf16.iter().zip(&f32)) {
                if queries == 1 && ["dq", "dk"].contains(what) {
                    // Of a score that is alone: 0, or what rounding left of it.
                    continue;
                }
                let off = distance(got, want);
                // A gradient of scores is a difference of what is about as large.
                assert!((1e-4..8.0 * HALF).contains(&off), "{what} is off by {off}, {s:?}");
            }
        }
    });
}

/// Length of the difference, relative.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let apart = squares(&mut got.iter().zip(want).map(|(a, b)| *a as f64 - *b as f64));
    (apart / squares(&mut want.iter().map(|x| *x as f64)).max(1e-12)).sqrt()
}

#[test]
fn the_gradient_of_a_model_is_that_of_f32_to_the_rounding() {
    on_every_isa(|rng| {
        for (scope, activation) in [
            (Scope::All, Activation::SwiGlu),
            (Scope::Blocks, Activation::Gelu),
            (Scope::None, Activation::SwiGlu),
        ] {
            let config = ModelConfig {
                vocab_size: 80,
                hidden_size: 96,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 24,
                intermediate_size: 160,
                activation,
                qk_norm: true,
                qkv_bias: true,
                o_bias: true,
                mlp_bias: true,
                sub_norm: true,
                max_positions: 32,
                ..ModelConfig::default()
            };
            let mut decoder = Decoder::new(&config, scope, Grouping::Size(64));
            Latents::random(decoder.weights_mut(), rng.next(), None).unwrap();
            let seqs = Sequences::new(4, 16);
            let tokens: Vec<u32> = (0..64).map(|_| rng.below(80) as u32).collect();
            let mut run = |precision| {
                decoder.set_precision(precision);
                let mut grads = Gradients::zeros(decoder.weights());
                let mut state = State::default();
                let loss =
                    decoder.loss_and_gradient(&tokens, &tokens, seqs, 1.0 / 64.0, &mut state, &mut grads);
                let all: Vec<Vec<f32>> = decoder.weights().map(|w| grads.get(w).to_vec()).collect();
                (loss.mean(), all)
            };
            let (f32, bf16) = (run(Precision::F32), run(Bf16));
            assert!((f32.0 - bf16.0).abs() < 4.0 * HALF, "loss {} and {}", f32.0, bf16.0);
            // Each operand is off by half of HALF on average, at random: a path of some ten products adds a few of these up.
            for (weight, (got, want)) in decoder.weights().zip(bf16.1.iter().zip(&f32.1)) {
                let off = distance(got, want);
                // That of scores, which reaches queries and keys, is a difference of two such.
                let scores =
                    ["q_proj", "k_proj", "q_norm", "k_norm"].iter().any(|of| weight.name.contains(of));
                let bound = if scores { 20.0 * HALF } else { 8.0 * HALF };
                assert!((1e-5..bound).contains(&off), "{} is off by {off}", weight.name);
            }
        }
    });
}

/// The bound of the sums is narrow enough to see an operand that was not rounded.
#[test]
#[should_panic(expected = "off by")]
fn an_operand_that_is_not_rounded_is_seen() {
    let _one_at_a_time = common::on_this_isa();
    let mut rng = Rng::new(3);
    let (a, b) = (rng.normal(64 * 64), rng.normal(64 * 64));
    let mut c = vec![0.0; 64 * 64];
    let target = Target { data: &mut c, stride: 64, to: To::Set };
    k::gemm(64, 64, 64, View::rows(&a, 64), Rhs::Dense(View::rows(&b, 64)), target, Threads::One);
    let want = reference::matmul(&wide(&rounded(&a)), &wide(&rounded(&b)), 64, 64, 64);
    close(&c, &want, 64, "gemm");
}
