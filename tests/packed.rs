//! Products with packed matrices on every instruction set of this machine: to the bit where inputs are 8-bit integers, to
//! rounding where they are f32.

mod common;

use common::{Rng, close, on_every_isa, wide};
use ternlm::config::Inputs;
use ternlm::kernels::{Matrix, Target, To, gather, linear, reference};
use ternlm::ternary::{Density, Grouping, PackedMatrix, TernaryMatrix};

/// `[tokens, out, inputs]`: one block and a part of one, segments of every length, every number of tokens at a time; on
/// tiles, panels that are not full, more segments than wait for each other, more rows than a task has.
const SHAPES: [(usize, usize, usize); 15] = [
    (1, 1, 1),
    (1, 16, 128),
    (2, 17, 130),
    (3, 5, 576),
    (4, 31, 21),
    (5, 48, 10),
    (7, 16, 139),
    (8, 40, 256),
    (10, 33, 139),
    (15, 33, 64),
    (16, 16, 1000),
    (37, 70, 300),
    (70, 90, 660),
    (400, 33, 21),
    (1, 1030, 384),
];
const GROUPINGS: [Grouping; 4] =
    [Grouping::Size(128), Grouping::Size(64), Grouping::Size(200), Grouping::Tensor];

fn each(rng: &mut Rng, test: impl Fn(&[f32], &TernaryMatrix, &PackedMatrix, &[f32], usize)) {
    for (n, out, inputs) in SHAPES {
        for grouping in GROUPINGS {
            let w = TernaryMatrix::project("w", &rng.normal(out * inputs), out, inputs, grouping).unwrap();
            for density in [Density::TwoBit, Density::Base3] {
                let stride = out + 3;
                let (x, before) = (rng.normal(n * inputs), rng.normal(n * stride));
                test(&x, &w, &PackedMatrix::pack(&w, grouping, density), &before, stride);
            }
        }
    }
}

#[test]
fn with_8_bit_inputs_every_bit_is_that_of_the_reference() {
    on_every_isa(|rng| {
        each(rng, |x, w, packed, before, stride| {
            let want = reference::linear_int8(x, w);
            for to in [To::Set, To::Add] {
                let mut y = before.to_vec();
                linear::forward_to(
                    x,
                    Matrix::packed(packed, Inputs::Int8),
                    Target { data: &mut y, stride, to },
                );
                for (t, want) in want.chunks(w.rows()).enumerate() {
                    let (row, old) = (&y[t * stride..][..stride], &before[t * stride..][..stride]);
                    for (i, want) in want.iter().enumerate() {
                        let want = if to.adds() { old[i] + want } else { *want };
                        assert_eq!(row[i], want, "token {t}, row {i}, {:?}", packed.layout());
                    }
                    assert_eq!(row[w.rows()..], old[w.rows()..], "what stands beside the result");
                }
            }
        });
    });
}

#[test]
fn with_f32_inputs_products_equal_the_reference() {
    on_every_isa(|rng| {
        each(rng, |x, w, packed, before, stride| {
            let mut dense = vec![0.0; w.rows() * w.cols()];
            dense.chunks_mut(w.cols()).enumerate().for_each(|(r, row)| w.unpack_row(r, row));
            let want = reference::linear(&wide(x), &wide(&dense), None, w.cols());
            for to in [To::Set, To::Add] {
                let mut y = before.to_vec();
                linear::forward_to(
                    x,
                    Matrix::packed(packed, Inputs::F32),
                    Target { data: &mut y, stride, to },
                );
                for (t, want) in want.chunks(w.rows()).enumerate() {
                    let (row, old) = (&y[t * stride..][..stride], &before[t * stride..][..stride]);
                    let old_or_0 = |i: usize| if to.adds() { old[i] as f64 } else { 0.0 };
                    let want: Vec<f64> = want.iter().enumerate().map(|(i, w)| w + old_or_0(i)).collect();
                    close(&row[..w.rows()], &want, w.cols(), &format!("token {t}, {:?}", packed.layout()));
                    assert_eq!(row[w.rows()..], old[w.rows()..], "what stands beside the result");
                }
            }
        });
    });
}

