//! Buffers that live for one call and are used again by the next; what every layer of a pass is handed.

use super::Sequences;
use super::relations::Relating;
use super::sequences::Rows;
use crate::kernels::{Buffer, Dropout, RopeTable};

/// Keeps buffers between uses: fresh memory from the system costs a page fault every 4 KiB.
#[derive(Debug, Default)]
pub struct Workspace {
    free: Vec<Buffer>,
}

impl Workspace {
    /// The smallest free buffer that is long enough; what it holds is left over from its last use.
    pub fn take(&mut self, len: usize) -> Buffer {
        let fits = |(i, b): (usize, &Buffer)| (b.capacity() >= len).then_some((b.capacity(), i));
        let mut buffer = match self.free.iter().enumerate().filter_map(fits).min() {
            Some((_, i)) => self.free.swap_remove(i),
            None => Buffer::zeros(len),
        };
        buffer.resize(len);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        self.free.push(buffer);
    }
}

/// What every layer of a pass through a model is handed: which rows there are, the angles of their positions, what is dropped,
/// and memory.
pub struct Context<'a> {
    pub(super) rows: &'a Rows,
    pub(super) rope: &'a RopeTable,
    /// In the passes of a training that has it.
    pub(super) dropout: Option<Dropout<'a>>,
    /// Whether projections are made again in the backward pass, in place of being kept.
    pub(super) recompute: bool,
    /// In the backward pass of a layer that learns relations from a teacher.
    pub(super) relating: Option<Relating<'a>>,
    pub(super) ws: &'a mut Workspace,
}

impl<'a> Context<'a> {
    pub(super) fn new(rows: &'a Rows, rope: &'a RopeTable, ws: &'a mut Workspace) -> Self {
        Self { rows, rope, dropout: None, recompute: false, relating: None, ws }
    }

    /// Values of a row of `x`.
    pub(super) fn width(&self, x: &Buffer) -> usize {
        x.len() / self.rows.count()
    }
}

/// Calls `f` in the context of equal sequences, for a layer on its own.
pub fn in_context<T>(
    seqs: Sequences,
    rope: &RopeTable,
    ws: &mut Workspace,
    f: impl FnOnce(&mut Context<'_>) -> T,
) -> T {
    f(&mut Context::new(&Rows::from(seqs), rope, ws))
}
