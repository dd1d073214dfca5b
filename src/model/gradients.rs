//! Gradients apart from the weights that they belong to.

use super::Param;
use crate::kernels;

/// The gradients of some parameters: those of a layer, or of a model.
///
/// A backward pass reads the weights and adds to these. Several passes share the weights, each with gradients of its own.
///
/// ```
/// use ternlm::model::{Gradients, TernaryLinear};
/// let mut layer = TernaryLinear::new("layer", 256, 8, Default::default(), false, 0);
/// let (x, dy, mut dx) = ([1.0; 256], [0.5; 8], [0.0; 256]);
/// let mut grads = Gradients::take(layer.params_mut());
/// layer.backward(&x, &dy, &mut dx, false, &mut grads);
/// grads.put_back(layer.params_mut());
/// assert!(layer.weight.grad().iter().all(|g| *g == 0.5));
/// ```
#[derive(Debug, Default)]
pub struct Gradients(Vec<Vec<f32>>);

impl Gradients {
    /// Takes the gradients out of the parameters.
    pub fn take<'a>(params: impl IntoIterator<Item = &'a mut Param>) -> Self {
        Self(params.into_iter().enumerate().map(|(place, param)| param.take_grad(place)).collect())
    }

    /// Puts them back into the same parameters.
    pub fn put_back<'a>(self, params: impl IntoIterator<Item = &'a mut Param>) {
        let mut params = params.into_iter();
        for grad in self.0 {
            params.next().expect("as many parameters as gradients were taken").put_grad(grad);
        }
    }

    /// That of one of the parameters that these were taken from.
    pub fn of(&mut self, param: &Param) -> &mut [f32] {
        let place = param.place().unwrap_or_else(|| panic!("the gradient of {} was not taken", param.name));
        let grad = &mut self.0[place];
        assert_eq!(grad.len(), param.len(), "values in the gradient of {}", param.name);
        grad
    }

    /// Makes these as large as `other`, zeros where they are new.
    pub(super) fn fit(&mut self, other: &Gradients) {
        self.0.resize_with(other.0.len(), Vec::new);
        self.0.iter_mut().zip(&other.0).for_each(|(grad, other)| grad.resize(other.len(), 0.0));
    }

    /// Adds those of `other`, and leaves zeros there.
    pub(super) fn absorb(&mut self, other: &mut Gradients) {
        self.0.iter_mut().zip(&mut other.0).for_each(|(grad, other)| kernels::absorb(grad, other));
    }
}
