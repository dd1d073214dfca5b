//! Kernels that go over values one by one or row by row: activations, norms, rotations, the loss.

use ternlm::kernels::{self as k, RopeTable, Turn, reference};

use super::common::{close, frequencies, on_every_isa, wide};

#[test]
fn elementwise_kernels_equal_the_reference() {
    on_every_isa(|rng| {
        for n in [1, 15, 64, 1000, 40_000] {
            let (x, y): (Vec<f32>, Vec<f32>) =
                (rng.normal(n).iter().map(|x| 4.0 * x).collect(), rng.normal(n));
            let mut out = vec![f32::NAN; n];
            k::silu_mul(&x, &y, &mut out);
            let want: Vec<f64> =
                x.iter().zip(&y).map(|(x, y)| reference::silu(*x as f64) * *y as f64).collect();
            close(&out, &want, 4, "silu_mul");
            k::relu2_mul(&x, &y, &mut out);
            let want: Vec<f64> =
                x.iter().zip(&y).map(|(x, y)| reference::relu2(*x as f64) * *y as f64).collect();
            close(&out, &want, 4, "relu2_mul");
            k::gelu(&x, &mut out);
            close(&out, &x.iter().map(|x| reference::gelu(*x as f64)).collect::<Vec<_>>(), 4, "gelu");
            k::relu2(&x, &mut out);
            close(&out, &x.iter().map(|x| reference::relu2(*x as f64)).collect::<Vec<_>>(), 4, "relu2");
            k::copy(&mut out, &x);
            assert!(out == x, "copy");
            let mut added = y.clone();
            k::absorb(&mut out, &mut added);
            assert!(out.iter().zip(x.iter().zip(&y)).all(|(sum, (x, y))| *sum == x + y), "absorb");
            assert!(added.iter().all(|x| *x == 0.0), "absorb leaves zeros");
            let squares: f64 = x.iter().map(|x| (*x as f64).powi(2)).sum();
            assert!((k::sum_squares(&x) - squares).abs() <= 1e-12 * squares);
        }
    });
}

