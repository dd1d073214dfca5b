//! MLX's affine quantisation with two bits, where it holds ternary weights.
//!
//! A matrix `X` of `[out, in]` is three tensors:
//!
//! | tensor | type, shape | what |
//! |---|---|---|
//! | `X.weight` | `U32`, `[out, in/16]` | element `16 i + j` of a row stands at bits `2 j` of word `i` |
//! | `X.scales` | `[out, in/group]` | `s` |
//! | `X.biases` | `[out, in/group]` | `b` |
//!
//! and its weights are `s * code + b`: with codes `trit + 1` and `b = -s` exactly `s * trit`. Anything else is no ternary
//! matrix and is refused.

use safetensors::Dtype;
use std::collections::BTreeMap;

use super::tensors::{Data, Tensor, TensorFiles, TensorView};
use crate::error::Result;
use crate::ternary::{CODES_PER_WORD, Grouping, TernaryMatrix, bad_code, f16_holds};

/// Group sizes that MLX has, the largest first: it takes the fewest bits.
const GROUPS: [usize; 3] = [128, 64, 32];
const WEIGHT: &str = ".weight";

/// Inputs that share a scale in MLX's layout of this matrix; `None` where no group size divides its rows and its groups.
pub fn group_for(matrix: &TernaryMatrix) -> Option<usize> {
    let (cols, group) = (matrix.cols(), matrix.group());
    let fits = |m: &usize| cols.is_multiple_of(*m) && (group >= cols || group.is_multiple_of(*m));
    GROUPS.into_iter().find(fits)
}

/// The three tensors of a matrix, `name` ending in `.weight`; `group` is that of [`group_for`].
pub fn tensors<'a>(name: &str, matrix: &'a TernaryMatrix, group: usize) -> [Tensor<'a>; 3] {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let stem = name.strip_suffix(WEIGHT).unwrap_or(name);
    let by_group = |part: &str, sign: f32| Tensor {
        name: format!("{stem}.{part}"),
        shape: vec![rows, cols / group],
        data: Data::Rows {
            dtype: Dtype::F16,
            fill: Box::new(move |rows, out| {
                for (row, out) in rows.zip(out.chunks_mut(cols / group)) {
                    // 0 is added, so that a scale of 0 has a bias of 0 and not of -0.
                    let at = |i: usize| sign * matrix.scale(row, i * group) + 0.0;
                    out.iter_mut().enumerate().for_each(|(i, out)| *out = at(i));
                }
            }),
        },
    };
    let codes = Data::U32(matrix.words());
    let shape = vec![rows, cols / CODES_PER_WORD];
    [Tensor { name: name.into(), shape, data: codes }, by_group("scales", 1.0), by_group("biases", -1.0)]
}

/// The shape of a packed matrix, and the inputs that share a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packed {
    pub shape: [usize; 2],
    pub group: usize,
}

/// The packed matrices of a directory by name, `X.weight`. No value is read.
///
/// # Errors
/// Codes without scales or biases, or shapes that do not belong together.
pub fn matrices(
    stored: &TensorFiles,
    group: usize,
    groups: &BTreeMap<String, usize>,
) -> Result<BTreeMap<String, Packed>> {
    let mut all = BTreeMap::new();
    for name in stored.names() {
        let (view, Some(stem)) = (stored.tensor(name)?, name.strip_suffix(WEIGHT)) else { continue };
        if view.dtype != Dtype::U32 {
            continue;
        }
        let group = groups.get(stem).copied().unwrap_or(group);
        let shape = match view.shape {
            &[rows, words] if rows > 0 && words > 0 => [rows, words.saturating_mul(CODES_PER_WORD)],
            other => return Err(view.bad("", format!("shape {other:?}"), "[out, in / 16]")),
        };
        if !shape[1].is_multiple_of(group) {
            let wanted = format!("a multiple of group_size {group}");
            return Err(view.bad("", format!("{} inputs", shape[1]), wanted));
        }
        for part in ["scales", "biases"] {
            let (part, wanted) = (stored.tensor(&format!("{stem}.{part}"))?, [shape[0], shape[1] / group]);
            if part.shape != wanted {
                return Err(part.bad("", format!("shape {:?}", part.shape), format!("{wanted:?}")));
            }
        }
        all.insert(name.to_string(), Packed { shape, group });
    }
    Ok(all)
}

