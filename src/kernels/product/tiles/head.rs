//! An output head, its loss and its gradients in one go: logits of some rows and outputs are made, used and dropped while
//! they are in the cache. Operands are rounded to bf16.
//!
//! The outputs are gone through twice. The first time finds `ln Z` of each row, the second makes the same logits again and
//! turns them into gradients: one product more than if logits were kept, which would go to memory and back five times, and
//! the head's gradient with them once for each part of the rows.

use rayon::prelude::*;
use std::ops::Range;

use super::gemm::{Laid, Left};
use super::split::{self, Operand, ROUNDED, Side, lines};
use super::unit::Unit;
use super::{DEPTH, Part, SUMMED, panel_times, scale_into, scales_of, sums_of_segments, trits};
use crate::kernels::cross_entropy::{IGNORE, Objective, probabilities, shifted_sum};
use crate::kernels::product::operands::{Head, Output, Target, View};
use crate::kernels::product::rounding::segments;
use crate::kernels::profile::{Phase, scope};
use crate::kernels::scratch::{self, Aligned};
use crate::kernels::to::To;
use crate::kernels::x86_64::amx::{Line, PANEL, STEP};
use crate::ternary::TernaryMatrix;

/// Rows of a task: inputs, their gradient and what is made of some outputs stay in the second-level cache.
const ROWS: usize = 256;
/// Weights whose outputs are made together, and outputs at most.
const WEIGHTS: usize = 1 << 17;
const OUTPUTS: usize = 256;
/// Bytes of gradients of logits that may exist at once, in bf16.
const GRADIENTS: usize = 16 << 20;

// A panel of rows is one step of the weights' gradient.
const _: () = assert!(PANEL == DEPTH);

/// What a thread works on.
#[derive(Default)]
struct Scratch {
    /// Inputs of all rows, segment by segment.
    x: Aligned<Line>,
    /// Trits of some outputs, along the inputs, segment by segment, and their scales.
    w: Aligned<Line>,
    scales: Aligned<f32>,
    /// The same trits along the outputs, group by group.
    wt: Aligned<Line>,
    square: Aligned<Line>,
    /// Logits of a panel of rows, [`OUTPUTS`] apart, then their gradients.
    logits: Aligned<f32>,
    /// These times the scales of one group.
    scaled: Aligned<Line>,
}

/// Gradients of logits of all rows, kept from call to call.
#[derive(Default)]
struct Kept(Aligned<Line>);

/// How a head is cut.
struct Cut<'a> {
    w: &'a TernaryMatrix,
    segments: Vec<Range<usize>>,
    /// Outputs made together.
    outputs: usize,
}

impl Cut<'_> {
    fn steps(segment: &Range<usize>) -> usize {
        segment.len().div_ceil(DEPTH)
    }

    /// Steps of all segments.
    fn all_steps(&self) -> usize {
        self.segments.iter().map(Self::steps).sum()
    }
}

