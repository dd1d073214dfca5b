//! Steps of the optimizer: latents, moments, and the projection that goes with them.

use ternlm::config::MomentFormat;
use ternlm::kernels::{self as k, Latents, Moments, Pass, Rule, reference};
use ternlm::ternary::{Grouping, TernaryMatrix};

use super::common::{Rng, adamw, close, on_every_isa, wide};

fn latents<'a>(
    cols: usize,
    value: &'a mut [f32],
    grad: &'a mut [f32],
    ternary: Option<(Grouping, &'a mut TernaryMatrix)>,
) -> Latents<'a> {
    Latents { name: "the_tensor", cols, value, grad, ternary }
}

const ADAMW: k::AdamW =
    k::AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: 3 };

#[test]
fn optimizer_steps_equal_the_formulas() {
    on_every_isa(|rng| {
        let n = 20_001; // 339 rows of 59
        let update = |rule: Rule, p: &mut [f32], g: &[f32], moments: &mut Moments| {
            k::update(&rule, latents(59, p, &mut g.to_vec(), None), moments, Pass::default()).unwrap();
        };
        let (mut p, g) = (rng.normal(n), rng.normal(n));
        let (first, second) = (rng.normal(n), rng.normal(n).iter().map(|x| x * x).collect::<Vec<_>>());
        let mut moments = Moments::F32 { first: first.clone(), second: second.clone() };
        let want: Vec<f64> =
            (0..n).map(|i| adamw(&ADAMW, [p[i], g[i], first[i], second[i]].map(f64::from))[0]).collect();
        update(Rule::AdamW(ADAMW), &mut p, &g, &mut moments);
        close(&p, &want, 64, "adamw");
        let (mut p, b) = (rng.normal(n), rng.normal(n));
        let mut moments = Moments::F32 { first: b.clone(), second: Vec::new() };
        let want: Vec<f64> = (0..n)
            .map(|i| p[i] as f64 - 0.02 * (0.9 * b[i] as f64 + 0.5 * g[i] as f64 + 0.1 * p[i] as f64))
            .collect();
        let sgd = Rule::Sgd { lr: 0.02, momentum: 0.9, weight_decay: 0.1, grad_scale: 0.5 };
        update(sgd, &mut p, &g, &mut moments);
        close(&p, &want, 8, "sgd");
        let mut moments = Moments::F32 { first: b.clone(), second: Vec::new() };
        let want: Vec<f64> =
            (0..n).map(|i| 0.5 * g[i] as f64 + 0.9 * (0.9 * b[i] as f64 + 0.5 * g[i] as f64)).collect();
        update(Rule::Momentum { momentum: 0.9, grad_scale: 0.5 }, &mut p, &g, &mut moments);
        close(&p, &want, 8, "momentum");
        let want: Vec<f64> = p.iter().zip(&g).map(|(p, g)| 0.75 * *p as f64 - 0.5 * *g as f64).collect();
        update(Rule::Add { keep: 0.75, step: -0.5 }, &mut p, &g, &mut Moments::default());
        close(&p, &want, 4, "add");
    });
}

#[test]
fn a_pass_of_the_optimizer_is_update_then_projection() {
    on_every_isa(|rng| {
        // One row; strips of one row; strips of many rows; rows that end within a word of codes.
        for (rows, cols) in [(1, 37), (3, 9000), (40, 1000), (1001, 17)] {
            for group in [Grouping::Size(128), Grouping::Size(7), Grouping::Tensor] {
                let n = rows * cols;
                let (before, g) = (rng.normal(n), rng.normal(n));
                let rule = Rule::AdamW(k::AdamW { step: 1, ..ADAMW });
                let (mut p, mut grad, mut moments) =
                    (before.clone(), g.clone(), Moments::zeros(MomentFormat::F32, 2, rows, cols));
                let tensor = latents(cols, &mut p, &mut grad, None);
                k::update(&rule, tensor, &mut moments, Pass::default()).unwrap();
                assert!(grad.iter().all(|g| *g == 0.0), "the gradient is zero afterwards");
                let mut want = TernaryMatrix::project("w", &before, rows, cols, group).unwrap();
                let mut got = want.clone();
                let flips = k::project("w", &p, group, &mut want).unwrap();

                let (mut fused, mut grad, mut same) =
                    (before.clone(), g, Moments::zeros(MomentFormat::F32, 2, rows, cols));
                let tensor = latents(cols, &mut fused, &mut grad, Some((group, &mut got)));
                let done =
                    k::update(&rule, tensor, &mut same, Pass { measure: true, ..Pass::default() }).unwrap();
                assert!(fused == p && got == want && done.flips == flips, "[{rows}, {cols}] by {group}");
                assert!(same == moments);
                assert!(grad.iter().all(|g| *g == 0.0), "the gradient is zero afterwards");
                let squares: f64 = p.iter().zip(&before).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
                assert!((done.squares - squares).abs() <= 1e-12 * squares);
            }
        }
        let (mut p, mut grad) = (vec![1.0f32; 60_000], vec![0.0; 60_000]);
        grad[259] = f32::NAN;
        for group in [Grouping::default(), Grouping::Tensor] {
            let mut out = TernaryMatrix::zeros(60, 1000, group);
            let tensor = latents(1000, &mut p, &mut grad, Some((group, &mut out)));
            let rule = Rule::Add { keep: 1.0, step: 1.0 };
            let error =
                k::update(&rule, tensor, &mut Moments::default(), Pass::default()).unwrap_err().to_string();
            assert!(error.contains("the_tensor") && error.contains("row 0, column 259"), "{error}");
        }
    });
}

