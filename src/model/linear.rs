//! Linear layers, full-precision and ternary, behind one interface.

use std::ops::Deref;

use super::{Gradients, Role, Weight};
use crate::kernels::{Buffer, To, linear as kernel};
use crate::ternary::Grouping;

/// `y = x Wᵀ + b`. Without a grouping the weight is in full precision. With one it is `Ŵ = s t`: trits `t` and one scale
/// `s` for each group of inputs of each row; everything else is the same.
///
/// ```
/// use ternlm::kernels::To;
/// use ternlm::model::{Latents, Linear, Role};
/// let mut layer = Linear::new("layer", 256, 8, Role::FeedForward, Some(Default::default()), false);
/// let latents = Latents::random(layer.weights_mut(), 0, None)?;
/// let mut y = [0.0; 8];
/// layer.forward(&[1.0; 256], &mut y, To::Set);
/// let weights = layer.weight.ternary().unwrap();
/// assert!((-1..=1).contains(&weights.trit(3, 17)));
/// assert_eq!(weights.scales().len(), 8 * 256 / 128);
/// assert_eq!(latents.of(&layer.weight).len(), 8 * 256);
/// # Ok::<(), ternlm::Error>(())
/// ```
///
/// A training keeps full-precision *latent* weights `W` ([`Latents`](super::Latents)), which are projected: in every group
/// `s = mean|W|`, rounded to f16, and `t = 0` where `|W| <= s/2`, else the sign of `W`. Forward and the input gradient
/// use `Ŵ` and nothing else, so what is trained is exactly what is stored.
///
/// **Why the straight-through estimator works.** The projection is a staircase: its derivative is 0 almost everywhere
/// and says nothing. Backward therefore pretends that `Ŵ = W` and hands the gradient at `Ŵ` to the latent
/// (`dW := dŴ`, with `s` held constant; Bengio et al., arXiv 1308.3432). A single step often changes no trit at all,
/// but the latent remembers it: gradients that keep pointing one way add up until the latent crosses `±s/2` and the
/// trit moves, while those that cancel leave it where it is. Latents are the optimizer's memory of small steps; that
/// is also why they must be f32 although the weights are not.
///
/// **Why a scale for each group and not one for all.** Rows and input columns of a trained matrix differ in size by an
/// order of magnitude. With a single scale the threshold `s/2` is right for none of them: large groups lose their
/// detail (everything is ±1, the sizes are gone) and small groups lose everything (all 0, and a group of zeros passes
/// no signal from its inputs). Groups of 128 cost 16 / 128 = 0.125 bits a weight and give each its own threshold.
/// `Grouping::Tensor` is there to see the difference.
///
/// **Why tiny scales at the start are a trap.** The scale follows the latents: `s = mean|W|`. Initialised with a
/// standard deviation of 1e-4, the layer's output starts 1e-4 times too small, and a learning rate of 1e-3 moves every
/// latent by ten times its size at the first step, so that the trits are thrown again like dice at each of the first
/// steps; below 6e-8 the scale is 0 in f16 and the group is dead: its output is 0 and no gradient flows back through
/// it. `fan_in^-1/2` (the default) keeps outputs near unit variance and steps small against `s`.
///
/// **How weight decay pulls.** Decay multiplies all latents of a group by the same factor, and `s` with them: no trit
/// changes by decay alone. What changes is the ratio of a gradient step to `s`, so decay raises the effective learning
/// rate, step by step, until steps and decay are in balance. That helps early, when trits must be found, and hurts
/// late, when they should settle: hence `weight_decay_until`, and recipes that decay the learning rate to zero.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Weight,
    /// `[out]`, never ternary.
    pub bias: Option<Weight>,
}

impl Linear {
    /// Zeros, or no trits yet ([`Weight::unfilled`]); `name` is that of the module, `name.weight` and `name.bias` those of
    /// the tensors.
    pub fn new(
        name: &str,
        inputs: usize,
        out: usize,
        role: Role,
        grouping: Option<Grouping>,
        bias: bool,
    ) -> Self {
        Self {
            weight: Weight::unfilled(format!("{name}.weight"), &[out, inputs], role, grouping),
            bias: bias.then(|| Weight::new(format!("{name}.bias"), &[out], Role::Bias, None)),
        }
    }

    /// `y (+)= x Wᵀ + b`, `x` `[n, in]`, `y` `[n, out]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], to: To) {
        kernel::forward(x, self.weight.matrix(), y, to);
        if let Some(bias) = &self.bias {
            kernel::add_bias(bias.dense(), y);
        }
    }

    /// [`Linear::forward`] of several that share their inputs, each to its own `y`.
    pub fn forward_each<'a>(x: &[f32], several: impl IntoIterator<Item = (&'a Linear, &'a mut Buffer)>) {
        let mut several: Vec<_> = several.into_iter().collect();
        kernel::forward_each(x, several.iter_mut().map(|(linear, y)| (linear.weight.matrix(), &mut **y)));
        for (linear, y) in several {
            if let Some(bias) = &linear.bias {
                kernel::add_bias(bias.dense(), y);
            }
        }
    }

    /// `dx = dy W`, `dW += dyᵀ x`, `db += sum of dy`.
    pub fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], grads: &mut Gradients) {
        Self::backward_each(x, &[(self, &dy)], dx, grads);
    }

    /// Mirror of [`Linear::forward_each`]: from the `dy` of each the gradients of all weights, and `dx`, their sum.
    pub fn backward_each<D: Deref<Target = [f32]>>(
        x: &[f32],
        several: &[(&Linear, &D)],
        dx: &mut [f32],
        grads: &mut Gradients,
    ) {
        let first = several[0].0.weight.matrix();
        let outs = several.iter().map(|(linear, _)| linear.weight.shape[0]);
        kernel::as_used(x, first, |x| {
            let x = kernel::SharedInputs::new(x, outs, first.cols(), first.precision());
            for (linear, dy) in several {
                let out = linear.weight.shape[0];
                x.backward_weight(dy, out, grads.of(&linear.weight), out);
            }
        });
        for (nth, (linear, dy)) in several.iter().enumerate() {
            if let Some(bias) = &linear.bias {
                kernel::backward_bias(dy, grads.of(bias));
            }
            kernel::backward_input(dy, linear.weight.matrix(), dx, To::Set.part(nth == 0));
        }
    }

    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    pub fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}
