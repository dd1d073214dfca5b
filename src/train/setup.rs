//! From a recipe to a trainer: tokenizer, model, data.

use std::path::Path;

use super::cost::{annealed_bytes, teacher_pass_bytes, ternary_bytes, training_bytes};
use super::teacher::Taught;
use super::{Resume, Share, Source, Synthetic, Trainer, checkpoint, differences, group};
use crate::config::{DistillConfig, ModelConfig, OF_THE_TEXT, Recipe, Task, TernaryConfig};
use crate::error::{Error, Result};
use crate::files::path_text;
use crate::formats::{Description, ModelFiles, Stored, files_of};
use crate::generate::judge_prompt;
use crate::machine::Memory;
use crate::measure::Needs;
use crate::model::{self, Decoder, Latents, Model, Role};
use crate::number::gib;
use crate::text::{BpeTrainer, Corpus, Reading, ReadingOptions, Tokenizer};

/// What takes time before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparing {
    /// Entries of a vocabulary that is made of the text, of so many.
    Vocabulary(u64, u64),
    /// Bytes of a text that are tokenised, of so many.
    Text(u64, u64),
    /// Matrices that are calibrated, of so many.
    Matrices(u64, u64),
}

/// Builds what `recipe`, which has been validated, describes: at step 0, or where the checkpoint was made, by which it
/// has been judged ([`Resume::judge`]). `cache` is where tokenised texts are kept; `progress` is told how far it is. `share` is what this process keeps of the optimizer's state. The trainer's recipe
/// states the model that is trained.
///
/// # Errors
/// Whatever is wrong with the files, a recipe that contradicts the model it starts from, or a text that uses tokens which
/// the model has no rows for.
pub fn setup(
    mut recipe: Recipe,
    resume: Option<&Resume>,
    cache: &Path,
    share: Share,
    progress: &dyn Fn(Preparing),
) -> Result<Trainer> {
    let shape = match (resume, &recipe.init) {
        (Some(resume), _) => resume.model().clone(),
        (None, Some(dir)) => shape_of(dir, &recipe)?,
        (None, None) => recipe.model.take().expect("a validated recipe has a model or a start"),
    };
    let calibrated = if resume.is_none() { recipe.ternary.calibrate } else { 0 };
    check_memory(&shape, teacher_of(&recipe)?, &recipe, calibrated, share)?;
    recipe.model = Some(shape);
    let dir = resume.map(|resume| resume.dir.as_path());
    let merging = |done, of| progress(Preparing::Vocabulary(done, of));
    let tokenizer = tokenizer(&recipe, dir, &merging)?;
    let (mut model, mut latents) = starting_model(&recipe, dir)?;
    let config = &model.decoder.config;
    if let Some(t) = tokenizer.as_ref() {
        judge_report(&recipe, t, config)?;
        let another = match (&recipe.init, dir) {
            (Some(start), None) if !recipe.data.tokenizer.is_empty() => {
                Tokenizer::of(&files_of(start)?).is_ok_and(|own| own.fingerprint() != t.fingerprint())
            }
            _ => false,
        };
        // Ids that end a text mean something else to another tokenizer.
        if model.description.eos.is_empty() || another {
            // A tokenizer may have more tokens than the model has rows.
            let has_row = |id: &u32| (*id as usize) < config.vocab_size;
            model.description.eos = t.stop_ids().iter().copied().filter(has_row).collect();
            model.description.bos = t.bos().filter(has_row);
        }
    }
    let source = match (recipe.task, &tokenizer) {
        (Task::Lm, Some(t)) => {
            let tokenised = |done, of| progress(Preparing::Text(done, of));
            let corpus = corpus(&recipe, resume, t, cache, &tokenised)?;
            t.fits("the text of the training", [corpus.largest], config.vocab_size)?;
            if corpus.val.len() < 2 && !recipe.data.val.is_empty() {
                return Err(Error::usage(format!(
                    "data.val: found {} tokens, wanted 2 or more",
                    corpus.val.len()
                )));
            }
            Source::text(&recipe, corpus)?
        }
        _ => Source::synthetic(&recipe, config.vocab_size),
    };
    if source.seq() > config.max_positions {
        let wanted = format!("at most the model's {} positions", config.max_positions);
        return Err(Error::usage(format!("train.seq: found {}, wanted {wanted}", source.seq())));
    }
    let mut teacher = Taught::open(&recipe, tokenizer.as_ref(), config.vocab_size, source.seq())?;
    if let Source::Text { corpus, .. } = &source {
        teacher = teacher.or(Taught::stored(&recipe, corpus, config.vocab_size)?);
    }
    if let Some(resume) = resume {
        resume.judge_teacher(teacher.as_ref().map(Taught::digest))?;
    }
    if resume.is_none() && recipe.ternary.calibrate > 0 {
        calibrate(&recipe, &mut model.decoder, &mut latents, &source, progress)?;
    }
    let mut trainer = Trainer::new(recipe, model, latents, tokenizer, source);
    trainer.teacher = teacher;
    // Which is refused with learned scales, once all know of each other.
    if share.size > 1 && !trainer.recipe.ternary.learns_scales() {
        trainer.keep_own(share);
    }
    if let Some(dir) = dir {
        checkpoint::restore(dir, &mut trainer)?;
    }
    Ok(trainer)
}

