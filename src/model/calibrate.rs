//! Ternary weights chosen by what they do to outputs on a text, before a training begins.

use super::block::BlockSaved;
use super::sequences::Rows;
use super::{Context, Decoder, Latents, Sequences, Workspace};
use crate::error::Result;
use crate::kernels::{self, Buffer, InputProducts};
use crate::ternary::Grouping;

/// Gives the ternary matrices of the blocks, and of a head of its own, latents whose trits keep what each multiplies on
/// `tokens`, sequences of `len` of which `at_once` pass together ([`kernels::calibrate`]). They are taken in the order of a
/// pass, each on inputs that the ternary ones before it make. An embedding's rows meet no others: it stays as it is.
/// `progress` is told matrices done, and all. No weight is annealed afterwards.
///
/// # Errors
/// Inputs that are not finite, by the name of the tensor that multiplies them.
///
/// # Panics
/// With one scale for all of a matrix.
pub fn calibrate(
    decoder: &mut Decoder,
    latents: &mut Latents,
    tokens: &[u32],
    [len, at_once]: [usize; 2],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let Grouping::Size(group) = decoder.grouping else { panic!("one scale for all of a matrix") };
    let all = decoder.weights().filter(|w| w.role.is_projection() && w.ternary().is_some()).count();
    if all == 0 {
        return Ok(());
    }
    let (width, mut done) = (decoder.config.hidden_size, 0);
    let stream = |tokens: &[u32]| {
        let mut x = Buffer::zeros(tokens.len() * width);
        decoder.embed_tokens.forward(tokens, &mut x);
        (Rows::from(Sequences::new(tokens.len() / len, len)), x)
    };
    let mut streams: Vec<(Rows, Buffer)> = tokens.chunks(at_once * len).map(stream).collect();
    let (mut ws, mut saved) = (Workspace::default(), BlockSaved::default());
    let Decoder { layers, rope, norm, lm_head, .. } = decoder;
    for (layer, block) in layers.iter_mut().enumerate() {
        // What is not ternary yet is multiplied as it is.
        latents.soften(block.weights_mut(), |_| 1.0);
        for stage in 0..block.readers_mut().count() {
            let mut products = None;
            for (rows, x) in &streams {
                let mut cx = Context::new(rows, rope, &mut ws);
                let mut out = cx.ws.take(x.len());
                kernels::copy(&mut out, x);
                block.forward(layer, &mut out, &mut cx, &mut saved, None);
                cx.ws.give(out);
                let mut nth = 0..;
                block.inputs(&mut cx, &saved, |h| {
                    if nth.next() == Some(stage) {
                        let inputs = h.len() / rows.count();
                        products.get_or_insert_with(|| InputProducts::zeros(inputs)).add(h);
                    }
                });
            }
            let readers = block.readers_mut().nth(stage).unwrap_or_default();
            done += readers.len();
            if let Some(products) = products {
                latents.calibrate(readers, &products, group)?;
            }
            progress(done, all);
        }
        for (rows, x) in &mut streams {
            block.forward(layer, x, &mut Context::new(rows, rope, &mut ws), &mut saved, None);
        }
    }
    if let Some(head) = lm_head.as_mut().map(|head| &mut head.weight).filter(|w| w.ternary().is_some()) {
        let mut products = InputProducts::zeros(width);
        for (_, x) in &streams {
            let mut h = ws.take(x.len());
            norm.forward(x, &mut h);
            products.add(&h);
            ws.give(h);
        }
        latents.calibrate(vec![head], &products, group)?;
    }
    Ok(())
}
