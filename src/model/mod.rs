//! Layers with hand-written gradients, and the decoder made of them.
//!
//! Shapes: `B` sequences of `T` tokens, `N = B T` rows, width `C`, `H` heads of width `D`, vocabulary `V`. Activations
//! are row-major slices; gradients of weights are accumulated.

mod advance;
mod attention;
mod block;
mod cache;
mod calibrate;
mod convert;
pub mod cross_entropy;
mod decoder;
mod directory;
mod dropout;
mod embedding;
mod feed_forward;
mod fit;
mod gradients;
mod latents;
mod linear;
mod parts;
mod relations;
mod rms_norm;
mod rotate;
mod sequences;
mod store;
mod to_gguf;
mod weight;
mod workspace;

pub use advance::{PIECE, Span, Wanted};
pub use attention::{Attention, AttentionSaved, Cached};
pub use block::Block;
pub use cache::{KvCache, KvPool};
pub use calibrate::calibrate;
pub use convert::{Rounding, check, save_mlx};
pub use cross_entropy::Loss;
pub use decoder::{Decoder, Learning, State, Teacher};
pub use directory::{promised, unused};
pub use embedding::Embedding;
pub use feed_forward::{FeedForward, FeedForwardSaved};
pub use fit::{Changes, fit};
pub use gradients::{Gradients, Outlet, Place};
pub use latents::Latents;
pub use linear::Linear;
pub use relations::Relations;
pub use rms_norm::RmsNorm;
pub use rotate::rotate;
pub use sequences::Sequences;
pub use store::{
    Model, held, load, load_rotated_to_train, load_to_train, load_trits, save, save_packed, save_packed_of,
    save_unpacked, ternary_entry,
};
pub use to_gguf::save_gguf;
pub use weight::{Form, Role, Weight, number};
pub use workspace::{Context, Workspace, in_context};
