//! The relations of positions to each other that one layer is to have as one of its teacher: by queries, keys and values.
//! Queries and keys are taken behind their norms, which take away what no attention sees, their length, and before the
//! rotation, which says where positions stand and not what they hold.

use crate::kernels::{self, Buffer, Heads, RelationShape};

/// Which layer learns the relations of which layer of its teacher, counted from 0, and how much that counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relations {
    /// Of the mean over queries, keys and values, heads and scored positions, beside the rest of what is minimised.
    pub weight: f32,
    pub layer: usize,
    pub of_teacher: usize,
}

/// Relations that are being learnt.
pub(super) struct Relating<'a> {
    pub layer: usize,
    targets: &'a [u32],
    /// Queries, keys and values of the teacher's layer, from the same rows.
    teacher: [&'a Buffer; 3],
    scale: f32,
    /// Divergence of the relations, in nats: a sum over the positions that are scored.
    pub loss: f64,
}

impl<'a> Relating<'a> {
    /// `scale` is that of the loss of a position.
    pub fn new(how: Relations, scale: f32, targets: &'a [u32], teacher: [&'a Buffer; 3]) -> Self {
        Self { layer: how.layer, targets, teacher, scale: how.weight * scale, loss: 0.0 }
    }

    /// Adds to `gradients` those by queries, keys and values of `batch` sequences of `len` positions.
    pub fn learn(
        &mut self,
        heads: Heads,
        (batch, len): (usize, usize),
        student: [&Buffer; 3],
        gradients: [&mut Buffer; 3],
    ) {
        let Heads { heads, kv_heads, dim, causal, .. } = heads;
        let three = student.into_iter().zip(self.teacher).zip(gradients).zip([heads, kv_heads, kv_heads]);
        for (((student, teacher), gradient), heads) in three {
            let teacher_dim = teacher.len() / (batch * len * heads).max(1);
            let shape = RelationShape { batch, len, heads, dim, teacher_dim, causal };
            let scale = self.scale / 3.0;
            self.loss += kernels::relations(&shape, student, teacher, self.targets, scale, gradient) / 3.0;
        }
    }
}
