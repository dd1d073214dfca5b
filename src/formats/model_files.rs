//! The one door to a stored model: what it is, its tensors by name, and the small files beside them.
//!
//! That is a Hugging Face directory, perhaps with matrices in another tool's packing, a packed file or a GGUF file. Another
//! kind of file is found by [`is_model`] and [`files_of`], read by [`ModelFiles::open`], and is one more case of `Tensors`
//! and, where it holds trits as such, of `Held`.

use serde_json::json;
use std::path::Path;

use super::coded::{self, Coded};
use super::gguf::{self, GgufFile, GgufModel};
use super::packed::PackedFile;
use super::recognise::Found;
use super::tensors::{TensorFiles, TensorView};
use super::{Description, Form, bad_tensor, bitnet, hf, mlx};
use crate::error::{Error, Result};
use crate::files::{Bundle, sha256_hex};
use crate::ternary::{Grouping, PackedMatrix, TernaryMatrix};

/// Whether a model is stored at `path`, good or bad.
pub fn is_model(path: &Path) -> bool {
    path.is_file() || path.join(hf::FILE_NAME).is_file()
}

/// The small files of the model at `path`: configuration, tokenizer, manifest. Nothing of them is read yet.
pub fn files_of(path: &Path) -> Result<Bundle> {
    Ok(match path.is_file() {
        true if GgufFile::is_one(path) => GgufModel::open(path)?.1,
        true => PackedFile::open(path)?.1,
        false => Bundle::folder(path),
    })
}

/// A stored model, judged as far as that needs none of its values.
#[derive(Debug)]
pub struct ModelFiles {
    pub description: Description,
    /// The small files beside the tensors.
    pub files: Bundle,
    /// What was found of a model that carries no note of ours and is ternary: a sentence for people. Its note in
    /// `description` is made from that, and there is no manifest.
    pub recognised: Option<String>,
    tensors: Tensors,
}

/// What holds the tensors.
#[derive(Debug)]
enum Tensors {
    Safetensors(TensorFiles, Coded),
    Packed(PackedFile),
    Gguf(GgufModel),
}

