//! What running a model takes, told before it is loaded: from the shapes and the form of its tensors alone.

use serde::Serialize;

use crate::config::{KvFormat, ModelConfig};
use crate::error::Result;
use crate::formats::hf::EMBEDDING;
use crate::formats::{ModelFiles, Stored};
use crate::kernels::PAGE;
use crate::model::{KvPool, PIECE};
use crate::ternary::{Density, Grouping, Layout};

/// Of the program itself, with threads and their scratch; measured.
const PROGRAM: u64 = 16 << 20;

/// Bytes that a model takes while it runs. Sums that no 64 bits hold are the largest number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// By the form in which they are held while the model runs.
    pub weights: Vec<Held>,
    /// Of all weights.
    pub weight_bytes: u64,
    /// Of the weights that every token meets: all but an embedding that is no head.
    pub bytes_per_token: u64,
    /// Of keys and values of a position.
    pub kv_bytes_per_position: u64,
    /// Of keys and values at all positions that the model has.
    pub kv_bytes_at_most: u64,
    /// Positions that the figures below are for.
    pub context: u64,
    /// Of keys and values of `context` positions, in whole pages.
    pub kv_bytes: u64,
    /// Activations of a piece of the prompt, logits, angles of positions, the program. A tokenizer comes on top.
    pub working_bytes: u64,
    /// Weights, keys and values, and the rest, while it generates. A packed file is mapped and counts once.
    pub resident_bytes: u64,
}

/// Weights of one form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Held {
    /// `base3`, `2bit` or `f32`.
    pub form: String,
    pub weights: u64,
    pub bytes: u64,
}

/// A tensor as it is held while its model runs.
struct Tensor {
    form: String,
    weights: u64,
    bytes: u64,
    /// Whether a token needs a row of it only.
    looked_up: bool,
}

impl Needs {
    /// Of generating up to `context` positions. Trits that are not packed are brought into two bits when they are loaded,
    /// everything else becomes f32.
    ///
    /// # Errors
    /// A tensor that its files do not hold.
    pub fn of(stored: &ModelFiles, context: usize) -> Result<Self> {
        let description = &stored.description;
        let note = description.ternary.as_ref();
        let tensor = |name: &str| {
            let (bytes, form) = match stored.tensor(name)? {
                Stored::Trits(trits) if trits.packed().is_some() => {
                    let packed = trits.packed().expect("just seen");
                    (packed.bytes().len() as u64, packed.layout().density().to_string())
                }
                tensor => match note.filter(|note| note.tensors.iter().any(|t| t == name)) {
                    Some(note) => packed_bytes(tensor.shape(), note.group, Density::TwoBit),
                    None => (4 * elements(tensor.shape()), "f32".into()),
                },
            };
            let weights = elements(stored.tensor(name)?.shape());
            let looked_up = name == EMBEDDING && !description.model.tie_embeddings;
            Ok(Tensor { form, weights, bytes, looked_up })
        };
        let tensors = stored.names().map(tensor).collect::<Result<Vec<_>>>()?;
        Ok(Self::sum(&description.model, &tensors, context))
    }

    fn sum(c: &ModelConfig, tensors: &[Tensor], context: usize) -> Self {
        let mut weights: Vec<Held> = Vec::new();
        for t in tensors {
            match weights.iter_mut().find(|held| held.form == t.form) {
                Some(held) => {
                    held.weights += t.weights;
                    held.bytes += t.bytes;
                }
                None => weights.push(Held { form: t.form.clone(), weights: t.weights, bytes: t.bytes }),
            }
        }
        weights.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.form.cmp(&b.form)));
        let weight_bytes = weights.iter().map(|held| held.bytes).sum();
        let page = KvPool::new(c, KvFormat::F16, PAGE).page_bytes() as u64;
        let pages = |positions: usize| page.saturating_mul(positions.div_ceil(PAGE) as u64);
        let (kv_bytes, working_bytes) = (pages(context), working_bytes(c, context));
        Self {
            weight_bytes,
            bytes_per_token: tensors.iter().filter(|t| !t.looked_up).map(|t| t.bytes).sum(),
            weights,
            kv_bytes_per_position: page / PAGE as u64,
            kv_bytes_at_most: pages(c.max_positions),
            context: context as u64,
            kv_bytes,
            working_bytes,
            resident_bytes: weight_bytes.saturating_add(kv_bytes).saturating_add(working_bytes),
        }
    }

    /// Tokens a second after `positions` at most, where memory gives `gbps` GB/s: a token reads its weights, and the keys
    /// and values of what came before. A model that caches hold can be faster.
    pub fn tok_per_s(&self, gbps: f64, positions: u64) -> f64 {
        let bytes = self.bytes_per_token as f64 + self.kv_bytes_per_position as f64 * positions as f64;
        gbps * 1e9 / bytes.max(1.0)
    }
}

/// Of what is neither a weight nor a key or value.
fn working_bytes(c: &ModelConfig, context: usize) -> u64 {
    let [width, feed_forward, vocab] = [c.hidden_size, c.intermediate_size, c.vocab_size].map(|n| n as u64);
    let heads = (c.heads as u64 + c.kv_heads as u64) * c.head_dim as u64;
    let wide = if c.activation.is_gated() { 3 } else { 2 } + u64::from(c.sub_norm);
    // The residual stream and its norm, twice; queries, keys, values and attention's output; what is `F` wide.
    let row = 4 * width + 2 * heads + wide * feed_forward;
    let angles = c.max_positions as u64 * c.head_dim as u64;
    let values = (row * context.min(PIECE) as u64).saturating_add(angles + 2 * vocab);
    values.saturating_mul(4).saturating_add(PROGRAM)
}

