//! What is multiplied, and where the product goes.

use crate::config::Precision;
use crate::kernels::cross_entropy::Objective;
use crate::kernels::to::To;
use crate::ternary::TernaryMatrix;

/// Of a product `[m, k] [k, n]`.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// A dense matrix: element `(i, j)` is `data[i * rs + j * cs]`, rounded where it enters a product.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub rs: usize,
    pub cs: usize,
    pub precision: Precision,
}

impl<'a> View<'a> {
    /// Row-major with `stride` values from row to row, not rounded.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, rs: stride, cs: 1, precision: Precision::F32 }
    }

    /// The same, rounded so.
    pub fn rounded(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The transpose, nothing moved.
    pub fn t(self) -> Self {
        Self { rs: self.cs, cs: self.rs, ..self }
    }

    /// From an element on.
    pub(super) fn from(self, i: usize, j: usize) -> Self {
        Self { data: &self.data[i * self.rs + j * self.cs..], ..self }
    }

    /// Whether rows or columns are contiguous.
    pub(super) fn is_contiguous(&self) -> bool {
        self.rs == 1 || self.cs == 1
    }

    /// Where an element stands.
    pub(super) fn at(&self, i: usize, j: usize) -> *const f32 {
        // Of a slice, not of a value: what follows is read too.
        self.data[i * self.rs + j * self.cs..].as_ptr()
    }

    /// Panics unless an `m x n` matrix lies inside the data.
    pub(super) fn check(&self, m: usize, n: usize) {
        if m > 0 && n > 0 {
            let (rows, columns) = ((m - 1).checked_mul(self.rs), (n - 1).checked_mul(self.cs));
            let last = rows.zip(columns).and_then(|(rows, columns)| rows.checked_add(columns));
            let inside = last.is_some_and(|last| last < self.data.len());
            assert!(inside, "a [{m}, {n}] view ends at {last:?} of {}", self.data.len());
        }
    }
}

/// The right-hand operand `[k, n]`.
#[derive(Clone, Copy)]
pub enum Rhs<'a> {
    Dense(View<'a>),
    /// A ternary `[k, n]` matrix.
    Ternary(&'a TernaryMatrix),
    /// A ternary `[n, k]` matrix, transposed.
    TernaryT(&'a TernaryMatrix),
}

impl Rhs<'_> {
    /// Panics unless it is `[k, n]`, or has more rows where it lies in memory as rows.
    pub(super) fn check(&self, k: usize, n: usize) {
        match self {
            Rhs::Dense(view) => view.check(k, n),
            Rhs::Ternary(t) => {
                assert!(t.rows() >= k && t.cols() == n, "[{k}, {n}] of {} x {}", t.rows(), t.cols())
            }
            Rhs::TernaryT(t) => {
                assert!(t.rows() >= n && t.cols() == k, "[{n}, {k}] of {} x {}", t.rows(), t.cols())
            }
        }
    }
}

/// Where the product goes: rows of `n` values at distance `stride`.
pub struct Target<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    pub to: To,
}

impl Target<'_> {
    /// Panics unless `m` rows of `n` values lie inside the data.
    pub(super) fn check(&self, m: usize, n: usize) {
        let Target { data, stride, .. } = self;
        let end = m.checked_sub(1).map(|rows| rows.checked_mul(*stride).and_then(|at| at.checked_add(n)));
        assert!(
            end.is_none_or(|end| *stride >= n && end.is_some_and(|end| end <= data.len())),
            "[{m}, {n}], {stride} apart, in {} values",
            data.len()
        );
    }
}

/// What a ternary head is given, and what it owes. Operands of its products are rounded to bf16.
pub struct Head<'a> {
    /// `[n, in]`
    pub x: &'a [f32],
    /// `[out, in]`
    pub w: &'a TernaryMatrix,
    /// `[n]`, of the outputs; [`IGNORE`](crate::kernels::IGNORE) where nothing is asked.
    pub targets: &'a [u32],
    pub objective: Objective,
    /// `[n]`: set to each row's loss, 0 where nothing is asked.
    pub losses: &'a mut [f32],
    /// `[n, in]`: set.
    pub dx: &'a mut [f32],
    /// `[out, in]`: added to.
    pub dw: &'a mut [f32],
}

/// A result that tasks write disjoint rectangles of.
#[derive(Clone, Copy)]
pub(super) struct Output {
    at: *mut f32,
    /// In values.
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    pub to: To,
}
// SAFETY: every task writes a rectangle of its own.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    pub fn new(target: Target<'_>, rows: usize, columns: usize) -> Self {
        target.check(rows, columns);
        Self { at: target.data.as_mut_ptr(), stride: target.stride, rows, columns, to: target.to }
    }

    /// The same for a part of a sum, as [`To::part`].
    pub fn part(self, first: bool) -> Self {
        Self { to: self.to.part(first), ..self }
    }

    /// Where a value stands; inside the result if it is one of these.
    #[inline(always)]
    pub fn at(&self, row: usize, column: usize) -> *mut f32 {
        self.at.wrapping_add(row * self.stride + column)
    }
}

/// Whether a product may use all threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    All,
    One,
}
