//! What a training costs: arithmetic, memory, and memory traffic, from the shape of the model and the batch.

use super::Trainer;
use crate::config::{ModelConfig, MomentFormat, OptimizerKind, Scale, Scope, TernaryConfig, TrainConfig};
use crate::kernels::BLOCK;
use crate::model::{Role, Sequences, cross_entropy};
use crate::ternary::CODES_PER_WORD;

/// `[out, in]` of the projections of a block.
fn projections(c: &ModelConfig) -> Vec<[usize; 2]> {
    let (width, queries, keys) = (c.hidden_size, c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let mut all = vec![[queries, width], [keys, width], [keys, width], [width, queries]];
    all.extend(vec![[c.intermediate_size, width]; widening(c)]);
    all.push([width, c.intermediate_size]);
    all
}

/// How many projections lead to the width of the feed-forward network: gate and up, or up alone.
fn widening(c: &ModelConfig) -> usize {
    if c.activation.is_gated() { 2 } else { 1 }
}

/// Weights of the projections of all blocks.
fn in_blocks(c: &ModelConfig) -> u128 {
    c.layers as u128 * projections(c).into_iter().map(values).sum::<u128>()
}

/// `[out, in]` of the embedding, and of the head.
fn table(c: &ModelConfig) -> [usize; 2] {
    [c.vocab_size, c.hidden_size]
}

/// Embedding, and head where it is not the embedding.
fn ends(c: &ModelConfig) -> u128 {
    if c.tie_embeddings { 1 } else { 2 }
}

fn values([rows, cols]: [usize; 2]) -> u128 {
    rows as u128 * cols as u128
}

/// Multiplications and additions of a training step per token: 6 a weight of every product (forward, input gradient,
/// weight gradient), and attention's `6 * 2 * T * H * D`, half of it when causal. Recomputation does not count.
pub fn flops_per_token(c: &ModelConfig, seq: usize) -> f64 {
    let attention = 12.0 * (seq * c.heads * c.head_dim * c.layers) as f64 * if c.causal { 0.5 } else { 1.0 };
    6.0 * (in_blocks(c) + values(table(c))) as f64 + attention
}

/// Values that a block keeps of a row for the backward pass: two residual streams, queries, keys, values, attention's
/// output and its log-sum-exps, and the projections to the width of the feed-forward network; with `recompute` no
/// projections.
pub fn saved_by_block(c: &ModelConfig, recompute: bool) -> usize {
    let projections = (c.heads + 2 * c.kv_heads) * c.head_dim + widening(c) * c.intermediate_size;
    2 * c.hidden_size + c.heads * (c.head_dim + 1) + if recompute { 0 } else { projections }
}

/// Bytes of what an optimizer remembers.
pub fn moment_bytes(c: &ModelConfig, t: &TrainConfig) -> u128 {
    own_moment_bytes(c, t, 1)
}

/// Bytes of what an optimizer remembers in each of `among` processes that share it out. What Muon does not share out, each
/// of them has: projections, and the gains in their blocks.
pub fn own_moment_bytes(c: &ModelConfig, t: &TrainConfig, among: usize) -> u128 {
    let among = among as u128;
    // Of each value of the blocks' projections, and of every other.
    let (inside, outside, blocks_among) = match t.optimizer {
        OptimizerKind::AdamW => (2, 2, among),
        OptimizerKind::Sgd => (1, 1, among),
        // The others are AdamW's.
        OptimizerKind::Muon => (1, 2, 1),
    };
    let of_matrix = |[rows, cols]: [usize; 2]| match t.moments {
        MomentFormat::F32 => 4 * values([rows, cols]),
        // A code each, and an f32 for each block of a row.
        MomentFormat::Int8 => values([rows, cols]) + 4 * values([rows, cols.div_ceil(BLOCK)]),
    };
    let of_blocks = c.layers as u128 * projections(c).into_iter().map(of_matrix).sum::<u128>();
    let of_ends = ends(c) * of_matrix(table(c));
    let gains_and_biases = c.parameters() - in_blocks(c) - ends(c) * values(table(c));
    (inside * of_blocks + outside * 4 * gains_and_biases) / blocks_among + outside * of_ends / among
}

/// Bytes of what products are with in a first step, in place of weights that are not ternary yet.
pub fn annealed_bytes(c: &ModelConfig, t: &TernaryConfig) -> u128 {
    let attention = c.layers as u128 * projections(c).into_iter().take(4).map(values).sum::<u128>();
    let (feed_forward, ends) = (in_blocks(c) - attention, ends(c) * values(table(c)));
    let (blocks, all) = (t.scope != Scope::None, t.scope == Scope::All);
    let kinds = [
        (blocks, t.start.feed_forward, feed_forward),
        (blocks, t.start.attention, attention),
        (all, t.start.ends, ends),
    ];
    let soft = kinds.into_iter().filter(|(ternary, start, _)| *ternary && t.anneal.max(*start) > 0.0);
    4 * soft.map(|(.., values)| values).sum::<u128>()
}

/// Bytes that ternary weights take beside their latents: trits and scales, what is remembered of those of the start and of the
/// last record, and learned scales with their moments.
pub fn ternary_bytes(c: &ModelConfig, t: &TernaryConfig) -> u128 {
    let matrices = |scale_bytes: u128| -> u128 {
        let of = |[rows, cols]: [usize; 2]| {
            let words = values([rows, cols.div_ceil(CODES_PER_WORD)]);
            3 * 4 * words + scale_bytes * values([rows, cols.div_ceil(t.group.size(cols).max(1))])
        };
        let blocks = c.layers as u128 * projections(c).into_iter().map(of).sum::<u128>();
        match t.scope {
            Scope::None => 0,
            Scope::Blocks => blocks,
            Scope::All => blocks + ends(c) * of(table(c)),
        }
    };
    matrices(if t.scale == Scale::Learned { 4 * 5 } else { 4 * 2 })
}

/// Bytes of a teacher's pass over `rows` tokens, without its weights: the activations of a block, and logits. With relations
/// those of one more block, which are kept, and its queries and keys behind their norms.
pub fn teacher_pass_bytes(c: &ModelConfig, rows: u128, relations: bool) -> u128 {
    let logits = cross_entropy::logits_at_once(c.vocab_size, usize::try_from(rows).unwrap_or(usize::MAX));
    let normed = if c.qk_norm { (c.heads + c.kv_heads) * c.head_dim } else { 0 };
    let kept = if relations { saved_by_block(c, false) + normed } else { 0 };
    4 * rows * (saved_by_block(c, false) + kept + passing(c)) as u128 + 4 * logits as u128
}

/// Beside what blocks save, some buffers of the width of the residual stream; values of a row.
fn passing(c: &ModelConfig) -> usize {
    6 * c.hidden_size
}

/// Bytes of a training that takes `rows` tokens at a time, in each of `among` processes that share the moments out: latents,
/// gradients, moments, saved activations and logits.
pub fn training_bytes(c: &ModelConfig, t: &TrainConfig, rows: u128, among: usize) -> u128 {
    let logits = cross_entropy::logits_at_once(c.vocab_size, usize::try_from(rows).unwrap_or(usize::MAX));
    let activations = 4 * logits as u128
        + 4 * rows * (c.layers as u128 * saved_by_block(c, t.recompute) as u128 + passing(c) as u128);
    8 * c.parameters() + own_moment_bytes(c, t, among) + activations
}

/// Bytes that a step has to move where no cache keeps a tensor from one pass over it to the next: the passes over
/// weights, gradients, moments and logits that the step is made of, and what the blocks save, written once and read
/// once. What one kernel hands to the next and nobody saves counts nothing, so a large model moves more; one that fits
/// a cache, less.
pub fn least_traffic(trainer: &Trainer) -> f64 {
    let (decoder, t) = (&trainer.model.decoder, &trainer.recipe.train);
    let c = &decoder.config;
    let seqs = Sequences::new(t.batch, trainer.source.seq());
    let parts = decoder.parts(seqs);
    let of_part = seqs.rows().div_ceil(parts);
    // Where no logits are kept, their gradients are, in two bytes each.
    let (chunks, logits) = if trainer.teacher.is_none() && !decoder.keeps_logits(of_part) {
        (1, c.vocab_size)
    } else {
        (of_part.div_ceil(cross_entropy::rows_at_once(c.vocab_size)), 5 * c.vocab_size)
    };

    // Of the update: gradients are zeroed, read for the norm and read again; weights are read and written, moments too.
    let (mut once, mut each_batch) = (2 * moment_bytes(c, t) as usize, 0);
    for w in decoder.weights() {
        once += 4 * 5 * w.len();
        // What the products read: trits and scales, which the update writes while it has the latents, or the weights.
        let used = match w.ternary() {
            Some(t) => 4 * (t.words().len() + t.scales().len()),
            None => 4 * w.len(),
        };
        if w.ternary().is_some() {
            once += used;
        }
        // Of each part, forward and input gradient read the weights; the weight gradient reads and writes the sum. The head's
        // products are made chunk by chunk. Of an embedding that is no head a batch touches some rows, which count
        // nothing.
        let passes = match w.role {
            Role::Head => chunks,
            Role::Embedding if c.tie_embeddings => chunks,
            Role::Embedding => 0,
            _ => 1,
        };
        each_batch += parts * passes * (2 * used + 8 * w.len());
        // Gradients of further parts are added to those of the first and set to zero.
        each_batch += (parts - 1) * 4 * 4 * w.len();
    }
    // Logits are made, replaced by their gradient, and read by two products.
    each_batch += 4 * seqs.rows() * (logits + 2 * c.layers * saved_by_block(c, t.recompute));
    (once + t.accumulate * each_batch) as f64
}

#[cfg(test)]
mod tests {
    use super::super::{Optimizer, Share, Together, setup_random};
    use super::*;
    use crate::config::{Activation, Direction, Recipe, Scope};
    use crate::formats::tensors::Tensor;
    use crate::kernels::Distillation;
    use crate::model::{Decoder, Gradients, Learning, Relations, State, Teacher};
    use crate::ternary::{Grouping, TernaryMatrix};

    fn copy() -> Recipe {
        toml::from_str(include_str!("../../recipes/copy.toml")).unwrap()
    }

    fn bytes(change: impl FnOnce(&mut Recipe)) -> f64 {
        let mut recipe = copy();
        let m = recipe.model.as_mut().unwrap();
        (m.vocab_size, m.hidden_size, m.intermediate_size, m.layers) = (40_000, 16, 32, 2);
        (m.heads, m.kv_heads, m.head_dim, m.tie_embeddings) = (1, 1, 16, false);
        change(&mut recipe);
        least_traffic(&setup_random(recipe, Share::WHOLE).unwrap())
    }

    #[test]
    fn the_least_traffic_of_a_step_is_the_sum_of_its_passes() {
        // 32 sequences of 16 tokens; the logits of 512 rows come in two chunks, because 419 rows make 64 MiB.
        let (rows, ends) = (512.0, 40_000.0 * 16.0);
        let (blocks, gains) = (2.0 * (4.0 * 16.0 * 16.0 + 2.0 * 16.0 * 32.0), 5.0 * 16.0);
        let parameters = 2.0 * ends + blocks + gains;
        // Words and scales of a row: 1 and 1 where there are 16 inputs, 2 and 1 where there are 32.
        let (head_codes, block_codes) = (40_000.0 * 8.0, 2.0 * ((4.0 * 16.0 + 32.0) * 8.0 + 16.0 * 12.0));
        let projection = 2.0 * head_codes + block_codes;
        let update = (20.0 + 16.0) * parameters + projection;
        let head = 2.0 * (2.0 * head_codes + 8.0 * ends) + rows * 4.0 * 5.0 * 40_000.0;
        let saved = rows * 4.0 * 2.0 * 2.0 * (2.0 * 16.0 + 4.0 * 16.0 + 1.0 + 32.0);
        let batch = head + 2.0 * block_codes + 8.0 * blocks + 16.0 * gains + saved;
        assert_eq!(bytes(|_| {}), update + batch);
        assert_eq!(bytes(|r| r.train.accumulate = 3), update + 3.0 * batch);
        // Without the second moment, read and written.
        assert_eq!(bytes(|r| r.train.optimizer = OptimizerKind::Sgd), update + batch - 8.0 * parameters);
        // A byte for four of each moment, and a scale for each row; gains keep theirs.
        let scaled_rows = 2.0 * 40_000.0 + 2.0 * (5.0 * 16.0 + 32.0);
        let codes = 2.0 * 2.0 * (3.0 * (parameters - gains) - 4.0 * scaled_rows);
        assert_eq!(bytes(|r| r.train.moments = MomentFormat::Int8), update + batch - codes);
        // No projections, and products that read the weights: the head's in two chunks, each forward and backward.
        let dense = 2.0 * 2.0 * (4.0 * ends - head_codes) + 2.0 * (4.0 * blocks - block_codes);
        assert_eq!(bytes(|r| r.ternary.scope = Scope::None), update + batch - projection + dense);
        // The embedding is the head: its own update is spared.
        let spared = (20.0 + 16.0) * ends + head_codes;
        assert_eq!(bytes(|r| r.model.as_mut().unwrap().tie_embeddings = true), update + batch - spared);
    }

    /// Shapes that differ in all that the formulas ask about.
    fn shapes() -> Vec<ModelConfig> {
        let first = ModelConfig {
            vocab_size: 40,
            hidden_size: 24,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            intermediate_size: 136,
            ..copy().model.unwrap()
        };
        let mut shapes = Vec::new();
        for activation in [Activation::SwiGlu, Activation::Relu2Glu, Activation::Gelu, Activation::Relu2] {
            for more in [false, true] {
                shapes.push(ModelConfig {
                    activation,
                    qk_norm: more,
                    qkv_bias: more,
                    o_bias: more,
                    mlp_bias: more,
                    sub_norm: more,
                    tie_embeddings: more,
                    ..first.clone()
                });
            }
        }
        shapes
    }

    #[test]
    fn blocks_save_what_the_formula_says() {
        for c in shapes() {
            for recompute in [false, true] {
                let mut decoder = Decoder::new(&c, Scope::Blocks, Grouping::default());
                decoder.set_recompute(recompute);
                let (mut state, mut grads) = (State::default(), Gradients::zeros(decoder.weights()));
                let (tokens, seqs) = ([1; 12], Sequences::new(2, 6));
                decoder.loss_and_gradient(&tokens, &tokens, seqs, 1.0, &mut state, &mut grads);
                let saved = seqs.rows() * saved_by_block(&c, recompute);
                assert_eq!(state.saved_by_blocks(), vec![saved; c.layers], "{c:?}");
            }
        }
    }

    #[test]
    fn a_teacher_saves_what_the_formula_says() {
        for c in shapes() {
            let decoder = Decoder::new(&c, Scope::Blocks, Grouping::default());
            let (tokens, seqs) = ([1; 12], Sequences::new(2, 6));
            let saved = seqs.rows() * saved_by_block(&c, false);
            let how = Distillation { weight: 0.5, temperature: 1.0, direction: Direction::Forward };
            for (relations, blocks) in
                [(None, 1), (Some(Relations { weight: 1.0, layer: 1, of_teacher: 0 }), 2)]
            {
                let teacher = Some(Teacher::Model { decoder: &decoder, how, relations });
                let (mut state, mut grads) = (State::default(), Gradients::zeros(decoder.weights()));
                let learning = Learning { teacher, ..Learning::plain(1.0) };
                decoder.learn(&tokens, &tokens, seqs, learning, &mut state, &mut grads);
                assert_eq!(state.saved_by_teacher(), vec![saved; blocks], "{c:?}");
            }
            let [without, with] = [false, true].map(|relations| teacher_pass_bytes(&c, 12, relations));
            let normed = if c.qk_norm { 12 * (4 + 2) * 8 } else { 0 };
            assert_eq!(with - without, 4 * (saved + normed) as u128);
        }
    }

    #[test]
    fn trits_take_what_the_formula_says() {
        for c in shapes() {
            for (scope, group) in [Scope::None, Scope::Blocks, Scope::All].into_iter().zip([
                Grouping::Size(24),
                Grouping::Tensor,
                Grouping::default(),
            ]) {
                let decoder = Decoder::new(&c, scope, group);
                // The watch has the codes of two moments more, and the scales of one.
                let of =
                    |matrix: &TernaryMatrix| 3 * 4 * matrix.words().len() + 2 * 4 * matrix.scales().len();
                let bytes: usize = decoder.weights().filter_map(|w| w.ternary()).map(of).sum();
                let mut t = TernaryConfig { scope, group, ..TernaryConfig::default() };
                assert_eq!(ternary_bytes(&c, &t), bytes as u128, "{scope:?}, {c:?}");
                t.scale = Scale::Learned;
                let scales: usize =
                    decoder.weights().filter_map(|w| w.ternary()).map(|m| m.scales().len()).sum();
                assert_eq!(ternary_bytes(&c, &t), (bytes + 12 * scales) as u128, "a mean and two moments");
            }
        }
    }

    #[test]
    fn annealing_takes_what_the_formula_says() {
        for c in shapes() {
            for scope in [Scope::None, Scope::Blocks, Scope::All] {
                let decoder = Decoder::new(&c, scope, Grouping::default());
                let values: usize =
                    decoder.weights().filter(|w| w.ternary().is_some()).map(|w| w.len()).sum();
                let mut t = TernaryConfig { scope, anneal: 0.25, ..TernaryConfig::default() };
                assert_eq!(annealed_bytes(&c, &t), 4 * values as u128, "{scope:?}, {c:?}");
                t.anneal = 0.0;
                assert_eq!(annealed_bytes(&c, &t), 0);
                // Without annealing it is what has a start of its own.
                let of = |wanted: fn(Role) -> bool| -> usize {
                    let ternary = decoder.weights().filter(|w| w.ternary().is_some() && wanted(w.role));
                    ternary.map(|w| w.len()).sum()
                };
                t.start.attention = 0.5;
                assert_eq!(annealed_bytes(&c, &t), 4 * of(|role| role == Role::Attention) as u128);
                t.start.ends = 0.5;
                assert_eq!(annealed_bytes(&c, &t), 4 * of(|role| role != Role::FeedForward) as u128);
                t.start.feed_forward = 0.5;
                assert_eq!(annealed_bytes(&c, &t), 4 * values as u128);
            }
        }
    }

    #[test]
    fn an_optimizer_remembers_what_the_formula_says() {
        for c in shapes() {
            let decoder = Decoder::new(&c, Scope::Blocks, Grouping::default());
            for optimizer in [OptimizerKind::AdamW, OptimizerKind::Sgd, OptimizerKind::Muon] {
                for moments in [MomentFormat::F32, MomentFormat::Int8] {
                    let t = TrainConfig { optimizer, moments, ..TrainConfig::default() };
                    let stored = Optimizer::new(&t, &decoder);
                    let bits = |tensor: &Tensor| {
                        tensor.shape.iter().product::<usize>() * tensor.data.dtype().bitsize()
                    };
                    let bytes =
                        stored.tensors(&decoder, &Together::alone()).iter().map(bits).sum::<usize>() / 8;
                    assert_eq!(bytes as u128, moment_bytes(&c, &t), "{optimizer}, {moments}, {c:?}");
                }
            }
        }
    }

    #[test]
    fn a_parameter_takes_the_bytes_of_its_latent_gradient_and_moments() {
        let recipe: Recipe = toml::from_str(include_str!("../../recipes/wiki-75m.toml")).unwrap();
        let (model, mut t) = (recipe.model.unwrap(), recipe.train);
        let bytes = |t: &TrainConfig| training_bytes(&model, t, 0, 1) as f64 / model.parameters() as f64;
        assert_eq!((t.optimizer, bytes(&t)), (OptimizerKind::AdamW, 16.0));
        t.moments = MomentFormat::Int8;
        assert!((bytes(&t) - (10.0 + 8.0 / 128.0)).abs() < 0.01, "{}", bytes(&t));
        t.optimizer = OptimizerKind::Sgd;
        assert!((bytes(&t) - (9.0 + 4.0 / 128.0)).abs() < 0.01, "{}", bytes(&t));
        t.optimizer = OptimizerKind::Muon;
        assert!((9.1..10.0).contains(&bytes(&t)), "{}", bytes(&t));
    }

    #[test]
    fn moments_that_are_shared_out_take_a_share() {
        let recipe: Recipe = toml::from_str(include_str!("../../recipes/wiki-75m.toml")).unwrap();
        let (model, mut t) = (recipe.model.unwrap(), recipe.train);
        let bytes =
            |t: &TrainConfig, among| training_bytes(&model, t, 0, among) as f64 / model.parameters() as f64;
        assert_eq!((bytes(&t, 2), bytes(&t, 8)), (12.0, 9.0));
        // 51,463,168 of 74,689,024 values are embedding and head, which AdamW updates with two moments; gains are the rest.
        t.optimizer = OptimizerKind::Muon;
        let ends = 51_463_168.0 / model.parameters() as f64;
        assert!((bytes(&t, 4) - (8.0 + 4.0 * (1.0 - ends) + 8.0 * ends / 4.0)).abs() < 0.001);
    }

    #[test]
    fn products_take_six_operations_a_weight() {
        let c = ModelConfig { layers: 1, causal: true, ..shapes()[0].clone() };
        let attention = 24 * 8 * (2 * 4 + 2 * 2) + 3 * 24 * 136;
        assert_eq!(flops_per_token(&c, 10), 6.0 * (attention + 40 * 24) as f64 + 6.0 * (10 * 4 * 8) as f64);
    }
}
