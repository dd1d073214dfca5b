//! The one door to a stored model: what it is, its tensors by name, and the small files beside them.
//!
//! So far that is a Hugging Face directory. Another kind of file is found by [`is_model`] and [`files_of`], read by
//! [`ModelFiles::open`], and is one more case of `Tensors` and, where it holds trits as such, of `Held`.

use std::collections::HashSet;
use std::path::Path;

use super::hf;
use super::tensors::{TensorFiles, TensorView};
use super::{Description, Form};
use crate::error::{Error, Result};
use crate::files::{Bundle, sha256_hex};
use crate::ternary::{Grouping, TernaryMatrix};

/// Whether a model is stored at `path`, good or bad.
pub fn is_model(path: &Path) -> bool {
    path.join(hf::FILE_NAME).is_file()
}

/// The small files of the model at `path`: configuration, tokenizer, manifest. Nothing of them is read yet.
pub fn files_of(path: &Path) -> Result<Bundle> {
    Ok(Bundle::folder(path))
}

/// A stored model, judged as far as that needs none of its values.
#[derive(Debug)]
pub struct ModelFiles {
    pub description: Description,
    /// The small files beside the tensors.
    pub files: Bundle,
    tensors: Tensors,
}

/// What holds the tensors.
#[derive(Debug)]
enum Tensors {
    /// `unpacked`: the matrices stored as weights −s, 0, +s, and the inputs that share an s.
    Safetensors { stored: TensorFiles, unpacked: Option<(HashSet<String>, Grouping)> },
}

/// One tensor as it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Numbers.
    Values(TensorView<'a>),
    /// A ternary matrix: trits and scales, without latents.
    Trits(Trits<'a>),
}

/// A matrix that its file says is ternary; judged when it is read.
#[derive(Clone, Copy, Debug)]
pub struct Trits<'a> {
    /// Inputs that share a scale.
    pub grouping: Grouping,
    /// For error messages.
    place: &'a Path,
    held: Held<'a>,
}

/// How trits are stored.
#[derive(Clone, Copy, Debug)]
enum Held<'a> {
    /// As the weights −s, 0, +s ([`Form::Unpacked`]).
    Weights(TensorView<'a>),
}

impl ModelFiles {
    /// Opens the model at `path`. Where its configuration ties the output head to the embedding but its files hold a
    /// head of other values, that head counts and the model is untied, as in Hugging Face's own loader.
    ///
    /// # Errors
    /// Those of [`hf::read_config`] and [`TensorFiles::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let files = files_of(path)?;
        let mut description = hf::read_config(&files)?;
        let stored = TensorFiles::open(path)?;
        if description.said_tied && stored.contains(hf::HEAD) && stored.contains(hf::EMBEDDING) {
            let (head, embedding) = (stored.tensor(hf::HEAD)?, stored.tensor(hf::EMBEDDING)?);
            description.model.tie_embeddings = head.same_values(&embedding)?;
        }
        let note = description.ternary.iter().find(|note| note.form == Form::Unpacked);
        let unpacked = note.map(|note| (note.tensors.iter().cloned().collect(), note.group));
        Ok(Self { description, files, tensors: Tensors::Safetensors { stored, unpacked } })
    }

    /// The file that holds the tensors, or lists those that do: for error messages.
    pub fn source(&self) -> &Path {
        match &self.tensors {
            Tensors::Safetensors { stored, .. } => stored.source(),
        }
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.tensors {
            Tensors::Safetensors { stored, .. } => Box::new(stored.names()),
        }
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        match &self.tensors {
            Tensors::Safetensors { stored, .. } => stored.contains(name),
        }
    }

    /// The tensor `name`, not yet read.
    pub fn tensor(&self, name: &str) -> Result<Stored<'_>> {
        match &self.tensors {
            Tensors::Safetensors { stored, unpacked } => {
                let view = stored.tensor(name)?;
                Ok(match unpacked {
                    Some((names, grouping)) if names.contains(name) => Stored::Trits(Trits {
                        grouping: *grouping,
                        place: self.files.place(),
                        held: Held::Weights(view),
                    }),
                    _ => Stored::Values(view),
                })
            }
        }
    }
}

impl Stored<'_> {
    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Stored::Values(view) | Stored::Trits(Trits { held: Held::Weights(view), .. }) => view.shape,
        }
    }

    /// The type of the stored elements, for people.
    pub fn coding(&self) -> String {
        match self {
            Stored::Values(view) | Stored::Trits(Trits { held: Held::Weights(view), .. }) => {
                view.dtype.to_string()
            }
        }
    }

    /// SHA-256 of the stored bytes, lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        match self {
            Stored::Values(view) | Stored::Trits(Trits { held: Held::Weights(view), .. }) => {
                sha256_hex([view.bytes])
            }
        }
    }

    /// The values as f32, exactly; of trits, their weights. `out` is row-major and holds exactly `expected_shape`.
    ///
    /// # Errors
    /// Those of [`TensorView::read_f32_into`].
    pub fn read_f32_into(&self, expected_shape: &[usize], out: &mut [f32]) -> Result<()> {
        match self {
            Stored::Values(view) | Stored::Trits(Trits { held: Held::Weights(view), .. }) => {
                view.read_f32_into(expected_shape, out)
            }
        }
    }
}

impl Trits<'_> {
    /// The matrix as it is stored, never projected.
    ///
    /// # Errors
    /// Another shape, or values that are not ternary.
    pub fn matrix(&self, rows: usize, cols: usize) -> Result<TernaryMatrix> {
        match &self.held {
            Held::Weights(view) => {
                let mut values = vec![0.0; rows * cols];
                view.read_f32_into(&[rows, cols], &mut values)?;
                TernaryMatrix::from_values(&values, rows, cols, self.grouping).map_err(|why| {
                    match values.iter().all(|x| x.is_finite()) {
                        true => self.bad(view.name, why, "the ternary tensor that config.json claims"),
                        false => self.bad(view.name, "a value that is not finite".into(), "finite values"),
                    }
                })
            }
        }
    }

    fn bad(&self, name: &str, found: String, wanted: &str) -> Error {
        Error::input(self.place, name, found, wanted)
    }
}
