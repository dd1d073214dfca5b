//! Which matrices of a model are ternary where no note of ours says so.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::collections::{BTreeMap, HashSet};

use super::tensors::{TensorFiles, TensorView};
use super::{Form, NOTE_FORMAT, TernaryNote, hf};
use crate::config::{Inputs, Scope};
use crate::error::Result;
use crate::ternary::{Grouping, f16_holds};

/// Weights beyond the first of their group that a model must have which are not 0: so many do not agree by chance.
const EVIDENCE: u64 = 64;
/// Groupings that are looked for. A scale for the whole matrix is one for each group, too, so it comes first.
const GROUPINGS: [Grouping; 4] =
    [Grouping::Tensor, Grouping::Size(128), Grouping::Size(64), Grouping::Size(32)];

/// What was found in files that carry no note of ours.
#[derive(Debug)]
pub struct Found {
    /// Absent where the model is to be read as numbers all the same.
    pub note: Option<TernaryNote>,
    /// What a person is told.
    pub said: String,
}

/// Looks for weights that are −s, 0 and +s in each group among the tensors of a directory.
pub fn weights(stored: &TensorFiles) -> Result<Option<Found>> {
    let names: Vec<&str> = stored.names().collect();
    let views = names.iter().map(|name| stored.tensor(name)).collect::<Result<Vec<_>>>()?;
    let all: Vec<_> = names.into_iter().zip(views).filter(|(_, view)| view.shape.len() == 2).collect();
    Ok(among(&all, Form::Unpacked))
}

/// The same among these matrices by their Hugging Face names. A model of other numbers is told by its first weights; one
/// that seems to be ternary is read as a whole.
pub fn among(matrices: &[(&str, TensorView<'_>)], form: Form) -> Option<Found> {
    let blocks = || matrices.iter().filter(|(name, _)| in_block(name));
    let mut numbers = false;
    for grouping in GROUPINGS {
        let all = blocks().try_fold(Held::NOTHING, |all, (_, view)| all.and(held(view, grouping)));
        let Some(Held::Ternary { evidence: EVIDENCE.., f16 }) = all else { continue };
        if !f16 {
            numbers = true;
            continue;
        }
        let ends = matrices.iter().filter(|(name, _)| !in_block(name));
        let ends = ends.filter(|(_, view)| matches!(held(view, grouping), Held::Ternary { f16: true, .. }));
        let ternary: HashSet<&str> = blocks().chain(ends).map(|(name, _)| *name).collect();
        let names = matrices.iter().map(|(name, _)| *name);
        return note(names, &ternary, form, grouping, Inputs::F32).map(Found::taken);
    }
    numbers.then(|| Found {
        note: None,
        said: "the weights are ternary, but their scales are no f16 numbers: they are read as numbers".into(),
    })
}

impl Found {
    /// A model that is ternary by this note.
    pub fn taken(note: TernaryNote) -> Self {
        let what = if note.scope == Scope::All { "every matrix" } else { "every matrix of the blocks" };
        let scales = match note.group {
            Grouping::Size(size) => format!("one scale for {size} inputs"),
            Grouping::Tensor => "one scale for each matrix".into(),
        };
        let said = format!("{what} is ternary already, {scales}: taken as it is, never projected again");
        Self { note: Some(note), said }
    }
}

/// The note of a model of the matrices `names` of which `ternary` are so; `None` where blocks hold others, too.
pub fn note<'a>(
    names: impl Iterator<Item = &'a str>,
    ternary: &HashSet<&str>,
    form: Form,
    group: Grouping,
    activations: Inputs,
) -> Option<TernaryNote> {
    let names: Vec<&str> = names.collect();
    let all = |of: &dyn Fn(&str) -> bool| names.iter().filter(|n| of(n)).all(|n| ternary.contains(n));
    if !names.iter().any(|name| in_block(name)) || !all(&in_block) {
        return None;
    }
    let scope = if all(&|_| true) { Scope::All } else { Scope::Blocks };
    let tensors = names.iter().filter(|name| scope == Scope::All || in_block(name));
    let tensors = tensors.map(|name| name.to_string()).collect();
    Some(TernaryNote { format: NOTE_FORMAT, form, scope, group, activations, tensors })
}

/// [`note`] of matrices that another tool packed.
pub fn packed<T>(
    stored: &TensorFiles,
    matrices: &BTreeMap<String, T>,
    form: Form,
    group: Grouping,
    activations: Inputs,
) -> Result<Option<TernaryNote>> {
    let ternary = matrices.keys().map(String::as_str).collect();
    Ok(note(matrices_of(stored)?.into_iter(), &ternary, form, group, activations))
}

/// [`note`] of matrices of the blocks that are to be projected.
pub fn latents(stored: &TensorFiles, group: Grouping, activations: Inputs) -> Result<Option<TernaryNote>> {
    let names = matrices_of(stored)?;
    let ternary = names.iter().copied().filter(|name| in_block(name)).collect();
    Ok(note(names.into_iter(), &ternary, Form::Latent, group, activations))
}

fn matrices_of(stored: &TensorFiles) -> Result<Vec<&str>> {
    let mut names = Vec::new();
    for name in stored.names() {
        let part = name.ends_with(".scales") || name.ends_with(".biases") || name.ends_with(".weight_scale");
        if stored.shape(name)?.len() == 2 && !part {
            names.push(name);
        }
    }
    Ok(names)
}

fn in_block(name: &str) -> bool {
    name != hf::EMBEDDING && name != hf::HEAD
}

/// What a matrix holds, by one grouping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// `evidence`: weights beyond the first of their group that are not 0; `f16`: whether that holds every scale.
    Ternary {
        evidence: u64,
        f16: bool,
    },
    Other,
}