/// One tensor as it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Numbers.
    Values(TensorView<'a>),
    /// Numbers in blocks.
    Blocks(gguf::View<'a>),
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
    /// Packed, and the shape ([`Form::Packed`]).
    Packed(TensorView<'a>, &'a (PackedMatrix, [usize; 2])),
    Mlx(mlx::Parts<'a>),
    BitNet(bitnet::Parts<'a>),
    /// In blocks of a ternary type.
    Blocks(gguf::View<'a>),
}

impl ModelFiles {
    /// Opens the model at `path`. Where its configuration ties the output head to the embedding but its files hold a
    /// head of other values, that head counts and the model is untied, as in Hugging Face's own loader.
    ///
    /// # Errors
    /// Those of [`hf::read_config`] and [`TensorFiles::open`].
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return if GgufFile::is_one(path) { Self::open_gguf(path) } else { Self::open_packed(path) };
        }
        let files = Bundle::folder(path);
        let mut description = hf::read_config(&files)?;
        let stored = TensorFiles::open(path)?;
        if description.said_tied && stored.contains(hf::HEAD) && stored.contains(hf::EMBEDDING) {
            description.model.tie_embeddings = coded::heads_agree(&stored)?;
        }
        let (coded, found) = coded::read(&stored, &description, &files)?;
        let recognised = found.map(|Found { mut note, said }| {
            // A head that is the embedding once more is no matrix of its own.
            if description.model.tie_embeddings {
                note.iter_mut().for_each(|note| note.tensors.retain(|name| name != hf::HEAD));
            }
            description.ternary = note;
            said
        });
        Ok(Self { description, files, recognised, tensors: Tensors::Safetensors(stored, coded) })
    }

    fn open_packed(path: &Path) -> Result<Self> {
        let (packed, files) = PackedFile::open(path)?;
        let mut description = hf::read_config(&files)?;
        // A packed file holds what its model uses.
        description.model.tie_embeddings &= !packed.stored().contains(hf::HEAD);
        if let Some(note) = description.ternary.iter().find(|note| note.form != Form::Packed) {
            let found = json!(note.form);
            return Err(Error::input(files.path_of(hf::FILE_NAME), "ternlm.form", found, "\"packed\""));
        }
        Ok(Self { description, files, recognised: None, tensors: Tensors::Packed(packed) })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let (model, files) = GgufModel::open(path)?;
        let (description, recognised) = (hf::read_config(&files)?, model.recognised.clone());
        Ok(Self { description, files, recognised, tensors: Tensors::Gguf(model) })
    }

    /// The GGUF file, if that is where the model is.
    pub fn gguf(&self) -> Option<&GgufFile> {
        if let Tensors::Gguf(model) = &self.tensors { Some(model.file()) } else { None }
    }

    /// The file that holds the tensors, or lists those that do: for error messages.
    pub fn source(&self) -> &Path {
        match &self.tensors {
            Tensors::Safetensors(stored, _) => stored.source(),
            Tensors::Packed(packed) => packed.stored().source(),
            Tensors::Gguf(model) => model.file().path(),
        }
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.tensors {
            Tensors::Safetensors(stored, coded) => {
                Box::new(stored.names().filter(|name| !coded.has_part(name)))
            }
            Tensors::Packed(packed) => Box::new(packed.names()),
            Tensors::Gguf(model) => Box::new(model.names()),
        }
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        match &self.tensors {
            Tensors::Safetensors(stored, coded) => stored.contains(name) && !coded.has_part(name),
            Tensors::Packed(packed) => packed.stored().contains(name),
            Tensors::Gguf(model) => model.contains(name),
        }
    }

    /// The tensor `name`, not yet read.
    pub fn tensor(&self, name: &str) -> Result<Stored<'_>> {
        let trits = |grouping, held| Stored::Trits(Trits { grouping, place: self.files.place(), held });
        match &self.tensors {
            Tensors::Safetensors(stored, coded) => {
                let view = stored.tensor(name)?;
                Ok(match coded {
                    Coded::Unpacked(names, grouping) if names.contains(name) => {
                        trits(*grouping, Held::Weights(view))
                    }
                    Coded::Mlx(matrices, grouping) if matrices.contains_key(name) => {
                        trits(*grouping, Held::Mlx(mlx::Parts::of(stored, name, &matrices[name])?))
                    }
                    Coded::BitNet(matrices, divides) if matrices.contains_key(name) => {
                        let parts = bitnet::Parts::of(stored, name, &matrices[name], *divides)?;
                        trits(Grouping::Tensor, Held::BitNet(parts))
                    }
                    _ => Stored::Values(view),
                })
            }
            Tensors::Packed(packed) => {
                let view = packed.stored().tensor(name)?;
                Ok(match packed.matrix(name) {
                    Some(matrix) => trits(packed.grouping, Held::Packed(view, matrix)),
                    None => Stored::Values(view),
                })
            }
            Tensors::Gguf(model) => {
                let view = model.tensor(name)?;
                Ok(match model.grouping(name) {
                    Some(grouping) => trits(grouping, Held::Blocks(view)),
                    None => Stored::Blocks(view),
                })
            }
        }
    }
}

impl Stored<'_> {
    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Stored::Values(view) => view.shape,
            Stored::Blocks(view) => view.shape,
            Stored::Trits(trits) => trits.held.shape(),
        }
    }

    /// The type of the stored elements, for people.
    pub fn coding(&self) -> String {
        match self {
            Stored::Values(view) | Stored::Trits(Trits { held: Held::Weights(view), .. }) => {
                view.dtype.to_string()
            }
            Stored::Blocks(view) | Stored::Trits(Trits { held: Held::Blocks(view), .. }) => {
                view.kind.name.to_string()
            }
            Stored::Trits(Trits { held: Held::Packed(_, (matrix, _)), .. }) => {
                matrix.layout().density().to_string()
            }
            Stored::Trits(Trits { held: Held::Mlx(_), .. }) => "MLX 2bit".into(),
            Stored::Trits(Trits { held: Held::BitNet(_), .. }) => "BitNet 2bit".into(),
        }
    }

    /// The stored bytes, part after part.
    fn bytes(&self) -> Vec<&[u8]> {
        match self {
            Stored::Values(view) => vec![view.bytes],
            Stored::Blocks(view) => vec![view.bytes],
            Stored::Trits(trits) => trits.held.bytes(),
        }
    }

    /// Bytes that the tensor takes in its file.
    pub fn byte_len(&self) -> usize {
        self.bytes().iter().map(|part| part.len()).sum()
    }

    /// SHA-256 of the stored bytes, part after part, lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        sha256_hex(self.bytes())
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
            Stored::Blocks(view) | Stored::Trits(Trits { held: Held::Blocks(view), .. }) => {
                view.read_f32_into(expected_shape, out)
            }
            Stored::Trits(trits) => {
                let shape = trits.held.shape();
                if expected_shape != shape {
                    let (file, name) = trits.held.place();
                    let (found, wanted) = (format!("{shape:?}"), format!("{expected_shape:?}"));
                    return Err(bad_tensor(file, name, "shape", found, wanted));
                }
                let matrix = trits.matrix(shape[0], shape[1])?;
                out.chunks_mut(shape[1]).enumerate().for_each(|(row, out)| matrix.unpack_row(row, out));
                Ok(())
            }
        }
    }
}

