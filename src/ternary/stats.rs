//! What a ternary tensor looks like in numbers.

use super::TernaryMatrix;
use super::matrix::{CODES_PER_WORD, ZERO_WORD};
use serde::{Deserialize, Serialize};

/// Counts of a ternary matrix and the spread of its scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Weights that are −1, 0, +1.
    pub minus: u64,
    pub zero: u64,
    pub plus: u64,
    pub groups: u64,
    /// Groups whose scale is 0, so that all their weights are.
    pub dead_groups: u64,
    pub scale_min: f32,
    pub scale_mean: f32,
    pub scale_max: f32,
}

impl Stats {
    pub fn of(matrix: &TernaryMatrix) -> Self {
        let (mut minus, mut plus) = (0u64, 0u64);
        for word in matrix.words() {
            // Codes: 00 is −1, 01 is 0, 10 is +1.
            plus += (word >> 1 & ZERO_WORD).count_ones() as u64;
            minus += (!(word | word >> 1) & ZERO_WORD).count_ones() as u64;
        }
        debug_assert_eq!(matrix.words().len() % matrix.row_words().max(1), 0);
        debug_assert!(matrix.row_words() * CODES_PER_WORD >= matrix.cols());
        let scales = matrix.scales();
        let sum: f64 = scales.iter().map(|&s| s as f64).sum();
        Self {
            minus,
            plus,
            zero: (matrix.rows() * matrix.cols()) as u64 - minus - plus,
            groups: scales.len() as u64,
            dead_groups: scales.iter().filter(|s| **s == 0.0).count() as u64,
            scale_min: scales.iter().copied().reduce(f32::min).unwrap_or(0.0),
            scale_mean: (sum / scales.len().max(1) as f64) as f32,
            scale_max: scales.iter().copied().reduce(f32::max).unwrap_or(0.0),
        }
    }

    pub fn weights(&self) -> u64 {
        self.minus + self.zero + self.plus
    }
}

/// Trits that changed from one projection to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flips {
    /// ±1 became 0.
    pub to_zero: u64,
    /// 0 became ±1.
    pub from_zero: u64,
    /// −1 became +1 or the other way.
    pub sign: u64,
}

impl Flips {
    /// Counts the changes between two words of codes.
    #[inline]
    pub fn between(old: u32, new: u32) -> Self {
        let nonzero = |w: u32| !w & ZERO_WORD;
        let changed = ((old ^ new) | (old ^ new) >> 1) & ZERO_WORD;
        let count = |mask: u32| (changed & mask).count_ones() as u64;
        Self {
            to_zero: count(nonzero(old) & !nonzero(new)),
            from_zero: count(!nonzero(old) & nonzero(new)),
            sign: count(nonzero(old) & nonzero(new)),
        }
    }

    pub fn total(&self) -> u64 {
        self.to_zero + self.from_zero + self.sign
    }
}

impl std::ops::AddAssign for Flips {
    fn add_assign(&mut self, other: Self) {
        self.to_zero += other.to_zero;
        self.from_zero += other.from_zero;
        self.sign += other.sign;
    }
}