/// Refuses what the report of a recipe cannot be made of, before the first step in place of after the last one.
fn judge_report(recipe: &Recipe, tokenizer: &Tokenizer, model: &ModelConfig) -> Result<()> {
    for prompt in &recipe.report.prompts {
        judge_prompt(&tokenizer.encode_prompt(prompt)?, tokenizer, model)
            .map_err(|why| Error::usage(format!("report.prompts: found {prompt:?}: {why}")))?;
    }
    if let Some(file) = &recipe.report.test {
        test_text(recipe, file, tokenizer, model.vocab_size)?;
    }
    Ok(())
}

/// The text that the finished model of `recipe` is measured on.
///
/// # Errors
/// Those of [`Reading::to_measure`].
pub fn test_text(recipe: &Recipe, file: &Path, tokenizer: &Tokenizer, rows: usize) -> Result<Reading> {
    let (field, join) = (recipe.data.field.clone(), recipe.data.join);
    let options = ReadingOptions { field, join, ..ReadingOptions::default() };
    Reading::to_measure(file, tokenizer, &options, usize::MAX, rows)
}

/// On the first sequences that the training reads.
fn calibrate(
    recipe: &Recipe,
    decoder: &mut Decoder,
    latents: &mut Latents,
    source: &Source,
    progress: &dyn Fn(Preparing),
) -> Result<()> {
    let len = source.seq();
    let mut tokens = vec![0; recipe.ternary.calibrate * len];
    let mut targets = tokens.clone();
    source.fill(0, &mut tokens, &mut targets);
    decoder.set_precision(recipe.train.precision);
    let told = &mut |done: usize, of: usize| progress(Preparing::Matrices(done as u64, of as u64));
    model::calibrate(decoder, latents, &tokens, [len, recipe.train.batch], told)
}

/// A trainer of the recipe's shape with random weights on random tokens, whatever the recipe starts from or reads: its
/// steps cost what those of the recipe cost. `share` as in [`setup`].
///
/// # Errors
/// A recipe without a `[model]`, or a model that outgrows the memory.
pub fn setup_random(recipe: Recipe, share: Share) -> Result<Trainer> {
    let config = recipe.model.clone().ok_or_else(|| Error::usage("the recipe has no [model] table"))?;
    let teacher = recipe.taught().map(|_| (4 * config.parameters(), config.clone()));
    check_memory(&config, teacher, &recipe, 0, share)?;
    let (model, latents) = random_model(&recipe)?;
    let source = match recipe.task {
        // Random tokens to be copied cost what a text of the same shape costs.
        Task::Lm => Source::Synthetic(Synthetic {
            task: Task::Copy,
            tokens: recipe.train.seq,
            vocab: config.vocab_size,
            seed: recipe.seed,
        }),
        _ => Source::synthetic(&recipe, config.vocab_size),
    };
    let teacher = Taught::random(&recipe)?;
    let mut trainer = Trainer::new(recipe, model, latents, None, source);
    trainer.teacher = teacher;
    Ok(trainer)
}

/// The shape of the pretrained model in `dir`, which the recipe may repeat; rotated, its head is no longer its embedding.
fn shape_of(dir: &Path, recipe: &Recipe) -> Result<ModelConfig> {
    let stored = ModelFiles::open(dir)?;
    let mut shape = stored.description.model.clone();
    let tied = shape.tie_embeddings;
    shape.tie_embeddings &= !recipe.ternary.rotate;
    let told = |model: &ModelConfig| {
        // A run's own recipe says what a rotation makes, any other one what the file holds.
        let tie_embeddings =
            if model.tie_embeddings == tied { shape.tie_embeddings } else { model.tie_embeddings };
        differences(&ModelConfig { tie_embeddings, ..model.clone() }, &shape)
    };
    let mut refused: Vec<String> = recipe
        .model
        .iter()
        .flat_map(told)
        .map(|d| format!("model.{}: found {}, wanted {}", d.key, d.found, d.wanted))
        .collect();
    if let Some(std) = recipe.ternary.init_std {
        refused.push(format!("ternary.init_std: found {std}, wanted nothing"));
    }
    refused.extend(against_trits(&stored, &shape, recipe)?);
    match refused.is_empty() {
        true => Ok(shape),
        false => Err(Error::usage(format!(
            "init: {}, as the weights are those of {}",
            refused.join("; "),
            dir.display()
        ))),
    }
}

