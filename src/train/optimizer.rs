//! The optimizers and their state, one slot a parameter in the decoder's order.

use crate::config::{OptimizerKind, TrainConfig};
use crate::error::Result;
use crate::formats::tensors::{Checkpoint, Data, Tensor};
use crate::kernels::{self, AdamW, Moments, Rule};
use crate::model::{Decoder, Param};

use super::muon::{Muon, muon};
use super::schedule::weight_decay;

#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    slots: Vec<Moments>,
}

impl Optimizer {
    /// All moments at zero.
    pub fn new(kind: OptimizerKind, decoder: &Decoder) -> Self {
        let slot = |p: &Param| {
            let count = if kind_for(kind, p) == OptimizerKind::AdamW { 2 } else { 1 };
            Moments::zeros(count, p.len())
        };
        Self { kind, slots: decoder.params().map(slot).collect() }
    }

    /// One step with the gradients as they stand, each times `grad_scale`; `step` is counted from 0 and `factor` is the
    /// schedule's. Matrices alone are decayed. Projections are brought up to date, and gradients are zero afterwards.
    /// `updates`, if given, gets the root mean square of what the step added to each parameter.
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
            let weight_decay = if param.is_matrix() { weight_decay(t, step) } else { 0.0 };
            let kind = kind_for(self.kind, param);
            let measure = updates.is_some();
            let done = param.update(|latents| match kind {
                OptimizerKind::AdamW => {
                    let a = AdamW {
                        lr,
                        beta1: t.beta1,
                        beta2: t.beta2,
                        eps: t.eps,
                        weight_decay,
                        grad_scale,
                        step: step + 1,
                    };
                    kernels::update(&Rule::AdamW(a), latents, slot, measure)
                }
                OptimizerKind::Sgd => {
                    let rule = Rule::Sgd { lr, momentum: t.momentum, weight_decay, grad_scale };
                    kernels::update(&rule, latents, slot, measure)
                }
                OptimizerKind::Muon => {
                    let a = Muon { lr: t.muon_lr * factor, momentum: t.momentum, weight_decay, grad_scale };
                    muon(&a, latents, slot, measure)
                }
            })?;
            if let Some(updates) = &mut updates {
                updates.push((done.squares / param.len().max(1) as f64).sqrt());
            }
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
fn kind_for(kind: OptimizerKind, param: &Param) -> OptimizerKind {
    match kind {
        OptimizerKind::Muon if !(param.is_matrix() && param.name.starts_with("model.layers.")) => {
            OptimizerKind::AdamW
        }
        kind => kind,
    }
}
