//! A decoder as a GGUF file for llama.cpp.

use std::path::Path;

use super::{Decoder, Weight};
use crate::config::{Activation, Inputs, ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::files::Bundle;
use crate::formats::gguf::encode::{self, holds};
use crate::formats::gguf::write::{Item, Metadata, RowFn, ToWrite, write};
use crate::formats::gguf::{BlockType, Coding, INPUTS, inputs_note, names, rope, tokens};
use crate::formats::tensors::Progress;
use crate::formats::{Description, hf};
use crate::kernels;

/// Writes the decoder, which `kind` holds ([`fit`](super::fit)) and whose trits are in memory: ternary matrices in `kind`,
/// other matrices in the narrowest type that holds them exactly, gains and biases in F32; tokenizer and chat template from
/// `files`.
///
/// # Errors
/// An architecture or a tokenizer that llama.cpp does not have.
pub fn save_gguf(
    path: &Path,
    decoder: &Decoder,
    description: &Description,
    files: &Bundle,
    kind: &'static BlockType,
    progress: Progress<'_>,
) -> Result<()> {
    let config_file = files.path_of(hf::FILE_NAME);
    let architecture = architecture(&decoder.config, description, &config_file)?;
    if decoder.inputs() != Inputs::F32 {
        tracing::warn!(
            "the model was trained with inputs of 8 bits; llama.cpp rounds them by blocks of its own"
        );
    }
    let metadata = metadata(path, architecture, decoder, description, files, kind)?;
    let mut tensors: Vec<ToWrite<'_>> = decoder
        .weights()
        .map(|weight| {
            let name = names::from_hf(&weight.name);
            let name = name.ok_or_else(|| {
                Error::input(
                    &config_file,
                    &weight.name,
                    "a tensor",
                    format!("one that {architecture} has there"),
                )
            })?;
            let heads = [decoder.config.heads, decoder.config.kv_heads];
            let paired = names::paired_heads(architecture, &weight.name, heads);
            Ok(tensor(weight, name, kind, paired))
        })
        .collect::<Result<_>>()?;
    tensors.extend(factors(architecture, &decoder.config, &config_file)?);
    write(path, &metadata, &tensors, progress)
}

/// llama.cpp's name for a model.
fn architecture(m: &ModelConfig, description: &Description, config_file: &Path) -> Result<&'static str> {
    let bad = |field: &str, found: &str, wanted: &str| Err(Error::input(config_file, field, found, wanted));
    match (m.sub_norm, m.activation) {
        (false, _) => {}
        (true, Activation::SwiGlu) => {
            let bias = m.qkv_bias || m.o_bias || m.mlp_bias;
            let plain = m.causal && !m.qk_norm && !bias && m.heads * m.head_dim == m.hidden_size;
            return match (plain, m.tie_embeddings) {
                (true, true) => Ok("bitnet"),
                (true, false) => {
                    bad("tie_word_embeddings", "false", "true: llama.cpp's bitnet has no output head")
                }
                (false, _) => {
                    let wanted = "without biases and norms of queries and keys, heads as wide as the model: \
                                  llama.cpp's bitnet has no more";
                    bad("sub_norm", "true", wanted)
                }
            };
        }
        (true, Activation::Relu2Glu) => {
            let wanted =
                "SiLU: llama.cpp's bitnet has it in place of ReLU², and would compute another function";
            return bad("hidden_act", "\"relu2\"", wanted);
        }
        (true, _) => {}
    }
    Ok(match hf::common_architecture(description, config_file)? {
        "mistral" => "llama",
        other => other,
    })
}

/// The factors of LLaMA 3's stretched rotation, where the model has it.
fn factors(architecture: &str, m: &ModelConfig, config_file: &Path) -> Result<Option<ToWrite<'static>>> {
    let Some(scaling @ RopeScaling::Llama3 { .. }) = m.rope_scaling else { return Ok(None) };
    if architecture != "llama" {
        let wanted = format!("another rotation: llama.cpp's {architecture} has no table of factors");
        return Err(Error::input(config_file, "rope_scaling", "\"llama3\"", wanted));
    }
    let (theta, dim) = (f64::from(m.rope_theta), m.head_dim);
    let row: RowFn<'_> = Box::new(move |_, out| {
        (0..dim / 2).for_each(|i| out.extend((rope::factor(scaling, theta, dim, i) as f32).to_le_bytes()));
    });
    let kind = BlockType::by_name("F32").expect("a type of ggml");
    Ok(Some(ToWrite { name: names::ROPE_FACTORS.into(), shape: vec![dim / 2], kind, row }))
}

