//! Which rows go through a model together.

/// `batch` sequences of `len` tokens each, from position 0: what a training takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequences {
    pub batch: usize,
    pub len: usize,
}

impl Sequences {
    pub fn new(batch: usize, len: usize) -> Self {
        Self { batch, len }
    }

    /// `N = B T`
    pub fn rows(&self) -> usize {
        self.batch * self.len
    }
}

/// The rows of a pass as layers see them: spans of sequences, one after the other, and the position of every row.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// Tokens of each span.
    pub spans: Vec<usize>,
    pub positions: Vec<u32>,
}

impl Rows {
    /// Spans of so many tokens from a position on.
    pub fn new(spans: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut rows = Rows::default();
        for (start, len) in spans {
            rows.spans.push(len);
            rows.positions.extend((start..start + len).map(|position| position as u32));
        }
        rows
    }

    pub fn count(&self) -> usize {
        self.positions.len()
    }

    /// The case of equal spans: how many, and how long.
    pub fn equal(&self) -> (usize, usize) {
        let len = self.spans.first().copied().unwrap_or(0);
        assert!(self.spans.iter().all(|span| *span == len), "spans of one length, found {:?}", self.spans);
        (self.spans.len(), len)
    }
}

impl From<Sequences> for Rows {
    fn from(seqs: Sequences) -> Self {
        Rows::new((0..seqs.batch).map(|_| (0, seqs.len)))
    }
}
