//! The names of tensors in a GGUF file and in a Hugging Face directory.

use crate::formats::hf::{EMBEDDING, HEAD};

/// What stands in a block: there, and here.
const IN_BLOCK: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_sub_norm", "self_attn.attn_sub_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_sub_norm", "mlp.ffn_sub_norm"),
];

/// What stands outside of blocks: there, and here.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd.weight", EMBEDDING), ("output.weight", HEAD), ("output_norm.weight", "model.norm.weight")];

/// Factors of the rotation by frequency.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The Hugging Face name of a tensor; `None` of one that no decoder here has.
pub fn to_hf(name: &str) -> Option<String> {
    if let Some((_, ours)) = OUTSIDE.iter().find(|(theirs, _)| *theirs == name) {
        return Some(ours.to_string());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    // As it is written, so that two names never become one.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    let (part, kind) = part.rsplit_once('.')?;
    let (_, ours) = IN_BLOCK.iter().find(|(theirs, _)| *theirs == part)?;
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{ours}.{kind}"))
}

/// The name in a GGUF file of a tensor with this Hugging Face name; `None` of one that has no place there.
pub fn from_hf(name: &str) -> Option<String> {
    if let Some((theirs, _)) = OUTSIDE.iter().find(|(_, ours)| *ours == name) {
        return Some(theirs.to_string());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let (theirs, _) = IN_BLOCK.iter().find(|(_, ours)| *ours == part)?;
    Some(format!("blk.{layer}.{theirs}.{kind}"))
}

/// Heads whose rows stand in pairs in a GGUF file, first and second half in turn, as llama.cpp rotates neighbours: of queries
/// and keys of LLaMA. `name` is Hugging Face's.
pub fn paired_heads(architecture: &str, name: &str, [queries, keys]: [usize; 2]) -> Option<usize> {
    let of = |part: &str| architecture == "llama" && name.contains(part);
    of(".q_proj.").then_some(queries).or(of(".k_proj.").then_some(keys))
}

/// Whether a Hugging Face name is that of a projection inside of a block.
pub fn is_projection(name: &str) -> bool {
    name.starts_with("model.layers.") && name.ends_with("_proj.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_both_worlds() {
        for (theirs, ours) in [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("output_norm.weight", Some("model.norm.weight")),
            ("blk.0.attn_norm.weight", Some("model.layers.0.input_layernorm.weight")),
            ("blk.11.ffn_down.weight", Some("model.layers.11.mlp.down_proj.weight")),
            ("blk.2.attn_k.bias", Some("model.layers.2.self_attn.k_proj.bias")),
            ("blk.02.attn_k.bias", None),
            ("blk.+2.attn_k.bias", None),
            ("blk.2.attn_sinks.weight", None),
            ("blk.2.attn_k.scale", None),
            ("rope_freqs.weight", None),
        ] {
            assert_eq!(to_hf(theirs).as_deref(), ours, "{theirs}");
            if let Some(ours) = ours {
                assert_eq!(from_hf(ours).as_deref(), Some(theirs));
            }
        }
        assert!(is_projection("model.layers.2.mlp.up_proj.weight") && !is_projection("lm_head.weight"));
        assert!(!is_projection("model.layers.2.self_attn.q_proj.bias"));
    }
}
