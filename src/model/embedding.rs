//! Token embeddings, full-precision and ternary, also used as the output head when the two are tied.

use super::{Gradients, Role, Weight};
use crate::kernels::{self, To};
use crate::ternary::Grouping;

/// A row of width `C` for each of `V` tokens. With a grouping the rows are ternary, groups along the width: see
/// [`Linear`](super::Linear) for what that means and why it trains.
///
/// ```
/// use ternlm::model::{Embedding, Latents};
/// let mut embedding = Embedding::new("embed", 10, 64, Some(Default::default()));
/// Latents::random([&mut embedding.weight], 0, None)?;
/// let mut x = [0.0; 128];
/// embedding.forward(&[3, 7], &mut x);
/// let mut logits = [0.0; 20];
/// embedding.logits(&x, &mut logits);
/// assert!(logits[3] > logits[7], "a row is most like itself");
/// # Ok::<(), ternlm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Embedding {
    /// `[V, C]`
    pub weight: Weight,
}

impl Embedding {
    /// Zeros, or no trits yet ([`Weight::unfilled`]).
    pub fn new(name: &str, vocab: usize, width: usize, grouping: Option<Grouping>) -> Self {
        Self {
            weight: Weight::unfilled(format!("{name}.weight"), &[vocab, width], Role::Embedding, grouping),
        }
    }

    /// `x[n] = W[tokens[n]]`
    pub fn forward(&self, tokens: &[u32], x: &mut [f32]) {
        kernels::gather(self.weight.matrix(), tokens, x);
    }

    /// `dW[tokens[n]] += dx[n]`
    pub fn backward(&self, tokens: &[u32], dx: &[f32], grads: &mut Gradients) {
        let width = self.weight.shape[1];
        kernels::scatter_add(grads.of(&self.weight), width, tokens, dx);
    }

    /// As a linear layer, for a tied head: `logits = h Wᵀ`.
    pub fn logits(&self, h: &[f32], logits: &mut [f32]) {
        kernels::linear::forward(h, self.weight.matrix(), logits, To::Set);
    }
}