impl Held {
    const NOTHING: Self = Held::Ternary { evidence: 0, f16: true };

    /// Both; `None` where one is not ternary.
    fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Held::Ternary { evidence: a, f16: x }, Held::Ternary { evidence: b, f16: y }) => {
                Some(Held::Ternary { evidence: a + b, f16: x && y })
            }
            _ => None,
        }
    }
}

fn held(view: &TensorView<'_>, grouping: Grouping) -> Held {
    match view.dtype {
        Dtype::F32 => {
            of_bits(view, grouping, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7FFF_FFFF, f32::from_bits)
        }
        Dtype::F16 => of_bits(
            view,
            grouping,
            |b: [u8; 2]| u32::from(u16::from_le_bytes(b) & 0x7FFF),
            |bits| f16::from_bits(bits as u16).to_f32(),
        ),
        Dtype::BF16 => of_bits(
            view,
            grouping,
            |b: [u8; 2]| u32::from(u16::from_le_bytes(b) & 0x7FFF),
            |bits| bf16::from_bits(bits as u16).to_f32(),
        ),
        _ => Held::Other,
    }
}

/// `magnitude`: the bits of an element without its sign; `value`: what they stand for.
fn of_bits<const N: usize>(
    view: &TensorView<'_>,
    grouping: Grouping,
    magnitude: impl Fn([u8; N]) -> u32 + Sync,
    value: impl Fn(u32) -> f32 + Sync,
) -> Held {
    let &[rows, cols] = view.shape else { return Held::Other };
    if rows == 0 || cols == 0 {
        return Held::Other;
    }
    let elements = view.bytes.as_chunks::<N>().0;
    let of_group = |group: &[[u8; N]], scale: u32| {
        let mut count = 0u64;
        for bits in group.iter().map(|b| magnitude(*b)).filter(|bits| *bits != 0) {
            if bits != scale {
                return Held::Other;
            }
            count += 1;
        }
        let s = value(scale);
        Held::Ternary { evidence: count.saturating_sub(1), f16: f16_holds(s) }
    };
    let first = |group: &[[u8; N]]| group.iter().map(|b| magnitude(*b)).find(|bits| *bits != 0).unwrap_or(0);
    // Of the whole matrix, looked for no further than is needed to see that it is none.
    let common = (grouping == Grouping::Tensor).then(|| first(elements));
    let of_row = |row: &[[u8; N]]| {
        let mut groups = row.chunks(grouping.size(cols));
        groups.try_fold(Held::NOTHING, |all, group| {
            all.and(of_group(group, common.unwrap_or_else(|| first(group))))
        })
    };
    let rows = elements.par_chunks_exact(cols).map(of_row);
    rows.try_reduce(|| Held::NOTHING, Held::and).unwrap_or(Held::Other)
}
