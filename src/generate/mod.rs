//! Turning a model's logits into text.

mod decode;
mod sampling;
mod scores;
mod speculate;
mod stop;

pub use decode::{Generated, Session, judge_prompt};
pub use sampling::{Sampler, SamplingConfig};
pub use scores::{Scored, score};
pub use speculate::Speculation;
pub use stop::{StopStrings, begun};
