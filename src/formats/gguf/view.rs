//! One tensor of a GGUF model as the rest of the program knows it: under its Hugging Face name, rows in that order.

use rayon::prelude::*;
use std::fmt;
use std::path::Path;

use super::types::{BlockType, Coding};
use super::{blocks, trits};
use crate::error::{Error, Result};
use crate::formats::bad_tensor;
use crate::ternary::{Grouping, TernaryMatrix};

/// One tensor, where it lies in its file.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// For error messages.
    pub file: &'a Path,
    /// The name in the file.
    pub name: &'a str,
    pub kind: &'static BlockType,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Whole blocks, row by row.
    pub bytes: &'a [u8],
    /// Of the queries and keys of LLaMA: heads whose rows stand in pairs, first and second half in turn, for a rotation of
    /// neighbours. Hugging Face has the halves one after the other.
    pub paired_heads: Option<usize>,
}

impl View<'_> {
    /// The weights as f32, exactly as llama.cpp has them. `out` is row-major and holds exactly `expected_shape`.
    ///
    /// # Errors
    /// Another shape, or a type that is not read.
    pub fn read_f32_into(&self, expected_shape: &[usize], out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), expected_shape.iter().product::<usize>(), "{}: out", self.name);
        if self.shape != expected_shape {
            return Err(self.bad("shape", format!("{:?}", self.shape), format!("{expected_shape:?}")));
        }
        if self.kind.coding == Coding::Unread {
            let wanted = "a type that is read: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, or a \
                          ternary one";
            return Err(self.bad("type", self.kind.name, wanted));
        }
        let Some(order) = self.order()? else {
            blocks::read(self.kind, self.bytes, out);
            return Ok(());
        };
        let (row, row_bytes) = (out.len() / self.shape[0], self.bytes.len() / self.shape[0]);
        out.par_chunks_mut(row).enumerate().with_min_len(64).for_each(|(at, out)| {
            blocks::read(self.kind, &self.bytes[order(at) * row_bytes..][..row_bytes], out);
        });
        Ok(())
    }

    /// The trits and scales as they are stored, scales by `grouping`, which the blocks allow; of numbers that are −s, 0, +s
    /// theirs.
    ///
    /// # Errors
    /// Another shape; trits or scales that no ternary matrix has; blocks of one group whose scales differ.
    pub fn matrix(&self, rows: usize, cols: usize, grouping: Grouping) -> Result<TernaryMatrix> {
        if self.shape != [rows, cols] {
            return Err(self.bad("shape", format!("{:?}", self.shape), format!("[{rows}, {cols}]")));
        }
        if !self.kind.is_ternary() {
            let mut values = vec![0.0; rows * cols];
            self.read_f32_into(&[rows, cols], &mut values)?;
            return TernaryMatrix::from_values(&values, rows, cols, grouping)
                .map_err(|why| self.bad("weights", why, format!("ternary weights in groups of {grouping}")));
        }
        let Grouping::Size(group) = grouping else {
            return Err(self.bad("groups", grouping, "a number of inputs"));
        };
        let order = self.order()?;
        let order = |row| order.as_ref().map_or(row, |order| order(row));
        trits::matrix(self.kind, self.bytes, [rows, cols], group, order)
            .map_err(|why| self.bad("weights", why, format!("ternary weights in groups of {group}")))
    }

    /// Whether the scales of neighbouring blocks are equal in pairs.
    pub(super) fn scales_in_pairs(&self) -> bool {
        trits::scales_in_pairs(self.kind, self.bytes, self.shape[self.shape.len() - 1])
    }

    /// Where a row stands in the file, if not at its own place.
    fn order(&self) -> Result<Option<impl Fn(usize) -> usize + Sync + use<>>> {
        let Some(heads) = self.paired_heads else { return Ok(None) };
        let rows = self.shape[0];
        let dim = rows / heads.max(1);
        if heads == 0 || !rows.is_multiple_of(heads) || !dim.is_multiple_of(2) {
            let wanted = format!("{heads} heads of an even number of rows");
            return Err(self.bad("shape", format!("{:?}", self.shape), wanted));
        }
        if self.shape.len() == 1 && self.kind.block > 1 {
            return Err(self.bad("type", self.kind.name, "F32, F16 or BF16 of a bias"));
        }
        Ok(Some(move |row: usize| {
            let (head, at) = (row / dim, row % dim);
            let (half, pair) = (at / (dim / 2), at % (dim / 2));
            head * dim + 2 * pair + half
        }))
    }

    /// [`bad_tensor`] of this one.
    pub(super) fn bad(&self, part: &str, found: impl fmt::Display, wanted: impl fmt::Display) -> Error {
        bad_tensor(self.file, self.name, part, found, wanted)
    }
}
