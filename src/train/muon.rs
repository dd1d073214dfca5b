//! Muon: momentum, then the nearest orthogonal matrix (Jordan et al., kellerjordan.github.io/posts/muon).

use crate::config::Precision;
use crate::error::Result;
use crate::kernels::{self, Halves, Latents, Moments, Pass, Rhs, Rule, Target, Threads, To, Updated, View};

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

/// A matrix's gradient and momentum.
pub struct Momentum<'a> {
    pub name: &'a str,
    pub cols: usize,
    pub grad: &'a mut [f32],
    pub moments: &'a mut Moments,
}

/// The first half of a step: `b = mu b + s g`, and `s g + mu b` (Nesterov), which is not orthogonal yet. As
/// [`kernels::update`], it leaves the gradient at zero.
///
/// # Errors
/// As [`kernels::update`].
pub fn gather(rule: &Muon, matrix: Momentum<'_>, pass: Pass) -> Result<Vec<f32>> {
    let Momentum { name, cols, grad, moments } = matrix;
    let mut update = vec![0f32; grad.len()];
    let gathered = Latents { name, cols, value: &mut update, grad, ternary: None };
    let gather = Rule::Momentum { momentum: rule.momentum, grad_scale: rule.grad_scale };
    kernels::update(&gather, gathered, moments, Pass { measure: false, ..pass })?;
    Ok(update)
}

/// The second half: `p = (1 - lr wd) p - lr update`, the orthogonal `update` times `sqrt(max(1, rows / cols))`.
///
/// # Errors
/// As [`kernels::update`].
pub fn apply(rule: &Muon, matrix: Latents<'_>, update: &mut [f32], pass: Pass) -> Result<Updated> {
    let Latents { name, cols, value, ternary, .. } = matrix;
    let rows = value.len() / cols.max(1);
    let size = (rows as f32 / cols as f32).max(1.0).sqrt();
    let step = Rule::Add { keep: 1.0 - rule.lr * rule.weight_decay, step: -rule.lr * size };
    let matrix = Latents { name, cols, value, grad: update, ternary };
    kernels::update(&step, matrix, &mut Moments::default(), pass)
}

/// Replaces `x` by nearly `U Vᵀ` of its singular value decomposition `U S Vᵀ`: after five `steps` singular values stand between
/// 0.7 and 1.2, but for those that were tiny; each step makes these 3.4 times as large. In bf16 the operands of all products are rounded,
/// and `X` after each step, as its authors do.
///
/// A Newton–Schulz step is `X := a X + B X` with `A = X Xᵀ` and `B = b A + c A²`. The square matrices of all steps are
/// polynomials of the first `A`: they are symmetric and commute, and half of each is computed.
pub fn orthogonalise(rows: usize, cols: usize, x: &mut [f32], steps: u32, precision: Precision) {
    let norm = kernels::sum_squares(x).sqrt() as f32;
    if norm == 0.0 {
        return;
    }
    let factor = 1.0 / (norm * 1.0001);
    // On the short side: A = X Xᵀ, or Xᵀ X and multiplication from the right.
    let (n, k) = (rows.min(cols), rows.max(cols));
    let square = Square { n, precision };
    let (mut a, mut p) = (vec![0f32; n * n], vec![0f32; n * n]);
    if precision == Precision::Bf16 {
        let mut halves = Halves::scaled(factor, x, rows, cols);
        for _ in 0..steps {
            halves.gram(&mut a);
            square.polynomial(&a, &mut p);
            halves.multiply_add(&p, QUINTIC.0);
        }
        return halves.widen(x);
    }
    let mut next = vec![0f32; x.len()];
    kernels::scale_add(factor, x, 0.0, &next);
    let gram = |x: &[f32], a: &mut [f32]| {
        let view = View::rows(x, cols);
        let (left, right) = if rows <= cols { (view, view.t()) } else { (view.t(), view) };
        kernels::symmetric_gemm(n, k, left, right, a);
    };
    let multiply = |p: &[f32], x: &[f32], out: &mut [f32]| {
        let (p, x) = (View::rows(p, n), View::rows(x, cols));
        let ((left, right), data) = (if rows <= cols { (p, x) } else { (x, p) }, out);
        let target = Target { data, stride: cols, to: To::Set };
        kernels::gemm(rows, cols, n, left, Rhs::Dense(right), target, Threads::All);
    };
    gram(x, &mut a);
    if k > n {
        // The factors `P = a I + B` of all steps are multiplied, and the long side meets their product once. Where `A` is
        // small, what rounding left there grows by a² a step: to some 1e-4 in f32, beyond all bounds in bf16.
        let mut all = vec![0f32; n * n];
        let mut spare = vec![0f32; n * n];
        for step in 0..steps {
            square.polynomial(&a, &mut p);
            p.iter_mut().step_by(n + 1).for_each(|p| *p += QUINTIC.0);
            if step == 0 {
                all.copy_from_slice(&p);
            } else {
                square.product(&p, &all, &mut spare);
                std::mem::swap(&mut all, &mut spare);
            }
            if step + 1 < steps {
                square.product(&p, &a, &mut spare);
                square.product(&p, &spare, &mut a);
            }
        }
        multiply(&all, x, &mut next);
        x.copy_from_slice(&next);
        return;
    }
    for step in 0..steps {
        if step > 0 {
            gram(x, &mut a);
        }
        square.polynomial(&a, &mut p);
        multiply(&p, x, &mut next);
        kernels::scale_add(QUINTIC.0, x, 1.0, &next);
    }
}

