//! One training: a model, its optimizer, its data, and how far it has come.

use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

use super::residual::Residuals;
use super::schedule::schedule;
use super::shards::{Shards, Share};
use super::teacher::Taught;
use super::{At, Optimizer, Source, TensorPoint, Together, Trained, Watch};
use crate::config::{DistillConfig, Precision, Recipe};
use crate::error::{Error, Result};
use crate::formats::Form;
use crate::kernels::profile::{Phase, scope};
use crate::kernels::{self, Dropout, IGNORE, Objective};
use crate::measure::Perplexity;
use crate::model::{self, Gradients, Latents, Learning, Loss, Model, Sequences, State, Weight};
use crate::text::Tokenizer;

/// How far a training has come: with the tensors, all that a checkpoint needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Sequences drawn.
    pub cursor: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, over all interruptions.
    pub elapsed_s: f64,
}

/// What one step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Counted from 0.
    pub index: u64,
    /// Cross-entropy, nats per scored token, before the update.
    pub loss: f64,
    /// Divergence from the teacher at the temperature, nats per scored token.
    pub divergence: Option<f64>,
    /// Divergence of the relations from the teacher's, nats per scored token, where they are learnt.
    pub relations: Option<f64>,
    /// Shares of the latents in what the step multiplied with, of a training that does not begin with trits.
    pub residuals: Option<Residuals>,
    /// Of all gradients, before clipping.
    pub grad_norm: f64,
    pub lr: f32,
    /// Processes that made the step.
    pub processes: usize,
    /// Seconds of it that this one waited for the others.
    pub waited_s: f64,
}

pub struct Trainer {
    pub recipe: Recipe,
    pub model: Model,
    /// What a training keeps beside the weights, each at the same places as they: values, and the gradients of a step.
    pub latents: Latents,
    grads: Gradients,
    pub tokenizer: Option<Tokenizer>,
    /// What the training learns from, beside the text.
    pub teacher: Option<Taught>,
    pub source: Source,
    pub optimizer: Optimizer,
    pub progress: Progress,
    /// Who else takes the same steps.
    pub together: Together,
    /// Loss of every step so far.
    pub losses: Vec<f32>,
    /// The last step, counted from 1, that multiplied with latents; 0: none did.
    pub(super) last_soft: u64,
    pub(super) watch: Watch,
    /// The last validation over everything held out, and the step it was made at.
    whole_validation: Option<(u64, Perplexity)>,
    state: State,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    /// `|ΔW| / s` of every parameter in the last step that was asked to measure it.
    updates: Vec<f64>,
}

impl Trainer {
    /// At step 0; `latents` are those of the model's weights.
    pub fn new(
        recipe: Recipe,
        model: Model,
        latents: Latents,
        tokenizer: Option<Tokenizer>,
        source: Source,
    ) -> Self {
        let mut optimizer = Optimizer::new(&recipe.train, &model.decoder);
        if recipe.ternary.learns_scales() {
            optimizer.learn_scales(&model.decoder, &latents);
        }
        let watch = Watch::new(&model.decoder);
        Self {
            recipe,
            grads: Gradients::zeros(model.decoder.weights()),
            model,
            latents,
            tokenizer,
            teacher: None,
            source,
            optimizer,
            progress: Progress::default(),
            together: Together::alone(),
            losses: Vec::new(),
            last_soft: 0,
            watch,
            whole_validation: None,
            state: State::default(),
            inputs: Vec::new(),
            targets: Vec::new(),
            updates: Vec::new(),
        }
    }

