//! Train, prove and run language models whose every weight is −1, 0 or +1.

pub mod config;
pub mod error;
pub mod formats;
pub mod kernels;
pub mod model;
pub mod ternary;
pub mod text;

pub use error::{Error, Result};
