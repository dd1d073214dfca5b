//! The matrix product: packed panels, a register tile, work split by rectangles of the result.
//!
//! Each element of the result is summed over `k` in one order, whatever the number of threads: the same bits every time.
//! The blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): one panel stays
//! in the first-level cache while those of the other operand stream past it from the second.

use std::cell::RefCell;
use std::ops::Range;

use super::isa::kernel;
use super::pack::{A_SLACK, Rhs, TOGETHER, View, pack_a, pack_b};
use super::threads;
use super::to::To;
#[cfg(target_arch = "x86_64")]
use super::{isa::Isa, x86_64::amx};

/// Columns of `B` and rows of `A` packed at a time; multiples of every register tile.
const NC: usize = 1024;
const MC: usize = 14 * 6 * 4;
/// Columns of `B` that panels of `A` meet one after the other: at most 256 x 512 x 4 bytes, in a second-level cache.
const SOME_COLUMNS: usize = 256;
/// Values in a cache line.
const LINE: usize = 16;
/// Multiplications below which a fork costs more than it brings.
const SERIAL: usize = 1 << 18;

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
        assert!(
            m == 0 || *stride >= n && data.len() >= (m - 1) * stride + n,
            "[{m}, {n}], {stride} apart, in {} values",
            data.len()
        );
    }
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

kernel! {
    /// Rows and columns of a register tile, depth of a block, and how many panels of `A` stream past one of `B` (one:
    /// the panel of `A` stays, and those of `B` stream).
    fn blocking<S>() -> (usize, usize, usize, usize) {
        (S::MR, S::NV * S::LANES, S::KC, if S::HOLDS_B { TOGETHER } else { 1 })
    }
}

kernel! {
    /// Some panels of `A`, `a_stride` apart, against the packed panels of `B`: `rows` rows and `cols` columns of the
    /// result at `c`.
    ///
    /// The caller vouches that `c` points at `rows` rows of `cols` values, `ldc` apart, that nobody else touches.
    fn panels_times_block<S>(rows: usize, cols: usize, kc: usize, a: &[f32], a_stride: usize, b: &[f32], c: *mut f32, ldc: usize, to: To) {
        let nr = S::NV * S::LANES;
        let b_stride = kc.next_multiple_of(16) * nr;
        assert!(a_stride >= kc * S::MR && a.len() >= (rows.div_ceil(S::MR) - 1) * a_stride + kc * S::MR);
        assert!(b.len() >= cols.div_ceil(nr) * b_stride);
        for (p, j) in (0..cols).step_by(nr).enumerate() {
            for (q, i) in (0..rows).step_by(S::MR).enumerate() {
                let rows = S::MR.min(rows - i);
                // SAFETY: the panels are long enough by the assertions; `c` by the caller's word.
                unsafe {
                    let a = a.as_ptr().add(q * a_stride);
                    let b = b.as_ptr().add(p * b_stride);
                    let c = c.add(i * ldc + j);
                    if j + nr <= cols {
                        S::tile(rows, kc, a, b, c, ldc, to);
                        continue;
                    }
                    let mut edge = [0f32; 16 * 32];
                    S::tile(rows, kc, a, b, edge.as_mut_ptr(), nr, To::Set);
                    for i in 0..rows {
                        for (jj, x) in edge[i * nr..i * nr + cols - j].iter().enumerate() {
                            let p = c.add(i * ldc + jj);
                            *p = if to.adds() { *p + x } else { *x };
                        }
                    }
                }
            }
        }
    }
}

