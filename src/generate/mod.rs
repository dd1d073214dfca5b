//! Turning a model's logits into text.

mod chat;
mod chat_budget;
mod chat_guard;
mod decode;
mod sampling;
mod strftime;

pub use chat::{ChatTemplate, Message};
pub use decode::{Generated, Session};
pub use sampling::{Sampler, SamplingConfig};