/// No overflow, no NaN made of finite numbers, and NaN stays NaN.
#[test]
fn gates_at_the_extremes_have_their_limits() {
    const FAR: [f32; 8] = [88.5, 103.0, 105.0, 1e6, 2e12, 2e13, 1e30, 3e38];
    let equal = |got: f32, want: f64, what: String| {
        // Sigmoids stay at 4e-39 for a while before they are 0.
        let off = (got as f64 - want).abs();
        let same = got as f64 == want || off <= 1e-6 * want.abs() + 1e-35;
        assert!(if want.is_nan() { got.is_nan() } else { same }, "{what} = {got}, wanted {want}");
    };
    on_every_isa(|_| {
        let both = FAR.into_iter().flat_map(|x| [x, -x]);
        let ends = [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        // Vectors and what is left of one.
        let x: Vec<f32> = both.clone().chain(ends).collect::<Vec<_>>().repeat(3);
        let (mut silu, mut gelu) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        k::silu_mul(&x, &vec![1.0; x.len()], &mut silu);
        k::gelu(&x, &mut gelu);
        for (x, (silu, gelu)) in x.iter().zip(silu.iter().zip(&gelu)) {
            equal(*silu, reference::silu(*x as f64), format!("silu({x})"));
            equal(*gelu, reference::gelu(*x as f64), format!("gelu({x})"));
        }
        // Derivatives: 1 far above 0, 0 far below it, and in the middle a half.
        let x: Vec<f32> = both.chain([0.0, f32::NAN]).collect::<Vec<_>>().repeat(3);
        let slope = |x: f32| x.partial_cmp(&0.0).map_or(f64::NAN, |side| 0.5 + 0.5 * side as i8 as f64);
        let (mut dx, mut dup, mut dgate) = (vec![2.0; x.len()], vec![0.5; x.len()], vec![0.0; x.len()]);
        k::gelu_backward(&x, &mut dx);
        k::silu_mul_backward(&x, &vec![3.0; x.len()], &mut dup, &mut dgate);
        for (i, &x) in x.iter().enumerate() {
            equal(dx[i], 2.0 * slope(x), format!("gelu'({x})"));
            equal(dgate[i], 1.5 * slope(x), format!("silu'({x})"));
            equal(dup[i], 0.5 * reference::silu(x as f64), format!("silu({x}) by the up projection"));
        }
    });
}

#[test]
fn norm_rope_and_cross_entropy_equal_the_reference() {
    on_every_isa(|rng| {
        for (rows, width) in [(1, 2), (3, 17), (70, 64), (200, 36)] {
            let (x, gain) = (rng.normal(rows * width), rng.normal(width));
            let mut y = vec![f32::NAN; x.len()];
            k::rms_norm(&x, &gain, 1e-6, &mut y);
            close(&y, &reference::rms_norm(&wide(&x), &wide(&gain), 1e-6), width, "rms_norm");
            if width % 2 == 0 {
                let frequencies = frequencies(width, 1e4);
                let table = RopeTable::new(rows, &frequencies, 1.25);
                let mut y = x.clone();
                let positions: Vec<u32> = (0..rows as u32).collect();
                k::rope(&mut y, 1, &table, &positions, Turn::Forward);
                // Position times frequency is rounded in f32, as in the models.
                close(&y, &reference::rope(&wide(&x), 1, &frequencies, 1.25, rows), rows, "rope");
                k::rope(&mut y, 1, &table, &positions, Turn::Backward);
                let twice: Vec<f64> = x.iter().map(|x| 1.5625 * *x as f64).collect();
                close(&y, &twice, 8, "rope there and back");
            }
            let targets: Vec<u32> =
                (0..rows as u32).map(|r| if r % 5 == 4 { k::IGNORE } else { r * 7 % width as u32 }).collect();
            let mut logits: Vec<f32> = x.iter().map(|x| 5.0 * x).collect();
            let mut loss = vec![f32::NAN; rows];
            let before = wide(&logits);
            let rows_of = |r: usize| &before[r * width..(r + 1) * width];
            let want: Vec<f64> = (0..rows)
                .map(|r| {
                    if targets[r] == k::IGNORE {
                        0.0
                    } else {
                        reference::cross_entropy(rows_of(r), targets[r] as usize)
                    }
                })
                .collect();
            // A loss is the difference of two numbers as large as the logits, and as exact as these.
            let scale = logits.iter().fold(0f32, |most, x| most.max(x.abs()));
            let close_losses = |loss: &[f32], what| {
                let want: Vec<f64> = want.iter().copied().chain([scale as f64]).collect();
                close(&[loss, &[scale]].concat(), &want, 16, what);
            };
            k::cross_entropy(&mut logits.clone(), width, width, &targets, None, &mut loss);
            close_losses(&loss, "loss");
            // Rows that stand apart, with what must be neither read nor written between them.
            let stride = width + 2;
            let mut apart: Vec<f32> =
                logits.chunks(width).flat_map(|row| [row, &[f32::NAN, 7.0]].concat()).collect();
            k::cross_entropy(&mut apart, width, stride, &targets, Some(k::Objective::scaled(0.5)), &mut loss);
            close_losses(&loss, "loss with gradient");
            assert!(apart.chunks(stride).all(|row| row[width].is_nan() && row[width + 1] == 7.0));
            logits = apart.chunks(stride).flat_map(|row| &row[..width]).copied().collect();
            for r in 0..rows {
                let sum: f64 = rows_of(r).iter().map(|x| x.exp()).sum();
                let grad: Vec<f64> = rows_of(r)
                    .iter()
                    .enumerate()
                    .map(|(c, x)| match targets[r] {
                        k::IGNORE => 0.0,
                        t => 0.5 * (x.exp() / sum - (c == t as usize) as u8 as f64),
                    })
                    .collect();
                // The error is that of the soft-max, not of what is left after 1 is taken off: measured against the scale.
                let got: Vec<f32> = logits[r * width..(r + 1) * width].iter().copied().chain([0.5]).collect();
                close(&got, &grad.into_iter().chain([0.5]).collect::<Vec<_>>(), 16, "dlogits");
            }
        }
    });
}
