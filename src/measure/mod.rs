//! What a trained model is: ternary or not, how good, and what it takes to run it.

mod needs;
mod perplexity;
mod verify;

pub use needs::{Held, Needs};
pub use perplexity::{Perplexity, Windows, perplexity, perplexity_of};
pub use verify::{Proof, TensorProof, verify};
