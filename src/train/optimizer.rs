//! The optimizers and their state, one slot a parameter in the decoder's order.

use crate::config::{OptimizerKind, TrainConfig};
use crate::error::Result;
use crate::formats::tensors::{Checkpoint, Data, Tensor};
use crate::kernels::{self, AdamW};
use crate::model::{Decoder, Param};

use super::muon::muon;
use super::schedule::weight_decay;

/// Moments of one parameter; a buffer that its rule does not need is empty.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// AdamW's first moment, or the momentum.
    first: Vec<f32>,
    /// AdamW's second moment.
    second: Vec<f32>,
}

/// The rule for one parameter.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    AdamW,
    Sgd,
    Muon,
}

#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    slots: Vec<Slot>,
}

impl Optimizer {
    /// All moments at zero.
    pub fn new(kind: OptimizerKind, decoder: &Decoder) -> Self {
        let slot = |p: &Param| {
            let second = if rule(kind, p) == Rule::AdamW { p.len() } else { 0 };
            Slot { first: vec![0.0; p.len()], second: vec![0.0; second] }
        };
        Self { kind, slots: decoder.params().map(slot).collect() }
    }

    /// One step with the gradients as they stand, each times `grad_scale`; `step` is counted from 0 and `factor` is the
    /// schedule's. Matrices alone are decayed. Projections are brought up to date. `updates`, if given, gets the root mean
    /// square of what the step added to each parameter.
    ///
    /// # Errors
    /// A latent that is no longer finite, by its tensor's name.
    pub fn step(
        &mut self,
        decoder: &mut Decoder,
        t: &TrainConfig,
        step: u64,
        factor: f32,
        grad_scale: f32,
        mut updates: Option<&mut Vec<f64>>,
    ) -> Result<()> {
        let lr = t.lr * factor;
        if let Some(updates) = &mut updates {
            updates.clear();
        }
        for (param, slot) in decoder.params_mut().zip(&mut self.slots) {
            let decay = if param.is_matrix() { weight_decay(t, step) } else { 0.0 };
            let rule = rule(self.kind, param);
            let before = updates.is_some().then(|| param.value.clone());
            let (p, g) = (&mut param.value, &param.grad);
            match rule {
                Rule::AdamW => {
                    let a = AdamW {
                        lr,
                        beta1: t.beta1,
                        beta2: t.beta2,
                        eps: t.eps,
                        weight_decay: decay,
                        grad_scale,
                        step: step + 1,
                    };
                    kernels::adamw(&a, p, g, &mut slot.first, &mut slot.second);
                }
                Rule::Sgd => kernels::sgd(lr, t.momentum, decay, grad_scale, p, g, &mut slot.first),
                Rule::Muon => {
                    let (rows, cols) = (param.shape[0], param.shape[1]);
                    muon(
                        t.muon_lr * factor,
                        t.momentum,
                        decay,
                        grad_scale,
                        rows,
                        cols,
                        p,
                        g,
                        &mut slot.first,
                    );
                }
            }
            if let (Some(mut change), Some(updates)) = (before, &mut updates) {
                kernels::scale_add(-1.0, &mut change, 1.0, &param.value);
                updates.push((kernels::sum_squares(&change) / param.len().max(1) as f64).sqrt());
            }
            param.project()?;
        }
        Ok(())
    }

    /// The state as tensors to store.
    pub fn tensors<'a>(&'a self, decoder: &'a Decoder) -> Vec<Tensor<'a>> {
        let mut out = Vec::new();
        for (param, slot) in decoder.params().zip(&self.slots) {
            for (prefix, data) in [("first", &slot.first), ("second", &slot.second)] {
                if !data.is_empty() {
                    let name = format!("{prefix}.{}", param.name);
                    out.push(Tensor { name, shape: param.shape.clone(), data: Data::F32(data) });
                }
            }
        }
        out
    }

    /// Reads what [`Optimizer::tensors`] gave.
    pub fn restore(&mut self, decoder: &Decoder, stored: &Checkpoint) -> Result<()> {
        for (param, slot) in decoder.params().zip(&mut self.slots) {
            for (prefix, data) in [("first", &mut slot.first), ("second", &mut slot.second)] {
                if !data.is_empty() {
                    stored.read_f32_into(&format!("{prefix}.{}", param.name), &param.shape, data)?;
                }
            }
        }
        Ok(())
    }
}

/// Muon is for the matrices inside the blocks; embedding, head, gains and biases are AdamW's.
fn rule(kind: OptimizerKind, param: &Param) -> Rule {
    match kind {
        OptimizerKind::AdamW => Rule::AdamW,
        OptimizerKind::Sgd => Rule::Sgd,
        OptimizerKind::Muon if param.is_matrix() && param.name.starts_with("model.layers.") => Rule::Muon,
        OptimizerKind::Muon => Rule::AdamW,
    }
}
