//! Rotary position embedding (Su et al., arXiv 2104.09864), the half-split form of Hugging Face.

use rayon::prelude::*;
use std::sync::OnceLock;

use super::isa::kernel;
use super::profile::{Phase, scope};

/// Positions whose angles are made together, when the first of them is asked for: a model may have a million.
const PAGE: usize = 1024;

/// Cosine and sine of `position * frequency`, times a factor.
#[derive(Clone, Debug)]
pub struct RopeTable {
    positions: usize,
    frequencies: Vec<f32>,
    factor: f32,
    /// `[PAGE, D / 2]` of each, cosines and sines.
    pages: Vec<OnceLock<[Vec<f32>; 2]>>,
}

impl RopeTable {
    /// `frequencies` `[D / 2]`, in radians a position.
    ///
    /// ```
    /// use ternlm::kernels::{RopeTable, Turn, rope};
    /// let table = RopeTable::new(1 << 24, &[0.5], 1.0);
    /// let mut x = [1.0, 0.0];
    /// rope(&mut x, 1, &table, &[3000], Turn::Forward);
    /// assert_eq!(x, [1500f64.cos() as f32, 1500f64.sin() as f32]);
    /// ```
    pub fn new(positions: usize, frequencies: &[f32], factor: f32) -> Self {
        let pages = (0..positions.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self { positions, frequencies: frequencies.to_vec(), factor, pages }
    }

    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of a position, `[D / 2]` each.
    fn row(&self, position: usize) -> [&[f32]; 2] {
        assert!(position < self.positions, "position {position} of {}", self.positions);
        let half = self.frequencies.len();
        let page = self.pages[position / PAGE].get_or_init(|| {
            let first = position / PAGE * PAGE;
            // Frequency and angle in f32, as the models were trained with; sine and cosine of that angle in f64.
            let angle = |at: usize| ((first + at / half) as f32 * self.frequencies[at % half]) as f64;
            let all = PAGE.min(self.positions - first) * half;
            let table = |of: fn(f64) -> f64| (0..all).map(|at| of(angle(at)) as f32 * self.factor).collect();
            [table(f64::cos), table(f64::sin)]
        });
        let at = position % PAGE * half;
        [&page[0][at..at + half], &page[1][at..at + half]]
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
    let width = heads * 2 * table.frequencies.len();
    assert_eq!(x.len(), positions.len() * width, "{} rows of {heads} heads", positions.len());
    let sign = if turn == Turn::Backward { -1.0 } else { 1.0 };
    x.par_chunks_mut(width).zip(positions).with_min_len(64).for_each(|(row, &position)| {
        let [cos, sin] = table.row(position as usize);
        run(row, cos, sin, sign);
    });
}