/// Symmetric matrices `[n, n]` that commute.
struct Square {
    n: usize,
    precision: Precision,
}

impl Square {
    fn product(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        let view = |x| View::rows(x, self.n).rounded(self.precision);
        kernels::symmetric_gemm(self.n, self.n, view(a), view(b), out);
    }

    /// `p = b A + c A²`
    fn polynomial(&self, a: &[f32], p: &mut [f32]) {
        self.product(a, a, p);
        kernels::scale_add(QUINTIC.2, p, QUINTIC.1, a);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::matmul;
    use crate::model::{Role, Weight};

    /// The steps as they are written, in f64.
    fn defined(rows: usize, cols: usize, x: &[f32], steps: u32) -> Vec<f64> {
        let [a, b, c] = [QUINTIC.0, QUINTIC.1, QUINTIC.2].map(f64::from);
        let norm = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt() * 1.0001;
        let mut x: Vec<f64> = x.iter().map(|x| *x as f64 / norm).collect();
        for _ in 0..steps {
            let turned: Vec<f64> = (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect();
            let gram = matmul(&x, &turned, rows, cols, rows);
            let square = matmul(&gram, &gram, rows, rows, rows);
            let p: Vec<f64> = gram.iter().zip(&square).map(|(g, s)| b * g + c * s).collect();
            let moved = matmul(&p, &x, rows, rows, cols);
            x.iter_mut().zip(moved).for_each(|(x, moved)| *x = a * *x + moved);
        }
        x
    }

    #[test]
    fn a_matrix_becomes_what_the_definition_makes_of_it() {
        for (rows, cols) in [(8, 20), (20, 8), (16, 16), (150, 190), (1, 7)] {
            let mut weight = Weight::new("x", &[rows, cols], Role::Attention, None).normal(3.0, 1);
            // Small singular values.
            weight.chunks_mut(cols).step_by(3).for_each(|row| row.iter_mut().for_each(|x| *x *= 1e-4));
            for (steps, precision, bound) in [
                (5, Precision::F32, 2e-3),
                (5, Precision::Bf16, 0.1),
                (1, Precision::F32, 2e-3),
                (4, Precision::F32, 2e-3),
            ] {
                let want = defined(rows, cols, &weight, steps);
                let mut x = weight.clone();
                orthogonalise(rows, cols, &mut x, steps, precision);
                let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                let off = squares(&mut x.iter().zip(&want).map(|(x, want)| *x as f64 - want));
                let off = off / squares(&mut want.iter().copied());
                assert!(off < bound, "{precision}, [{rows}, {cols}]: off by {off}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut x = [0.0; 6];
        orthogonalise(2, 3, &mut x, 5, Precision::F32);
        assert_eq!(x, [0.0; 6]);
    }
}
