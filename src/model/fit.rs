//! A decoder brought into what a block type can hold: rows of whole blocks, one scale a block. What that changes is counted.

use half::{bf16, f16};
use std::path::Path;

use super::Decoder;
use crate::error::{Error, Result};
use crate::formats::gguf::encode::{holds, scales_of};
use crate::formats::gguf::{BlockType, Coding};
use crate::formats::quoted;
use crate::ternary::{Grouping, TernaryMatrix, ZERO_WORD};

/// What was changed of a model's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Changes {
    /// Weights that are other ones, of those that are not 0.
    pub weights: u64,
    pub not_zero: u64,
    /// Of one weight, relative to it.
    pub largest: f64,
    /// Sum over all weights that are not 0.
    sum: f64,
}

impl Changes {
    /// The mean relative change over all weights that are not 0.
    pub fn mean(&self) -> f64 {
        self.sum / self.not_zero.max(1) as f64
    }

    /// `count` weights that were `old`, not 0, and are `new`.
    fn add(&mut self, old: f32, new: f32, count: usize) {
        let change = (f64::from(new) / f64::from(old) - 1.0).abs();
        self.weights += if change > 0.0 { count as u64 } else { 0 };
        self.not_zero += count as u64;
        self.largest = self.largest.max(change);
        self.sum += change * count as f64;
    }
}

/// The decoder, which holds its trits in memory, as `kind` holds it. Feed-forward networks get a multiple of a block's
/// units: units that are added have zeros before and after them, and the function stays. With `lossy`, scales that differ
/// within a block become their mean over the weights that are not 0, and numbers are rounded to the type. `file` is named in
/// errors.
///
/// # Errors
/// Rows that are no whole blocks; weights that the type does not hold, without `lossy`.
pub fn fit(decoder: Decoder, kind: &BlockType, lossy: bool, file: &Path) -> Result<(Decoder, Changes)> {
    let decoder = padded(decoder, kind.block);
    let mut held = true;
    for weight in decoder.weights() {
        let why = match weight.ternary() {
            Some(matrix) if !matrix.cols().is_multiple_of(kind.block) => {
                let found = format!("{} inputs", matrix.cols());
                let wanted = format!("a multiple of {}, the weights of a block of {}", kind.block, kind.name);
                return Err(Error::input(file, quoted(&weight.name), found, wanted));
            }
            Some(matrix) => not_held(matrix, kind),
            None if lossy && weight.role.is_matrix() && kind.block == 1 && !holds(kind, weight.dense()) => {
                held = false;
                continue;
            }
            None => continue,
        };
        let Some((row, found)) = why else { continue };
        if !lossy {
            let wanted = format!(
                "what a block of {} holds: q2_0 holds these weights as they are, and --lossy rounds the scales",
                kind.name
            );
            return Err(Error::input(file, format!("{} row {row}", weight.name), found, wanted));
        }
        held = false;
    }
    let mut changes = Changes::default();
    if held {
        return Ok((decoder, changes));
    }
    let grouping = if kind.is_ternary() { Grouping::Size(kind.block) } else { decoder.grouping };
    let mut out = Decoder::unfilled(&decoder.config, decoder.scope, grouping);
    out.set_inputs(decoder.inputs());
    for (to, from) in out.weights_mut().zip(decoder.weights()) {
        match from.ternary() {
            Some(matrix) => to.adopt(rounded(matrix, kind, grouping, &mut changes).map_err(|found| {
                let wanted = format!("scales that {} holds when they are rounded", kind.name);
                Error::input(file, &from.name, found, wanted)
            })?),
            None => {
                let round = |x: f32| {
                    if kind.coding == Coding::Bf16 {
                        bf16::from_f32(x).to_f32()
                    } else {
                        f16::from_f32(x).to_f32()
                    }
                };
                let rounds = from.role.is_matrix() && matches!(kind.coding, Coding::F16 | Coding::Bf16);
                for (to, x) in to.dense_mut().iter_mut().zip(from.dense()) {
                    *to = if rounds { round(*x) } else { *x };
                    if !to.is_finite() {
                        let wanted = format!("numbers that {} holds when they are rounded", kind.name);
                        return Err(Error::input(file, &from.name, x, wanted));
                    }
                    if rounds && *x != 0.0 {
                        changes.add(*x, *to, 1);
                    }
                }
            }
        }
    }
    Ok((out, changes))
}

