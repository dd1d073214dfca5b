//! Buffers that live for one call and are used again by the next.

use std::ops::{Deref, DerefMut};

/// Keeps buffers between uses: fresh memory from the system costs a page fault every 4 KiB.
#[derive(Debug, Default)]
pub struct Workspace {
    free: Vec<Vec<f32>>,
}

/// A buffer of the asked length; what it holds is left over from its last use.
#[derive(Debug)]
pub struct Buffer {
    data: Vec<f32>,
    len: usize,
}

impl Workspace {
    /// The smallest free buffer that is long enough.
    pub fn take(&mut self, len: usize) -> Buffer {
        let fits = |(i, b): (usize, &Vec<f32>)| (b.len() >= len).then_some((b.len(), i));
        let data = match self.free.iter().enumerate().filter_map(fits).min() {
            Some((_, i)) => self.free.swap_remove(i),
            None => vec![0.0; len],
        };
        Buffer { data, len }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        self.free.push(buffer.data);
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
