//! A model turned into another coordinate system: the same function of the same tokens, by weights of which none stands out,
//! so that three values and a scale hold more of them (as in QuaRot, arXiv 2404.00456, without what runs at inference).

use super::{Decoder, Linear, RmsNorm, Role, Weight, number};
use crate::error::{Error, Result};
use crate::kernels::{Hadamard, scale_columns};

/// Rotates the residual stream and the values inside of each head of a model without ternary weights. A norm's gain must not
/// stand between two rotations, so gains move into the matrices that follow them; what follows the last norm is the head,
/// which gets weights of its own where it was the embedding.
///
/// # Errors
/// A model with norms of which no rotation is known (BitNet's, before the output projection).
pub fn rotate(decoder: &mut Decoder) -> Result<()> {
    if decoder.config.sub_norm {
        return Err(Error::usage(
            "ternary.rotate: found a model with norms before the output projections, wanted one without",
        ));
    }
    let c = decoder.config.clone();
    let (stream, head) = (Hadamard::new(c.hidden_size), Hadamard::new(c.head_dim));
    if decoder.lm_head.is_none() {
        let mut own = Linear::new("lm_head", c.hidden_size, c.vocab_size, Role::Head, None, false);
        own.weight.dense_mut().copy_from_slice(decoder.embed_tokens.weight.dense());
        decoder.lm_head = Some(own);
        decoder.config.tie_embeddings = false;
        number(decoder.weights_mut());
    }
    stream.rows(decoder.embed_tokens.weight.dense_mut());
    for block in &mut decoder.layers {
        let a = &mut block.self_attn;
        reads(&mut block.input_layernorm, [&mut a.q_proj, &mut a.k_proj, &mut a.v_proj], &stream);
        // Within a head, the values and what reads them.
        for values in a.v_proj.weight.dense_mut().chunks_mut(c.head_dim * c.hidden_size) {
            head.columns(values, c.hidden_size);
        }
        if let Some(bias) = &mut a.v_proj.bias {
            head.rows(bias.dense_mut());
        }
        head.rows(a.o_proj.weight.dense_mut());
        writes(&mut a.o_proj, &stream);
        let f = &mut block.mlp;
        let readers = f.gate_proj.as_mut().into_iter().chain([&mut f.up_proj]);
        reads(&mut block.post_attention_layernorm, readers, &stream);
        writes(&mut f.down_proj, &stream);
    }
    reads(&mut decoder.norm, decoder.lm_head.as_mut(), &stream);
    Ok(())
}

/// Projections that read the stream through a norm: `W (g n(x)) = (W g Rᵀ) n(R x)`, row by row.
fn reads<'a>(norm: &mut RmsNorm, readers: impl IntoIterator<Item = &'a mut Linear>, stream: &Hadamard) {
    for linear in readers {
        let weight: &mut Weight = &mut linear.weight;
        scale_columns(weight.dense_mut(), norm.gain.dense());
        stream.rows(weight.dense_mut());
    }
    norm.gain.dense_mut().fill(1.0);
}

/// A projection that adds to the stream: `R (W x + b)`.
fn writes(linear: &mut Linear, stream: &Hadamard) {
    let inputs = linear.weight.shape[1];
    stream.columns(linear.weight.dense_mut(), inputs);
    if let Some(bias) = &mut linear.bias {
        stream.rows(bias.dense_mut());
    }
}
