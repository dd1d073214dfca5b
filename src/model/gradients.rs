//! Gradients, a table beside the weights that they belong to.

use super::Weight;
use crate::kernels::{self, Buffer};

/// The gradients of some weights: those of a layer, or of a model, at the places of [`Weight::index`].
///
/// A backward pass reads the weights and adds to these. Several passes share the weights, each with gradients of its own.
///
/// ```
/// use ternlm::kernels::To;
/// use ternlm::model::{Gradients, Latents, Linear, Role};
/// let mut layer = Linear::new("layer", 256, 8, Role::FeedForward, Some(Default::default()), false);
/// let mut latents = Latents::random(layer.weights_mut(), 0, None)?;
/// let mut grads = Gradients::zeros(layer.weights());
/// let (x, dy, mut dx) = ([1.0; 256], [0.5; 8], [0.0; 256]);
/// layer.backward(&x, &dy, &mut dx, To::Set, &mut grads);
/// assert!(grads.get(&layer.weight).iter().all(|g| *g == 0.5));
/// # Ok::<(), ternlm::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Gradients {
    of: Vec<Buffer>,
    /// Something may have been added since all were zero.
    touched: bool,
}

impl Gradients {
    /// Zeros, as many as the weights have values.
    pub fn zeros<'a>(weights: impl IntoIterator<Item = &'a Weight>) -> Self {
        Self { of: weights.into_iter().map(|weight| Buffer::zeros(weight.len())).collect(), touched: false }
    }

    /// That of one of the weights, to be added to.
    pub fn of(&mut self, weight: &Weight) -> &mut [f32] {
        self.touched = true;
        let grad = &mut self.of[weight.index()];
        assert_eq!(grad.len(), weight.len(), "values in the gradient of {}", weight.name);
        grad
    }

    /// That of one of the weights.
    pub fn get(&self, weight: &Weight) -> &[f32] {
        &self.of[weight.index()]
    }

    /// Sets all to zero; costs nothing after a step of the optimizer, which leaves them there.
    pub fn zero(&mut self) {
        if std::mem::take(&mut self.touched) {
            self.of.iter_mut().for_each(|grad| kernels::fill_zero(grad));
        }
    }

    /// Whoever was handed them by [`Gradients::of`] has left zeros.
    pub fn left_at_zero(&mut self) {
        self.touched = false;
    }

    /// Makes these as large as `other`, zeros where they are new.
    pub(super) fn fit(&mut self, other: &Gradients) {
        self.of.resize_with(other.of.len(), Buffer::default);
        self.of.iter_mut().zip(&other.of).for_each(|(grad, other)| grad.resize(other.len()));
    }

    /// Adds those of `other`, and leaves zeros there.
    pub(super) fn absorb(&mut self, other: &mut Gradients) {
        self.touched = true;
        self.of.iter_mut().zip(&mut other.of).for_each(|(grad, other)| kernels::absorb(grad, other));
        other.touched = false;
    }
}
