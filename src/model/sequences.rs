//! Which rows go through a model together.

/// `batch` sequences of `len` tokens each, the first of them at position `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequences {
    pub batch: usize,
    pub len: usize,
    pub start: usize,
}

impl Sequences {
    /// From position 0.
    pub fn new(batch: usize, len: usize) -> Self {
        Self { batch, len, start: 0 }
    }

    /// `N = B T`
    pub fn rows(&self) -> usize {
        self.batch * self.len
    }
}
