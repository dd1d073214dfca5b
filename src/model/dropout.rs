//! Dropout where GPT-2 has it, but for attention's weights: on the embedding, and on what attention and feed-forward network
//! give before it is added to the residual stream. A pass without it costs nothing.

use super::Context;
use crate::kernels::{self, Buffer, To};

/// Where values are dropped, by number.
pub const EMBEDDING: usize = 0;

pub fn after_attention(layer: usize) -> usize {
    1 + 2 * layer
}

pub fn after_feed_forward(layer: usize) -> usize {
    2 + 2 * layer
}

/// `x += dropout(layer)`, where `layer` adds its own to what it is given.
pub fn forward(
    cx: &mut Context<'_>,
    place: usize,
    x: &mut Buffer,
    layer: impl FnOnce(&mut Context<'_>, &mut Buffer),
) {
    let Some(dropout) = cx.dropout else { return layer(cx, x) };
    let mut y = cx.ws.take(x.len());
    kernels::fill_zero(&mut y);
    layer(cx, &mut y);
    kernels::dropout(dropout, place, cx.width(x), &y, x, To::Add);
    cx.ws.give(y);
}

/// Mirror of [`forward`]: `layer` gets the gradient by what it gave.
pub fn backward(
    cx: &mut Context<'_>,
    place: usize,
    dx: &Buffer,
    layer: impl FnOnce(&mut Context<'_>, &Buffer),
) {
    let Some(dropout) = cx.dropout else { return layer(cx, dx) };
    let mut dy = cx.ws.take(dx.len());
    kernels::dropout(dropout, place, cx.width(dx), dx, &mut dy, To::Set);
    layer(cx, &dy);
    cx.ws.give(dy);
}

/// `x = dropout(x)`, forward as backward.
pub fn whole(cx: &mut Context<'_>, place: usize, x: &mut Buffer) {
    let Some(dropout) = cx.dropout else { return };
    let mut y = cx.ws.take(x.len());
    kernels::dropout(dropout, place, cx.width(x), x, &mut y, To::Set);
    std::mem::swap(x, &mut y);
    cx.ws.give(y);
}
