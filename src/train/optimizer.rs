//! The optimizers and their state, one slot a parameter in the decoder's order.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use crate::config::{MomentFormat, OptimizerKind, TrainConfig};
use crate::error::{Error, Result};
use crate::formats::tensors::{Data, Dtype, Tensor, TensorFiles};
use crate::kernels::{self, AdamW, BLOCK, Moments, Pass, Rule};
use crate::model::{Decoder, Gradients, Latents, Weight};

use super::muon::{self, Momentum, Muon};
use super::scales::Scales;
use super::schedule::{At, weight_decay};
use super::shards::{self, Shards};
use super::together::Together;

/// What a step changes: the weights of a decoder through their latents, and the gradients.
pub struct Trained<'a> {
    pub decoder: &'a mut Decoder,
    pub latents: &'a mut Latents,
    pub grads: &'a mut Gradients,
}

/// Values of matrices whose updates wait together to be made orthogonal under Muon, side by side, so that no thread waits
/// for another: 32 MiB.
const TOGETHER: usize = 1 << 23;

#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    format: MomentFormat,
    slots: Vec<Moments>,
    /// Of groups, where they are learned.
    scales: Scales,
    /// Where other processes keep the rest: which rows of each weight these are of.
    shards: Option<Arc<Shards>>,
}

impl Optimizer {
    /// The one of `t`, all moments at zero.
    pub fn new(t: &TrainConfig, decoder: &Decoder) -> Self {
        let (kind, format) = (t.optimizer, t.moments);
        let slot = |w: &Weight| {
            let count = if kind_for(kind, w) == OptimizerKind::AdamW { 2 } else { 1 };
            match w.shape[..] {
                [rows, cols] => Moments::zeros(format, count, rows, cols),
                // Norms and biases: too few to save anything by.
                _ => Moments::zeros(MomentFormat::F32, count, 1, w.len()),
            }
        };
        let slots = decoder.weights().map(slot).collect();
        Self { kind, format, slots, scales: Scales::default(), shards: None }
    }

    /// From now on every group's scale is a number of its own, which the latents have to begin with.
    pub fn learn_scales(&mut self, decoder: &Decoder, latents: &Latents) {
        self.scales = Scales::of(decoder, latents);
    }

    /// What is kept where, since [`Optimizer::keep_own`].
    pub fn shards(&self) -> Option<&Arc<Shards>> {
        self.shards.as_ref()
    }

    /// Whether a step needs all of a weight at once.
    pub fn takes_whole(&self, weight: &Weight) -> bool {
        kind_for(self.kind, weight) == OptimizerKind::Muon
    }

    /// Keeps the moments of the own rows alone, and updates no others from now on: the latents of the other rows, and all
    /// projections of such weights, are to be brought up to date after each step ([`Together::gather_latents`]).
    pub fn keep_own(&mut self, decoder: &Decoder, shards: Arc<Shards>) {
        for (weight, slot) in decoder.weights().zip(&mut self.slots) {
            if let Some(rows) = shards.own_rows(weight) {
                *slot = slot.rows(rows, shards::shape(weight)[1]);
            }
        }
        self.shards = Some(shards);
    }

