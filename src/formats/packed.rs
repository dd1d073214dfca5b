//! A packed model: one file with weights as products read them, configuration, tokenizer and template.
//!
//! The file is a safetensors file, so that its header, its offsets and its lack of gaps are judged as those of any other, and
//! any tool lists what is in it. What is particular:
//!
//! | where | what |
//! |---|---|
//! | `__metadata__`, key `ternlm.packed` | a JSON object: `format`, 1; `density`, `"2bit"` or `"base3"`; `group`, the inputs that share a scale, or `"tensor"`; `matrices`, by name `[rows, cols]` of every ternary tensor |
//! | a tensor of `matrices` | `U8`, `[bytes]`: trits and scales in the order of [`Layout`](crate::ternary::Layout) |
//! | a tensor `file/NAME` | `U8`, `[bytes]`: the file NAME of a model directory (`config.json`, `ternary.json`, `tokenizer.json`, …) |
//! | any other tensor | `F32`, `F16` or `BF16`, `[shape]`: gains, biases, and matrices that are not ternary |
//!
//! The header is padded so that tensors begin at a multiple of 64 bytes, ternary ones first.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::tensors::{Data, Progress, Tensor, TensorFiles, write_in_order};
use crate::error::{Error, Result};
use crate::files::Bundle;
use crate::ternary::{Density, Grouping, PackedMatrix};
use safetensors::Dtype;

pub use crate::files::MAX_FILE;

/// The key of the header's metadata.
const KEY: &str = "ternlm.packed";
/// The only version so far.
const FORMAT: u32 = 1;
/// What the names of embedded files begin with.
const FILE: &str = "file/";
/// Bytes that tensors begin at a multiple of.
const ALIGNMENT: usize = 64;
/// Files of a model directory that are embedded, where there are.
pub const EMBEDDED: [&str; 9] = [
    super::hf::FILE_NAME,
    super::hf::GENERATION_NAME,
    super::manifest::FILE_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Those of them that say what the file holds, so that they cannot be taken over.
pub const WRITTEN_ANEW: [&str; 3] =
    [super::hf::FILE_NAME, super::hf::GENERATION_NAME, super::manifest::FILE_NAME];

/// What the header says of the file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    density: Density,
    group: Grouping,
    matrices: BTreeMap<String, [usize; 2]>,
}

/// An opened packed model: every length is judged, no weight is read.
#[derive(Debug)]
pub struct PackedFile {
    stored: TensorFiles,
    pub grouping: Grouping,
    pub density: Density,
    matrices: BTreeMap<String, (PackedMatrix, [usize; 2])>,
}

/// Tells a file that is of quite another kind, whose first bytes say nothing as a header.
fn judge_kind(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(9).read_to_end(&mut start).map_err(Error::io("read", path))?;
    match start.last() {
        Some(b'{') if start.len() == 9 => Ok(()),
        _ => Err(Error::input(path, "kind", "neither", "a packed model (.tern) or a GGUF file")),
    }
}

impl PackedFile {
    /// Maps the file and gives the files that it embeds.
    ///
    /// # Errors
    /// A file that is no packed model, or whose parts have not the sizes that its header says.
    pub fn open(path: &Path) -> Result<(Self, Bundle)> {
        judge_kind(path)?;
        let stored = TensorFiles::open_file(path)?;
        let bad = |field: &str, found: String, wanted: &str| Error::input(path, field, found, wanted);
        let field = format!("metadata {KEY:?}");
        let Some(text) = stored.metadata(KEY) else {
            return Err(bad(
                &field,
                "nothing".into(),
                "that of a packed model (ternlm export --format packed)",
            ));
        };
        let header: Header = serde_json::from_str(text)
            .map_err(|why| bad(&field, why.to_string(), "format, density, group and matrices"))?;
        if header.format != FORMAT {
            return Err(bad(&format!("{field} format"), header.format.to_string(), "1"));
        }
        let mut matrices = BTreeMap::new();
        for (name, shape) in &header.matrices {
            let view = stored.tensor(name)?;
            if view.dtype != Dtype::U8 || view.shape.len() != 1 {
                let found = format!("{} {:?}", view.dtype, view.shape);
                return Err(view.bad("", found, "U8, one dimension"));
            }
            let bytes = stored.shared(name)?;
            let matrix = PackedMatrix::from_bytes(*shape, header.group, header.density, bytes)
                .map_err(|why| view.bad("", why, "the size of its shape"))?;
            matrices.insert(name.clone(), (matrix, *shape));
        }
        let mut files = BTreeMap::new();
        for name in stored.names().filter_map(|name| name.strip_prefix(FILE)) {
            let view = stored.tensor(&format!("{FILE}{name}"))?;
            if view.dtype != Dtype::U8 {
                return Err(view.bad("", view.dtype, "U8"));
            }
            files.insert(name.to_string(), view.bytes.to_vec());
        }
        let this = Self { stored, grouping: header.group, density: header.density, matrices };
        Ok((this, Bundle::within(path, files)))
    }

    /// The tensors that are not embedded files.
    pub fn stored(&self) -> &TensorFiles {
        &self.stored
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stored.names().filter(|name| !name.starts_with(FILE))
    }

    /// Bytes of all ternary tensors.
    pub fn packed_bytes(&self) -> usize {
        self.matrices.values().map(|(matrix, _)| matrix.bytes().len()).sum()
    }

    /// A ternary tensor, and its shape.
    pub fn matrix(&self, name: &str) -> Option<&(PackedMatrix, [usize; 2])> {
        self.matrices.get(name)
    }
}

/// What is written to a packed model.
pub struct Contents<'a> {
    pub density: Density,
    pub grouping: Grouping,
    /// Ternary tensors: name, shape, and the matrix that is packed when its turn comes.
    pub matrices: Vec<ToPack<'a>>,
    pub others: Vec<Tensor<'a>>,
    pub files: Vec<(String, Vec<u8>)>,
}

/// A ternary tensor to be written.
pub type ToPack<'a> = (String, [usize; 2], PackFn<'a>);
/// Makes the packed matrix.
type PackFn<'a> = Box<dyn Fn() -> PackedMatrix + 'a>;

/// Writes a packed model. `progress` is that of [`write_in_order`].
pub fn write(path: &Path, contents: &Contents<'_>, progress: Progress<'_>) -> Result<()> {
    let header = Header {
        format: FORMAT,
        density: contents.density,
        group: contents.grouping,
        matrices: contents.matrices.iter().map(|(name, shape, _)| (name.clone(), *shape)).collect(),
    };
    let text = serde_json::to_string(&header).expect("plain data has a JSON form");
    let matrices = contents.matrices.iter().map(|(name, [rows, cols], pack)| {
        let layout = crate::ternary::Layout::new(*rows, *cols, contents.grouping, contents.density);
        Tensor {
            name: name.clone(),
            shape: vec![layout.bytes().expect("a matrix in memory has a size")],
            data: Data::Stream {
                dtype: Dtype::U8,
                write: Box::new(move |out| out.write_all(pack().bytes()).map_err(Error::io("write", path))),
            },
        }
    });
    let files = contents.files.iter().map(|(name, bytes)| Tensor {
        name: format!("{FILE}{name}"),
        shape: vec![bytes.len()],
        data: Data::U8(bytes),
    });
    let (matrices, files): (Vec<_>, Vec<_>) = (matrices.collect(), files.collect());
    let order: Vec<&Tensor<'_>> = matrices.iter().chain(&contents.others).chain(&files).collect();
    write_in_order(path, &order, &BTreeMap::from([(KEY.to_string(), text)]), ALIGNMENT, progress)
}