thread_local! {
    static A_BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static B_BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on a buffer of this thread that is kept from call to call.
fn with_buffer<R>(
    key: &'static std::thread::LocalKey<RefCell<Vec<f32>>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buffer = key.with(|b| std::mem::take(&mut *b.borrow_mut()));
    // Vectors that span two cache lines are loaded twice.
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    let first = buffer.as_ptr().align_offset(4 * LINE).min(LINE);
    let out = f(&mut buffer[first..first + len]);
    key.with(|b| *b.borrow_mut() = buffer);
    out
}

/// `C (+)= A B` with `A` `[m, k]` and `B` `[k, n]`.
///
/// ```
/// use ternlm::kernels::{Rhs, Target, Threads, To, View, gemm};
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
/// let mut c = [0.0; 4];
/// let target = Target { data: &mut c, stride: 2, to: To::Set };
/// gemm(2, 2, 2, View::rows(&a, 2), Rhs::Dense(View::rows(&b, 2)), target, Threads::All);
/// assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
///
/// // A transpose is another reading of the same slice.
/// let target = Target { data: &mut c, stride: 2, to: To::Set };
/// gemm(2, 2, 2, View::rows(&a, 2), Rhs::Dense(View::rows(&b, 2).t()), target, Threads::All);
/// assert_eq!(c, [17.0, 23.0, 39.0, 53.0]);
/// ```
///
/// # Panics
/// When an operand or the result is smaller than the sizes say.
pub fn gemm(m: usize, n: usize, k: usize, a: View<'_>, b: Rhs<'_>, c: Target<'_>, threads: Threads) {
    a.check(m, k);
    match b {
        Rhs::Dense(view) => view.check(k, n),
        Rhs::Ternary(t) => {
            assert!(t.rows() >= k && t.cols() == n, "[{k}, {n}] of {} x {}", t.rows(), t.cols())
        }
        Rhs::TernaryT(t) => {
            assert!(t.rows() >= n && t.cols() == k, "[{n}, {k}] of {} x {}", t.rows(), t.cols())
        }
    }
    if m == 0 || n == 0 {
        return;
    }
    c.check(m, n);
    if k == 0 {
        if !c.to.adds() {
            c.data.chunks_mut(c.stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let wanted = if threads == Threads::All && m * n * k >= SERIAL { threads::pieces() } else { 1 };
    #[cfg(target_arch = "x86_64")]
    if let Rhs::Dense(b) = b
        && Isa::current() == Isa::Amx
        && amx::pays(m, n, k)
    {
        let c = Target { data: &mut *c.data, ..c };
        if amx::gemm(m, n, k, a, b, c, wanted) {
            return;
        }
    }
    let (mr, nr, ..) = blocking();
    let c = Output::new(c, m, n);
    threads::rectangles((m, n), (m, n), (mr, nr), wanted, |rows, columns| {
        rectangle(k, a, b, rows, columns, c)
    });
}

/// Some rows and columns of [`gemm`]'s result, on this thread: it packs what it needs for itself, and waits for no other.
fn rectangle(k: usize, a: View<'_>, b: Rhs<'_>, rows: Range<usize>, columns: Range<usize>, c: Output) {
    let (mr, nr, kc, stream) = blocking();
    let kc = k.div_ceil(k.div_ceil(kc)).next_multiple_of(16);
    for j0 in columns.clone().step_by(NC) {
        let nc = NC.min(columns.end - j0);
        for k0 in (0..k).step_by(kc) {
            let kc = kc.min(k - k0);
            let to = c.to.part(k0 == 0);
            let b_stride = kc.next_multiple_of(16) * nr;
            with_buffer(&B_BUFFER, nc.div_ceil(nr) * b_stride, |b_packed| {
                for (p, panel) in b_packed.chunks_mut(b_stride).enumerate() {
                    pack_b(b, c.columns, j0 + p * nr, k0, kc, panel);
                }
                for i0 in rows.clone().step_by(MC) {
                    let mc = MC.min(rows.end - i0);
                    let (panels, a_stride) = (mc.div_ceil(mr), kc * mr + A_SLACK);
                    with_buffer(&A_BUFFER, panels * a_stride, |a_packed| {
                        for (p, panels) in a_packed.chunks_mut(TOGETHER * a_stride).enumerate() {
                            pack_a(a, c.rows, i0 + p * TOGETHER * mr, k0, kc, panels, a_stride);
                        }
                        for j in (0..nc).step_by(SOME_COLUMNS) {
                            let cols = SOME_COLUMNS.min(nc - j);
                            for p in (0..panels).step_by(stream) {
                                let row = p * mr;
                                let rows = (stream * mr).min(mc - row);
                                let (a, b) = (&a_packed[p * a_stride..], &b_packed[j / nr * b_stride..]);
                                let at = c.at(i0 + row, j0 + j);
                                panels_times_block(rows, cols, kc, a, a_stride, b, at, c.stride, to);
                            }
                        }
                    });
                }
            });
        }
    }
}
