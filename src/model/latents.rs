//! The full-precision values behind ternary weights.

use std::ops::Range;

use rayon::prelude::*;

use super::weight::{Form, number};
use super::{Role, Weight};
use crate::error::{Error, Result};
use crate::kernels::{self, Buffer, InputProducts, Updated};
use crate::ternary::{Flips, TernaryMatrix};

/// What a training keeps of each ternary weight beside its trits: latent values, of which the trits are the projection,
/// and how many trits have changed. At the places of [`Weight::index`]; a weight that is not ternary is its own latent.
#[derive(Clone, Debug, Default)]
pub struct Latents {
    /// Empty for a weight that is not ternary.
    values: Vec<Buffer>,
    /// Trits that changed since [`Latents::take_flips`].
    flips: Vec<Flips>,
    /// Room for the values of weights that are annealed, between their uses; empty where none is.
    annealed: Vec<Buffer>,
}

impl Latents {
    /// Random matrices, normal with standard deviation `std`, or `fan_in^-1/2` of each; gains and biases stay as they are.
    ///
    /// # Errors
    /// A standard deviation that f16 cannot hold as a scale.
    pub fn random<'a>(
        weights: impl IntoIterator<Item = &'a mut Weight>,
        seed: u64,
        std: Option<f32>,
    ) -> Result<Self> {
        let mut weights: Vec<&mut Weight> = weights.into_iter().collect();
        number(weights.iter_mut().map(|weight| &mut **weight));
        let start = |weight: &mut &mut Weight| {
            if !weight.role.is_matrix() {
                return Ok(Buffer::default());
            }
            let std = std.unwrap_or((weight.shape[1] as f32).powf(-0.5));
            let values = weight.normal(std, seed);
            place(weight, values)
        };
        let values = weights.par_iter_mut().map(start).collect::<Result<Vec<_>>>()?;
        Ok(Self { flips: vec![Flips::default(); values.len()], values, annealed: Vec::new() })
    }

    /// Room for those of so many weights, to be filled by [`Latents::set`] or [`Latents::adopt`].
    pub fn with_places(count: usize) -> Self {
        let annealed = Vec::new();
        Self { values: vec![Buffer::default(); count], flips: vec![Flips::default(); count], annealed }
    }

    /// Takes the values of a weight and projects them, if it is ternary.
    ///
    /// # Errors
    /// A value that is not finite, by the tensor's name.
    pub fn set(&mut self, weight: &mut Weight, values: Vec<f32>) -> Result<()> {
        self.values[weight.index()] = place(weight, values)?;
        Ok(())
    }

    /// Takes a matrix that is ternary already, which is never projected again, and makes latents whose projection it is.
    pub fn adopt(&mut self, weight: &mut Weight, matrix: TernaryMatrix) {
        let grouping = weight.grouping().expect("only a ternary weight adopts a ternary matrix");
        self.values[weight.index()] = matrix.latents(grouping).into();
        weight.adopt(matrix);
    }

    /// The values that a training changes: latents, or those of the weight itself.
    pub fn of<'a>(&'a self, weight: &'a Weight) -> &'a [f32] {
        match weight.form {
            Form::Ternary(..) => &self.values[weight.index()],
            Form::Dense(ref values) => values,
            Form::Packed(_) => panic!("{} is packed, to run and not to train", weight.name),
        }
    }

    /// Lets `step` update the latents, their projection and the gradient, which it leaves at zero, by
    /// [`kernels::update`]; what that measured.
    ///
    /// # Errors
    /// As `step`.
    pub fn update(
        &mut self,
        weight: &mut Weight,
        grad: &mut [f32],
        step: impl FnOnce(kernels::Latents<'_>) -> Result<Updated>,
    ) -> Result<Updated> {
        let index = weight.index();
        let cols = *weight.shape.last().expect("a tensor has a shape");
        let (value, ternary) = match &mut weight.form {
            Form::Ternary(grouping, matrix) => (&mut *self.values[index], Some((*grouping, matrix))),
            Form::Dense(values) => (&mut **values, None),
            Form::Packed(_) => panic!("{} is packed, to run and not to train", weight.name),
        };
        let done = step(kernels::Latents { name: &weight.name, cols, value, grad, ternary })?;
        self.flips[index] += done.flips;
        Ok(done)
    }

    /// Until [`Latents::harden`], layers multiply with `(1 - ε) ŵ + ε w` in place of ternary weights `ŵ`, where `w` are the
    /// latents and `ε` is the `residual` of the weight's role. One of 0 leaves the trits, and gives the memory back.
    pub fn soften<'a>(
        &mut self,
        weights: impl IntoIterator<Item = &'a mut Weight>,
        residual: impl Fn(Role) -> f32,
    ) {
        for weight in weights {
            let (index, residual) = (weight.index(), residual(weight.role));
            let Form::Ternary(_, matrix) = &weight.form else { continue };
            if residual == 0.0 {
                if let Some(values) = self.annealed.get_mut(index) {
                    *values = Buffer::default();
                }
                continue;
            }
            self.annealed.resize_with(self.values.len(), Buffer::default);
            let mut values = std::mem::take(&mut self.annealed[index]);
            values.resize(weight.len());
            kernels::anneal(matrix, &self.values[index], residual, &mut values);
            weight.annealed = Some(values);
        }
    }

    /// Layers multiply with trits again.
    pub fn harden<'a>(&mut self, weights: impl IntoIterator<Item = &'a mut Weight>) {
        for weight in weights {
            if let Some(values) = weight.annealed.take() {
                self.annealed[weight.index()] = values;
            }
        }
    }

    /// What products were last with in place of the trits of a weight, if it is annealed.
    pub fn annealed(&self, weight: &Weight) -> Option<&[f32]> {
        self.annealed.get(weight.index()).filter(|values| !values.is_empty()).map(|values| &values[..])
    }

    /// Replaces the latents of ternary weights that multiply the same inputs by such as keep their outputs on these
    /// ([`kernels::calibrate`]); none of them is annealed then.
    ///
    /// # Errors
    /// Inputs that are not finite, by the name of the first weight.
    pub fn calibrate(
        &mut self,
        weights: Vec<&mut Weight>,
        inputs: &InputProducts,
        group: usize,
    ) -> Result<()> {
        let ternary = weights.into_iter().filter(|weight| weight.ternary().is_some());
        let take = |weight: &mut &mut Weight| std::mem::take(&mut self.values[weight.index()]);
        let mut weights: Vec<&mut Weight> = ternary.collect();
        let values: Vec<Buffer> = weights.iter_mut().map(take).collect();
        let mut all: Vec<(&mut Weight, Buffer)> = weights.into_iter().zip(values).collect();
        let mut several: Vec<&mut [f32]> = all.iter_mut().map(|(_, values)| &mut values[..]).collect();
        let finite = kernels::calibrate(inputs, group, &mut several);
        for (weight, values) in all {
            if !finite {
                let detail = "what it multiplies, on the text that it is to be calibrated on".into();
                return Err(Error::NotFinite { tensor: weight.name.clone(), detail });
            }
            weight.annealed = None;
            weight.set(&values)?;
            self.values[weight.index()] = values;
        }
        Ok(())
    }

    /// [`Latents::update`] of some rows, which leaves the projection as it was; all of the gradient becomes zero.
    ///
    /// # Errors
    /// As `step`.
    pub fn update_rows(
        &mut self,
        weight: &mut Weight,
        grad: &mut [f32],
        rows: Range<usize>,
        step: impl FnOnce(kernels::Latents<'_>) -> Result<Updated>,
    ) -> Result<Updated> {
        let cols = *weight.shape.last().expect("a tensor has a shape");
        let values = rows.start * cols..rows.end * cols;
        let done = if rows.is_empty() {
            Updated::default()
        } else {
            let name = &weight.name;
            let value = match &mut weight.form {
                Form::Ternary(..) => &mut self.values[weight.index()][values.clone()],
                Form::Dense(all) => &mut all[values.clone()],
                Form::Packed(_) => panic!("{name} is packed, to run and not to train"),
            };
            let grad = &mut grad[values];
            step(kernels::Latents { name, cols, value, grad, ternary: None })?
        };
        kernels::fill_zero(grad);
        Ok(done)
    }

    /// Takes the values of a weight away, to be changed elsewhere and [`put`](Latents::put) back.
    pub fn take(&mut self, weight: &mut Weight) -> Buffer {
        match &mut weight.form {
            Form::Dense(values) => std::mem::take(values),
            _ => std::mem::take(&mut self.values[weight.index()]),
        }
    }

    /// Puts them back and brings the projection up to date.
    ///
    /// # Errors
    /// A value that is not finite, by the tensor's name.
    pub fn put(&mut self, weight: &mut Weight, values: Buffer) -> Result<()> {
        if let Form::Dense(own) = &mut weight.form {
            *own = values;
            return Ok(());
        }
        self.flips[weight.index()] += weight.set(&values)?;
        self.values[weight.index()] = values;
        Ok(())
    }

    /// Trits of the weight that changed since this was last asked.
    pub fn take_flips(&mut self, weight: &Weight) -> Flips {
        std::mem::take(&mut self.flips[weight.index()])
    }

    /// Trits of the weight that changed since [`Latents::take_flips`], left standing.
    pub fn flips(&self, weight: &Weight) -> Flips {
        self.flips[weight.index()]
    }

    /// For a training that goes on from a checkpoint.
    pub fn set_flips(&mut self, weight: &Weight, flips: Flips) {
        self.flips[weight.index()] = flips;
    }
}

