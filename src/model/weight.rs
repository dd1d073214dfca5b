//! One tensor of a model, as layers multiply with it.

use std::borrow::Cow;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::{Inputs, Precision};
use crate::error::{Error, Result};
use crate::kernels::{self, Buffer, Matrix, Values};
use crate::ternary::{Density, Flips, Grouping, PackedMatrix, TernaryMatrix};

/// What a tensor does in its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Embedding,
    /// The output head, where it is not the embedding.
    Head,
    /// A projection of attention.
    Attention,
    /// A projection of a feed-forward network.
    FeedForward,
    /// The gain of a norm.
    Gain,
    Bias,
}

impl Role {
    /// Whether it is a matrix, which can be ternary.
    pub fn is_matrix(self) -> bool {
        !matches!(self, Role::Gain | Role::Bias)
    }

    /// Whether it is a matrix inside of a block.
    pub fn is_projection(self) -> bool {
        matches!(self, Role::Attention | Role::FeedForward)
    }
}

/// How the values of a weight are held.
#[derive(Clone, Debug)]
pub enum Form {
    Dense(Buffer),
    Ternary(Grouping, TernaryMatrix),
    /// To run, not to train: in the order of products, perhaps where a file is mapped.
    Packed(PackedMatrix),
}

/// A tensor under its Hugging Face name. Layers read it; a training changes it through its
/// [`Latents`](super::Latents), and keeps everything else it needs at the same place of a table of its own.
#[derive(Clone, Debug)]
pub struct Weight {
    pub name: String,
    /// `[out, in]`, or `[width]` of a gain or bias.
    pub shape: Vec<usize>,
    pub role: Role,
    pub form: Form,
    /// What inputs are rounded to in products with it, if it is ternary.
    pub inputs: Inputs,
    /// What it, inputs and gradients are rounded to in products with it.
    pub precision: Precision,
    /// What layers multiply with in place of its trits, while a training anneals it.
    pub(super) annealed: Option<Buffer>,
    /// Its place among the weights of its model.
    index: usize,
}

impl Weight {
    /// Zeros. With a `grouping` the tensor, a matrix, is ternary.
    pub fn new(name: impl Into<String>, shape: &[usize], role: Role, grouping: Option<Grouping>) -> Self {
        let mut weight = Self::unfilled(name, shape, role, grouping);
        weight.fill();
        weight
    }

    /// As [`Weight::new`], but a ternary one has no trits until it takes some.
    pub fn unfilled(
        name: impl Into<String>,
        shape: &[usize],
        role: Role,
        grouping: Option<Grouping>,
    ) -> Self {
        let form = match grouping {
            Some(grouping) => Form::Ternary(grouping, TernaryMatrix::default()),
            None => Form::Dense(Buffer::zeros(shape.iter().product())),
        };
        let (inputs, precision) = (Inputs::F32, Precision::F32);
        let (name, shape) = (name.into(), shape.to_vec());
        Self { name, shape, role, form, inputs, precision, annealed: None, index: 0 }
    }

    /// Gives a ternary weight that is unfilled zeros.
    pub fn fill(&mut self) {
        if let Form::Ternary(grouping, matrix) = &mut self.form
            && [matrix.rows(), matrix.cols()] != self.shape[..]
        {
            *matrix = TernaryMatrix::zeros(self.shape[0], self.shape[1], *grouping);
        }
    }

    /// Ones: the gain of a norm.
    pub fn ones(name: impl Into<String>, width: usize) -> Self {
        let mut weight = Self::new(name, &[width], Role::Gain, None);
        weight.dense_mut().fill(1.0);
        weight
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its place among the weights of its model.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The trits and scales, if the tensor is ternary and not packed.
    pub fn ternary(&self) -> Option<&TernaryMatrix> {
        match &self.form {
            Form::Ternary(_, matrix) => Some(matrix),
            Form::Dense(_) | Form::Packed(_) => None,
        }
    }

    /// The packed trits and scales, if the tensor is packed.
    pub fn packed(&self) -> Option<&PackedMatrix> {
        match &self.form {
            Form::Packed(matrix) => Some(matrix),
            _ => None,
        }
    }

    /// Trits and scales of a ternary tensor, packed or not.
    ///
    /// # Errors
    /// Packed bytes that are none.
    pub fn trits(&self) -> Result<Option<Cow<'_, TernaryMatrix>>> {
        match &self.form {
            Form::Dense(_) => Ok(None),
            Form::Ternary(_, matrix) => Ok(Some(Cow::Borrowed(matrix))),
            Form::Packed(matrix) => {
                let judged = matrix.judge().and_then(|()| matrix.unpack(0..matrix.rows()));
                judged
                    .map(|m| Some(Cow::Owned(m)))
                    .map_err(|why| Error::usage(format!("{}: {why}", self.name)))
            }
        }
    }

