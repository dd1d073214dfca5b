//! What a trained model is: ternary or not, and how good.

mod perplexity;
mod verify;

pub use perplexity::{Perplexity, perplexity, perplexity_of};
pub use verify::{Proof, TensorProof, verify};
