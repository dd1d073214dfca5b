//! Cross-entropy fused with the output head: logits exist for a few rows at a time, never for all `N x V`.

use std::ops::Range;

use super::{Gradients, Weight, Workspace};
use crate::kernels::head::Head;
use crate::kernels::{
    self, Buffer, Distillation, IGNORE, Likely, Objective, Target, To, linear, logits_stride,
};

/// Bytes of logits of a part of a batch that may exist at once.
const LOGITS: usize = 64 << 20;
/// Rows that kernels take together: what is left over costs as much as a whole one.
const PANEL: usize = 32;

/// Sums over the positions that are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Cross-entropy, in nats.
    pub sum: f64,
    /// Divergence from a teacher at the temperature, in nats; 0 without one.
    pub divergence: f64,
    /// Divergence of the relations of positions from a teacher's, in nats; 0 where none are learnt.
    pub relations: f64,
    pub count: usize,
}

impl Loss {
    /// Nats per scored position.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// What a teacher makes of the same rows.
#[derive(Clone, Copy)]
pub enum Lesson<'a> {
    /// Its final norm's output, `[N, width]` by its own width, and its head, of the same vocabulary.
    Hidden { h: &'a Buffer, head: &'a Weight, how: Distillation },
    /// What it said of them before, and how much that counts: [`Distillation::weight`].
    Stored { likely: Likely<'a>, weight: f32 },
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.divergence += other.divergence;
        self.relations += other.relations;
        self.count += other.count;
    }
}

/// Rows of logits made at a time.
pub fn rows_at_once(vocab: usize) -> usize {
    (LOGITS / 4 / logits_stride(vocab)).clamp(PANEL, 4096) / PANEL * PANEL
}

/// Values of logits that exist at once for so many rows.
pub fn logits_at_once(vocab: usize, rows: usize) -> usize {
    rows.min(rows_at_once(vocab)) * logits_stride(vocab)
}

/// `-sum ln softmax(h Wᵀ)[targets]` over the positions whose target is not [`IGNORE`].
pub fn forward(h: &Buffer, head: &Weight, targets: &[u32], ws: &mut Workspace) -> Loss {
    let mut loss = Loss::default();
    let mut losses = ws.take(targets.len());
    each_chunk(h, head, ws, |logits, rows| {
        let (vocab, targets) = (head.shape[0], &targets[rows.clone()]);
        let losses = losses.rows_mut(1, rows);
        kernels::cross_entropy(logits, vocab, logits_stride(vocab), targets, None, losses);
        loss += summed(losses, targets);
    });
    ws.give(losses);
    loss
}

/// [`forward`] together with its backward: `dh` is the gradient of what [`Objective`] says, and the head's is added to. With a
/// `lesson` the loss in it is what [`Distillation`] says, and logits of both models exist for the same rows at a time.
#[allow(clippy::too_many_arguments)]
pub fn forward_backward(
    h: &Buffer,
    head: &Weight,
    targets: &[u32],
    lesson: Option<Lesson<'_>>,
    objective: Objective,
    ws: &mut Workspace,
    dh: &mut Buffer,
    grads: &mut Gradients,
) -> Loss {
    let [vocab, width] = head.shape[..] else { unreachable!("a head is a matrix") };
    let stride = logits_stride(vocab);
    let mut loss = Loss::default();
    let dw = grads.of(head);
    let mut losses = ws.take(targets.len());
    if lesson.is_none()
        && let Some(w) = kernels::head::with_loss(targets.len(), head.matrix())
    {
        let head = Head { x: h, w, targets, objective, losses: &mut losses, dx: dh, dw };
        kernels::head::loss_and_gradients(head);
        let loss = summed(&losses, targets);
        ws.give(losses);
        return loss;
    }
    let mut taught = lesson.map(|lesson| Taught::new(lesson, vocab, targets.len(), ws));
    each_chunk(h, head, ws, |logits, rows| {
        let (targets, losses) = (&targets[rows.clone()], losses.rows_mut(1, rows.clone()));
        match &mut taught {
            None => kernels::cross_entropy(logits, vocab, stride, targets, Some(objective), losses),
            Some(taught) => {
                loss.divergence += taught.chunk(logits, vocab, rows.clone(), targets, objective, losses)
            }
        }
        linear::as_used(h.rows(width, rows.clone()), head.matrix(), |h| {
            linear::backward_weight_from(logits, stride, h, dw, [vocab, width], head.precision)
        });
        linear::backward_input_from(logits, stride, head.matrix(), dh.rows_mut(width, rows), To::Set);
        loss += summed(losses, targets);
    });
    if let Some(taught) = taught {
        ws.give(taught.logits);
        ws.give(taught.divergences);
    }
    ws.give(losses);
    loss
}

