//! Turning a model's logits into text.

mod chat;
mod decode;
mod sampling;

pub use chat::{ChatTemplate, Message, RenderOptions};
pub use decode::{Generated, Session};
pub use sampling::{Sampler, SamplingConfig};