/// Loss and gradients of a head that [`fits`](super::fits).
pub fn loss_and_gradients(head: Head<'_>) {
    let Head { x, w, targets, objective, losses, dx, dw } = head;
    let (out, inputs, n) = (w.rows(), w.cols(), targets.len());
    let outputs = (WEIGHTS / inputs / PANEL * PANEL).clamp(PANEL, OUTPUTS);
    let cut = Cut { w, segments: segments(w).collect(), outputs };
    // `ln Z` of each row.
    let mut lse = vec![0f32; n];
    let rows = x.par_chunks(ROWS * inputs).zip(targets.par_chunks(ROWS)).with_max_len(1);
    rows.clone().zip(lse.par_chunks_mut(ROWS)).zip(losses.par_chunks_mut(ROWS)).for_each(
        |(((x, targets), lse), losses)| {
            scratch::with(|scratch: &mut Scratch| {
                // SAFETY: this instruction set was found on this machine.
                unsafe { losses_task(&cut, x, targets, lse, losses, scratch) }
            });
        },
    );

    let laid = {
        let _time = scope(Phase::WeightGradient);
        Laid::of(Operand::b(View::rows(x, inputs), n, inputs), n, inputs, ROWS)
    };
    // Whole turns of outputs, and all of them where they are few.
    let strip = (GRADIENTS / 2 / n / outputs * outputs).clamp(outputs, out.next_multiple_of(outputs));
    let of_task = strip / PANEL * STEP * (ROWS / DEPTH);
    scratch::with(|kept: &mut Kept| {
        let gradients = kept.0.first(n.div_ceil(ROWS) * of_task);
        for first in (0..out).step_by(strip) {
            let some = first..out.min(first + strip);
            rows.clone()
                .zip(lse.par_chunks(ROWS))
                .zip(dx.par_chunks_mut(ROWS * inputs).zip(gradients.par_chunks_mut(of_task)))
                .for_each(|(((x, targets), lse), (dx, gradients))| {
                    scratch::with(|scratch: &mut Scratch| {
                        let task = Gradients { targets, lse, objective, outputs: some.clone() };
                        // SAFETY: as above.
                        unsafe { gradients_task(&cut, x, task, dx, gradients, scratch) }
                    });
                });
            let _time = scope(Phase::WeightGradient);
            let dw = &mut dw[some.start * inputs..some.end * inputs];
            laid.times(
                Left::Laid(gradients, of_task),
                some.len(),
                Target { data: dw, stride: inputs, to: To::Add },
            );
        }
    });
}

/// `ln Z` and the loss of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn losses_task(
    cut: &Cut<'_>,
    x: &[f32],
    targets: &[u32],
    lse: &mut [f32],
    losses: &mut [f32],
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let unit = unsafe { Unit::current() };
    let mut sums = [LogSumExp::default(); ROWS];
    lay_out(cut, x, targets.len(), scratch);
    for first in (0..cut.w.rows()).step_by(cut.outputs) {
        let some = first..cut.w.rows().min(first + cut.outputs);
        take_apart(cut, some.clone(), scratch);
        for panel in (0..targets.len()).step_by(PANEL) {
            make_logits(&unit, cut, panel, targets.len(), some.len(), scratch);
            let _time = scope(Phase::CrossEntropy);
            let rows = panel..targets.len().min(panel + PANEL);
            for (row, logits) in rows.zip(scratch.logits.first(PANEL * OUTPUTS).chunks(OUTPUTS)) {
                sums[row].add(&logits[..some.len()]);
                if some.contains(&(targets[row] as usize)) {
                    losses[row] = logits[targets[row] as usize - some.start];
                }
            }
        }
    }
    for (((loss, lse), sum), &target) in losses.iter_mut().zip(lse).zip(sums).zip(targets) {
        *lse = sum.value();
        *loss = if target == IGNORE { 0.0 } else { *lse - *loss };
    }
}

/// Of a task: what it takes gradients of.
struct Gradients<'a> {
    targets: &'a [u32],
    lse: &'a [f32],
    objective: Objective,
    outputs: Range<usize>,
}

