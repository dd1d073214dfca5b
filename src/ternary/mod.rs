//! The ternary number system.

mod grouping;

pub use grouping::Grouping;
