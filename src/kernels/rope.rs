//! Rotary position embedding (Su et al., arXiv 2104.09864), the half-split form of Hugging Face.

use rayon::prelude::*;

use super::isa::kernel;
use super::profile::{Phase, scope};

/// Cosine and sine of `position * frequency`, times a factor, `[positions, D / 2]` each.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// `frequencies` `[D / 2]`, in radians a position.
    pub fn new(positions: usize, frequencies: &[f32], factor: f32) -> Self {
        let half = frequencies.len();
        // Frequency and angle in f32, as the models were trained with; sine and cosine of that angle in f64.
        let angle = |at: usize| ((at / half) as f32 * frequencies[at % half]) as f64;
        let table = |of: fn(f64) -> f64| {
            (0..positions * half)
                .into_par_iter()
                .map(|at| of(angle(at)) as f32 * factor)
                .collect::<Vec<f32>>()
        };
        Self { half, cos: table(f64::cos), sin: table(f64::sin) }
    }

    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// By the angle of the position, or, in the backward pass, by the opposite one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Forward,
    Backward,
}

/// Rotates in place `x`, `[n, heads, D]`, where row `r` stands at `positions[r]`.
pub fn rope(x: &mut [f32], heads: usize, table: &RopeTable, positions: &[u32], turn: Turn) {
    let _time = scope(Phase::Elementwise);
    kernel! {
        fn run<S>(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
            let half = cos.len();
            for head in row.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                // Without indices, or it is not made of vectors.
                for ((low, high), (c, s)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                    let (a, b, s) = (*low, *high, sign * s);
                    *low = a * c - b * s;
                    *high = b * c + a * s;
                }
            }
        }
    }
    let half = table.half;
    let width = heads * 2 * half;
    assert_eq!(x.len(), positions.len() * width, "{} rows of {heads} heads", positions.len());
    let sign = if turn == Turn::Backward { -1.0 } else { 1.0 };
    x.par_chunks_mut(width).zip(positions).with_min_len(64).for_each(|(row, &position)| {
        let at = position as usize * half;
        run(row, &table.cos[at..at + half], &table.sin[at..at + half], sign);
    });
}