    /// One step with the gradients as they stand. Matrices alone are decayed. Projections are brought up to date, and
    /// gradients are zero afterwards. `updates`, if given, gets the root mean square of what the step added to each weight.
    ///
    /// # Errors
    /// A latent that is no longer finite, by its tensor's name.
    pub fn step(
        &mut self,
        trained: Trained<'_>,
        t: &TrainConfig,
        at: At,
        mut updates: Option<&mut Vec<f64>>,
    ) -> Result<()> {
        let Trained { decoder, latents, grads } = trained;
        let At { step, factor, grad_scale } = at;
        let adamw = at.adamw(t);
        let lr = adamw.lr;
        if let Some(updates) = &mut updates {
            updates.clear();
        }
        let decay = weight_decay(t, step);
        let rule = Muon { lr: t.muon_lr * factor, momentum: t.momentum, weight_decay: decay, grad_scale };
        // Before Muon takes the gradients.
        self.scales.step(decoder, latents, grads, t, at);
        let measure = updates.is_some();
        let pass = |nth| Pass { measure, dither: kernels::dither_key(step, nth), ..Pass::default() };
        let kind = self.kind;
        let mut all: Vec<(&mut Weight, &mut Moments)> = decoder.weights_mut().zip(&mut self.slots).collect();
        // Muon's updates of the next matrices.
        let mut orthogonal = VecDeque::new();
        for nth in 0..all.len() {
            if orthogonal.is_empty() {
                let next = all.iter_mut().enumerate().skip(nth);
                let next = next.filter(|(_, (weight, _))| kind_for(kind, weight) == OptimizerKind::Muon);
                let next = next.map(|(nth, (weight, moments))| (pass(nth), &**weight, &mut **moments));
                orthogonal = orthogonal_updates(next, &rule, grads, t)?;
            }
            let (weight, slot) = &mut all[nth];
            let weight_decay = if weight.role.is_matrix() { decay } else { 0.0 };
            let kind = kind_for(kind, weight);
            let rows = self.shards.as_ref().and_then(|shards| shards.own_rows(weight));
            let first_row = rows.as_ref().map_or(0, |rows| rows.start);
            let pass = Pass { first_row, means: self.scales.means(weight), ..pass(nth) };
            let update = |latents: kernels::Latents<'_>| match kind {
                OptimizerKind::AdamW => {
                    kernels::update(&Rule::AdamW(AdamW { weight_decay, ..adamw }), latents, slot, pass)
                }
                OptimizerKind::Sgd => {
                    let rule = Rule::Sgd { lr, momentum: t.momentum, weight_decay, grad_scale };
                    kernels::update(&rule, latents, slot, pass)
                }
                OptimizerKind::Muon => {
                    let mut update = orthogonal.pop_front().expect("an update for each");
                    muon::apply(&rule, latents, &mut update, pass)
                }
            };
            let done = match rows {
                Some(rows) => latents.update_rows(weight, grads.of(weight), rows, update)?,
                None => latents.update(weight, grads.of(weight), update)?,
            };
            if let Some(updates) = &mut updates {
                updates.push((done.squares / weight.len().max(1) as f64).sqrt());
            }
        }
        grads.left_at_zero();
        Ok(())
    }

    /// The state as tensors to store: `first.NAME` and `second.NAME`; of 8-bit moments `first.codes.NAME` (I8),
    /// `second.codes.NAME` (U8) and, of their blocks, `first.scales.NAME` and `second.scales.NAME`; those of [`Scales::tensors`].
    /// Where moments are shared
    /// out, each tensor is fetched from all processes of `together` as it is written, which all of them have to do in one order.
    pub fn tensors<'a>(&'a self, decoder: &'a Decoder, together: &'a Together) -> Vec<Tensor<'a>> {
        let mut out = Vec::new();
        for (weight, slot) in decoder.weights().zip(&self.slots) {
            // Asked of the rule: this process may have no rows of them.
            let two = kind_for(self.kind, weight) == OptimizerKind::AdamW;
            let rows = self.shards.as_ref().and_then(|shards| shards.rows(weight));
            let mut put = |prefix: &str, shape: &[usize], data: Data<'a>| {
                let name = format!("{prefix}.{}", weight.name);
                let width = if shape.len() == 2 { shape[1] } else { weight.len() };
                let data = match rows {
                    Some(rows) => {
                        fetched(data, rows.iter().map(|rows| rows.len() * width).collect(), together)
                    }
                    None => data,
                };
                out.push(Tensor { name, shape: shape.to_vec(), data });
            };
            match slot {
                Moments::F32 { first, second } => {
                    put("first", &weight.shape, Data::F32(first));
                    if two {
                        put("second", &weight.shape, Data::F32(second));
                    }
                }
                Moments::Int8 { first, second } => {
                    put("first.codes", &weight.shape, Data::I8(&first.codes));
                    put("first.scales", &scale_shape(weight), Data::F32(&first.scales));
                    if two {
                        put("second.codes", &weight.shape, Data::U8(&second.codes));
                        put("second.scales", &scale_shape(weight), Data::F32(&second.scales));
                    }
                }
            }
        }
        out.extend(self.scales.tensors(decoder));
        out
    }

    /// Reads what [`Optimizer::tensors`] gave.
    ///
    /// # Errors
    /// Moments of another optimizer or format, or a tensor that is not as it was given.
    pub fn restore(&mut self, decoder: &Decoder, stored: &TensorFiles) -> Result<()> {
        let coded = stored.names().any(|name| name.starts_with("first.codes."));
        let wanted = if coded { MomentFormat::Int8 } else { MomentFormat::F32 };
        if self.format != wanted {
            let found = self.format;
            return Err(Error::usage(format!(
                "train.moments: found {found}, wanted {wanted}, as in the checkpoint that the training goes on from"
            )));
        }
        if let Some(wanted) = kind_of(decoder, stored)
            && self.kind != wanted
        {
            return Err(Error::usage(format!(
                "train.optimizer: found {}, wanted {wanted}, as in the checkpoint that the training goes on from",
                self.kind
            )));
        }
        let shards = self.shards.clone();
        for (weight, slot) in decoder.weights().zip(&mut self.slots) {
            // Of a tensor of that shape the values that are kept here, where not all are.
            let own = |shape: &[usize]| {
                let rows = shards.as_ref()?.own_rows(weight)?;
                let width = shape.iter().product::<usize>() / shards::shape(weight)[0].max(1);
                Some(rows.start * width..rows.end * width)
            };
            let read = |prefix: &str, shape: &[usize], out: &mut [f32]| {
                let name = format!("{prefix}.{}", weight.name);
                let Some(own) = own(shape) else { return stored.read_f32_into(&name, shape, out) };
                let mut all = vec![0.0; shape.iter().product()];
                stored.read_f32_into(&name, shape, &mut all)?;
                out.copy_from_slice(&all[own]);
                Ok(())
            };
            let codes = |prefix: &str, dtype: Dtype| {
                let all =
                    stored.tensor(&format!("{prefix}.{}", weight.name))?.bytes_of(dtype, &weight.shape)?;
                Ok::<_, Error>(own(&weight.shape).map_or(all, |own| &all[own]))
            };
            match slot {
                Moments::F32 { first, second } => {
                    read("first", &weight.shape, first)?;
                    if !second.is_empty() {
                        read("second", &weight.shape, second)?;
                    }
                }
                Moments::Int8 { first, second } => {
                    let bytes = codes("first.codes", Dtype::I8)?;
                    first.codes.iter_mut().zip(bytes).for_each(|(c, b)| *c = *b as i8);
                    read("first.scales", &scale_shape(weight), &mut first.scales)?;
                    if !second.codes.is_empty() {
                        second.codes.copy_from_slice(codes("second.codes", Dtype::U8)?);
                        read("second.scales", &scale_shape(weight), &mut second.scales)?;
                    }
                }
            }
        }
        self.scales.restore(decoder, stored)
    }
}

