//! Every kernel but products on every instruction set of this machine against the plain f64 reference.

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod elementwise;
mod optimizer;

use common::{apart, close, on_every_isa};
use ternlm::kernels as k;
use ternlm::ternary::{Grouping, TernaryMatrix};

#[test]
fn the_projection_equals_its_definition_bit_for_bit() {
    on_every_isa(|rng| {
        for (rows, cols) in [(1, 1), (3, 15), (2, 16), (5, 128), (33, 130), (4, 257), (40, 1000)] {
            for group in [Grouping::Size(128), Grouping::Size(7), Grouping::Size(1), Grouping::Tensor] {
                let mut latent = rng.normal(rows * cols);
                // Ties, zeros, a dead group, and values that vanish in f16.
                for (i, w) in latent.iter_mut().enumerate() {
                    match i % 11 {
                        0 => *w = 0.0,
                        1 => *w = -0.0,
                        2 => *w = 0.5,
                        3 => *w = -0.25,
                        _ => {}
                    }
                }
                latent.iter_mut().take(cols.min(128)).for_each(|w| *w *= 1e-9);
                // A group whose scale is 1, half of it at the threshold of 0.5, and what is next to that.
                if let Some(group) = latent.get_mut(cols..cols + 128).filter(|_| cols >= 128) {
                    for (i, w) in group.iter_mut().enumerate() {
                        let size = [0.5f32, 1.5, 0.5f32.next_up(), 1.5f32.next_down()][i % 4];
                        *w = if i % 3 == 0 { -size } else { size };
                    }
                }
                let want = TernaryMatrix::project("w", &latent, rows, cols, group).unwrap();
                let mut got = TernaryMatrix::zeros(rows, cols, group);
                let flips = k::project("w", &latent, group, &mut got).unwrap();
                assert_eq!(got, want, "[{rows}, {cols}] by {group}");
                let stats = ternlm::ternary::Stats::of(&got);
                assert_eq!(flips.from_zero, stats.minus + stats.plus);
                assert_eq!(k::project("w", &latent, group, &mut got).unwrap().total(), 0);
            }
        }
        let mut out = TernaryMatrix::zeros(2, 130, Grouping::default());
        let mut latent = vec![1.0f32; 260];
        latent[259] = f32::NAN;
        let error = k::project("the_tensor", &latent, Grouping::default(), &mut out).unwrap_err().to_string();
        assert!(error.contains("the_tensor") && error.contains("row 1, column 129"), "{error}");
    });
}

#[test]
fn the_test_helper_can_fail() {
    let failed = std::panic::catch_unwind(|| close(&[1.0], &[1.001], 1, "x")).is_err();
    assert!(failed, "a difference of 1e-3 must not pass");
    let failed = std::panic::catch_unwind(|| close(&[f32::NAN], &[1.0], 1, "x")).is_err();
    assert!(failed, "NaN must not pass");
    assert_eq!(apart(&[1.0f32, 2.5, 3.0], &[1.0, 2.0, 3.25]), 0.5);
    for nan in 0..3 {
        let mut got = [1.0f32, 2.0, 3.0];
        got[nan] = f32::NAN;
        assert!(apart(&got, &[9.0, 2.0, 3.0]).is_nan() && apart(&[9.0, 2.0, 3.0], &got).is_nan());
    }
}
