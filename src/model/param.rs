//! One tensor that is trained.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::Activations;
use crate::error::Result;
use crate::kernels::{self, Latents, Matrix, Updated};
use crate::ternary::{Flips, Grouping, TernaryMatrix};

/// A tensor under its Hugging Face name: latent values, their gradient and, if it is ternary, its projection.
///
/// The projection is what every layer computes with. [`Param::update`] keeps it up to date; after any other change of
/// the values [`Param::project`] must be called.
#[derive(Clone, Debug, Default)]
pub struct Param {
    pub name: String,
    /// `[out, in]`, or `[width]` of a gain or bias.
    pub shape: Vec<usize>,
    /// Latent values; empty when only the projection is kept (inference).
    pub value: Vec<f32>,
    /// Same shape as `value`; empty until training begins.
    grad: Vec<f32>,
    /// Nothing has been added to `grad` since it was set to zero.
    grad_is_zero: bool,
    /// Which of the [`Gradients`](super::Gradients) is this one's, while they are taken out.
    place: Option<usize>,
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

    /// Same shape as the value; empty until training begins.
    pub fn grad(&self) -> &[f32] {
        &self.grad
    }

    /// To be added to.
    pub fn grad_mut(&mut self) -> &mut [f32] {
        self.grad_is_zero = false;
        &mut self.grad
    }

    pub(super) fn take_grad(&mut self, place: usize) -> Vec<f32> {
        (self.place, self.grad_is_zero) = (Some(place), false);
        std::mem::take(&mut self.grad)
    }

    pub(super) fn put_grad(&mut self, grad: Vec<f32>) {
        (self.place, self.grad) = (None, grad);
    }

    pub(super) fn place(&self) -> Option<usize> {
        self.place
    }

    /// Makes room for the gradient, all zeros; costs nothing after [`Param::update`].
    pub fn zero_grad(&mut self) {
        if self.grad.len() != self.value.len() {
            self.grad = vec![0.0; self.value.len()];
        } else if !self.grad_is_zero {
            kernels::fill_zero(&mut self.grad);
        }
        self.grad_is_zero = true;
    }

    /// Lets `step` update the latents, their projection and the gradient, which it leaves at zero, by
    /// [`kernels::update`]; what that measured.
    ///
    /// # Errors
    /// As `step`; the gradient is then unspecified until [`Param::zero_grad`].
    pub fn update(&mut self, step: impl FnOnce(Latents<'_>) -> Result<Updated>) -> Result<Updated> {
        self.grad_is_zero = false;
        let done = step(Latents {
            name: &self.name,
            cols: *self.shape.last().expect("a tensor has a shape"),
            value: &mut self.value,
            grad: &mut self.grad,
            ternary: self.ternary.as_mut().map(|(grouping, matrix)| (*grouping, matrix)),
        })?;
        self.grad_is_zero = true;
        self.flips += done.flips;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MomentFormat;
    use crate::kernels::{Moments, Pass, Rule};

    #[test]
    fn gradients_start_at_zero_whatever_happened_before() {
        let mut param = Param::new("w", &[2, 3], Some(Grouping::Size(2)));
        let rule = Rule::Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.0, grad_scale: 1.0 };
        let mut moments = Moments::zeros(MomentFormat::F32, 1, 2, 3);
        let mut step =
            |param: &mut Param| param.update(|p| kernels::update(&rule, p, &mut moments, Pass::default()));
        let zeros = [0.0; 6];
        param.zero_grad();
        assert_eq!(param.grad(), zeros);
        param.grad_mut()[1] = 2.0;
        step(&mut param).unwrap();
        assert_eq!((param.grad(), param.value[1]), (&zeros[..], -2.0));
        param.zero_grad();
        assert_eq!(param.grad(), zeros);
        // Abandoned before the step, and in it.
        param.grad_mut()[5] = f32::NAN;
        param.zero_grad();
        assert_eq!(param.grad(), zeros);
        param.grad_mut()[5] = f32::NAN;
        assert!(step(&mut param).is_err());
        param.grad_mut()[0] = 1.0;
        param.zero_grad();
        assert_eq!(param.grad(), zeros);
        assert_eq!(param.take_flips().total(), 1, "a step that failed counts no flips");
    }
}