/// Moments of one tensor, encoded and decoded by the reference.
fn reference_moments(m: &[f32], v: &[f32], cols: usize, key: u32) -> (Moments, Vec<f32>, Vec<f32>) {
    let (mut first, mut second) = (k::Codes::default(), k::Codes::default());
    let (mut m_out, mut v_out) = (Vec::new(), Vec::new());
    for (row, (m, v)) in m.chunks(cols).zip(v.chunks(cols)).enumerate() {
        for (nth, (m, v)) in m.chunks(k::BLOCK).zip(v.chunks(k::BLOCK)).enumerate() {
            let at = row * cols + nth * k::BLOCK;
            let (codes, scale) = reference::encode_first_moments(m, key, at);
            m_out.extend(reference::decode_first_moments(&codes, scale));
            first.codes.extend(codes);
            first.scales.push(scale);
            let (codes, scale) = reference::encode_second_moments(v, key, at);
            v_out.extend(reference::decode_second_moments(&codes, scale));
            second.codes.extend(codes);
            second.scales.push(scale);
        }
    }
    (Moments::Int8 { first, second }, m_out, v_out)
}

#[test]
fn moments_of_8_bits_equal_their_definition_bit_for_bit() {
    on_every_isa(|rng| {
        // Rows shorter than a block and longer, several strips of several rows, a row that is a strip.
        for (rows, cols) in [(3, 7), (2, 128), (3, 130), (70, 300), (2, 9000)] {
            let n = rows * cols;
            let mut g = rng.normal(n);
            g.iter_mut().for_each(|g| *g *= (-8.0 * rng.uniform()).exp() as f32);
            // Zeros, the smallest sizes that there are beside ordinary ones, then a row of zeros or near it.
            g.iter_mut().step_by(5).for_each(|g| *g = 0.0);
            g.iter_mut().skip(3).step_by(11).for_each(|g| *g *= 1e-20);
            let last = [0.0, 1e-42, 1e-30][rows % 3];
            g[n - cols..].iter_mut().for_each(|g| *g *= last);
            let zeros = Moments::zeros(MomentFormat::Int8, 2, rows, cols);
            let (mut p, mut grad, mut got) = (rng.normal(n), g.clone(), zeros.clone());
            // Without memory, moments are what the gradient says.
            let at_once = k::AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, grad_scale: 1.0, step: 1, ..ADAMW };
            let pass = Pass { measure: false, dither: 77, ..Pass::default() };
            let tensor = latents(cols, &mut p, &mut grad, None);
            k::update(&Rule::AdamW(at_once), tensor, &mut got, pass).unwrap();
            let squares: Vec<f32> = g.iter().map(|g| g * g).collect();
            let (want, m, v) = reference_moments(&g, &squares, cols, 77);
            assert!(got == want, "[{rows}, {cols}]");
            // With memory alone, they are half of what was remembered, rounded by other numbers.
            let half = k::AdamW { beta1: 0.5, beta2: 0.5, step: 2, ..at_once };
            let pass = Pass { measure: false, dither: 78, ..Pass::default() };
            let tensor = latents(cols, &mut p, &mut grad, None);
            k::update(&Rule::AdamW(half), tensor, &mut got, pass).unwrap();
            let halves = |x: &[f32]| x.iter().map(|x| 0.5 * x).collect::<Vec<_>>();
            let (want, m, v) = reference_moments(&halves(&m), &halves(&v), cols, 78);
            assert!(got == want, "[{rows}, {cols}], decoded and encoded again");

            // The latents move by moments as they are before they are rounded.
            let g = rng.normal(n);
            let want: Vec<f64> =
                (0..n).map(|i| adamw(&ADAMW, [p[i], g[i], m[i], v[i]].map(f64::from))[0]).collect();
            let (mut grad, b) = (g.clone(), got.clone());
            let tensor = latents(cols, &mut p, &mut grad, None);
            k::update(&Rule::AdamW(ADAMW), tensor, &mut got, pass).unwrap();
            close(&p, &want, 64, "adamw");
            assert!(grad.iter().all(|g| *g == 0.0), "the gradient is zero afterwards");

            let Moments::Int8 { first, .. } = b else { unreachable!() };
            let mut b = Moments::Int8 { first, second: k::Codes::default() };
            let (mut grad, pass) = (g.clone(), Pass { measure: false, dither: 79, ..Pass::default() });
            let rule = Rule::Momentum { momentum: 0.5, grad_scale: 0.0 };
            k::update(&rule, latents(cols, &mut p, &mut grad, None), &mut b, pass).unwrap();
            close(&p, &m.iter().map(|m| 0.25 * *m as f64).collect::<Vec<_>>(), 4, "momentum");
            let Moments::Int8 { first: got, .. } = b else { unreachable!() };
            let (want, _, _) = reference_moments(&halves(&m), &halves(&v), cols, 79);
            assert!(
                matches!(want, Moments::Int8 { first, .. } if first == got),
                "[{rows}, {cols}], one moment"
            );
        }
    });
}