/// Gradients of the logits of some outputs, laid out as `A` of the weights' gradient, and what they add to `dx`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn gradients_task(
    cut: &Cut<'_>,
    x: &[f32],
    task: Gradients<'_>,
    dx: &mut [f32],
    gradients: &mut [Line],
    scratch: &mut Scratch,
) {
    // SAFETY: this instruction set was found on this machine.
    let unit = unsafe { Unit::current() };
    let Gradients { targets, lse, objective, outputs } = task;
    let (w, n) = (cut.w, targets.len());
    let (inputs, group) = (w.cols(), w.group());
    lay_out(cut, x, n, scratch);
    let dx = Output::new(Target { data: dx, stride: inputs, to: To::Set }, n, inputs);
    for first in outputs.clone().step_by(cut.outputs) {
        let some = first..outputs.end.min(first + cut.outputs);
        let steps = some.len().div_ceil(DEPTH);
        take_apart(cut, some.clone(), scratch);
        let groups = || (0..w.row_groups()).map(|g| (g, g * group..((g + 1) * group).min(inputs)));
        let across = |columns: &Range<usize>| columns.len().div_ceil(PANEL) * STEP * steps;
        let mut rest = scratch.wt.first(groups().map(|(_, columns)| across(&columns)).sum());
        for (_, columns) in groups() {
            let part;
            (part, rest) = rest.split_at_mut(across(&columns));
            trits::pack_columns(w, columns.start, columns.end, some.start, some.len(), part);
        }
        let scales = scratch.scales.first(w.row_groups() * OUTPUTS + cut.segments.len() * OUTPUTS);
        let (_, by_group) = scales.split_at_mut(cut.segments.len() * OUTPUTS);
        for (g, scales) in by_group.chunks_mut(OUTPUTS).enumerate() {
            scales_of(w, some.clone(), g, scales);
        }
        for panel in (0..n).step_by(PANEL) {
            make_logits(&unit, cut, panel, n, some.len(), scratch);
            let Scratch { logits, wt, scaled, square, scales, .. } = scratch;
            let logits = logits.first(PANEL * OUTPUTS);
            let rows = panel..n.min(panel + PANEL);
            {
                let _time = scope(Phase::CrossEntropy);
                for (row, logits) in rows.clone().zip(logits.chunks_mut(OUTPUTS)) {
                    let logits = &mut logits[..some.len()];
                    let target = targets[row];
                    let at = some.contains(&(target as usize)).then(|| target as usize - some.start);
                    gradient_of_row(logits, target != IGNORE, at, lse[row], objective);
                }
            }
            {
                let _time = scope(Phase::WeightGradient);
                let turned = Operand::a(View::rows(logits, OUTPUTS).t(), some.len(), rows.len());
                let (steps, step) = (n.div_ceil(DEPTH), panel / DEPTH);
                for j in (0..some.len()).step_by(PANEL) {
                    let at = STEP * ((some.start - outputs.start + j) / PANEL * steps + step);
                    let to = &mut gradients[at..at + STEP];
                    split::pack::<ROUNDED, _>(turned, Side::A, j, 0, rows.len(), None, to);
                }
            }
            let _time = scope(Phase::InputGradient);
            let operand = Operand::a(View::rows(logits, OUTPUTS), rows.len(), some.len());
            let scales = scales.first((w.row_groups() + cut.segments.len()) * OUTPUTS);
            let mut rest = &*wt.first(groups().map(|(_, columns)| across(&columns)).sum());
            for (g, columns) in groups() {
                let b;
                (b, rest) = rest.split_at(across(&columns));
                let scales = &scales[(cut.segments.len() + g) * OUTPUTS..];
                let a = scaled.first(lines(ROUNDED) * steps);
                split::pack::<ROUNDED, _>(operand, Side::A, 0, 0, some.len(), Some(scales), a);
                let part = Part { rows: rows.clone(), columns, first: false };
                // SAFETY: the panels hold `steps` steps; these rows of the result are this task's alone.
                unsafe {
                    panel_times(STEP * steps, b, dx.part(first == 0), part, square, |b, to| {
                        unit.times_trits::<ROUNDED>(steps, a, b, to)
                    });
                }
            }
        }
    }
}

/// Lays out the inputs of all rows of a task.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn lay_out(cut: &Cut<'_>, x: &[f32], n: usize, scratch: &mut Scratch) {
    let _time = scope(Phase::Forward);
    let operand = Operand::a(View::rows(x, cut.w.cols()), n, cut.w.cols());
    let panels = n.div_ceil(PANEL);
    let mut rest = scratch.x.first(panels * lines(ROUNDED) * cut.all_steps());
    for segment in &cut.segments {
        let part;
        (part, rest) = rest.split_at_mut(panels * lines(ROUNDED) * Cut::steps(segment));
        split::pack::<ROUNDED, _>(operand, Side::A, 0, segment.start, segment.len(), None, part);
    }
}