    /// One optimizer step over `accumulate` batches, which the processes share out. With `measure`, the size of each tensor's
    /// update is kept for [`Trainer::tensor_points`].
    ///
    /// # Errors
    /// A loss, gradient or weight that is not finite, by the tensor in which that is seen first. The training is then to
    /// be abandoned: batches have been drawn, and some weights may have been updated.
    pub fn step(&mut self, measure: bool) -> Result<StepReport> {
        let (index, waited) = (self.progress.step, self.together.waited());
        let residuals = Residuals::at(&self.recipe.ternary, self.recipe.train.steps, index);
        let residual = |role| residuals.map_or(0.0, |each| each.of(role));
        self.latents.soften(self.model.decoder.weights_mut(), residual);
        let loss = self.gradients();
        // Whatever looks at the model between steps sees trits.
        self.latents.harden(self.model.decoder.weights_mut());
        let loss = loss?;
        let t = &self.recipe.train;
        let (decoder, latents, grads) = (&mut self.model.decoder, &mut self.latents, &mut self.grads);
        let together = &mut self.together;
        let time = scope(Phase::Optimizer);
        let shards = together.shards().cloned();
        let counted = |w: &Weight| match &shards {
            Some(shards) => kernels::sum_squares(shards.counted(w, grads.get(w))),
            None => kernels::sum_squares(grads.get(w)),
        };
        let mut squares = decoder.weights().map(counted).sum::<f64>();
        if shards.is_some() {
            [squares] = together.sum([squares])?;
        }
        let grad_norm = squares.sqrt();
        if !grad_norm.is_finite() {
            // Backward runs from the last parameter to the first.
            let bad = decoder.weights().filter(|w| !kernels::all_finite(grads.get(w))).last();
            let bad = bad.map(|w| format!("the gradient of {}", w.name));
            let tensor = together.first_text(bad)?.unwrap_or_else(|| "the gradient norm".into());
            let detail = format!("in step {index}, whose loss is {:.4}", loss.mean());
            return Err(together.alike(Error::NotFinite { tensor, detail }));
        }
        let clip = if t.clip > 0.0 && grad_norm > t.clip as f64 { t.clip as f64 / grad_norm } else { 1.0 };
        let factor = schedule(t, index);
        let updates = measure.then_some(&mut self.updates);
        let at = At { step: index, factor, grad_scale: clip as f32 };
        let updated = self.optimizer.step(Trained { decoder, latents, grads }, t, at, updates);
        updated.map_err(|error| together.alike(error))?;
        drop(time);
        together.gather_latents(decoder, latents).map_err(|error| together.alike(error))?;
        if measure {
            together.join_updates(decoder, &mut self.updates)?;
        }
        self.progress.step += 1;
        if residuals.is_some_and(|left| left.largest() > 0.0) {
            self.last_soft = self.progress.step;
        }
        self.losses.push(loss.mean() as f32);
        let relates = self.recipe.taught().is_some_and(DistillConfig::relates);
        Ok(StepReport {
            index,
            loss: loss.mean(),
            divergence: self.teacher.is_some().then(|| loss.divergence / loss.count.max(1) as f64),
            relations: relates.then(|| loss.relations / loss.count.max(1) as f64),
            residuals,
            grad_norm,
            lr: t.lr * factor,
            processes: together.size(),
            waited_s: (together.waited() - waited).as_secs_f64(),
        })
    }

    /// Losses of the steps since the last one that multiplied with latents, whatever plans they were taken by.
    pub fn losses_of_trits(&self) -> &[f32] {
        &self.losses[self.last_soft as usize..]
    }

    /// The gradients of `accumulate` batches, and their loss, added up over the processes.
    fn gradients(&mut self) -> Result<Loss> {
        let (t, seq) = (&self.recipe.train, self.source.seq());
        let (decoder, grads, together) = (&mut self.model.decoder, &mut self.grads, &mut self.together);
        decoder.set_precision(t.precision);
        decoder.set_recompute(t.recompute);
        let mut teacher = self.teacher.as_mut().zip(self.recipe.taught());
        // Costs nothing after a step that went well.
        grads.zero();
        let sequences = t.batch * t.accumulate;
        let numbers: Vec<u64> = together.numbers(self.progress.cursor, sequences).collect();
        self.inputs.resize(numbers.len() * seq, 0);
        self.targets.resize(numbers.len() * seq, 0);
        {
            let _time = scope(Phase::Data);
            let rows = self.inputs.chunks_mut(seq).zip(self.targets.chunks_mut(seq));
            numbers.iter().zip(rows).for_each(|(n, (inputs, targets))| self.source.fill(*n, inputs, targets));
        }
        let scored = self.targets.iter().filter(|t| **t != IGNORE).count();
        let [scored] = together.sum([scored as f64])?;
        let objective = Objective { scale: 1.0 / scored as f32, z_loss: t.z_loss };
        let finite = |loss: &Loss| (loss.sum + loss.divergence + loss.relations).is_finite();
        let (mut loss, mut not_finite) = (Loss::default(), None);
        let batches = self.inputs.chunks(t.batch * seq).zip(self.targets.chunks(t.batch * seq));
        let last = batches.len() - 1;
        for (nth, ((inputs, targets), sequences)) in batches.zip(numbers.chunks(t.batch)).enumerate() {
            let starts: Vec<usize> = sequences.iter().filter_map(|n| self.source.start(*n)).collect();
            let lesson =
                teacher.as_mut().map(|(teacher, how)| teacher.lesson(t.precision, how, &starts, seq));
            let teacher = lesson.transpose()?;
            if nth == last {
                together.begin_reduction(grads);
            }
            let seqs = Sequences::new(inputs.len() / seq, seq);
            let (rate, seed) = (t.dropout, self.recipe.seed);
            let dropout = (rate > 0.0).then_some(Dropout { rate, seed, sequences });
            let learning = Learning { objective, teacher, dropout };
            loss += decoder.learn(inputs, targets, seqs, learning, &mut self.state, grads);
            if !finite(&loss) && not_finite.is_none() {
                let tensor = decoder.first_not_finite(&self.latents, &self.state);
                not_finite = Some(tensor.unwrap_or_else(|| "the loss".into()));
            }
        }
        together.end_reduction(grads)?;
        self.progress.cursor += sequences as u64;
        self.progress.tokens += (sequences * seq) as u64;
        let sums = [loss.sum, loss.divergence, loss.relations, loss.count as f64];
        let [sum, divergence, relations, count] = together.sum(sums)?;
        let loss = Loss { sum, divergence, relations, count: count as usize };
        if !finite(&loss) {
            let tensor = together.first_text(not_finite)?.unwrap_or_else(|| "the loss".into());
            let detail = format!("the loss of step {} is {}", self.progress.step, loss.mean());
            return Err(together.alike(Error::NotFinite { tensor, detail }));
        }
        Ok(loss)
    }