#[test]
fn moments_of_8_bits_are_right_in_the_mean() {
    let mut rng = Rng::new(1);
    let m: Vec<f32> = rng.normal(128).iter().map(|x| x * (-6.0 * rng.uniform()).exp() as f32).collect();
    let v: Vec<f32> = m.iter().map(|m| m * m).collect();
    const DRAWS: usize = 4000;
    let (mut m_sum, mut v_sum) = ([[0f64; 2]; 128], [[0f64; 2]; 128]);
    for step in 0..DRAWS as u64 {
        let (_, m, v) = reference_moments(&m, &v, 128, k::dither_key(step, 3));
        for (sums, values) in [(&mut m_sum, &m), (&mut v_sum, &v)] {
            for ([sum, squares], x) in sums.iter_mut().zip(values) {
                *sum += *x as f64;
                *squares += (*x as f64).powi(2);
            }
        }
    }
    let scale = wide(&m).iter().fold(0f64, |a, x| a.max(x.abs()));
    for (what, sums, values, smallest) in
        [("first", m_sum, &m, scale / 16129.0), ("second", v_sum, &v, (scale / 65025.0).powi(2))]
    {
        for ([sum, squares], x) in sums.into_iter().zip(values).filter(|(_, x)| x.abs() as f64 > smallest) {
            let mean = sum / DRAWS as f64;
            let variance = (squares / DRAWS as f64 - mean * mean).max(0.0);
            // Five standard errors, and the rounding of f32.
            let bound = 5.0 * (variance / DRAWS as f64).sqrt() + 1e-5 * x.abs() as f64;
            assert!((mean - *x as f64).abs() <= bound, "{what} moment {x}: {mean} in the mean, +- {bound}");
        }
    }
}

#[test]
fn a_cautious_update_keeps_what_agrees_with_the_gradient() {
    on_every_isa(|_| {
        let mut update = [1.0, -2.0, 3.0, -4.0, 5.0, 0.0, 7.0, 8.0];
        k::cautious(&mut update, &[2.0, 1.0, -1.0, -1e-20, 0.0, 3.0, f32::INFINITY, 1e-3]);
        // Four of eight are kept.
        assert_eq!(update, [2.0, 0.0, 0.0, -8.0, 0.0, 0.0, 14.0, 16.0]);
        let mut none = [1.0, -1.0];
        k::cautious(&mut none, &[-1.0, 1.0]);
        assert_eq!(none, [0.0; 2]);
    });
}