/// The decoder with feed-forward networks of a multiple of `block` units; as it is where a norm of the units would count
/// those that are added.
fn padded(decoder: Decoder, block: usize) -> Decoder {
    let mut config = decoder.config.clone();
    config.intermediate_size = config.intermediate_size.next_multiple_of(block);
    if config.intermediate_size == decoder.config.intermediate_size || config.sub_norm {
        return decoder;
    }
    let mut out = Decoder::unfilled(&config, decoder.scope, decoder.grouping);
    out.set_inputs(decoder.inputs());
    for (to, from) in out.weights_mut().zip(decoder.weights()) {
        match from.ternary() {
            Some(matrix) => to.adopt(extended(matrix, to.shape[0], to.shape[1], decoder.grouping)),
            None => {
                let [wide, cols] = [&to.shape, &from.shape].map(|shape| shape.last().copied().unwrap_or(1));
                for (to, from) in to.dense_mut().chunks_mut(wide).zip(from.dense().chunks(cols)) {
                    to[..cols].copy_from_slice(from);
                }
            }
        }
    }
    out
}

/// The matrix with rows and columns of zeros after its own.
fn extended(matrix: &TernaryMatrix, rows: usize, cols: usize, grouping: Grouping) -> TernaryMatrix {
    let empty = TernaryMatrix::zeros(rows, cols, grouping);
    let (mut words, mut scales) = (vec![ZERO_WORD; empty.words().len()], vec![0.0; empty.scales().len()]);
    for row in 0..matrix.rows() {
        let from = &matrix.words()[row * matrix.row_words()..][..matrix.row_words()];
        words[row * empty.row_words()..][..from.len()].copy_from_slice(from);
        let from = &matrix.scales()[row * matrix.row_groups()..][..matrix.row_groups()];
        scales[row * empty.row_groups()..][..from.len()].copy_from_slice(from);
    }
    if grouping == Grouping::Tensor {
        // One for all, those that were added, too.
        scales.fill(matrix.scales().first().copied().unwrap_or(0.0));
    }
    TernaryMatrix::from_parts(rows, cols, grouping, words, scales).expect("a matrix and zeros")
}

/// The first row that the type does not hold, and why.
fn not_held(matrix: &TernaryMatrix, kind: &BlockType) -> Option<(usize, String)> {
    if !kind.is_ternary() {
        let at = matrix.scales().iter().position(|s| !holds(kind, &[*s]))?;
        return Some((at / matrix.row_groups(), format!("the scale {}", matrix.scales()[at])));
    }
    if matrix.group() >= matrix.cols() || matrix.group().is_multiple_of(kind.block) {
        return None;
    }
    blocks(matrix, kind.block).find_map(|(row, first)| {
        let mut scales = scales_of(matrix, row, first, kind.block);
        let (scale, _) = scales.next()?;
        let (other, _) = scales.find(|(other, _)| *other != scale)?;
        let last = first + kind.block - 1;
        Some((row, format!("the scales {scale} and {other} in columns {first} to {last}")))
    })
}

/// Row and first column of every block.
fn blocks(matrix: &TernaryMatrix, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let cols = matrix.cols();
    (0..matrix.rows()).flat_map(move |row| (0..cols).step_by(block).map(move |first| (row, first)))
}

/// The matrix with one scale for each block, or with scales that the type holds.
fn rounded(
    matrix: &TernaryMatrix,
    kind: &BlockType,
    grouping: Grouping,
    changes: &mut Changes,
) -> std::result::Result<TernaryMatrix, String> {
    let block = if kind.is_ternary() { kind.block } else { matrix.group() };
    // The only one stays that of all rows, also of those without a weight that is not 0.
    let only = matrix.scales().first().filter(|_| grouping == Grouping::Tensor);
    let mut scales = Vec::new();
    for (row, first) in blocks(matrix, block) {
        let own = || scales_of(matrix, row, first, block);
        let (sum, count) = own()
            .fold((0.0, 0), |(sum, n), (scale, count)| (sum + f64::from(scale) * count as f64, n + count));
        let mean = match (only, count) {
            (Some(only), _) => f64::from(*only),
            (None, 0) => 0.0,
            (None, _) => sum / count as f64,
        };
        let scale = match kind.coding {
            Coding::Bf16 => bf16::from_f64(mean).to_f32(),
            _ => f16::from_f64(mean).to_f32(),
        };
        own().for_each(|(own, count)| changes.add(own, scale, count));
        scales.push(scale);
    }
    let (rows, cols, words) = (matrix.rows(), matrix.cols(), matrix.words().to_vec());
    TernaryMatrix::from_parts(rows, cols, grouping, words, scales)
}
