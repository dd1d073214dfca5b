//! A decoder in other tools' layouts, and the check that what was written is what was to be.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use safetensors::Dtype;

use super::Decoder;
use super::store::{described, exactly, manifest_of};
use crate::config::{Inputs, RopeScaling};
use crate::error::{Error, Result};
use crate::formats::tensors::{self, Progress, Tensor, by_width, write_in_order};
use crate::formats::{Description, Form, ModelFiles, Packing, Stored, hf, mlx};
use crate::kernels;

/// Writes a directory for MLX into `dir`, which exists: `config.json` with the packing, `model.safetensors`,
/// `ternary.json`. No weight is rounded. The decoder holds its trits in memory
/// ([`load_trits`](super::load_trits)).
///
/// # Errors
/// An architecture that MLX's language models do not have; a matrix whose rows no group size of MLX divides.
pub fn save_mlx(
    dir: &Path,
    decoder: &Decoder,
    description: &Description,
    progress: Progress<'_>,
) -> Result<()> {
    // The folder that is named is one in the making.
    let config = Path::new(hf::FILE_NAME);
    if decoder.config.sub_norm {
        let wanted = "a model without these norms: mlx-lm's bitnet reads Hugging Face's BitNet layout, one scale a matrix, \
                      and not MLX's two bits";
        return Err(Error::input(
            config,
            "model_type",
            "norms before the output and down projections",
            wanted,
        ));
    }
    hf::common_architecture(description, config)?;
    if let Some(scaling) = decoder.config.rope_scaling.filter(|scaling| !mlx_rotates(scaling)) {
        let wanted = "none, \"linear\", \"llama3\", or \"yarn\" with its usual factor of attention";
        return Err(Error::input(config, "rope_scaling", format!("{scaling:?}"), wanted));
    }
    if decoder.inputs() != Inputs::F32 {
        tracing::warn!("the model was trained with inputs of 8 bits; MLX does not round them");
    }
    let (mut stored, mut groups) = (Vec::new(), BTreeMap::new());
    for weight in decoder.weights() {
        match weight.ternary() {
            Some(matrix) => {
                let Some(group) = mlx::group_for(matrix) else {
                    let found = format!("{:?} by groups of {}", weight.shape, matrix.group());
                    let wanted = "rows and groups that are multiples of 32, MLX's smallest group";
                    return Err(Error::input(config, &weight.name, found, wanted));
                };
                groups.insert(weight.name.trim_end_matches(".weight").to_string(), group);
                stored.extend(mlx::tensors(&weight.name, matrix, group));
            }
            None => stored.push(Tensor {
                name: weight.name.clone(),
                shape: weight.shape.clone(),
                data: exactly(weight.dense()),
            }),
        }
    }
    let half = stored.iter().all(|tensor| tensor.data.dtype() != Dtype::F32);
    // The commonest is said once.
    let count = |group: usize| groups.values().filter(|g| **g == group).count();
    let group = groups.values().copied().max_by_key(|group| (count(*group), *group)).unwrap_or(128);
    groups.retain(|_, own| *own != group);
    let mut description = described(description, decoder, Form::Mlx);
    description.packing = Some(Packing::Mlx { group, groups });
    hf::write_config(dir, &description, if half { Dtype::F16 } else { Dtype::F32 })?;
    let metadata = BTreeMap::from([("format".to_string(), "mlx".to_string())]);
    write_in_order(&dir.join(tensors::FILE_NAME), &by_width(&stored), &metadata, 8, progress)?;
    let written = ModelFiles::open(dir)?;
    manifest_of(decoder, Form::Mlx, |name| Ok(written.tensor(name)?.sha256()))?.write(dir)
}

/// Whether MLX's language models turn positions in the same way.
fn mlx_rotates(scaling: &RopeScaling) -> bool {
    match *scaling {
        RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => true,
        RopeScaling::Yarn { attention_factor, mscale, mscale_all_dim, truncate, .. } => {
            truncate && attention_factor.or(mscale).or(mscale_all_dim).is_none()
        }
        RopeScaling::Dynamic { .. } => false,
    }
}

/// What a form rounds of tensors that are not ternary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nothing,
    /// Matrices to f16.
    Matrices,
}

/// Reads the model at `path` back and compares every weight with the decoder's, which holds its trits in memory.
/// `progress` is told how many weights have been compared.
///
/// # Errors
/// [`Error::CheckFailed`] with the tensor and the row where a weight is another one; files that cannot be read.
pub fn check(path: &Path, decoder: &Decoder, rounding: Rounding, progress: Progress<'_>) -> Result<()> {
    let stored = ModelFiles::open(path)?;
    let all = decoder.weights().map(|w| w.len() as u64).sum();
    let mut done = 0;
    for weight in decoder.weights() {
        let cols = weight.shape.last().copied().unwrap_or(1);
        let differs = match (weight.ternary(), stored.tensor(&weight.name)?) {
            (Some(matrix), Stored::Trits(trits)) => {
                let read = trits.matrix(weight.shape[0], weight.shape[1])?;
                let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
                (read != *matrix).then(|| {
                    (0..matrix.rows()).find(|row| {
                        kernels::unpack_row(matrix, *row, &mut a);
                        kernels::unpack_row(&read, *row, &mut b);
                        a != b
                    })
                })
            }
            (Some(matrix), tensor) => {
                let (mut read, mut row) = (vec![0.0; weight.len()], vec![0.0; cols]);
                tensor.read_f32_into(&weight.shape, &mut read)?;
                let differs = |(at, read): (usize, &[f32])| {
                    kernels::unpack_row(matrix, at, &mut row);
                    read != row
                };
                Some(read.chunks(cols).enumerate().map(differs).position(|differs| differs))
            }
            (None, tensor) => {
                let mut read = vec![0.0; weight.len()];
                tensor.read_f32_into(&weight.shape, &mut read)?;
                let rounds = rounding == Rounding::Matrices && weight.role.is_matrix();
                let as_written = |x: f32| if rounds { f16::from_f32(x).to_f32() } else { x };
                let pairs = read.iter().zip(weight.dense());
                let at = pairs.enumerate().find(|(_, (a, b))| **a != as_written(**b)).map(|(at, _)| at);
                Some(at.map(|at| at / cols))
            }
        };
        if let Some(row) = differs.flatten() {
            let place = format!("{}: {} row {row}", path.display(), weight.name);
            return Err(Error::CheckFailed(format!("{place} holds other weights than were to be written")));
        }
        done += weight.len() as u64;
        progress(done, all);
    }
    Ok(())
}