/// What `recipe` would do to matrices that are ternary already as if they were full precision: their latents are such as
/// project to them, and no function to start from.
fn against_trits(stored: &ModelFiles, shape: &ModelConfig, recipe: &Recipe) -> Result<Vec<String>> {
    let TernaryConfig { scope, group, anneal, start, calibrate, rotate, .. } = recipe.ternary;
    let mut ternary: Vec<Role> = Vec::new();
    for weight in Decoder::unfilled(shape, scope, group).weights() {
        let trits = |name: &str| Ok(matches!(stored.tensor(name)?, Stored::Trits(_)));
        // A rotation turns what is outside of the scope, too.
        if (rotate || weight.grouping().is_some()) && stored.contains(&weight.name) && trits(&weight.name)? {
            ternary.push(weight.role);
        }
    }
    let holds = |of: &dyn Fn(Role) -> bool| ternary.iter().any(|&role| of(role));
    let told = [
        ("anneal", anneal, holds(&|_| true)),
        ("start.feed_forward", start.feed_forward, holds(&|role| role == Role::FeedForward)),
        ("start.attention", start.attention, holds(&|role| role == Role::Attention)),
        ("start.ends", start.ends, holds(&|role| !role.is_projection())),
        ("calibrate", calibrate as f32, holds(&|role| role.is_projection() || role == Role::Head)),
    ];
    let told = told.into_iter().filter(|(_, value, ternary)| *value > 0.0 && *ternary);
    let told = told.map(|(key, value, _)| (key, value.to_string(), "0"));
    let rotate = (rotate && !ternary.is_empty()).then(|| ("rotate", "true".to_string(), "false"));
    let told = told.chain(rotate).map(|(key, found, wanted)| {
        format!("ternary.{key}: found {found}, wanted {wanted} for weights that are ternary already (--set ternary.{key}={wanted})")
    });
    Ok(told.collect())
}

/// The text of the recipe, which must be the one that a resumed training began with.
fn corpus(
    recipe: &Recipe,
    resume: Option<&Resume>,
    tokenizer: &Tokenizer,
    cache: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Corpus> {
    let corpus = Corpus::open(&recipe.data, tokenizer, cache, progress);
    let Some(resume) = resume else { return corpus };
    let corpus = corpus.map_err(|error| match error {
        Error::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let wanted = "the text trained on so far: if it has moved, say where to (--data PATH)";
            Error::input(path, "data", "no such file", wanted)
        }
        other => other,
    })?;
    resume.judge_corpus(&recipe.data, &corpus)?;
    Ok(corpus)
}

/// The tokenizer of the recipe's text, or of the checkpoint. `progress` is told of a vocabulary that is made of the text.
pub(super) fn tokenizer(
    recipe: &Recipe,
    resume: Option<&Path>,
    progress: &dyn Fn(u64, u64),
) -> Result<Option<Tokenizer>> {
    if recipe.task != Task::Lm {
        return Ok(None);
    }
    let tokenizer = match (resume, recipe.data.tokenizer.as_str(), &recipe.init) {
        // A checkpoint holds the tokenizer that it was trained with.
        (Some(dir), _, _) => Tokenizer::of(&files_of(dir)?),
        (None, "", Some(model)) => Tokenizer::of(&files_of(model)?),
        (None, "", None) => {
            Err(Error::usage("data.tokenizer: found nothing, wanted bytes, gpt2, bpe, or a tokenizer.json"))
        }
        (None, OF_THE_TEXT, _) => {
            let model = recipe.model.as_ref().expect("a vocabulary of the text is that of a new model");
            BpeTrainer::of_training_text(&recipe.data, model.vocab_size, progress)
        }
        (None, path, _) if recipe.data.tokenizer_is_path() => {
            let path = path_text::read(path).map_err(|e| Error::usage(format!("data.tokenizer: {e}")))?;
            Tokenizer::at(&path)
        }
        (None, builtin, _) => Tokenizer::open(builtin),
    };
    tokenizer.map(Some)
}

/// Bytes of the weights of the recipe's teacher, and its shape; none of what is stored of one, which is mapped.
pub(super) fn teacher_of(recipe: &Recipe) -> Result<Option<(u128, ModelConfig)>> {
    let Some(DistillConfig { teacher: Some(path), .. }) = recipe.taught() else { return Ok(None) };
    let stored = ModelFiles::open(path)?;
    Ok(Some((Needs::of(&stored, 1)?.weight_bytes as u128, stored.description.model)))
}

