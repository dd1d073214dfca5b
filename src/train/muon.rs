//! Muon: momentum, then the nearest orthogonal matrix (Jordan et al., kellerjordan.github.io/posts/muon).

use crate::error::Result;
use crate::kernels::profile::{Phase, scope};
use crate::kernels::{self, Latents, Moments, Pass, Rhs, Rule, Target, Threads, To, Updated, View};

/// Newton–Schulz steps; each doubles the digits of small singular values, roughly.
const STEPS: usize = 5;
/// Coefficients of the quintic, chosen by its authors for speed at zero rather than for convergence to 1.
const QUINTIC: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);

/// What a step of Muon needs beside the tensors.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    pub lr: f32,
    pub momentum: f32,
    pub weight_decay: f32,
    pub grad_scale: f32,
}

/// One step on a matrix `[rows, cols]`: `b = mu b + s g`; the update is the orthogonal factor of `s g + mu b`
/// (Nesterov), times `sqrt(max(1, rows / cols))`; `p = (1 - lr wd) p - lr update`. As [`kernels::update`], it projects
/// and leaves the gradient at zero.
pub fn muon(rule: &Muon, matrix: Latents<'_>, momentum: &mut Moments, pass: Pass) -> Result<Updated> {
    let _time = scope(Phase::Optimizer);
    let Latents { name, cols, value, grad, ternary } = matrix;
    let rows = value.len() / cols.max(1);
    let mut update = vec![0f32; value.len()];
    let gathered = Latents { name, cols, value: &mut update, grad, ternary: None };
    let gather = Rule::Momentum { momentum: rule.momentum, grad_scale: rule.grad_scale };
    kernels::update(&gather, gathered, momentum, Pass { measure: false, ..pass })?;
    orthogonalise(rows, cols, &mut update);
    let size = (rows as f32 / cols as f32).max(1.0).sqrt();
    let step = Rule::Add { keep: 1.0 - rule.lr * rule.weight_decay, step: -rule.lr * size };
    let matrix = Latents { name, cols, value, grad: &mut update, ternary };
    kernels::update(&step, matrix, &mut Moments::default(), pass)
}

/// Replaces `x` by nearly `U Vᵀ` of its singular value decomposition `U S Vᵀ`: singular values end between 0.7 and 1.2.
pub fn orthogonalise(rows: usize, cols: usize, x: &mut [f32]) {
    let norm = kernels::sum_squares(x).sqrt() as f32;
    if norm == 0.0 {
        return;
    }
    let zeros = vec![0f32; x.len()];
    kernels::scale_add(1.0 / (norm * 1.0001), x, 0.0, &zeros);
    // The square products are made on the short side: A = X Xᵀ, or Xᵀ X and multiplication from the right.
    let n = rows.min(cols);
    let (mut a, mut b, mut next) = (vec![0f32; n * n], vec![0f32; n * n], vec![0f32; x.len()]);
    for _ in 0..STEPS {
        let view = View::rows(x, cols);
        let (left, right) = if rows <= cols { (view, view.t()) } else { (view.t(), view) };
        kernels::gemm(n, n, rows.max(cols), left, Rhs::Dense(right), target(&mut a, n), Threads::All);
        let square = View::rows(&a, n);
        kernels::gemm(n, n, n, square, Rhs::Dense(square), target(&mut b, n), Threads::All);
        kernels::scale_add(QUINTIC.2, &mut b, QUINTIC.1, &a);
        let square = View::rows(&b, n);
        if rows <= cols {
            kernels::gemm(rows, cols, n, square, Rhs::Dense(view), target(&mut next, cols), Threads::All);
        } else {
            kernels::gemm(rows, cols, n, view, Rhs::Dense(square), target(&mut next, cols), Threads::All);
        }
        kernels::scale_add(QUINTIC.0, x, 1.0, &next);
    }
}

fn target(data: &mut [f32], stride: usize) -> Target<'_> {
    Target { data, stride, to: To::Set }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Role, Weight};

    #[test]
    fn singular_values_come_close_to_one() {
        for (rows, cols) in [(8, 20), (20, 8), (16, 16)] {
            let mut x = Weight::new("x", &[rows, cols], Role::Attention, None).normal(3.0, 1);
            orthogonalise(rows, cols, &mut x);
            // v -> X Xᵀ v for the short side: every eigenvalue is a squared singular value.
            let n = rows.min(cols);
            let at = |i: usize, k: usize| if rows <= cols { x[i * cols + k] } else { x[k * cols + i] };
            let trace: f32 = (0..n).map(|i| (0..rows.max(cols)).map(|k| at(i, k).powi(2)).sum::<f32>()).sum();
            assert!(
                (0.5..1.5).contains(&(trace / n as f32)),
                "mean squared singular value {}",
                trace / n as f32
            );
            for i in 0..n {
                for j in 0..i {
                    let dot: f32 = (0..rows.max(cols)).map(|k| at(i, k) * at(j, k)).sum();
                    assert!(dot.abs() < 0.45, "rows {i} and {j}: {dot}");
                }
            }
        }
    }
}