/// The optimizer whose moments these are: each keeps second moments of other parameters.
fn kind_of(decoder: &Decoder, stored: &TensorFiles) -> Option<OptimizerKind> {
    let second = |p: &&Weight| {
        ["second", "second.codes"].iter().any(|of| stored.contains(&format!("{of}.{}", p.name)))
    };
    let muons = |p: &&Weight| kind_for(OptimizerKind::Muon, p) == OptimizerKind::Muon;
    let (inside, outside): (Vec<&Weight>, Vec<&Weight>) = decoder.weights().partition(muons);
    match (inside.iter().any(second), outside.iter().any(second)) {
        (true, true) => Some(OptimizerKind::AdamW),
        (false, true) => Some(OptimizerKind::Muon),
        (false, false) => Some(OptimizerKind::Sgd),
        (true, false) => None,
    }
}

/// The updates of the first of these matrices, as many as [`TOGETHER`] holds.
fn orthogonal_updates<'a>(
    matrices: impl Iterator<Item = (Pass<'a>, &'a Weight, &'a mut Moments)>,
    rule: &Muon,
    grads: &mut Gradients,
    t: &TrainConfig,
) -> Result<VecDeque<Vec<f32>>> {
    let (mut updates, mut values) = (Vec::new(), 0);
    for (pass, weight, moments) in matrices {
        values += weight.len();
        if !updates.is_empty() && values > TOGETHER {
            break;
        }
        let [rows, cols] = weight.shape[..] else { unreachable!("a matrix") };
        let grad = grads.of(weight);
        let signs = t.cautious.then(|| grad.to_vec());
        let matrix = Momentum { name: &weight.name, cols, grad, moments };
        updates.push(([rows, cols], muon::gather(rule, matrix, pass)?, signs));
    }
    let orthogonal = kernels::side_by_side(updates, |(_, ([rows, cols], mut update, signs))| {
        muon::orthogonalise(rows, cols, &mut update, t.muon_steps, t.precision);
        if let Some(signs) = signs {
            kernels::cautious(&mut update, &signs);
        }
        update
    });
    Ok(orthogonal.into())
}

/// A part of a tensor, of which each process has so many elements, as the whole of it.
fn fetched<'a>(part: Data<'a>, lens: Vec<usize>, together: &'a Together) -> Data<'a> {
    let (dtype, width) = (part.dtype(), part.dtype().bitsize() / 8);
    let bytes = move || -> Vec<u8> {
        match &part {
            Data::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::I8(x) => x.iter().map(|x| *x as u8).collect(),
            Data::U8(x) => x.to_vec(),
            _ => unreachable!("moments are F32, I8 or U8"),
        }
    };
    let lens: Vec<usize> = lens.into_iter().map(|len| len * width).collect();
    let write = move |out: &mut dyn Write| {
        let all = together.joined(bytes(), &lens)?;
        out.write_all(&all).map_err(Error::io("write", "the moments"))
    };
    Data::Stream { dtype, write: Box::new(write) }
}

/// Of the scales of a matrix's moments.
fn scale_shape(weight: &Weight) -> [usize; 2] {
    [weight.shape[0], weight.shape[1].div_ceil(BLOCK)]
}

/// Muon is for the matrices inside the blocks; embedding, head, gains and biases are AdamW's.
fn kind_for(kind: OptimizerKind, weight: &Weight) -> OptimizerKind {
    match kind {
        OptimizerKind::Muon if !weight.role.is_projection() => OptimizerKind::AdamW,
        kind => kind,
    }
}
