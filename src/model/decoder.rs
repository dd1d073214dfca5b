//! The whole model. Forward and backward are the same list of calls, read downward and upward.

use super::attention::Cached;
use super::block::{Block, BlockSaved, Keep, set};
use super::cache::KvCache;
use super::cross_entropy::{self, Lesson, Loss};
use super::dropout;
use super::parts::parts;
use super::relations::{Relating, Relations};
use super::sequences::{Rows, Sequences};
use super::weight::number;
use super::workspace::{Context, Workspace};
use super::{Embedding, Gradients, Latents, Linear, RmsNorm, Role, Weight};
use crate::config::{Inputs, ModelConfig, Precision, Scope};
use crate::kernels::{self, Buffer, Distillation, Dropout, Likely, Objective, RopeTable, To};
use crate::ternary::Grouping;

/// Activations and scratch of one model, kept from step to step.
#[derive(Debug, Default)]
pub struct State {
    /// Of all rows, or of the first part of them.
    pub(super) pass: Pass,
    /// Of the parts after the first, each with gradients of its own, zeros between steps.
    others: Vec<(Pass, Gradients)>,
}

/// Activations and scratch of some sequences that go through the model together.
#[derive(Debug, Default)]
pub(super) struct Pass {
    blocks: Vec<BlockSaved>,
    /// The residual stream after the last block, `[N, C]`.
    last: Buffer,
    pub(super) ws: Workspace,
    /// Of a teacher, over the same sequences.
    teacher: Option<Box<Pass>>,
    /// Of a teacher, queries and keys behind their norms.
    related: [Buffer; 2],
}

#[cfg(test)]
impl Pass {
    fn saved_by_blocks(&self) -> Vec<usize> {
        let feed_forward =
            |saved: &BlockSaved| saved.feed_forward.parts().map(|(_, x)| x.len()).sum::<usize>();
        let of = |saved: &BlockSaved| {
            saved.x.len() + saved.attention.len() + saved.mid.len() + feed_forward(saved)
        };
        self.blocks.iter().map(of).collect()
    }
}

/// Whom a model learns from, beside the text.
#[derive(Clone, Copy)]
pub enum Teacher<'a> {
    /// Another one of the same vocabulary, which stays as it is; relations are those of a layer with as many heads of queries
    /// and of keys.
    Model { decoder: &'a Decoder, how: Distillation, relations: Option<Relations> },
    /// What one said of the same rows before, and how much that counts: [`Distillation::weight`].
    Stored { likely: Likely<'a>, weight: f32 },
}

impl Teacher<'_> {
    /// Of some of the rows.
    fn of_rows(self, rows: std::ops::Range<usize>) -> Self {
        match self {
            Teacher::Model { .. } => self,
            Teacher::Stored { likely, weight } => Teacher::Stored { likely: likely.rows(rows), weight },
        }
    }
}

/// What a gradient is of, beside the text.
#[derive(Clone, Copy)]
pub struct Learning<'a> {
    pub objective: Objective,
    pub teacher: Option<Teacher<'a>>,
    /// Of the model that learns; the teacher has none.
    pub dropout: Option<Dropout<'a>>,
}

impl Learning<'_> {
    /// `scale` times the loss of the text alone.
    pub fn plain(scale: f32) -> Self {
        Self { objective: Objective::scaled(scale), teacher: None, dropout: None }
    }
}

impl State {
    /// The residual stream at the input of block `layer`, `[N, C]`, in the last [`Decoder::logits`].
    pub fn block_input(&self, layer: usize) -> &[f32] {
        &self.pass.blocks[layer].x
    }

    fn passes(&self) -> impl Iterator<Item = &Pass> {
        std::iter::once(&self.pass).chain(self.others.iter().map(|(pass, _)| pass))
    }

    /// Values that each block keeps for the backward pass.
    #[cfg(test)]
    pub(crate) fn saved_by_blocks(&self) -> Vec<usize> {
        self.pass.saved_by_blocks()
    }

    /// The same of a teacher: what blocks share, and the block that is kept.
    #[cfg(test)]
    pub(crate) fn saved_by_teacher(&self) -> Vec<usize> {
        self.pass.teacher.as_ref().map(|pass| pass.saved_by_blocks()).unwrap_or_default()
    }
}

