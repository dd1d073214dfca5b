//! How the matrices of a Hugging Face directory are held: as numbers, as weights −s, 0, +s, or in another tool's packing.

use half::f16;
use serde_json::json;
use std::collections::{BTreeMap, HashSet};

use super::recognise::{self, Found};
use super::tensors::TensorFiles;
use super::{Description, Form, Packing, TernaryNote, any_of, bitnet, hf, mlx, quoted};
use crate::config::Inputs;
use crate::error::{Error, Result};
use crate::files::Bundle;
use crate::ternary::Grouping;

/// How matrices are held in safetensors files.
#[derive(Debug)]
pub enum Coded {
    Numbers,
    /// The weights −s, 0, +s of these names, and the inputs that share an s.
    Unpacked(HashSet<String>, Grouping),
    Mlx(BTreeMap<String, mlx::Packed>, Grouping),
    /// Shapes by name, and whether products are divided by the stored number.
    BitNet(BTreeMap<String, [usize; 2]>, bool),
}

impl Coded {
    /// Whether the tensor `name` is only a part of a matrix.
    pub fn has_part(&self, name: &str) -> bool {
        match self {
            Coded::Numbers | Coded::Unpacked(..) => false,
            Coded::Mlx(matrices, _) => mlx::is_part(name, matrices),
            Coded::BitNet(matrices, _) => bitnet::is_part(name, matrices),
        }
    }
}

/// Whether the head that lies beside a tied embedding holds the same values.
pub fn heads_agree(stored: &TensorFiles) -> Result<bool> {
    let (head, embedding) = (stored.tensor(hf::HEAD)?, stored.tensor(hf::EMBEDDING)?);
    if head.dtype != embedding.dtype {
        return head.same_values(&embedding);
    }
    // Of packed matrices every part.
    let parts = ["scales", "biases", "weight_scale"].into_iter().all(|part| {
        let [a, b] = [hf::HEAD, hf::EMBEDDING].map(|name| {
            let name = name.replace(".weight", &format!(".{part}"));
            stored.tensor(&name).ok().map(|view| (view.dtype, view.bytes))
        });
        a == b
    });
    Ok(parts && (head.shape, head.bytes) == (embedding.shape, embedding.bytes))
}

/// How the matrices of a directory are held, and, where it has no note of ours, what was found of them.
pub fn read(
    stored: &TensorFiles,
    description: &Description,
    files: &Bundle,
) -> Result<(Coded, Option<Found>)> {
    let note = description.ternary.as_ref();
    if let Some(note) = note {
        let forms: &[Form] = match description.packing {
            None => &[Form::Latent, Form::Unpacked],
            Some(Packing::Mlx { .. }) => &[Form::Mlx],
            Some(Packing::BitNet { .. } | Packing::BitNetLatent) => &[],
        };
        if !forms.contains(&note.form) {
            let wanted = match forms {
                [] => "no note: this packing is not written".into(),
                forms => format!("{} in a folder of such weights", any_of(forms)),
            };
            let found = json!(note.form);
            return Err(Error::input(files.path_of(hf::FILE_NAME), "ternlm.form", found, wanted));
        }
    }
    match (&description.packing, note) {
        (None, Some(note)) if note.form == Form::Latent => Ok((Coded::Numbers, None)),
        (None, Some(note)) => Ok((Coded::Unpacked(note.tensors.iter().cloned().collect(), note.group), None)),
        (None, None) => {
            let found = recognise::weights(stored)?;
            let note = found.as_ref().and_then(|found| found.note.as_ref());
            let names = note.map(|note| (note.tensors.iter().cloned().collect(), note.group));
            Ok((names.map_or(Coded::Numbers, |(names, group)| Coded::Unpacked(names, group)), found))
        }
        (Some(Packing::Mlx { group, groups }), note) => {
            let matrices = mlx::matrices(stored, *group, groups)?;
            if let Some(note) = note {
                if let Some(name) = note.tensors.iter().find(|name| !matrices.contains_key(*name)) {
                    let (file, wanted) = (files.path_of(hf::FILE_NAME), "names of packed matrices");
                    return Err(Error::input(file, "ternlm.tensors", quoted(name), wanted));
                }
                return Ok((Coded::Mlx(matrices, note.group), None));
            }
            // The smallest is a divisor of all others.
            let own = matrices.values().map(|packed| packed.group).min().unwrap_or(*group);
            let grouping = Grouping::Size(own);
            let note = recognise::packed(stored, &matrices, Form::Mlx, grouping, Inputs::F32)?;
            Ok((Coded::Mlx(matrices, grouping), Some(packed_by("MLX", note))))
        }
        (Some(Packing::BitNet { divides }), _) => {
            let matrices = bitnet::matrices(stored)?;
            let mut off = 0f64;
            for (name, shape) in &matrices {
                let scale = bitnet::Parts::of(stored, name, shape, *divides)?.exact_scale()?;
                off = off.max((f16::from_f64(scale).to_f64() / scale - 1.0).abs());
            }
            let (form, grouping) = (Form::BitNet, Grouping::Tensor);
            let note = recognise::packed(stored, &matrices, form, grouping, Inputs::Int8)?;
            let mut found = packed_by("BitNet", note);
            if off > 0.0 {
                found.said += &format!("; scales are rounded to f16, by {off:.1e} of them at most");
            }
            Ok((Coded::BitNet(matrices, *divides), Some(found)))
        }
        (Some(Packing::BitNetLatent), _) => {
            let note = recognise::latents(stored, Grouping::Tensor, Inputs::Int8)?;
            let said = "BitNet's master weights: projected by one scale for each matrix of the blocks".into();
            Ok((Coded::Numbers, Some(Found { note, said })))
        }
    }
}

fn packed_by(tool: &str, note: Option<TernaryNote>) -> Found {
    match note {
        Some(note) => {
            let found = Found::taken(note);
            Found { said: format!("packed by {tool}: {}", found.said), ..found }
        }
        None => Found {
            note: None,
            said: format!("packed by {tool}, but not every matrix of the blocks: all are read as numbers"),
        },
    }
}
