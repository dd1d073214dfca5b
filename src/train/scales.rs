//! Scales of groups that are numbers of their own (`ternary.scale = "learned"`), beside the latents, which are kept at them.

use crate::config::TrainConfig;
use crate::error::Result;
use crate::formats::tensors::{Data, Tensor, TensorFiles};
use crate::kernels::{self, AdamW, LearnedScales};
use crate::model::{Decoder, Gradients, Latents, Weight};

use super::schedule::At;

/// Of each weight, in the decoder's order, unless it is not ternary or its scales follow its latents.
#[derive(Clone, Debug, Default)]
pub struct Scales(Vec<Option<LearnedScales>>);

impl Scales {
    /// As the latents have them.
    pub fn of(decoder: &Decoder, latents: &Latents) -> Self {
        let of = |w: &Weight| {
            let trits = w.ternary()?;
            Some(LearnedScales::of(latents.of(w), trits.cols(), trits.group()))
        };
        Self(decoder.weights().map(of).collect())
    }

    /// A step of Adam, with the gradients of the weights, which stay.
    pub fn step(&mut self, decoder: &Decoder, latents: &Latents, grads: &Gradients, t: &TrainConfig, at: At) {
        let rule = AdamW { lr: t.scale_lr * at.factor, ..at.adamw(t) };
        for (weight, scales) in decoder.weights().zip(&mut self.0) {
            if let (Some(scales), Some(trits)) = (scales, weight.ternary()) {
                kernels::learn_scales(&rule, grads.get(weight), trits, latents.annealed(weight), scales);
            }
        }
    }

    /// The absolute means that a weight's latents are to have, if they do not have their own.
    pub fn means(&self, weight: &Weight) -> Option<&[f32]> {
        self.0.get(weight.index())?.as_ref().map(|scales| &scales.means[..])
    }

    /// The state as tensors to store: `scale.NAME`, and `first.scale.NAME` and `second.scale.NAME` of its logarithm.
    pub fn tensors<'a>(&'a self, decoder: &'a Decoder) -> impl Iterator<Item = Tensor<'a>> {
        let each = decoder.weights().zip(&self.0).filter_map(|(w, scales)| Some((w, scales.as_ref()?)));
        each.flat_map(|(weight, LearnedScales { means, first, second })| {
            [("scale", means), ("first.scale", first), ("second.scale", second)].map(|(prefix, values)| {
                Tensor {
                    name: format!("{prefix}.{}", weight.name),
                    shape: shape(weight, values).to_vec(),
                    data: Data::F32(values),
                }
            })
        })
    }

    /// Reads what [`Scales::tensors`] gave.
    ///
    /// # Errors
    /// A tensor that is absent or of another shape.
    pub fn restore(&mut self, decoder: &Decoder, stored: &TensorFiles) -> Result<()> {
        for (weight, scales) in decoder.weights().zip(&mut self.0) {
            let Some(LearnedScales { means, first, second }) = scales else { continue };
            for (prefix, values) in [("scale", means), ("first.scale", first), ("second.scale", second)] {
                let shape = shape(weight, values);
                stored.read_f32_into(&format!("{prefix}.{}", weight.name), &shape, values)?;
            }
        }
        Ok(())
    }
}

/// Rows, and groups of each.
fn shape(weight: &Weight, scales: &[f32]) -> [usize; 2] {
    [weight.shape[0], scales.len() / weight.shape[0].max(1)]
}