/// Lays out the trits of some outputs along the inputs, and their scales.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn take_apart(cut: &Cut<'_>, outputs: Range<usize>, scratch: &mut Scratch) {
    let _time = scope(Phase::Forward);
    let across = outputs.len().div_ceil(PANEL);
    let scales = scratch.scales.first((cut.segments.len() + cut.w.row_groups()) * OUTPUTS);
    let mut rest = scratch.w.first(across * STEP * cut.all_steps());
    for (segment, scales) in cut.segments.iter().zip(scales.chunks_mut(OUTPUTS)) {
        let part;
        (part, rest) = rest.split_at_mut(across * STEP * Cut::steps(segment));
        trits::pack_rows(cut.w, outputs.start, segment.start, segment.len(), part);
        scales_of(cut.w, outputs.clone(), segment.start / cut.w.group(), scales);
    }
}

/// Logits of the panel of rows from `first` on, of `n`, by the outputs whose trits are laid out, `count` of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn make_logits(unit: &Unit, cut: &Cut<'_>, first: usize, n: usize, count: usize, scratch: &mut Scratch) {
    let _time = scope(Phase::Forward);
    let Scratch { x, w, scales, square, logits, .. } = scratch;
    let (panels, across) = (n.div_ceil(PANEL), count.div_ceil(PANEL));
    let x = x.first(panels * lines(ROUNDED) * cut.all_steps());
    let w = w.first(across * STEP * cut.all_steps());
    let scales = scales.first(cut.segments.len() * OUTPUTS);
    let logits = logits.first(PANEL * OUTPUTS).as_mut_ptr();
    let squares = square.first(SUMMED * 2 * PANEL).as_mut_ptr().cast();
    for q in 0..across {
        let (mut before, mut to) = (0, To::Set);
        for (at, segments) in cut.segments.chunks(SUMMED).enumerate() {
            let x = &x[lines(ROUNDED) * panels * before..];
            let w = &w[STEP * across * before..];
            // SAFETY: both hold the panels of all segments from there on, and there is a square for each; the logits have a
            // place for each, in rows of `OUTPUTS`, and the scales are of all outputs.
            unsafe {
                let (x, w) = ((x, first / PANEL, panels), (w, q, across));
                sums_of_segments::<ROUNDED>(unit, x, w, segments, squares);
                let mut factors = [std::ptr::null(); SUMMED];
                for (nth, factors) in factors.iter_mut().enumerate().take(segments.len()) {
                    *factors = scales[(at * SUMMED + nth) * OUTPUTS + q * PANEL..].as_ptr();
                }
                let (factors, size) = (&factors[..segments.len()], (PANEL, PANEL));
                scale_into(squares, factors, size, logits.add(q * PANEL), OUTPUTS, to);
            }
            (before, to) = (before + segments.iter().map(Cut::steps).sum::<usize>(), To::Add);
        }
    }
}

/// `ln sum e^x` of values that come in parts.
#[derive(Clone, Copy, Debug)]
struct LogSumExp {
    max: f32,
    /// `sum e^(x - max)`
    sum: f32,
}

impl Default for LogSumExp {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl LogSumExp {
    fn add(&mut self, part: &[f32]) {
        let (top, sum) = shifted_sum(part, self.max);
        self.sum = self.sum * (self.max - top).exp() + sum;
        self.max = top;
    }

    fn value(&self) -> f32 {
        self.max + self.sum.ln()
    }
}

/// Some logits of a row become their gradient: `lse` is `ln Z` of the whole row, `target` the place of the target if it
/// is among them.
fn gradient_of_row(row: &mut [f32], scored: bool, target: Option<usize>, lse: f32, objective: Objective) {
    let Objective { scale, z_loss } = objective;
    if !scored {
        return row.fill(0.0);
    }
    probabilities(row, lse, scale * (1.0 + 2.0 * z_loss * lse));
    if let Some(target) = target {
        row[target] -= scale;
    }
}