/// Whether the tensor `name` holds scales or biases of one of these matrices.
pub fn is_part(name: &str, matrices: &BTreeMap<String, Packed>) -> bool {
    let stem = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
    stem.is_some_and(|stem| matrices.contains_key(&format!("{stem}{WEIGHT}")))
}

/// Where the parts of a matrix lie.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    pub codes: TensorView<'a>,
    pub scales: TensorView<'a>,
    pub biases: TensorView<'a>,
    pub packed: &'a Packed,
}

impl<'a> Parts<'a> {
    /// Those of the matrix `name`, one of [`matrices`].
    pub fn of(stored: &'a TensorFiles, name: &str, packed: &'a Packed) -> Result<Self> {
        let stem = name.strip_suffix(WEIGHT).unwrap_or(name);
        let part = |part: &str| stored.tensor(&format!("{stem}.{part}"));
        Ok(Self { codes: stored.tensor(name)?, scales: part("scales")?, biases: part("biases")?, packed })
    }

    /// Trits and scales, where they are.
    ///
    /// # Errors
    /// A bias that is not minus its scale, a code of 3 and a scale that f16 cannot hold, by row and group or column; groups
    /// of `grouping` whose scales differ.
    pub fn matrix(&self, grouping: Grouping) -> Result<TernaryMatrix> {
        let Packed { shape: [rows, cols], group } = *self.packed;
        let row_groups = cols / group;
        let read = |view: &TensorView<'_>| {
            let mut values = vec![0.0; rows * row_groups];
            view.read_f32_into(&[rows, row_groups], &mut values).map(|()| values)
        };
        let (scales, biases) = (read(&self.scales)?, read(&self.biases)?);
        for (at, (s, b)) in scales.iter().zip(&biases).enumerate() {
            let place = || format!("row {}, group {}", at / row_groups, at % row_groups);
            if *b != -s {
                let found = format!("scale {s} with bias {b}");
                let wanted = "a bias that is minus the scale: weights that are ternary";
                return Err(self.codes.bad(&place(), found, wanted));
            }
            if !(*s >= 0.0 && f16_holds(*s)) {
                let wanted = "a number of 0 or more that f16 holds";
                return Err(self.codes.bad(&place(), format!("scale {s}"), wanted));
            }
        }
        let own = grouping.size(cols);
        let own_groups = cols.div_ceil(own);
        let mut merged = vec![0.0; rows * own_groups];
        for row in 0..rows {
            let scales = &scales[row * row_groups..][..row_groups];
            for (g, merged) in merged[row * own_groups..][..own_groups].iter_mut().enumerate() {
                let under = &scales[g * own / group..=(((g + 1) * own).min(cols) - 1) / group];
                if let Some(other) = under.iter().find(|s| **s != under[0]) {
                    let found = format!("scales {} and {other}", under[0]);
                    let wanted = format!("one for {own} inputs");
                    return Err(self.codes.bad(&format!("row {row}"), found, wanted));
                }
                *merged = under[0];
            }
        }
        let words = self.codes.bytes_of(Dtype::U32, &[rows, cols / CODES_PER_WORD])?;
        let words: Vec<u32> = words.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        if let Some([row, col]) = bad_code(&words, cols) {
            let place = format!("row {row}, column {col}");
            return Err(self.codes.bad(&place, "code 3", "0, 1 or 2: weights that are ternary"));
        }
        TernaryMatrix::from_parts(rows, cols, grouping, words, merged)
            .map_err(|why| self.codes.bad("parts", why, "trits and scales"))
    }

    /// The stored bytes, part by part.
    pub fn bytes(&self) -> [&'a [u8]; 3] {
        [self.codes.bytes, self.scales.bytes, self.biases.bytes]
    }
}