/// A decoder of the Qwen3, LLaMA and BitNet family, or, with a two-matrix feed-forward, the small one of the copy task.
///
/// It is read by everything that uses it, several threads at once if they like. A training keeps latents, gradients and
/// moments beside it. One step by hand: add the gradients of one or more batches, let the optimizer change the latents,
/// bring their projections up to date and set the gradients to zero.
///
/// ```
/// use ternlm::config::{ModelConfig, Scope, TrainConfig};
/// use ternlm::model::{Decoder, Gradients, Latents, Sequences, State};
/// use ternlm::ternary::Grouping;
/// use ternlm::train::{At, Optimizer, Trained};
///
/// let config = ModelConfig {
///     vocab_size: 16,
///     hidden_size: 32,
///     layers: 1,
///     heads: 2,
///     kv_heads: 1,
///     head_dim: 16,
///     intermediate_size: 64,
///     qk_norm: true,
///     max_positions: 8,
///     ..ModelConfig::default()
/// };
/// let mut decoder = Decoder::new(&config, Scope::All, Grouping::Size(16));
/// let mut latents = Latents::random(decoder.weights_mut(), 0, None)?;
/// let mut grads = Gradients::zeros(decoder.weights());
/// let train = TrainConfig { lr: 1e-2, ..TrainConfig::default() };
/// let mut optimizer = Optimizer::new(&train, &decoder);
/// let mut state = State::default();
///
/// // Two sequences of four tokens; each position predicts the token after it.
/// let (tokens, targets) = ([3, 1, 4, 1, 2, 7, 1, 8], [1, 4, 1, 5, 7, 1, 8, 2]);
/// let seqs = Sequences::new(2, 4);
/// let before = decoder.loss(&tokens, &targets, seqs, &mut state).mean();
/// for step in 0..30 {
///     decoder.loss_and_gradient(&tokens, &targets, seqs, 1.0 / 8.0, &mut state, &mut grads);
///     let trained = Trained { decoder: &mut decoder, latents: &mut latents, grads: &mut grads };
///     optimizer.step(trained, &train, At::step(step), None)?;
/// }
/// let after = decoder.loss(&tokens, &targets, seqs, &mut state).mean();
/// assert!(after < 0.1 * before, "{before} nats a token before, {after} after");
/// assert_eq!(decoder.predict(&tokens, seqs, &mut state), targets);
/// # Ok::<(), ternlm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decoder {
    pub config: ModelConfig,
    pub scope: Scope,
    pub grouping: Grouping,
    inputs: Inputs,
    precision: Precision,
    recompute: bool,
    pub embed_tokens: Embedding,
    pub layers: Vec<Block>,
    pub norm: RmsNorm,
    /// Absent when tied to the embedding.
    pub lm_head: Option<Linear>,
    pub(super) rope: RopeTable,
}

impl Decoder {
    /// Matrices all zeros, gains all ones; `config` has been validated.
    pub fn new(config: &ModelConfig, scope: Scope, grouping: Grouping) -> Self {
        let mut decoder = Self::unfilled(config, scope, grouping);
        decoder.weights_mut().for_each(Weight::fill);
        decoder
    }

    /// [`Decoder::new`] without trits, which take memory: every ternary weight is to take some before it is used.
    pub fn unfilled(config: &ModelConfig, scope: Scope, grouping: Grouping) -> Self {
        let c = config;
        let blocks = (scope != Scope::None).then_some(grouping);
        let ends = (scope == Scope::All).then_some(grouping);
        let rotation = c.rotation();
        let mut decoder = Self {
            config: c.clone(),
            scope,
            grouping,
            inputs: Inputs::F32,
            precision: Precision::F32,
            recompute: false,
            embed_tokens: Embedding::new("model.embed_tokens", c.vocab_size, c.hidden_size, ends),
            layers: (0..c.layers).map(|i| Block::new(&format!("model.layers.{i}"), c, blocks)).collect(),
            norm: RmsNorm::new("model.norm", c.hidden_size, c.rms_norm_eps),
            lm_head: (!c.tie_embeddings)
                .then(|| Linear::new("lm_head", c.hidden_size, c.vocab_size, Role::Head, ends, false)),
            rope: RopeTable::new(c.max_positions, &rotation.frequencies, rotation.factor),
        };
        number(decoder.weights_mut());
        decoder
    }