impl<'a> Held<'a> {
    /// The file and the name of the tensor, for error messages.
    fn place(&self) -> (&'a Path, &'a str) {
        let of = |view: &TensorView<'a>| (view.file, view.name);
        match self {
            Held::Weights(view) | Held::Packed(view, _) => of(view),
            Held::Mlx(parts) => of(&parts.codes),
            Held::BitNet(parts) => of(&parts.codes),
            Held::Blocks(view) => (view.file, view.name),
        }
    }

    /// The stored bytes, part after part.
    fn bytes(&self) -> Vec<&'a [u8]> {
        match self {
            Held::Weights(view) | Held::Packed(view, _) => vec![view.bytes],
            Held::Mlx(parts) => parts.bytes().to_vec(),
            Held::BitNet(parts) => parts.bytes().to_vec(),
            Held::Blocks(view) => vec![view.bytes],
        }
    }

    /// Outermost dimension first.
    fn shape(&self) -> &'a [usize] {
        match self {
            Held::Weights(view) => view.shape,
            Held::Packed(_, (_, shape)) => shape,
            Held::Mlx(parts) => &parts.packed.shape,
            Held::BitNet(parts) => parts.shape,
            Held::Blocks(view) => view.shape,
        }
    }
}

impl Trits<'_> {
    /// The matrix as it lies in a packed file, if that is where it is; its bytes are not judged.
    pub fn packed(&self) -> Option<&PackedMatrix> {
        match self.held {
            Held::Packed(_, (matrix, _)) => Some(matrix),
            _ => None,
        }
    }

    /// The matrix as it is stored, never projected.
    ///
    /// # Errors
    /// Another shape, or values that are not ternary.
    pub fn matrix(&self, rows: usize, cols: usize) -> Result<TernaryMatrix> {
        let (name, shape) = (self.held.place().1, self.held.shape());
        if shape != [rows, cols] {
            return Err(self.bad(name, format!("shape {shape:?}"), &format!("[{rows}, {cols}]")));
        }
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
            Held::Packed(view, (matrix, _)) => {
                let judged = matrix.judge().and_then(|()| matrix.unpack(0..rows));
                judged.map_err(|why| self.bad(view.name, why, "packed trits and scales"))
            }
            Held::Mlx(parts) => parts.matrix(self.grouping),
            Held::BitNet(parts) => parts.matrix(self.grouping),
            Held::Blocks(view) => view.matrix(rows, cols, self.grouping),
        }
    }

    fn bad(&self, name: &str, found: String, wanted: &str) -> Error {
        Error::input(self.place, name, found, wanted)
    }
}
