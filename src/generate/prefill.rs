//! Many tokens through a model, in pieces.

use crate::model::{Decoder, KvCache, State};

/// Tokens that go through the model at a time: bounds the memory of a long prompt.
const PREFILL: usize = 512;

/// Appends `tokens`, at least one, to the cached sequence; the logits after the last of them, `[V]`.
pub fn read(decoder: &Decoder, tokens: &[u32], cache: &mut KvCache, state: &mut State) -> Vec<f32> {
    let mut logits = Vec::new();
    for piece in tokens.chunks(PREFILL) {
        logits = decoder.step(piece, cache, state);
    }
    logits
}
