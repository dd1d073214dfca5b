//! Turning a model's logits into text.

mod chat;
mod chat_budget;
mod chat_guard;
mod sampling;
mod strftime;

pub use chat::{ChatTemplate, Message};
pub use sampling::{Sampler, SamplingConfig};
