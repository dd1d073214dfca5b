//! Turning a model's logits into text.

mod decode;
mod sampling;
mod speculate;

pub use decode::{Generated, Session};
pub use sampling::{Sampler, SamplingConfig};
pub use speculate::Speculation;