    /// Takes steps together with others from now on; with `shard` each keeps the optimizer's moments of a part of the model
    /// alone.
    pub(super) fn join(&mut self, mut together: Together, shard: bool) {
        if shard && !together.is_alone() {
            let (rank, size) = (together.rank(), together.size());
            together.shard(self.keep_own(Share { rank, size }));
        }
        self.together = together;
    }

    /// Keeps the optimizer's moments of a part of the model alone: from now on, or already.
    pub(super) fn keep_own(&mut self, Share { rank, size }: Share) -> Arc<Shards> {
        if let Some(shards) = self.optimizer.shards() {
            return shards.clone();
        }
        let decoder = &self.model.decoder;
        let whole = |weight: &Weight| self.optimizer.takes_whole(weight);
        let shards = Arc::new(Shards::new(decoder, &self.grads, rank, size, whole));
        self.optimizer.keep_own(decoder, shards.clone());
        shards
    }

    /// Loss over the held-out part, or none when nothing is held out. `max` sequences, 0 for all. In f32, as the model that
    /// is stored computes, whatever the precision of the steps. The processes share it out.
    pub fn validate(&mut self, max: usize) -> Result<Option<Perplexity>> {
        if let Some((step, measured)) = self.whole_validation.filter(|_| max == 0)
            && step == self.progress.step
        {
            return Ok(Some(measured));
        }
        let seq = self.source.seq();
        self.model.decoder.set_precision(Precision::F32);
        let (decoder, state) = (&self.model.decoder, &mut self.state);
        let (mut loss, mut batches) = (Loss::default(), 0..);
        let (rank, size) = (self.together.rank(), self.together.size());
        self.source.each_validation(self.recipe.train.batch, max, |inputs, targets, n| {
            if batches.next().is_some_and(|nth: usize| nth % size == rank) {
                loss += decoder.loss(inputs, targets, Sequences::new(n, seq), state);
            }
        });
        let [sum, count] = self.together.sum([loss.sum, loss.count as f64])?;
        let loss = Loss { sum, count: count as usize, ..Loss::default() };
        let nll = loss.mean();
        let measured = Perplexity {
            nll,
            ppl: nll.exp(),
            tokens: loss.count as u64,
            context: seq,
            stride: seq,
            sum: loss.sum,
            bytes: self.source.validation_bytes(max).unwrap_or(0),
            words: 0,
        };
        if loss.count == 0 {
            return Ok(None);
        }
        if max == 0 {
            self.whole_validation = Some((self.progress.step, measured));
        }
        Ok(Some(measured))
    }

    /// Share of tokens that are reproduced over `count` held-out sequences of a synthetic task; in f32, as validations.
    pub fn accuracy(&mut self, count: usize) -> f64 {
        let seq = self.source.seq();
        self.model.decoder.set_precision(Precision::F32);
        let (decoder, state) = (&self.model.decoder, &mut self.state);
        let (mut right, mut asked) = (0u64, 0u64);
        self.source.each_validation(self.recipe.train.batch, count, |inputs, targets, n| {
            let predicted = decoder.predict(inputs, Sequences::new(n, seq), state);
            for (p, t) in predicted.iter().zip(targets).filter(|(_, t)| **t != IGNORE) {
                right += (p == t) as u64;
                asked += 1;
            }
        });
        right as f64 / asked.max(1) as f64
    }

    /// Writes the model in that form into the folder `dir`, which is there, and with it its tokenizer, if it has one.
    pub fn save_model(&self, dir: &Path, form: Form) -> Result<()> {
        let latents = (form == Form::Latent).then_some(&self.latents);
        model::save(dir, &self.model.decoder, &self.model.description, latents)?;
        self.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save(dir))
    }

    /// Trits, scales and flips of every ternary tensor; flips are counted anew from here.
    pub fn tensor_points(&mut self) -> Vec<TensorPoint> {
        let updates = std::mem::take(&mut self.updates);
        self.watch.points(&self.model.decoder, &mut self.latents, &updates)
    }
}