    /// Of a ternary tensor.
    pub fn grouping(&self) -> Option<Grouping> {
        match &self.form {
            Form::Ternary(grouping, _) => Some(*grouping),
            Form::Packed(matrix) => Some(matrix.grouping()),
            Form::Dense(_) => None,
        }
    }

    /// The values of a tensor that is not ternary.
    pub fn dense(&self) -> &[f32] {
        match &self.form {
            Form::Dense(values) => values,
            _ => panic!("{} is ternary", self.name),
        }
    }

    /// As [`Weight::dense`].
    pub fn dense_mut(&mut self) -> &mut [f32] {
        match &mut self.form {
            Form::Dense(values) => values,
            _ => panic!("{} is ternary", self.name),
        }
    }

    /// Takes a matrix that is ternary already.
    pub fn adopt(&mut self, matrix: TernaryMatrix) {
        let grouping = self.grouping().unwrap_or_else(|| panic!("{} is not ternary", self.name));
        assert_eq!([matrix.rows(), matrix.cols()], self.shape[..], "{}", self.name);
        self.form = Form::Ternary(grouping, matrix);
    }

    /// Takes a matrix that is packed.
    pub fn adopt_packed(&mut self, matrix: PackedMatrix) {
        assert_eq!(self.grouping(), Some(matrix.grouping()), "{}", self.name);
        assert_eq!([matrix.rows(), matrix.cols()], self.shape[..], "{}", self.name);
        self.form = Form::Packed(matrix);
    }

    /// Brings trits into the order of products, for models that run: a few tokens take a fraction of the time.
    pub fn pack(&mut self, density: Density) {
        if let Form::Ternary(grouping, matrix) = &self.form {
            self.form = Form::Packed(kernels::pack(matrix, *grouping, density));
        }
    }

    /// Brings packed trits out of a mapped file into memory.
    pub fn keep_in_memory(&mut self) {
        if let Form::Packed(matrix) = &mut self.form {
            *matrix = matrix.in_memory();
        }
    }

    /// Takes `values`: as they are, or, if the tensor is ternary, their projection. The trits that changed.
    ///
    /// # Errors
    /// A value that is not finite, by the tensor's name.
    pub fn set(&mut self, values: &[f32]) -> Result<Flips> {
        assert_eq!(values.len(), self.len(), "values of {}", self.name);
        self.fill();
        match &mut self.form {
            Form::Packed(_) => panic!("{} is packed", self.name),
            Form::Ternary(grouping, matrix) => kernels::project(&self.name, values, *grouping, matrix),
            Form::Dense(own) => {
                kernels::copy(own, values);
                Ok(Flips::default())
            }
        }
    }

    /// What the layers multiply with.
    pub fn matrix(&self) -> Matrix<'_> {
        let dense = |data| Values::Dense { data, rows: self.shape[0], cols: self.shape[1] };
        let values = match (&self.annealed, &self.form) {
            (Some(data), _) | (None, Form::Dense(data)) => dense(data),
            (None, Form::Ternary(_, matrix)) => Values::Ternary(matrix),
            (None, Form::Packed(matrix)) => Values::Packed(matrix),
        };
        Matrix::new(values, self.inputs).rounded(self.precision)
    }

    /// Normal numbers of that standard deviation, as many as the weight has, from a stream of their own: they depend on
    /// the seed and the name alone, not on what else the model holds.
    pub fn normal(&self, std: f32, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // FNV-1a of the name picks the stream.
        let stream = self
            .name
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01B3));
        rng.set_stream(stream);
        let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let mut out = vec![0.0; self.len()];
        for pair in out.chunks_mut(2) {
            // Box and Muller: two uniform numbers make two normal ones.
            let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
            pair[0] = std * (radius * angle.cos()) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = std * (radius * angle.sin()) as f32;
            }
        }
        out
    }
}

/// Gives each of a model's weights its place in the tables of a training.
pub fn number<'a>(weights: impl IntoIterator<Item = &'a mut Weight>) {
    weights.into_iter().enumerate().for_each(|(index, weight)| weight.index = index);
}