/// Refuses a training whose weights, gradients, moments and saved activations outgrow the machine's memory: an
/// allocation that fails would end the process without a word.
fn check_memory(
    model: &ModelConfig,
    teacher: Option<(u128, ModelConfig)>,
    recipe: &Recipe,
    calibrated: usize,
    share: Share,
) -> Result<()> {
    let processes = group::local_processes();
    let Some(memory) = Memory::now() else { return Ok(()) };
    let memory = memory.total as u128 / processes as u128;
    let seq = if recipe.task == Task::Lm { recipe.train.seq } else { 2 * recipe.data.sequence };
    let rows = recipe.train.batch as u128 * seq as u128;
    let mut needed = training_bytes(model, &recipe.train, rows, share.size)
        + annealed_bytes(model, &recipe.ternary)
        + ternary_bytes(model, &recipe.ternary);
    // Inputs and targets of a whole step, and what sequences to calibrate on are in every block.
    needed += 8 * rows * recipe.train.accumulate as u128;
    let calibrated = calibrated as u128 * seq as u128;
    needed += calibrated * (8 + 4 * model.hidden_size as u128);
    let mut beside = "";
    if let Some((weights, shape)) = &teacher {
        let relations = recipe.taught().is_some_and(DistillConfig::relates);
        needed += weights + teacher_pass_bytes(shape, rows, relations);
        beside = " beside its teacher";
    }
    if needed > memory {
        return Err(Error::usage(format!(
            "memory: found {:.1} GiB{}, wanted at least {:.1} GiB to train {} parameters{beside} on {rows} tokens at a time, {} \
             of them in a step (a smaller train.batch with a larger train.accumulate needs less){}",
            gib(memory),
            if processes > 1 { format!(" for each of {processes} processes") } else { String::new() },
            gib(needed),
            model.parameters(),
            rows * recipe.train.accumulate as u128,
            if calibrated > 0 { format!(", calibrated on {calibrated}") } else { String::new() }
        )));
    }
    Ok(())
}

/// The model before its first step, or as it was at the checkpoint.
fn starting_model(recipe: &Recipe, resume: Option<&Path>) -> Result<(Model, Latents)> {
    let ternary = &recipe.ternary;
    match (resume, &recipe.init) {
        (Some(checkpoint), _) => model::load_to_train(checkpoint, Some(ternary)),
        (None, Some(init)) if ternary.rotate => model::load_rotated_to_train(init, ternary),
        (None, Some(init)) => model::load_to_train(init, Some(ternary)),
        (None, None) => random_model(recipe),
    }
}

/// Random weights of the recipe's shape.
fn random_model(recipe: &Recipe) -> Result<(Model, Latents)> {
    let ternary = &recipe.ternary;
    let config = recipe.model.as_ref().expect("a validated recipe has a model or a start");
    let mut decoder = Decoder::new(config, ternary.scope, ternary.group);
    decoder.set_inputs(ternary.activations);
    let latents = Latents::random(decoder.weights_mut(), recipe.seed, ternary.init_std)?;
    Ok((Model { decoder, description: Description::new(config.clone()) }, latents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_teacher_is_that_of_its_weights_in_f32() {
        let mut recipe: Recipe =
            toml::from_str(include_str!("../../recipes/shakespeare-bytes.toml")).unwrap();
        assert_eq!(teacher_of(&recipe).unwrap(), None);
        let teacher = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/architectures/llama").into());
        recipe.distill = Some(DistillConfig { teacher, ..DistillConfig::default() });
        let (bytes, shape) = teacher_of(&recipe).unwrap().unwrap();
        assert_eq!(bytes, 4 * shape.parameters());
        recipe.distill.as_mut().unwrap().weight = 0.0;
        assert_eq!(teacher_of(&recipe).unwrap(), None);
    }

    #[test]
    fn a_training_that_outgrows_the_memory_beside_its_teacher_is_refused() {
        let recipe: Recipe = toml::from_str(include_str!("../../recipes/shakespeare-bytes.toml")).unwrap();
        let shape = recipe.model.clone().unwrap();
        if Memory::now().is_none() {
            return;
        }
        let mut taught = recipe.clone();
        taught.distill = Some(DistillConfig { teacher: Some("x".into()), ..DistillConfig::default() });
        let said = |teacher, recipe: &Recipe, calibrated| {
            check_memory(&shape, teacher, recipe, calibrated, Share::WHOLE)
                .map_or_else(|e| e.to_string(), |()| String::new())
        };
        assert_eq!(said(None, &recipe, 0), "");
        let error = said(Some((1 << 60, shape.clone())), &taught, 0);
        assert!(error.contains("beside its teacher"), "{error}");
        let error = said(None, &recipe, 1 << 40);
        assert!(error.contains("calibrated on"), "{error}");
        taught.train.accumulate = 1 << 40;
        let error = said(None, &taught, 0);
        assert!(error.contains(&format!("{} of them in a step", 2048u128 << 40)), "{error}");
    }
}
