//! How the positions of a sequence relate to each other, which a student is to have from its teacher (MiniLMv2,
//! arXiv 2012.15828; for ternary weights BitDistill, arXiv 2510.13998): some rows of relations exist at a time.

use rayon::prelude::*;

use super::cross_entropy::{IGNORE, maximum};
use super::elementwise::exp;
use super::isa::kernel;
use super::product::{Rhs, Target, Threads, View, gemm};
use super::profile::{Phase, scope};
use super::reference::RelationShape;
use super::scratch::{self, Aligned};
use super::simd::Simd;
use super::to::To;

/// Rows of relations that exist at a time, of student and teacher.
const ROWS: usize = 64;
/// Partial sums of a row.
const LANES: usize = 16;

/// With `A` the rows of a head, and `P`, `Q` the soft-max of `A Aᵀ / sqrt(D)` of teacher and student: returns `KL(P | Q)`, summed
/// over the rows whose target is not [`IGNORE`], the mean of the heads, and adds `scale` times its gradient to `da`. With
/// `dS = (Q - P) / sqrt(D)` it is `dA += dS A + dSᵀ A`. Everything is f32.
pub fn relations(
    shape: &RelationShape,
    student: &[f32],
    teacher: &[f32],
    targets: &[u32],
    scale: f32,
    da: &mut [f32],
) -> f64 {
    let _time = scope(Phase::Attention);
    let s = *shape;
    let (rows, size, taught) = (s.batch * s.len, s.len * s.heads * s.dim, s.len * s.heads * s.teacher_dim);
    assert_eq!([student.len(), da.len()], [s.batch * size; 2], "rows and gradients of {s:?}");
    assert_eq!((teacher.len(), targets.len()), (s.batch * taught, rows), "the teacher and targets of {s:?}");
    if rows * s.heads * s.dim * s.teacher_dim == 0 {
        return 0.0;
    }
    let inputs = student.par_chunks(size).zip(teacher.par_chunks(taught)).zip(targets.par_chunks(s.len));
    let of_sequences = inputs.zip(da.par_chunks_mut(size)).map(|(((student, teacher), targets), da)| {
        let of_head = |head| of_head(&s, head, student, teacher, targets, scale / s.heads as f32);
        let heads: Vec<(f64, Vec<f32>)> = (0..s.heads).into_par_iter().map(of_head).collect();
        heads.iter().enumerate().for_each(|(head, (_, sum))| add_head(head, s.heads, s.dim, sum, da));
        heads.iter().map(|(loss, _)| loss).sum::<f64>()
    });
    // Added up in order, whatever the number of threads.
    let sequences: Vec<f64> = of_sequences.collect();
    sequences.iter().sum::<f64>() / s.heads as f64
}

#[derive(Default)]
struct Scratch(Aligned<f32>);

/// Of one head of a sequence: the divergence, and `factor` times its gradient, `[len, dim]`.
fn of_head(
    s: &RelationShape,
    head: usize,
    student: &[f32],
    teacher: &[f32],
    targets: &[u32],
    factor: f32,
) -> (f64, Vec<f32>) {
    let (mut loss, mut da) = (0.0, vec![0f32; s.len * s.dim]);
    let by = [s.dim, s.teacher_dim].map(|dim| 1.0 / (dim as f32).sqrt());
    for first in (0..s.len).step_by(ROWS) {
        let m = ROWS.min(s.len - first);
        let n = if s.causal { first + m } else { s.len };
        scratch::with(|scratch: &mut Scratch| {
            let (own, taught) = scratch.0.first(2 * m * n).split_at_mut(m * n);
            for (x, dim, data) in [(student, s.dim, &mut *own), (teacher, s.teacher_dim, &mut *taught)] {
                let [some, all] = [first, 0].map(|row| from(x, row, head, s.heads, dim));
                let scores = Target { data, stride: n, to: To::Set };
                gemm(m, n, dim, some, Rhs::Dense(all.t()), scores, Threads::One);
            }
            let of_rows = own.chunks_exact_mut(n).zip(taught.chunks_exact(n));
            for (i, (own, taught)) in of_rows.enumerate() {
                let seen = match (targets[first + i], s.causal) {
                    (IGNORE, _) => 0,
                    (_, true) => first + i + 1,
                    (_, false) => n,
                };
                own[seen..].fill(0.0);
                if seen > 0 {
                    loss += row(&mut own[..seen], &taught[..seen], by, factor) as f64;
                }
            }
            let ds = View::rows(own, n);
            let [some, all] = [first, 0].map(|row| Rhs::Dense(from(student, row, head, s.heads, s.dim)));
            let sum = Target { data: &mut da[first * s.dim..], stride: s.dim, to: To::Add };
            gemm(m, s.dim, n, ds, all, sum, Threads::One);
            let sum = Target { data: &mut da, stride: s.dim, to: To::Add };
            gemm(n, s.dim, m, ds.t(), some, sum, Threads::One);
        });
    }
    (loss, da)
}

