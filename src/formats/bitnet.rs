//! BitNet matrices as Hugging Face's library packs them.
//!
//! `X.weight` is `U8`, `[out/4, in]`: bits `2 i` of the byte at `[r, c]` are the code, `trit + 1`, of the weight at
//! `[r + i * out/4, c]`. `X.weight_scale` is one number, which products are divided by (`bitlinear`) or multiplied with
//! (`autobitlinear`). The scale of our matrix is that number, or one divided by it, in f16.

use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;
use std::collections::BTreeMap;

use super::tensors::{TensorFiles, TensorView};
use crate::error::Result;
use crate::ternary::{CODES_PER_WORD, Grouping, TernaryMatrix, ZERO_WORD, bad_code};

const WEIGHT: &str = ".weight";
const SCALE: &str = ".weight_scale";

/// The shapes, `[out, in]`, of the packed matrices of a directory by name, `X.weight`.
///
/// # Errors
/// A packed matrix without a scale, or of another shape than a matrix.
pub fn matrices(stored: &TensorFiles) -> Result<BTreeMap<String, [usize; 2]>> {
    let mut all = BTreeMap::new();
    for name in stored.names() {
        let (view, Some(stem)) = (stored.tensor(name)?, name.strip_suffix(WEIGHT)) else { continue };
        if view.dtype != Dtype::U8 {
            continue;
        }
        let scale = stored.tensor(&format!("{stem}{SCALE}"))?;
        for (view, fits, wanted) in [
            (&view, matches!(view.shape, [rows, cols] if *rows > 0 && *cols > 0), "[out / 4, in]"),
            (&scale, scale.shape.iter().product::<usize>() == 1, "one number"),
        ] {
            if !fits {
                let found = format!("shape {:?}", view.shape);
                return Err(view.bad("", found, wanted));
            }
        }
        all.insert(name.to_string(), [view.shape[0].saturating_mul(4), view.shape[1]]);
    }
    Ok(all)
}

/// Whether the tensor `name` holds the scale of one of these matrices.
pub fn is_part(name: &str, matrices: &BTreeMap<String, [usize; 2]>) -> bool {
    name.strip_suffix(SCALE).is_some_and(|stem| matrices.contains_key(&format!("{stem}{WEIGHT}")))
}

/// Where the parts of a matrix lie.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    pub codes: TensorView<'a>,
    pub scale: TensorView<'a>,
    pub shape: &'a [usize; 2],
    /// Whether products are divided by the stored number.
    pub divides: bool,
}

impl<'a> Parts<'a> {
    /// Those of the matrix `name`, one of [`matrices`].
    pub fn of(stored: &'a TensorFiles, name: &str, shape: &'a [usize; 2], divides: bool) -> Result<Self> {
        let stem = name.strip_suffix(WEIGHT).unwrap_or(name);
        let scale = stored.tensor(&format!("{stem}{SCALE}"))?;
        Ok(Self { codes: stored.tensor(name)?, scale, shape, divides })
    }

    /// The scale as the file means it.
    ///
    /// # Errors
    /// A number that is no scale.
    pub fn exact_scale(&self) -> Result<f64> {
        let mut stored = [0f32];
        self.scale.read_f32_into(self.scale.shape, &mut stored)?;
        let stored = f64::from(stored[0]);
        let scale = if self.divides { 1.0 / stored } else { stored };
        match scale > 0.0 && f16::from_f64(scale) > f16::ZERO && f16::from_f64(scale).is_finite() {
            true => Ok(scale),
            false => Err(self.scale.bad("", stored, "a positive scale in the range of f16")),
        }
    }

