//! What a trained model is: ternary or not, and how good.

mod perplexity;
mod verify;
mod wikitext;

pub use perplexity::{Perplexity, perplexity, words};
pub use verify::{Proof, TensorProof, verify};
pub use wikitext::detokenize_wikitext;
