//! Products of linear layers on every instruction set of this machine against the plain f64 reference.

mod common;

use common::{close, on_every_isa, transpose, wide};
use ternlm::config::{Inputs, Precision};
use ternlm::kernels::{self as k, Matrix, Rhs, Target, Threads, To, Values, View, reference};
use ternlm::ternary::{Density, Grouping, TernaryMatrix};

/// Shapes around every edge: register tiles, 16-column words, blocks of 512, a single row or column.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 33, 17),
    (2, 5, 3),
    (7, 31, 16),
    (14, 32, 64),
    (15, 48, 130),
    (29, 65, 257),
    (64, 64, 64),
    (100, 20, 1030),
    (17, 600, 40),
    (5, 129, 512),
    (130, 96, 96),
];

#[test]
fn gemm_of_every_layout_equals_the_reference() {
    on_every_isa(|rng| {
        for (m, n, depth) in SHAPES {
            let (a, b) = (rng.normal(m * depth), rng.normal(depth * n));
            let want = reference::matmul(&wide(&a), &wide(&b), m, depth, n);
            let (at, bt) = (transpose(&a, m, depth), transpose(&b, depth, n));
            let a_views = [View::rows(&a, depth), View::rows(&at, m).t()];
            let b_views = [View::rows(&b, n), View::rows(&bt, depth).t()];
            for a in a_views {
                for b in b_views {
                    for threads in [Threads::All, Threads::One] {
                        let stride = n + 3;
                        let before = rng.normal(m * stride);
                        for to in [To::Set, To::Add] {
                            let mut c = before.clone();
                            let target = Target { data: &mut c, stride, to };
                            k::gemm(m, n, depth, a, Rhs::Dense(b), target, threads);
                            for i in 0..m {
                                let old = &before[i * stride..];
                                let row: Vec<f64> = (0..n)
                                    .map(|j| {
                                        want[i * n + j] + if to == To::Add { old[j] as f64 } else { 0.0 }
                                    })
                                    .collect();
                                close(&c[i * stride..i * stride + n], &row, depth, "gemm");
                                assert_eq!(
                                    c[i * stride + n..(i + 1) * stride],
                                    before[i * stride + n..(i + 1) * stride]
                                );
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_symmetric_product_equals_the_reference() {
    on_every_isa(|rng| {
        // Strips of 128 rows, mirrored in squares of vectors.
        for (n, depth) in [(1, 1), (5, 9), (33, 20), (130, 70), (257, 40)] {
            let x = rng.normal(n * depth);
            let turned = transpose(&x, n, depth);
            let want = reference::matmul(&wide(&x), &wide(&turned), n, depth, n);
            for x in [View::rows(&x, depth), View::rows(&turned, n).t()] {
                let mut c = vec![f32::NAN; n * n];
                k::symmetric_gemm(n, depth, x, x.t(), &mut c);
                close(&c, &want, depth, "symmetric product");
            }
        }
    });
}

#[test]
fn products_with_ternary_weights_equal_the_reference() {
    on_every_isa(|rng| {
        for (n, out, inputs) in SHAPES {
            for group in [Grouping::Size(128), Grouping::Size(16), Grouping::Size(10), Grouping::Tensor] {
                let w = TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, group).unwrap();
                let mut dense = vec![0.0; out * inputs];
                dense.chunks_mut(inputs).enumerate().for_each(|(r, row)| w.unpack_row(r, row));
                let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
                let mut y = vec![f32::NAN; n * out];
                k::linear::forward(&x, Matrix::ternary(&w, Inputs::F32), &mut y, To::Set);
                close(&y, &reference::linear(&wide(&x), &wide(&dense), None, inputs), inputs, "forward");
                let mut dx = vec![f32::NAN; n * inputs];
                k::linear::backward_input(&dy, Matrix::ternary(&w, Inputs::F32), &mut dx, To::Set);
                close(
                    &dx,
                    &reference::matmul(&wide(&dy), &wide(&dense), n, out, inputs),
                    out,
                    "backward input",
                );
                let mut row = vec![f32::NAN; inputs];
                k::unpack_row(&w, out - 1, &mut row);
                assert_eq!(row, dense[(out - 1) * inputs..], "unpack_row");
            }
        }
    });
}

/// Shapes around the edges of a look-up: tiles of 16 and 32 tokens, chunks of 33 inputs, plans of 1,024 rows and of 1,056
/// rows summed over, groups that end inside a chunk or a word of codes.
/// On tiles, rows of one to four pieces and of more.
const LOOK_UPS: [(usize, usize, usize, Grouping); 10] = [
    (33, 64, 380, Grouping::Size(128)),
    (32, 64, 512, Grouping::Size(128)),
    (32, 64, 64, Grouping::Size(64)),
    (33, 65, 130, Grouping::Size(128)),
    (47, 70, 300, Grouping::Size(100)),
    (40, 1025, 96, Grouping::Size(128)),
    (34, 1057, 200, Grouping::Size(70)),
    (48, 2200, 65, Grouping::Size(64)),
    (65, 100, 1030, Grouping::Tensor),
    (32, 64, 33, Grouping::Size(33)),
];

#[test]
fn look_ups_equal_the_reference() {
    on_every_isa(|rng| {
        for (n, out, inputs, group) in LOOK_UPS {
            let w = TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, group).unwrap();
            let mut dense = vec![0.0; out * inputs];
            dense.chunks_mut(inputs).enumerate().for_each(|(r, row)| w.unpack_row(r, row));
            let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
            let want = reference::linear(&wide(&x), &wide(&dense), None, inputs);
            let dwant = reference::matmul(&wide(&dy), &wide(&dense), n, out, inputs);
            for to in [To::Set, To::Add] {
                let (mut y, mut dx) = (rng.normal(n * out), rng.normal(n * inputs));
                let before = |y: &[f32], want: &[f64]| -> Vec<f64> {
                    y.iter()
                        .zip(want)
                        .map(|(y, want)| if to == To::Add { *y as f64 } else { 0.0 } + want)
                        .collect()
                };
                let (want, dwant) = (before(&y, &want), before(&dx, &dwant));
                k::linear::forward(&x, Matrix::ternary(&w, Inputs::F32), &mut y, to);
                close(&y, &want, inputs, "forward");
                k::linear::backward_input(&dy, Matrix::ternary(&w, Inputs::F32), &mut dx, to);
                close(&dx, &dwant, out, "input gradient");
            }
        }
    });
}

#[test]
fn products_with_8_bit_inputs_equal_their_definition_bit_for_bit() {
    on_every_isa(|rng| {
        // Dot products for fewer than six rows: segments that end inside a word, blocks of 64 outputs.
        let few = [
            (1, 3, 5, Grouping::Size(2)),
            (2, 70, 1030, Grouping::Tensor),
            (3, 65, 130, Grouping::Size(10)),
            (4, 300, 260, Grouping::Size(128)),
            (5, 129, 300, Grouping::Size(100)),
            (7, 129, 128, Grouping::Size(128)),
        ];
        for (n, out, inputs, group) in LOOK_UPS.into_iter().chain(few) {
            let w = TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, group).unwrap();
            let mut x = rng.normal(n * inputs);
            // The largest sums that there are; a row of zeros; one too small to have a scale.
            x[..inputs]
                .iter_mut()
                .enumerate()
                .for_each(|(k, x)| *x = if w.trit(0, k) < 0 { -1.0 } else { 1.0 });
            x[(n - 1) * inputs..].fill(if n % 2 == 0 { 0.0 } else { 1e-44 });
            let want = reference::linear_int8(&x, &w);
            let mut y = vec![f32::NAN; n * out];
            k::linear::forward(&x, Matrix::ternary(&w, Inputs::Int8), &mut y, To::Set);
            assert_eq!(y, want, "{n} x {inputs} x {out}, groups of {group}");
            k::linear::forward(&x, Matrix::ternary(&w, Inputs::Int8), &mut y, To::Add);
            assert_eq!(y, want.iter().map(|y| y + y).collect::<Vec<_>>(), "added to what is there");
            // The rounded inputs are within half a step, and what the product used.
            k::linear::as_used(&x, Matrix::ternary(&w, Inputs::Int8), |used| {
                for (x, used) in x.chunks(inputs).zip(used.chunks(inputs)) {
                    let step = x.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
                    x.iter().zip(used).for_each(|(x, u)| assert!((x - u).abs() <= 0.5001 * step + 1e-44));
                }
                let mut dense = vec![0.0; inputs];
                w.unpack_row(out - 1, &mut dense);
                let column: Vec<f32> = want.chunks(out).map(|y| y[out - 1]).collect();
                close(&column, &reference::linear(&wide(used), &wide(&dense), None, inputs), inputs, "int8");
            });
            // What is not finite stays visible.
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = x.clone();
                x[0] = bad;
                k::linear::forward(&x, Matrix::ternary(&w, Inputs::Int8), &mut y, To::Set);
                assert!(y[..out].iter().all(|y| !y.is_finite()), "{bad} is lost");
                assert_eq!(y[out..], want[out..]);
            }
        }
    });
}

#[test]
fn products_lose_nothing_that_is_not_finite_and_keep_small_and_large_values() {
    on_every_isa(|rng| {
        let (n, out, inputs) = (64, 96, 256);
        let w =
            TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, Grouping::Size(128)).unwrap();
        let mut dense = vec![0.0; out * inputs];
        dense.chunks_mut(inputs).enumerate().for_each(|(r, row)| w.unpack_row(r, row));
        for size in [1e-25, 1e25] {
            let shrunk = |x: Vec<f32>| -> Vec<f32> { x.iter().map(|x| x * size).collect() };
            let (x, dy) = (shrunk(rng.normal(n * inputs)), shrunk(rng.normal(n * out)));
            let grown = |y: &[f32]| -> Vec<f32> { y.iter().map(|y| y / size).collect() };
            let (mut y, mut dx) = (vec![0.0; n * out], vec![0.0; n * inputs]);
            k::linear::forward(&x, Matrix::ternary(&w, Inputs::F32), &mut y, To::Set);
            let want = reference::linear(&wide(&grown(&x)), &wide(&dense), None, inputs);
            close(&grown(&y), &want, inputs, "forward");
            k::linear::backward_input(&dy, Matrix::ternary(&w, Inputs::F32), &mut dx, To::Set);
            let want = reference::matmul(&wide(&grown(&dy)), &wide(&dense), n, out, inputs);
            close(&grown(&dx), &want, out, "backward input");
        }
        for bad in [f32::NAN, f32::from_bits(u32::MAX), f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, mut dy) = (rng.normal(n * inputs), rng.normal(n * out));
            // Where no trit of the column is 0, or it could be left out.
            (x[3 * inputs + 5], dy[3 * out + 7]) = (bad, bad);
            let (mut y, mut dx, mut dw) =
                (vec![0.0; n * out], vec![0.0; n * inputs], vec![0.0; out * inputs]);
            k::linear::forward(&x, Matrix::ternary(&w, Inputs::F32), &mut y, To::Set);
            k::linear::backward_input(&dy, Matrix::ternary(&w, Inputs::F32), &mut dx, To::Set);
            k::linear::backward_weight(&dy, &x, &mut dw, [out, inputs], Precision::F32);
            for (i, y) in y.iter().enumerate() {
                let used = i / out == 3 && w.trit(i % out, 5) != 0;
                assert!(!used || !y.is_finite(), "{bad} is lost in y[{i}]");
                assert!(i / out == 3 || y.is_finite(), "{bad} is in y[{i}]");
            }
            for (i, dx) in dx.iter().enumerate() {
                let used = i / inputs == 3 && w.trit(7, i % inputs) != 0;
                assert!(!used || !dx.is_finite(), "{bad} is lost in dx[{i}]");
                assert!(i / inputs == 3 || dx.is_finite(), "{bad} is in dx[{i}]");
            }
            for (i, dw) in dw.iter().enumerate() {
                let used = i / inputs == 7 || i % inputs == 5;
                assert_eq!(used, !dw.is_finite(), "{bad}: dw[{i}] = {dw}");
            }
        }
    });
}

#[test]
fn products_are_the_same_for_any_number_of_threads() {
    on_every_isa(|rng| {
        for (n, out, inputs, group) in
            [(200, 300, 320, 48), (130, 257, 400, 128), (33, 1100, 192, 64), (400, 70, 300, 128)]
        {
            let group = Grouping::Size(group);
            let w = TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, group).unwrap();
            let packed = k::pack(&w, group, Density::TwoBit);
            let (x, dy) = (rng.normal(n * inputs), rng.normal(n * out));
            // The threads that share out packed products are as many as where the first is made.
            let first = Matrix::new(Values::Packed(&packed), Inputs::Int8);
            k::linear::forward(&x[..inputs], first, &mut vec![0.0; out], To::Set);
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (mut y, mut dx, mut dw) =
                    (vec![0.5; n * out], vec![0.5; n * inputs], vec![0.5; out * inputs]);
                let mut few = vec![0.5; 3 * out];
                pool.install(|| {
                    for w in [Matrix::ternary(&w, Inputs::F32), Matrix::ternary(&w, Inputs::Int8)] {
                        k::linear::forward(&x, w, &mut y, To::Add);
                        k::linear::backward_input(&dy, w, &mut dx, To::Add);
                    }
                    k::linear::backward_weight(&dy, &x, &mut dw, [out, inputs], Precision::F32);
                    for inputs_of in [Inputs::F32, Inputs::Int8] {
                        let w = Matrix::new(Values::Packed(&packed), inputs_of);
                        k::linear::forward(&x, w, &mut y, To::Add);
                        k::linear::forward(&x[..3 * inputs], w, &mut few, To::Add);
                    }
                });
                (y, dx, dw, few)
            };
            let one = run(1);
            for threads in [2, 3, 5] {
                assert!(run(threads) == one, "{n} x {inputs} x {out}, {group:?}, {threads} threads");
            }
        }
    });
}

#[test]
fn the_weight_gradient_accumulates() {
    on_every_isa(|rng| {
        for (n, out, inputs) in SHAPES {
            let (x, dy, before) = (rng.normal(n * inputs), rng.normal(n * out), rng.normal(out * inputs));
            let mut dw = before.clone();
            k::linear::backward_weight(&dy, &x, &mut dw, [out, inputs], Precision::F32);
            let dyt = transpose(&dy, n, out);
            let mut want = reference::matmul(&wide(&dyt), &wide(&x), out, n, inputs);
            want.iter_mut().zip(&before).for_each(|(w, b)| *w += *b as f64);
            close(&dw, &want, n, "dW");
        }
    });
}

#[test]
fn rows_that_stand_apart_give_the_same_bits() {
    on_every_isa(|rng| {
        let shapes = [(1, 70, 65), (7, 129, 128), (33, 65, 130), (48, 100, 300), (65, 257, 96)];
        for (n, out, inputs) in shapes {
            let stride = out + 3;
            let latent = rng.normal(out * inputs);
            let w = TernaryMatrix::project("w", &latent, out, inputs, Grouping::Size(64)).unwrap();
            // Two rows more than there are inputs for.
            let (x, before, dy) =
                (rng.normal(n * inputs), rng.normal((n + 2) * stride), rng.normal(n * stride));
            let together = |apart: &[f32]| -> Vec<f32> {
                apart.chunks(stride).flat_map(|row| &row[..out]).copied().collect()
            };
            let dense = Matrix::dense(&latent, out, inputs);
            let ternary = [Inputs::F32, Inputs::Int8].map(|inputs| Matrix::ternary(&w, inputs));
            let rounded = [dense, ternary[0]].map(|w| w.rounded(Precision::Bf16));
            for w in [dense].into_iter().chain(ternary).chain(rounded) {
                for to in [To::Set, To::Add] {
                    let (mut y, mut apart) = (together(&before), before.clone());
                    k::linear::forward(&x, w, &mut y[..n * out], to);
                    k::linear::forward_to(&x, w, Target { data: &mut apart, stride, to });
                    assert!(together(&apart) == y, "forward, {n} x {inputs} x {out}");
                    let gaps = |all: &[f32]| -> Vec<f32> {
                        all.chunks(stride).flat_map(|row| &row[out..]).copied().collect()
                    };
                    assert!(gaps(&apart) == gaps(&before), "between the rows of {n} x {inputs} x {out}");
                    let (mut dx, mut want) = (vec![0.5; n * inputs], vec![0.5; n * inputs]);
                    k::linear::backward_input(&together(&dy), w, &mut want, to);
                    k::linear::backward_input_from(&dy, stride, w, &mut dx, to);
                    assert!(dx == want, "input gradient, {n} x {inputs} x {out}");
                }
            }
            for precision in [Precision::F32, Precision::Bf16] {
                let (mut dw, mut want) = (vec![0.5; out * inputs], vec![0.5; out * inputs]);
                k::linear::backward_weight(&together(&dy), &x, &mut want, [out, inputs], precision);
                k::linear::backward_weight_from(&dy, stride, &x, &mut dw, [out, inputs], precision);
                assert!(dw == want, "weight gradient, {n} x {inputs} x {out}");
            }
        }
    });
}
