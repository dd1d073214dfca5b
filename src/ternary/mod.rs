//! The ternary number system: a weight is `scale * trit` with trit −1, 0 or +1 and one f16 scale for a group of
//! neighbouring inputs.

mod grouping;
mod matrix;
mod packed;
mod stats;

pub use grouping::Grouping;
pub use matrix::{CODES_PER_WORD, TernaryMatrix, ZERO_WORD};
pub(crate) use matrix::{bad_code, f16_holds, not_finite, scale_of, trit_of};
pub(crate) use packed::pack_block;
pub use packed::{BLOCK_ROWS, Density, LINE_BYTES, Layout, PackedMatrix, SCALE_BYTES, SEGMENT};
pub use stats::{Flips, Stats};

#[cfg(test)]
mod tests;