fn packed_bytes(shape: &[usize], grouping: Grouping, density: Density) -> (u64, String) {
    match *shape {
        // A layout is as long as a row, which a file of no rows says for nothing.
        [rows, cols] if rows > 0 => {
            let bytes = Layout::new(rows, cols, grouping, density).bytes();
            (bytes.map_or(u64::MAX, |n| n as u64), density.to_string())
        }
        _ => (4 * elements(shape), "f32".into()),
    }
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scope;
    use crate::formats::Description;
    use crate::model::{self, Decoder, Latents};

    fn config(tied: bool) -> ModelConfig {
        ModelConfig {
            vocab_size: 100,
            hidden_size: 256,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            intermediate_size: 96,
            qk_norm: true,
            tie_embeddings: tied,
            max_positions: 1000,
            ..ModelConfig::default()
        }
    }

    fn stored(tied: bool, scope: Scope, density: Option<Density>) -> (tempfile::TempDir, ModelFiles) {
        let config = config(tied);
        let dir = tempfile::tempdir().unwrap();
        let mut decoder = Decoder::new(&config, scope, Grouping::default());
        Latents::random(decoder.weights_mut(), 1, None).unwrap();
        let description = Description::new(config);
        let mut path = dir.path().to_path_buf();
        match density {
            Some(density) => {
                path.push("model.tern");
                model::save_packed(&path, &decoder, &description, Vec::new(), density).unwrap();
            }
            None => model::save(&path, &decoder, &description, None).unwrap(),
        }
        (dir, ModelFiles::open(&path).unwrap())
    }

    /// Blocks of 16 rows; of 128 inputs with their scales 448 bytes in base 3 (6 lines and a half of 64, 32 of scales) and 544
    /// in two bits (8 lines); of 96 inputs 352 (5 lines) and 416 (6 lines).
    #[test]
    fn bytes_are_those_counted_by_hand() {
        // [100, 256]: 7 blocks; a layer: q [128, 256] 8, k and v [64, 256] 4 each, o [256, 128] 16 of one segment, gate and up
        // [96, 256] 6 each, down [256, 96] 16 of one short segment.
        let layer = |whole: u64, short: u64| ((8 + 4 + 4 + 6 + 6) * 2 + 16) * whole + 16 * short;
        let (ends3, blocks3) = (7 * 2 * 448, 2 * layer(448, 352));
        let (ends2, blocks2) = (7 * 2 * 544, 2 * layer(544, 416));
        // Two norms of the width and two of a head a layer, one at the end.
        let gains = 4 * (2 * (256 + 256 + 32 + 32) + 256);
        let base3 = Some(Density::Base3);
        type Case<'a> = (bool, Scope, Option<Density>, &'a [(&'a str, u64)], u64);
        let cases: [Case; 5] = [
            (true, Scope::All, base3, &[("base3", ends3 + blocks3), ("f32", gains)], 0),
            (false, Scope::All, base3, &[("base3", 2 * ends3 + blocks3), ("f32", gains)], ends3),
            // f16 in the file, f32 in memory.
            (false, Scope::Blocks, base3, &[("f32", 2 * 102_400 + gains), ("base3", blocks3)], 102_400),
            (true, Scope::All, None, &[("2bit", ends2 + blocks2), ("f32", gains)], 0),
            // Of the embedding; of q, k, v, o, and of gate, up, down, in two layers.
            (true, Scope::None, None, &[("f32", 4 * (25_600 + 2 * (98_304 + 73_728)) + gains)], 0),
        ];
        for (tied, scope, density, wanted, looked_up) in cases {
            let (_dir, stored) = stored(tied, scope, density);
            let needs = Needs::of(&stored, 300).unwrap();
            let found: Vec<(&str, u64)> = needs.weights.iter().map(|h| (&*h.form, h.bytes)).collect();
            let case = format!("tied {tied}, {scope:?}, {density:?}");
            assert_eq!(found, wanted, "{case}");
            assert_eq!(needs.weight_bytes - needs.bytes_per_token, looked_up, "{case}");
            let held: u64 = needs.weights.iter().map(|h| h.weights).sum();
            assert_eq!(held as u128, config(tied).parameters(), "{case}");
        }
    }

    #[test]
    fn keys_and_values_take_whole_pages_and_slow_a_token_down() {
        let (_dir, stored) = stored(true, Scope::All, Some(Density::Base3));
        let needs = Needs::of(&stored, 300).unwrap();
        // Two layers of keys and values, two heads of 32 each, in f16.
        assert_eq!(needs.kv_bytes_per_position, 512);
        assert_eq!(needs.kv_bytes, 3 * 128 * 512, "three pages hold 300 positions");
        assert_eq!(needs.kv_bytes_at_most, 8 * 128 * 512, "eight hold 1,000");
        let total = needs.weight_bytes + needs.kv_bytes + needs.working_bytes;
        assert_eq!(needs.resident_bytes, total);
        let exact = Needs { bytes_per_token: 3_000_000, kv_bytes_per_position: 10_000, ..needs };
        assert_eq!([0, 300].map(|n| exact.tok_per_s(30.0, n)), [10_000.0, 5_000.0]);
    }
}
