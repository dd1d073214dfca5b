//! Turning a model's logits into text.

mod decode;
mod sampling;

pub use decode::{Generated, Session};
pub use sampling::{Sampler, SamplingConfig};