fn metadata(
    path: &Path,
    architecture: &str,
    decoder: &Decoder,
    description: &Description,
    files: &Bundle,
    kind: &BlockType,
) -> Result<Metadata> {
    let m = &decoder.config;
    let text = |text: &str| Item::Text(text.into());
    let size = |n: usize| Item::U32(n as u32);
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut out: Metadata =
        vec![("general.architecture".into(), text(architecture)), ("general.name".into(), text(&name))];
    let file_type = match (kind.coding, kind.block) {
        (Coding::F32, _) => Some(0),
        (Coding::F16, _) => Some(1),
        (Coding::Bf16, _) => Some(32),
        (Coding::Tq1_0, _) => Some(36),
        (Coding::Tq2_0, _) => Some(37),
        (Coding::Q2_0, 64) => Some(41),
        _ => None,
    };
    out.extend(file_type.map(|n| ("general.file_type".into(), Item::U32(n))));
    out.push(("general.quantization_version".into(), Item::U32(2)));
    let own = [
        ("vocab_size", size(m.vocab_size)),
        ("context_length", size(m.max_positions)),
        ("embedding_length", size(m.hidden_size)),
        ("block_count", size(m.layers)),
        ("feed_forward_length", size(m.intermediate_size)),
        ("attention.head_count", size(m.heads)),
        ("attention.head_count_kv", size(m.kv_heads)),
        ("attention.key_length", size(m.head_dim)),
        ("attention.value_length", size(m.head_dim)),
        ("attention.layer_norm_rms_epsilon", Item::F32(m.rms_norm_eps)),
        ("rope.dimension_count", size(m.head_dim)),
        ("rope.freq_base", Item::F32(m.rope_theta)),
    ];
    let own = own.into_iter().chain(rotation(m, files)?);
    out.extend(own.map(|(key, item)| (format!("{architecture}.{key}"), item)));
    let note = m.rope_scaling.filter(|scaling| matches!(scaling, RopeScaling::Llama3 { .. }));
    let note = note.and_then(|scaling| rope::note(scaling, m.rope_theta.into(), m.head_dim));
    out.extend(note.map(|note| (rope::NOTE.into(), Item::Text(note))));
    out.extend(inputs_note(decoder.inputs()).map(|note| (INPUTS.into(), Item::Text(note))));
    match tokens::metadata(files, description, m.vocab_size)? {
        Some(vocabulary) => out.extend(vocabulary),
        None => out.push((tokens::MODEL.into(), text("none"))),
    }
    Ok(out)
}

/// How the rotation is stretched, if it is; keys of the architecture.
fn rotation(m: &ModelConfig, files: &Bundle) -> Result<Vec<(&'static str, Item)>> {
    let named = |kind: &str, factor: f64| {
        let factor = Item::F32(factor as f32);
        vec![("rope.scaling.type", Item::Text(kind.into())), ("rope.scaling.factor", factor)]
    };
    Ok(match m.rope_scaling {
        // A dynamic one is the plain one in the positions that the model has; LLaMA 3's is a tensor.
        None | Some(RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. }) => Vec::new(),
        Some(RopeScaling::Linear { factor }) => named("linear", factor),
        Some(
            scaling @ RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
                ..
            },
        ) => {
            let mut out = named("yarn", factor);
            out.push(("rope.scaling.original_context_length", Item::U32(original_max_positions as u32)));
            // llama.cpp multiplies with it what follows from the factor.
            let attention = (scaling.attention_factor() / RopeScaling::yarn_attention(factor)) as f32;
            out.extend((attention != 1.0).then_some(("rope.scaling.attn_factor", Item::F32(attention))));
            out
        }
        Some(other) => {
            let wanted =
                "beta_fast 32, beta_slow 1 and truncate true: llama.cpp has no others for this model";
            let file = files.path_of(hf::FILE_NAME);
            return Err(Error::input(file, "rope_scaling", format!("{other:?}"), wanted));
        }
    })
}

fn tensor<'a>(
    weight: &'a Weight,
    name: String,
    kind: &'static BlockType,
    paired_heads: Option<usize>,
) -> ToWrite<'a> {
    let rows = weight.shape[0];
    let order = move |row: usize| match paired_heads {
        None => row,
        Some(heads) => {
            let dim = rows / heads;
            let (head, at) = (row / dim, row % dim);
            head * dim + at % 2 * (dim / 2) + at / 2
        }
    };
    let by_name = |name: &str| BlockType::by_name(name).expect("a type of ggml");
    let (kind, row): (_, RowFn<'a>) = match weight.ternary() {
        Some(matrix) if kind.is_ternary() => {
            (kind, Box::new(move |row, out| encode::trits(kind, matrix, order(row), out)))
        }
        Some(matrix) => {
            let row = move |row: usize, out: &mut Vec<u8>| {
                let mut values = vec![0.0; matrix.cols()];
                kernels::unpack_row(matrix, order(row), &mut values);
                encode::values(kind, &values, out);
            };
            (kind, Box::new(row))
        }
        None => {
            let narrow = ["F16", "BF16", "F32"].into_iter().map(by_name);
            let all = std::iter::once(kind).filter(|kind| kind.block == 1).chain(narrow);
            let values = weight.dense();
            let kind = match weight.role.is_matrix() {
                true => all.into_iter().find(|kind| holds(kind, values)).expect("F32 holds everything"),
                false => by_name("F32"),
            };
            let cols = weight.shape[1..].iter().product::<usize>();
            // A bias is one row of values that stand in that order.
            let each = if weight.shape.len() == 1 { rows } else { 1 };
            let row = move |row: usize, out: &mut Vec<u8>| {
                for at in row * each..(row + 1) * each {
                    encode::values(kind, &values[order(at) * cols..][..cols], out);
                }
            };
            (kind, Box::new(row))
        }
    };
    ToWrite { name, shape: weight.shape.clone(), kind, row }
}
