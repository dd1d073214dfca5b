//! A matrix that is kept in bf16: half the memory to go through, which is what Newton–Schulz steps wait for.

use super::operands::{Rhs, Sizes, Target, Threads, View};
use super::symmetric::{STRIP, mirror, symmetric_gemm};
use super::way::{self, Way};
use super::{gemm, tiles};
use crate::config::Precision;
use crate::kernels::isa::kernel;
use crate::kernels::simd::nearest_bf16;
use crate::kernels::to::To;

/// `X` `[rows, cols]`. Its products are with square matrices on its short side.
pub struct Halves {
    shape: [usize; 2],
    values: Vec<u16>,
}

impl Halves {
    /// `factor x`, rounded.
    ///
    /// # Panics
    /// When there are not `rows * cols` values; below too.
    pub fn scaled(factor: f32, x: &[f32], rows: usize, cols: usize) -> Self {
        assert_eq!(x.len(), rows * cols, "values of [{rows}, {cols}]");
        let mut values = vec![0; x.len()];
        narrow(factor, x, &mut values);
        Self { shape: [rows, cols], values }
    }

    /// The values, to `out`.
    pub fn widen(&self, out: &mut [f32]) {
        crate::kernels::reduce::from_bf16(&self.values, out);
    }

    /// `X Xᵀ`, or `Xᵀ X` where that is smaller.
    pub fn gram(&self, out: &mut [f32]) {
        let [rows, cols] = self.shape;
        let (n, k) = (rows.min(cols), rows.max(cols));
        assert_eq!(out.len(), n * n, "values of [{n}, {n}]");
        if self.fits_tiles() {
            tiles::gram(&self.values, self.shape, STRIP, out);
            return mirror(n, out);
        }
        let x = self.wide();
        let x = View::rows(&x, cols).rounded(Precision::Bf16);
        let (a, b) = if rows <= cols { (x, x.t()) } else { (x.t(), x) };
        symmetric_gemm(n, k, a, b, out);
    }

    /// `X := factor X + P X`, or `factor X + X P` where it has more rows than columns, rounded. `P` is rounded too.
    pub fn multiply_add(&mut self, p: &[f32], factor: f32) {
        let [rows, cols] = self.shape;
        let n = rows.min(cols);
        assert_eq!(p.len(), n * n, "values of [{n}, {n}]");
        if self.fits_tiles() {
            return tiles::multiply_add(p, factor, &mut self.values, self.shape);
        }
        let (x, mut sum) = (self.wide(), self.wide());
        sum.iter_mut().for_each(|x| *x *= factor);
        let (p, x) =
            (View::rows(p, n).rounded(Precision::Bf16), View::rows(&x, cols).rounded(Precision::Bf16));
        let (a, b) = if rows <= cols { (p, x) } else { (x, p) };
        let target = Target { data: &mut sum, stride: cols, to: To::Add };
        gemm(rows, cols, n, a, Rhs::Dense(b), target, Threads::All);
        narrow(1.0, &sum, &mut self.values);
    }

    fn wide(&self) -> Vec<f32> {
        let mut wide = vec![0.0; self.values.len()];
        self.widen(&mut wide);
        wide
    }

    fn fits_tiles(&self) -> bool {
        let n = self.shape[0].min(self.shape[1]);
        let view = View::rows(&[], 1).rounded(Precision::Bf16);
        way::gemm(Sizes { m: n, n, k: n }, view, Rhs::Dense(view)) == Way::Tiles
    }
}

kernel! {
    fn narrow<S>(factor: f32, x: &[f32], to: &mut [u16]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = (nearest_bf16(factor * x).to_bits() >> 16) as u16;
        }
    }
}
