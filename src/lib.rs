//! Train, prove and run language models whose every weight is −1, 0 or +1.

pub mod cli;
pub mod config;
pub mod error;
pub mod files;
pub mod formats;
pub mod generate;
pub mod kernels;
pub mod measure;
pub mod model;
pub mod report;
pub mod ternary;
pub mod text;
pub mod train;

pub use error::{Error, Result};
