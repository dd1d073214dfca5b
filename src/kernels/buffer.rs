//! Memory that kernels compute with, as layers hold it.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};

/// A number of `f32` values. Layers make buffers, name rows of them and hand them to kernels; only kernels read and write
/// what is in them. Today all of them lie in the memory of the host, and a buffer is a slice to the kernels; memory of a
/// second device enters here.
#[derive(Clone, Default)]
pub struct Buffer {
    /// Grows, and never shrinks.
    data: Vec<f32>,
    len: usize,
}

impl Buffer {
    pub fn zeros(len: usize) -> Self {
        Self { data: vec![0.0; len], len }
    }

    /// Values that it has room for.
    pub fn capacity(&self) -> usize {
        self.data.len()
    }

    /// Makes it `len` values long. What it holds is left over from before, zeros where it is new.
    pub fn resize(&mut self, len: usize) {
        if self.data.len() < len {
            self.data.resize(len, 0.0);
        }
        self.len = len;
    }

    /// Some of its rows, which have `width` values each.
    pub fn rows(&self, width: usize, rows: Range<usize>) -> &[f32] {
        &self[rows.start * width..rows.end * width]
    }

    /// As [`Buffer::rows`].
    pub fn rows_mut(&mut self, width: usize, rows: Range<usize>) -> &mut [f32] {
        &mut self[rows.start * width..rows.end * width]
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(data: Vec<f32>) -> Self {
        Self { len: data.len(), data }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.len)
    }
}
