//! One tensor that is trained.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::Activations;
use crate::error::Result;
use crate::kernels::{self, Matrix};
use crate::ternary::{Flips, Grouping, TernaryMatrix};

/// A tensor under its Hugging Face name: latent values, their gradient and, if it is ternary, its projection.
///
/// The projection is what every layer computes with; [`Param::project`] must be called after the values have changed.
#[derive(Clone, Debug, Default)]
pub struct Param {
    pub name: String,
    /// `[out, in]`, or `[width]` of a gain or bias.
    pub shape: Vec<usize>,
    /// Latent values; empty when only the projection is kept (inference).
    pub value: Vec<f32>,
    /// Same shape as `value`; empty until training begins.
    pub grad: Vec<f32>,
    ternary: Option<(Grouping, TernaryMatrix)>,
    /// Of products with the tensor, if it is ternary.
    pub activations: Activations,
    /// Trits that changed since [`Param::take_flips`].
    flips: Flips,
}

impl Param {
    /// Zeros. With a `grouping` the tensor, a matrix, is ternary.
    pub fn new(name: impl Into<String>, shape: &[usize], grouping: Option<Grouping>) -> Self {
        let ternary = grouping.map(|g| (g, TernaryMatrix::zeros(shape[0], shape[1], g)));
        let value = vec![0.0; shape.iter().product()];
        Self { name: name.into(), shape: shape.to_vec(), value, ternary, ..Self::default() }
    }

    /// Ones: the gain of a norm.
    pub fn ones(name: impl Into<String>, width: usize) -> Self {
        let mut param = Self::new(name, &[width], None);
        param.value.fill(1.0);
        param
    }

    /// Number of values, also when only the projection is kept.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }

    /// The projection, if the tensor is ternary.
    pub fn ternary(&self) -> Option<&TernaryMatrix> {
        self.ternary.as_ref().map(|(_, matrix)| matrix)
    }

    pub fn grouping(&self) -> Option<Grouping> {
        self.ternary.as_ref().map(|(grouping, _)| *grouping)
    }

    /// What the layers multiply with.
    pub fn matrix(&self) -> Matrix<'_> {
        match &self.ternary {
            Some((_, matrix)) if self.activations == Activations::Int8 => Matrix::TernaryInt8(matrix),
            Some((_, matrix)) => Matrix::Ternary(matrix),
            None => Matrix::Dense { data: &self.value, rows: self.shape[0], cols: self.shape[1] },
        }
    }

    /// Normal numbers of that standard deviation, from a stream of their own: they depend on the seed and the name
    /// alone, not on what else the model holds.
    pub fn init_normal(&mut self, std: f32, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // FNV-1a of the name picks the stream.
        let stream = self
            .name
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01B3));
        rng.set_stream(stream);
        let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        for pair in self.value.chunks_mut(2) {
            // Box and Muller: two uniform numbers make two normal ones.
            let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
            pair[0] = std * (radius * angle.cos()) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = std * (radius * angle.sin()) as f32;
            }
        }
    }

    /// Brings the projection up to date with the latent values; a no-op for a tensor that is not ternary.
    ///
    /// # Errors
    /// A value that is not finite, by the tensor's name.
    pub fn project(&mut self) -> Result<()> {
        if let Some((grouping, matrix)) = &mut self.ternary
            && !self.value.is_empty()
        {
            self.flips += kernels::project(&self.name, &self.value, *grouping, matrix)?;
        }
        Ok(())
    }

    /// Takes a matrix that is ternary already; it is never projected again. The latents are dropped, or, to go on
    /// training, made such that their projection is this matrix.
    pub fn adopt(&mut self, matrix: TernaryMatrix, keep_latents: bool) {
        assert_eq!([matrix.rows(), matrix.cols()], self.shape[..], "{}", self.name);
        let grouping = self.grouping().expect("only a ternary tensor adopts a ternary matrix");
        self.value = if keep_latents { matrix.latents(grouping) } else { Vec::new() };
        self.ternary = Some((grouping, matrix));
    }

    /// Keeps a ternary tensor's projection only, for inference.
    pub fn drop_latents(&mut self) {
        if self.ternary.is_some() {
            (self.value, self.grad) = (Vec::new(), Vec::new());
        }
    }

    /// Trits that changed since this was last asked.
    pub fn take_flips(&mut self) -> Flips {
        std::mem::take(&mut self.flips)
    }

    /// Trits that changed since [`Param::take_flips`], left standing.
    pub fn flips(&self) -> Flips {
        self.flips
    }

    /// For a training that goes on from a checkpoint.
    pub fn set_flips(&mut self, flips: Flips) {
        self.flips = flips;
    }

    /// Makes room for the gradient, all zeros.
    pub fn zero_grad(&mut self) {
        if self.grad.len() == self.value.len() {
            kernels::fill_zero(&mut self.grad);
        } else {
            self.grad = vec![0.0; self.value.len()];
        }
    }
}