/// A lesson under way: the teacher's logits of some rows, and what a student is off by.
struct Taught<'a> {
    lesson: Lesson<'a>,
    /// None of a lesson that is stored.
    logits: Buffer,
    divergences: Buffer,
}

impl<'a> Taught<'a> {
    fn new(lesson: Lesson<'a>, vocab: usize, rows: usize, ws: &mut Workspace) -> Self {
        let logits = match lesson {
            Lesson::Hidden { h, head, .. } => {
                let [classes, width] = head.shape[..] else { unreachable!("a head is a matrix") };
                assert_eq!((classes, h.len()), (vocab, rows * width), "the teacher's vocabulary and rows");
                logits_at_once(vocab, rows)
            }
            Lesson::Stored { .. } => 0,
        };
        Self { lesson, logits: ws.take(logits), divergences: ws.take(rows) }
    }

    /// Turns the student's logits of some rows into their gradient; the divergence over them.
    fn chunk(
        &mut self,
        logits: &mut [f32],
        vocab: usize,
        rows: Range<usize>,
        targets: &[u32],
        objective: Objective,
        losses: &mut [f32],
    ) -> f64 {
        let stride = logits_stride(vocab);
        let divergences = self.divergences.rows_mut(1, rows.clone());
        match self.lesson {
            Lesson::Hidden { h, head, how } => {
                let data = self.logits.rows_mut(stride, 0..rows.len());
                let target = Target { data, stride, to: To::Set };
                linear::forward_to(h.rows(head.shape[1], rows), head.matrix(), target);
                let taught = self.logits.rows(stride, 0..targets.len());
                kernels::distill(logits, taught, vocab, stride, targets, how, objective, losses, divergences);
            }
            Lesson::Stored { likely, weight } => {
                let likely = likely.rows(rows);
                kernels::distill_likely(
                    logits,
                    vocab,
                    stride,
                    targets,
                    likely,
                    weight,
                    objective,
                    losses,
                    divergences,
                );
            }
        }
        divergences.iter().map(|&x| x as f64).sum()
    }
}

/// The most likely token of each row of `h`.
pub fn predict(h: &Buffer, head: &Weight, ws: &mut Workspace) -> Vec<u32> {
    let mut out = Vec::new();
    each_chunk(h, head, ws, |logits, _| {
        let vocab = head.shape[0];
        kernels::most_likely(logits, vocab, logits_stride(vocab), &mut out);
    });
    out
}

/// Appends the `top` likeliest tokens after some rows of `h` to `tokens`, and the logarithms of their probabilities to `ln_p`.
pub fn likeliest(
    h: &Buffer,
    head: &Weight,
    rows: Range<usize>,
    top: usize,
    ws: &mut Workspace,
    tokens: &mut Vec<u32>,
    ln_p: &mut Vec<f32>,
) {
    each_chunk_of(h, head, rows, ws, |logits, _| {
        let vocab = head.shape[0];
        kernels::likeliest(logits, vocab, logits_stride(vocab), top, tokens, ln_p);
    });
}

/// Calls `f(logits, rows)` for one chunk of rows after the other, rows of logits a [`logits_stride`] apart.
fn each_chunk(h: &Buffer, head: &Weight, ws: &mut Workspace, f: impl FnMut(&mut [f32], Range<usize>)) {
    each_chunk_of(h, head, 0..h.len() / head.shape[1], ws, f);
}

/// [`each_chunk`] of some rows.
fn each_chunk_of(
    h: &Buffer,
    head: &Weight,
    all: Range<usize>,
    ws: &mut Workspace,
    mut f: impl FnMut(&mut [f32], Range<usize>),
) {
    let [vocab, width] = head.shape[..] else { unreachable!("a head is a matrix") };
    let (at_once, stride) = (rows_at_once(vocab), logits_stride(vocab));
    for first in all.clone().step_by(at_once) {
        let rows = first..all.end.min(first + at_once);
        let mut logits = ws.take(rows.len() * stride);
        let h = h.rows(width, rows.clone());
        linear::forward_to(h, head.matrix(), Target { data: &mut logits, stride, to: To::Set });
        f(&mut logits, rows);
        ws.give(logits);
    }
}

fn summed(losses: &[f32], targets: &[u32]) -> Loss {
    Loss {
        sum: losses.iter().map(|&x| x as f64).sum(),
        count: targets.iter().filter(|t| **t != IGNORE).count(),
        ..Loss::default()
    }
}