    /// Trits as they are, with the scale in f16.
    ///
    /// # Errors
    /// A code of 3, by row and column; a number that is no scale.
    pub fn matrix(&self, grouping: Grouping) -> Result<TernaryMatrix> {
        let [rows, cols] = *self.shape;
        let scale = f16::from_f64(self.exact_scale()?).to_f32();
        let bytes = self.codes.bytes_of(Dtype::U8, &[rows / 4, cols])?;
        let mut words = vec![ZERO_WORD; rows * cols.div_ceil(CODES_PER_WORD)];
        words.par_chunks_mut(cols.div_ceil(CODES_PER_WORD)).enumerate().for_each(|(row, words)| {
            let (from, shift) = (&bytes[row % (rows / 4) * cols..][..cols], 2 * (row / (rows / 4)));
            for (word, bytes) in words.iter_mut().zip(from.chunks(CODES_PER_WORD)) {
                for (j, byte) in bytes.iter().enumerate() {
                    *word = *word & !(3 << (2 * j)) | u32::from(byte >> shift & 3) << (2 * j);
                }
            }
        });
        if let Some([row, col]) = bad_code(&words, cols) {
            let place = format!("row {row}, column {col}");
            return Err(self.codes.bad(&place, "code 3", "0, 1 or 2"));
        }
        let groups = rows * cols.div_ceil(grouping.size(cols));
        TernaryMatrix::from_parts(rows, cols, grouping, words, vec![scale; groups])
            .map_err(|why| self.codes.bad("parts", why, "trits and a scale"))
    }

    /// The stored bytes, part by part.
    pub fn bytes(&self) -> [&'a [u8]; 2] {
        [self.codes.bytes, self.scale.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::tensors::{Data, Tensor, write_safetensors};

    fn stored(bytes: &[u8; 4], scale: f32) -> (tempfile::TempDir, TensorFiles) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let tensor =
            |name: &str, shape: &[usize], data| Tensor { name: name.into(), shape: shape.into(), data };
        let scale = [scale];
        let tensors =
            [tensor("x.weight", &[2, 2], Data::U8(bytes)), tensor("x.weight_scale", &[1], Data::F32(&scale))];
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let stored = TensorFiles::open_file(&path).unwrap();
        (dir, stored)
    }

    /// The example in the documentation of `unpack_weights` of Hugging Face's library.
    #[test]
    fn the_documented_example() {
        const BYTES: [u8; 4] = [0b1010_0001, 0b0001_1000, 0b1001_0000, 0b0000_1010];
        let want = [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]];
        for (divides, scale) in [(false, 0.25), (true, 4.0)] {
            let (_dir, stored) = stored(&BYTES, scale);
            let all = matrices(&stored).unwrap();
            let (name, shape) = all.iter().next().unwrap();
            assert_eq!((name.as_str(), *shape, all.len()), ("x.weight", [8, 2], 1));
            assert!(is_part("x.weight_scale", &all) && !is_part("x.weight", &all));
            let parts = Parts::of(&stored, name, shape, divides).unwrap();
            let matrix = parts.matrix(Grouping::Tensor).unwrap();
            for (row, want) in want.iter().enumerate() {
                assert_eq!([matrix.trit(row, 0), matrix.trit(row, 1)], *want, "row {row}");
            }
            assert!(matrix.scales().iter().all(|s| *s == 0.25));
        }
        // The 3 is the code of row 3, as bits 2 and 3 are those of rows 2 and 3.
        let (_dir, stored) = stored(&[0, 0, 0, 0b1100], 1.0);
        let error = |stored: &TensorFiles, divides| {
            let parts = Parts::of(stored, "x.weight", &[8, 2], divides).unwrap();
            parts.matrix(Grouping::Tensor).unwrap_err().to_string()
        };
        assert!(error(&stored, false).contains("tensor \"x.weight\" row 3, column 1: found code 3"));
    }

    #[test]
    fn what_is_no_scale_is_refused() {
        for (scale, divides) in
            [(0.0, false), (0.0, true), (-1.0, true), (f32::NAN, false), (1e9, false), (1e9, true)]
        {
            let (_dir, stored) = stored(&[0; 4], scale);
            let parts = Parts::of(&stored, "x.weight", &[8, 2], divides).unwrap();
            let error = parts.exact_scale().unwrap_err().to_string();
            assert!(error.contains("x.weight_scale") && error.contains("a positive scale"), "{error}");
        }
    }
}
