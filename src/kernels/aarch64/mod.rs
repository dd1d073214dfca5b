//! The vectors of 64-bit ARM.

pub mod lines;
pub mod neon;
