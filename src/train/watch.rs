//! What a training watches of its ternary weights beside the loss, at every log line.

use std::collections::BTreeSet;

use super::TensorPoint;
use crate::error::Result;
use crate::formats::tensors::{Data, Dtype, Tensor, TensorFiles};
use crate::kernels;
use crate::model::{Decoder, Latents, Weight};
use crate::ternary::{Flips, Stats, TernaryMatrix};

/// How near to a threshold a latent is called near: `| |w| − s/2 | ≤ NEAR · s/2`.
pub const NEAR: f32 = 0.1;

/// What is remembered of every ternary tensor, in the decoder's order.
#[derive(Clone, Debug)]
pub struct Watch(Vec<Remembered>);

#[derive(Clone, Debug)]
struct Remembered {
    /// Before the first step.
    start_scales: Vec<f32>,
    /// Codes before the first step and at the last record; none in a training that goes on from a checkpoint without them.
    codes: Option<Codes>,
}

#[derive(Clone, Debug)]
struct Codes {
    start: Vec<u32>,
    last: Vec<u32>,
}

impl Watch {
    /// Of a training that begins.
    pub fn new(decoder: &Decoder) -> Self {
        let remember = |matrix: &TernaryMatrix| Remembered {
            start_scales: matrix.scales().to_vec(),
            codes: Some(Codes { start: matrix.words().to_vec(), last: matrix.words().to_vec() }),
        };
        Self(decoder.weights().filter_map(Weight::ternary).map(remember).collect())
    }

    /// The state of every ternary tensor; flips are counted anew from here. `updates` has the root mean square of every
    /// weight's last update, or nothing.
    pub fn points(&mut self, decoder: &Decoder, latents: &mut Latents, updates: &[f64]) -> Vec<TensorPoint> {
        let mut remembered = self.0.iter_mut();
        let mut points = Vec::new();
        for weight in decoder.weights() {
            let flips = latents.take_flips(weight);
            let Some(matrix) = weight.ternary() else { continue };
            let before = remembered.next().expect("a start for every ternary tensor");
            let stats = Stats::of(matrix);
            let share = |n: u64| n as f64 / stats.weights() as f64;
            let moved = before.codes.as_ref().map(|codes| share(changed(&codes.start, matrix.words())));
            let undone = before.codes.as_mut().and_then(|codes| {
                let stayed = changed(&codes.last, matrix.words());
                codes.last.copy_from_slice(matrix.words());
                (flips.total() > 0)
                    .then(|| flips.total().saturating_sub(stayed) as f64 / flips.total() as f64)
            });
            points.push(TensorPoint {
                name: weight.name.clone(),
                weights: stats.weights(),
                groups: stats.groups,
                minus: share(stats.minus),
                zero: share(stats.zero),
                plus: share(stats.plus),
                scale_mean: stats.scale_mean as f64,
                scale_min: stats.scale_min as f64,
                scale_max: stats.scale_max as f64,
                scale_drift: drift(&before.start_scales, matrix.scales()),
                moved,
                dead_groups: stats.dead_groups,
                to_zero: flips.to_zero,
                from_zero: flips.from_zero,
                sign_flips: flips.sign,
                undone,
                near: Some(share(kernels::near_thresholds(latents.of(weight), matrix, NEAR))),
                rms_update: updates
                    .get(weight.index())
                    .map(|u| u / stats.scale_mean as f64)
                    .filter(|u| u.is_finite()),
            });
        }
        points
    }

    /// As tensors to store: `start_scales.NAME`, and of codes, `[rows, words of a row]`, `start_codes.NAME` and
    /// `last_codes.NAME`.
    pub fn tensors<'a>(&'a self, decoder: &Decoder) -> Vec<Tensor<'a>> {
        let mut out = Vec::new();
        for ((name, matrix), kept) in ternary(decoder).zip(&self.0) {
            let mut put =
                |what, shape, data| out.push(Tensor { name: format!("{what}.{name}"), shape, data });
            put("start_scales", vec![kept.start_scales.len()], Data::F32(&kept.start_scales));
            if let Some(codes) = &kept.codes {
                let shape = vec![matrix.rows(), matrix.row_words()];
                put("start_codes", shape.clone(), Data::U32(&codes.start));
                put("last_codes", shape, Data::U32(&codes.last));
            }
        }
        out
    }

    /// Reads what [`Watch::tensors`] gave; earlier versions stored no codes.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn restore(&mut self, decoder: &Decoder, stored: &TensorFiles) -> Result<()> {
        let names: BTreeSet<&str> = stored.names().collect();
        for ((name, matrix), kept) in ternary(decoder).zip(&mut self.0) {
            let groups = kept.start_scales.len();
            stored.read_f32_into(&format!("start_scales.{name}"), &[groups], &mut kept.start_scales)?;
            let read = |what: &str| {
                let shape = [matrix.rows(), matrix.row_words()];
                let bytes = stored.tensor(&format!("{what}.{name}"))?.bytes_of(Dtype::U32, &shape)?;
                let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                Ok(words.collect::<Vec<u32>>())
            };
            kept.codes = match names.contains(format!("start_codes.{name}").as_str()) {
                true => Some(Codes { start: read("start_codes")?, last: read("last_codes")? }),
                false => None,
            };
        }
        Ok(())
    }
}

fn ternary(decoder: &Decoder) -> impl Iterator<Item = (&str, &TernaryMatrix)> {
    decoder.weights().filter_map(|w| Some((w.name.as_str(), w.ternary()?)))
}

/// Codes that differ.
fn changed(a: &[u32], b: &[u32]) -> u64 {
    a.iter().zip(b).map(|(a, b)| Flips::between(*a, *b).total()).sum()
}

/// Mean of `|s − s₀| / s₀`.
fn drift(start: &[f32], now: &[f32]) -> f64 {
    let drifts = start.iter().zip(now).filter(|(start, _)| **start > 0.0);
    let (sum, count) = drifts.fold((0.0, 0u64), |(sum, count), (start, now)| {
        (sum + ((now - start).abs() / start) as f64, count + 1)
    });
    sum / count.max(1) as f64
}