    /// What the inputs of every product with a ternary matrix are rounded to; f32 in a new decoder.
    pub fn set_inputs(&mut self, inputs: Inputs) {
        self.inputs = inputs;
        self.weights_mut().for_each(|weight| weight.inputs = inputs);
    }

    pub fn inputs(&self) -> Inputs {
        self.inputs
    }

    /// What the operands of every product are rounded to; f32 in a new decoder.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.weights_mut().for_each(|weight| weight.precision = precision);
        self.layers.iter_mut().for_each(|block| block.self_attn.set_precision(precision));
    }

    /// Whether logits of so many rows of a batch exist, some at a time; otherwise the loss is taken with the head.
    pub fn keeps_logits(&self, rows: usize) -> bool {
        kernels::head::with_loss(rows, self.head().matrix()).is_none()
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether a backward pass makes the projections of each block again, bit for bit, and none are kept from the forward
    /// pass; off in a new decoder. It costs all of the blocks' forward products once more but
    /// those that end their halves, and saves most of what a batch keeps.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Every tensor once, in a fixed order.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        [&self.embed_tokens.weight]
            .into_iter()
            .chain(self.layers.iter().flat_map(Block::weights))
            .chain([&self.norm.gain])
            .chain(self.lm_head.iter().flat_map(Linear::weights))
    }

    /// As [`Decoder::weights`].
    pub fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        [&mut self.embed_tokens.weight]
            .into_iter()
            .chain(self.layers.iter_mut().flat_map(Block::weights_mut))
            .chain([&mut self.norm.gain])
            .chain(self.lm_head.iter_mut().flat_map(Linear::weights_mut))
    }

    pub(super) fn head(&self) -> &Weight {
        self.lm_head.as_ref().map_or(&self.embed_tokens.weight, |head| &head.weight)
    }

    /// The residual stream after the last block is left in `pass.last`; returns it through the final norm. `caches`: one for
    /// each span of `rows`, unless these are sequences of their own.
    pub(super) fn hidden(
        &self,
        tokens: &[u32],
        rows: &Rows,
        pass: &mut Pass,
        mut caches: Option<&mut [&mut KvCache]>,
        keep: Keep,
        dropout: Option<Dropout<'_>>,
    ) -> Buffer {
        assert_eq!(tokens.len(), rows.count(), "tokens of spans {:?}", rows.spans);
        let sets = keep.sets(self.layers.len());
        if pass.blocks.len() < sets {
            pass.blocks.resize_with(sets, BlockSaved::default);
        }
        let Pass { blocks, last, ws, .. } = pass;
        let mut x = ws.take(tokens.len() * self.config.hidden_size);
        self.embed_tokens.forward(tokens, &mut x);
        let recompute = self.recompute && keep == Keep::Everything;
        let mut cx = Context { dropout, recompute, ..Context::new(rows, &self.rope, ws) };
        dropout::whole(&mut cx, dropout::EMBEDDING, &mut x);
        for (layer, block) in self.layers.iter().enumerate() {
            let saved = &mut blocks[keep.set(layer)];
            let cached = caches.as_deref_mut().map(|caches| Cached { caches, layer });
            block.forward(layer, &mut x, &mut cx, saved, cached);
        }
        set(last, &x);
        self.norm.forward(last, &mut x);
        x
    }

    /// Loss, in nats, of predicting `targets` (`[N]`, [`IGNORE`](crate::kernels::IGNORE) where nothing is asked) from
    /// `tokens` (`[N]`, each below `V`).
    pub fn loss(&self, tokens: &[u32], targets: &[u32], seqs: Sequences, state: &mut State) -> Loss {
        let pass = &mut state.pass;
        let h = self.hidden(tokens, &seqs.into(), pass, None, Keep::Nothing, None);
        let loss = cross_entropy::forward(&h, self.head(), targets, &mut pass.ws);
        pass.ws.give(h);
        loss
    }

    /// [`Decoder::loss`], and `scale` times its gradient added to `grads`.
    ///
    /// A batch of many tokens passes through a model that is not large in parts, side by side.
    pub fn loss_and_gradient(
        &self,
        tokens: &[u32],
        targets: &[u32],
        seqs: Sequences,
        scale: f32,
        state: &mut State,
        grads: &mut Gradients,
    ) -> Loss {
        self.learn(tokens, targets, seqs, Learning::plain(scale), state, grads)
    }

    /// [`Decoder::loss_and_gradient`] of whatever is to be learnt.
    pub fn learn(
        &self,
        tokens: &[u32],
        targets: &[u32],
        seqs: Sequences,
        learning: Learning<'_>,
        state: &mut State,
        grads: &mut Gradients,
    ) -> Loss {
        assert_eq!(
            (tokens.len(), targets.len()),
            (seqs.rows(), seqs.rows()),
            "tokens and targets of {seqs:?}"
        );
        let parts = self.parts(seqs);
        // Gradients of several parts are finished when they have been added up.
        let outlet = if parts > 1 { grads.hold() } else { None };
        let State { pass, others } = state;
        others.resize_with(parts - 1, Default::default);
        others.iter_mut().for_each(|(_, part)| part.fit(grads));
        let run = |(part, (pass, grads)): (usize, (&mut Pass, &mut Gradients))| {
            let (first, end) = (part * seqs.batch / parts, (part + 1) * seqs.batch / parts);
            let rows = first * seqs.len..end * seqs.len;
            let seqs = Sequences { batch: end - first, ..seqs };
            let dropout =
                learning.dropout.map(|all| Dropout { sequences: &all.sequences[first..end], ..all });
            let teacher = learning.teacher.map(|teacher| teacher.of_rows(rows.clone()));
            let learning = Learning { teacher, dropout, ..learning };
            self.forward_backward(&tokens[rows.clone()], &targets[rows], seqs, learning, pass, grads)
        };
        let mut work = vec![(pass, &mut *grads)];
        work.extend(others.iter_mut().map(|(pass, part)| (pass, part)));
        let losses: Vec<Loss> = kernels::side_by_side(work, run);
        others.iter_mut().for_each(|(_, part)| grads.absorb(part));
        if outlet.is_some() {
            grads.set_outlet(outlet);
            grads.finished_from(&self.embed_tokens.weight);
        }
        let mut loss = Loss::default();
        losses.into_iter().for_each(|part| loss += part);
        loss
    }

    /// Parts of such a batch that pass through the model side by side, each with gradients of its own.
    pub fn parts(&self, seqs: Sequences) -> usize {
        parts(self.weights().map(Weight::len).sum(), self.config.vocab_size, seqs)
    }

    /// Forward and backward of some sequences.
    fn forward_backward(
        &self,
        tokens: &[u32],
        targets: &[u32],
        seqs: Sequences,
        learning: Learning<'_>,
        pass: &mut Pass,
        grads: &mut Gradients,
    ) -> Loss {
        let rows = Rows::from(seqs);
        let Learning { objective, teacher, dropout } = learning;
        let taught = match teacher {
            Some(Teacher::Model { decoder, relations, .. }) => {
                let pass = pass.teacher.get_or_insert_default();
                let keep = relations.map_or(Keep::Nothing, |how| Keep::Block(how.of_teacher));
                Some(decoder.hidden(tokens, &rows, pass, None, keep, None))
            }
            _ => None,
        };
        let lesson = match (teacher, &taught) {
            (Some(Teacher::Model { decoder, how, .. }), Some(h)) => {
                Some(Lesson::Hidden { h, head: decoder.head(), how })
            }
            (Some(Teacher::Stored { likely, weight }), _) => Some(Lesson::Stored { likely, weight }),
            _ => None,
        };
        let h = self.hidden(tokens, &rows, pass, None, Keep::Everything, dropout);
        let Pass { blocks, last, ws, teacher: taught_by, .. } = pass;

        let mut dh = ws.take(h.len());
        let mut loss =
            cross_entropy::forward_backward(&h, self.head(), targets, lesson, objective, ws, &mut dh, grads);
        let mut relating = None;
        if let (Some(pass), Some(h)) = (taught_by, taught) {
            pass.ws.give(h);
            if let Some(Teacher::Model { decoder, relations: Some(how), .. }) = teacher {
                let of_teacher = self.relations_of(decoder, how, pass);
                relating = Some(Relating::new(how, objective.scale, targets, of_teacher));
            }
        }
        let mut dx = h;
        self.norm.backward(last, &dh, &mut dx, To::Set, grads);
        grads.finished_from(&self.norm.gain);
        let recompute = self.recompute;
        let mut cx = Context { dropout, recompute, ..Context::new(&rows, &self.rope, ws) };
        for (layer, (block, saved)) in self.layers.iter().zip(blocks).enumerate().rev() {
            cx.relating = relating.take_if(|relating| relating.layer == layer);
            block.backward(layer, &mut dx, &mut cx, saved, grads);
            loss.relations += cx.relating.take().map_or(0.0, |relating| relating.loss);
            grads.finished_from(&block.input_layernorm.gain);
        }
        dropout::whole(&mut cx, dropout::EMBEDDING, &mut dx);
        self.embed_tokens.backward(tokens, &dx, grads);
        grads.finished_from(&self.embed_tokens.weight);

        ws.give(dx);
        ws.give(dh);
        loss
    }

    /// What the relations of the teacher's layer are made of, kept in its `pass`.
    fn relations_of<'a>(&self, teacher: &Decoder, how: Relations, pass: &'a mut Pass) -> [&'a Buffer; 3] {
        let heads = |c: &ModelConfig| (c.heads, c.kv_heads, c.causal);
        assert_eq!(heads(&teacher.config), heads(&self.config), "heads and sight of the teacher");
        assert!(how.layer < self.layers.len(), "layer {} of {}", how.layer, self.layers.len());
        let Pass { blocks, related, .. } = pass;
        let kept = &blocks[Keep::Block(how.of_teacher).set(how.of_teacher)];
        teacher.layers[how.of_teacher].self_attn.related(&kept.attention.projected, related.each_mut())
    }

    /// After each position of every sequence from `from` on, the `top` likeliest tokens, and the natural logarithms of their
    /// probabilities: each `[B, T - from, top]`.
    pub fn likeliest(
        &self,
        tokens: &[u32],
        seqs: Sequences,
        from: usize,
        top: usize,
        state: &mut State,
    ) -> (Vec<u32>, Vec<f32>) {
        let pass = &mut state.pass;
        let h = self.hidden(tokens, &seqs.into(), pass, None, Keep::Nothing, None);
        let (mut likeliest, mut ln_p) = (Vec::new(), Vec::new());
        for end in (1..=seqs.batch).map(|sequences| sequences * seqs.len) {
            let rows = end - (seqs.len - from)..end;
            cross_entropy::likeliest(&h, self.head(), rows, top, &mut pass.ws, &mut likeliest, &mut ln_p);
        }
        pass.ws.give(h);
        (likeliest, ln_p)
    }

    /// The first tensor, in the order of the last forward pass, that holds a value that is not finite.
    pub fn first_not_finite(&self, latents: &Latents, state: &State) -> Option<String> {
        let bad = |x: &[f32]| !kernels::all_finite(x);
        if let Some(weight) = self.weights().find(|weight| bad(latents.of(weight))) {
            return Some(weight.name.clone());
        }
        for i in 0..self.layers.len() {
            let saved = state.passes().filter_map(|pass| pass.blocks.get(i));
            if let Some((part, _)) = saved.flat_map(BlockSaved::parts).find(|(_, values)| bad(values)) {
                return Some(format!("the {part} of model.layers.{i}"));
            }
        }
        state.passes().any(|pass| bad(&pass.last)).then(|| "the output of the last layer".to_string())
    }

    /// The most likely token at every position, `[N]`.
    pub fn predict(&self, tokens: &[u32], seqs: Sequences, state: &mut State) -> Vec<u32> {
        let pass = &mut state.pass;
        let h = self.hidden(tokens, &seqs.into(), pass, None, Keep::Nothing, None);
        let out = cross_entropy::predict(&h, self.head(), &mut pass.ws);
        pass.ws.give(h);
        out
    }
}