/// Several matrices of the same inputs, alike and not: each product is what it is alone.
#[test]
fn products_of_the_same_inputs_are_those_of_each() {
    on_every_isa(|rng| {
        let group = Grouping::Size(128);
        for (n, inputs, densities) in [
            (1, 300, [Density::Base3; 3]),
            (3, 384, [Density::TwoBit; 3]),
            (20, 256, [Density::Base3; 3]),
            (40, 256, [Density::TwoBit; 3]),
            (2, 128, [Density::Base3, Density::TwoBit, Density::Base3]),
        ] {
            let x = rng.normal(n * inputs);
            let packed = [70, 1, 250].iter().zip(densities).map(|(out, density)| {
                let w = TernaryMatrix::project("w", &rng.normal(out * inputs), *out, inputs, group).unwrap();
                PackedMatrix::pack(&w, group, density)
            });
            let packed: Vec<PackedMatrix> = packed.collect();
            for rounding in [Inputs::Int8, Inputs::F32] {
                let mut together: Vec<Vec<f32>> =
                    packed.iter().map(|w| vec![f32::NAN; n * w.rows()]).collect();
                let matrices = packed.iter().map(|w| Matrix::packed(w, rounding));
                linear::forward_each(&x, matrices.zip(&mut together));
                for (w, got) in packed.iter().zip(together) {
                    let mut alone = vec![0.0; n * w.rows()];
                    linear::forward(&x, Matrix::packed(w, rounding), &mut alone, To::Set);
                    assert_eq!(got, alone, "{} rows of {inputs}, {n} tokens", w.rows());
                }
            }
        }
    });
}

/// The largest sums that there are: all inputs and all trits at their ends.
#[test]
fn no_sum_overflows() {
    on_every_isa(|_| {
        for sign in [-1.0, 1.0] {
            let w = TernaryMatrix::from_values(&[sign; 16 * 256], 16, 256, Grouping::default()).unwrap();
            let x = [[127.0f32; 256], [-127.0; 256]].concat();
            for density in [Density::TwoBit, Density::Base3] {
                let mut y = [0.0; 32];
                let packed = PackedMatrix::pack(&w, Grouping::default(), density);
                linear::forward_to(
                    &x,
                    Matrix::packed(&packed, Inputs::Int8),
                    Target { data: &mut y, stride: 16, to: To::Set },
                );
                assert_eq!(y[..16], [sign * 127.0 * 256.0; 16]);
                assert_eq!(y[16..], [sign * -127.0 * 256.0; 16]);
            }
        }
    });
}

/// Inputs that are not finite are not lost, and bytes that no trits make do no more than give wrong numbers.
#[test]
fn what_is_wrong_stays_wrong() {
    on_every_isa(|rng| {
        for density in [Density::TwoBit, Density::Base3] {
            let len = 16 * (if density == Density::TwoBit { 32 } else { 26 } + 2);
            let bytes: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
            let grouping = Grouping::default();
            let w = PackedMatrix::from_bytes([16, 128], grouping, density, bytes.into()).unwrap();
            let mut y = [0.0; 16];
            linear::forward_to(
                &rng.normal(128),
                Matrix::packed(&w, Inputs::Int8),
                Target { data: &mut y, stride: 16, to: To::Set },
            );
            linear::forward_to(
                &rng.normal(128),
                Matrix::packed(&w, Inputs::F32),
                Target { data: &mut y, stride: 16, to: To::Set },
            );
            let w = TernaryMatrix::project("w", &rng.normal(16 * 128), 16, 128, grouping).unwrap();
            let w = PackedMatrix::pack(&w, grouping, density);
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = rng.normal(128);
                x[77] = bad;
                linear::forward_to(
                    &x,
                    Matrix::packed(&w, Inputs::Int8),
                    Target { data: &mut y, stride: 16, to: To::Set },
                );
                assert!(y.iter().all(|y| !y.is_finite()), "{bad}: {y:?}");
                y.fill(0.0);
                linear::forward_to(
                    &x,
                    Matrix::packed(&w, Inputs::F32),
                    Target { data: &mut y, stride: 16, to: To::Set },
                );
                assert!(y.iter().all(|y| !y.is_finite()), "{bad}: {y:?}");
            }
        }
    });
}

/// Rows of an embedding, and matrices of many rows that are unpacked part by part.
#[test]
fn rows_are_gathered_and_unpacked() {
    on_every_isa(|rng| {
        let grouping = Grouping::Size(48);
        let w = TernaryMatrix::project("w", &rng.normal(2100 * 100), 2100, 100, grouping).unwrap();
        let x = rng.normal(33 * 100);
        let mut want = vec![0.0; 33 * 2100];
        linear::forward(&x, Matrix::ternary(&w, Inputs::F32), &mut want, To::Set);
        for density in [Density::TwoBit, Density::Base3] {
            let packed = PackedMatrix::pack(&w, grouping, density);
            let packed = Matrix::packed(&packed, Inputs::F32);
            let tokens = [0, 2099, 17, 17];
            let mut rows = vec![f32::NAN; 400];
            gather(packed, &tokens, &mut rows);
            let mut row = [0.0; 100];
            for (token, got) in tokens.into_iter().zip(rows.chunks(100)) {
                w.unpack_row(token as usize, &mut row);
                assert_eq!(got, row);
            }
            let mut y = vec![f32::NAN; want.len()];
            linear::forward(&x, packed, &mut y, To::Set);
            close(&y, &wide(&want), 100, "unpacked part by part");
        }
    });
}