/// Makes `values` those of the weight; its latents, if it is ternary.
fn place(weight: &mut Weight, values: Vec<f32>) -> Result<Buffer> {
    weight.set(&values)?;
    Ok(if weight.ternary().is_some() { values.into() } else { Buffer::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MomentFormat;
    use crate::kernels::{Moments, Pass, Rule};
    use crate::model::Gradients;
    use crate::ternary::Grouping;

    #[test]
    fn gradients_are_zero_after_a_step_and_after_one_that_failed() {
        let mut weight = Weight::new("w", &[2, 3], Role::Attention, Some(Grouping::Size(2)));
        let mut latents = Latents::with_places(1);
        latents.set(&mut weight, vec![0.0; 6]).unwrap();
        let mut grads = Gradients::zeros([&weight]);
        let rule = Rule::Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.0, grad_scale: 1.0 };
        let mut moments = Moments::zeros(MomentFormat::F32, 1, 2, 3);
        let mut step = |weight: &mut Weight, latents: &mut Latents, grads: &mut Gradients| {
            let grad = grads.of(weight);
            latents.update(weight, grad, |l| kernels::update(&rule, l, &mut moments, Pass::default()))
        };
        grads.of(&weight)[1] = 2.0;
        step(&mut weight, &mut latents, &mut grads).unwrap();
        assert_eq!((grads.get(&weight), latents.of(&weight)[1]), (&[0.0; 6][..], -2.0));
        assert_eq!(weight.ternary().unwrap().trit(0, 1), -1);
        // Abandoned before the step, and in it.
        grads.of(&weight)[5] = f32::NAN;
        grads.zero();
        assert_eq!(grads.get(&weight), [0.0; 6]);
        grads.of(&weight)[5] = f32::NAN;
        assert!(step(&mut weight, &mut latents, &mut grads).is_err());
        grads.of(&weight)[0] = 1.0;
        grads.zero();
        assert_eq!(grads.get(&weight), [0.0; 6]);
        assert_eq!(latents.take_flips(&weight).total(), 1, "a step that failed counts no flips");
    }
}