/// The rows of a head from one on.
fn from(x: &[f32], row: usize, head: usize, heads: usize, dim: usize) -> View<'_> {
    View::rows(&x[(row * heads + head) * dim..], heads * dim)
}

kernel! {
    /// Adds the rows of one head to where they stand among those of all.
    fn add_head<S>(head: usize, heads: usize, dim: usize, sum: &[f32], to: &mut [f32]) {
        for (sum, to) in sum.chunks_exact(dim).zip(to.chunks_exact_mut(heads * dim)) {
            to[head * dim..][..dim].iter_mut().zip(sum).for_each(|(to, x)| *to += x);
        }
    }
}

/// The logarithms of the soft-max of a row, as far as each value needs them: its maximum, a factor, `ln` of the sum.
#[derive(Clone, Copy)]
struct Soft {
    top: f32,
    by: f32,
    ln_sum: f32,
}

impl Soft {
    #[inline(always)]
    fn of<S: Simd>(row: &[f32], by: f32) -> Self {
        let (top, mut sums) = (maximum(row), [0f32; LANES]);
        let (lanes, rest) = row.as_chunks::<LANES>();
        for x in lanes {
            for i in 0..LANES {
                sums[i] += exp::<S>((x[i] - top) * by);
            }
        }
        let rest: f32 = rest.iter().map(|x| exp::<S>((x - top) * by)).sum();
        Self { top, by, ln_sum: (sums.iter().sum::<f32>() + rest).ln() }
    }

    #[inline(always)]
    fn ln(&self, x: f32) -> f32 {
        (x - self.top) * self.by - self.ln_sum
    }
}

kernel! {
    /// Of products of student and teacher, each to be multiplied by its `by`: returns `KL(P | Q)`, and replaces those of the
    /// student by the gradient of `factor` times it.
    fn row<S>(own: &mut [f32], taught: &[f32], by: [f32; 2], factor: f32) -> f32 {
        let (q, p) = (Soft::of::<S>(own, by[0]), Soft::of::<S>(taught, by[1]));
        let factor = factor * q.by;
        let (lanes, rest) = own.as_chunks_mut::<LANES>();
        let (taught, taught_rest) = taught.as_chunks::<LANES>();
        let (mut sums, mut sum) = ([0f32; LANES], 0f32);
        for (z, u) in lanes.iter_mut().zip(taught) {
            for i in 0..LANES {
                let (ln_q, ln_p) = (q.ln(z[i]), p.ln(u[i]));
                let p = exp::<S>(ln_p);
                sums[i] += p * (ln_p - ln_q);
                z[i] = factor * (exp::<S>(ln_q) - p);
            }
        }
        for (z, u) in rest.iter_mut().zip(taught_rest) {
            let (ln_q, ln_p) = (q.ln(*z), p.ln(*u));
            let p = exp::<S>(ln_p);
            sum += p * (ln_p - ln_q);
            *z = factor * (exp::<S>(ln_q) - p);
        }
        sums.iter().sum::<f32>() + sum
    }
}
