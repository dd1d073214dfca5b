//! Token embeddings, full-precision and ternary, also used as the output head when the two are tied.

use std::ops::{Deref, DerefMut};

use super::{Gradients, Param};
use crate::kernels;
use crate::ternary::Grouping;

/// A row of width `C` for each of `V` tokens. With a grouping the rows are ternary, groups along the width.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// `[V, C]`
    pub weight: Param,
}

impl Embedding {
    /// All zeros.
    pub fn new(name: &str, vocab: usize, width: usize, grouping: Option<Grouping>) -> Self {
        Self { weight: Param::new(format!("{name}.weight"), &[vocab, width], grouping) }
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
        kernels::linear::forward(h, self.weight.matrix(), logits, false);
    }
}

/// An embedding of ternary rows: see [`TernaryLinear`](super::TernaryLinear) for what that means and why it trains.
#[derive(Clone, Debug)]
pub struct TernaryEmbedding(Embedding);

impl TernaryEmbedding {
    /// Latents from a normal distribution of standard deviation `width^-1/2`, projected, gradients at zero.
    ///
    /// ```
    /// use ternlm::model::TernaryEmbedding;
    /// let embedding = TernaryEmbedding::new("embed", 10, 64, Default::default(), 0);
    /// let mut x = [0.0; 128];
    /// embedding.forward(&[3, 7], &mut x);
    /// let mut logits = [0.0; 20];
    /// embedding.logits(&x, &mut logits);
    /// assert!(logits[3] > logits[7], "a row is most like itself");
    /// ```
    pub fn new(name: &str, vocab: usize, width: usize, grouping: Grouping, seed: u64) -> Self {
        let mut layer = Embedding::new(name, vocab, width, Some(grouping));
        layer.weight.init_normal((width as f32).powf(-0.5), seed);
        layer.weight.project().expect("normal numbers are finite");
        layer.weight.zero_grad();
        Self(layer)
    }
}

impl Deref for TernaryEmbedding {
    type Target = Embedding;
    fn deref(&self) -> &Embedding {
        &self.0
    }
}

impl DerefMut for TernaryEmbedding {
    fn deref_mut(&mut self) -> &mut Embedding {
        &mut self.0
    }
}
