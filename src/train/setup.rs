//! From a recipe to a trainer: tokenizer, model, data.

use std::path::Path;

use super::{Resume, Source, Trainer, checkpoint, differences};
use crate::config::{ModelConfig, MomentFormat, OptimizerKind, Recipe, Task, TrainConfig};
use crate::error::{Error, Result};
use crate::files::path_text;
use crate::formats::{Description, ModelFiles, files_of};
use crate::kernels::BLOCK;
use crate::model::{self, Decoder, Latents, Model};
use crate::text::{Corpus, Tokenizer, sources};

/// Builds what `recipe`, which has been validated, describes: at step 0, or where the checkpoint was made, by which it
/// has been judged ([`Resume::judge`]). `cache` is where tokenised texts are kept; `progress` is told bytes tokenised
/// and bytes in all. The trainer's recipe states the model that is trained.
///
/// # Errors
/// Whatever is wrong with the files, a recipe that contradicts the model it starts from, or a text that uses tokens which
/// the model has no rows for.
pub fn setup(
    mut recipe: Recipe,
    resume: Option<&Resume>,
    cache: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Trainer> {
    let shape = match (resume, &recipe.init) {
        (Some(resume), _) => resume.model().clone(),
        (None, Some(dir)) => shape_of(dir, &recipe)?,
        (None, None) => recipe.model.take().expect("a validated recipe has a model or a start"),
    };
    check_memory(&shape, &recipe)?;
    recipe.model = Some(shape);
    if let Some(test) = recipe.report.test.as_ref().filter(|_| recipe.task == Task::Lm) {
        // It is read after the last step.
        sources::list_any(std::slice::from_ref(test))?;
    }
    let dir = resume.map(|resume| resume.dir.as_path());
    let tokenizer = tokenizer(&recipe, dir)?;
    let (mut model, latents) = starting_model(&recipe, dir)?;
    let config = &model.decoder.config;
    if let Some(t) = tokenizer.as_ref().filter(|_| model.description.eos.is_empty()) {
        model.description.eos = t.stop_ids().to_vec();
        model.description.bos = t.bos();
    }
    let source = match (recipe.task, &tokenizer) {
        (Task::Lm, Some(t)) => {
            let corpus = corpus(&recipe, resume, t, cache, progress)?;
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
    let mut trainer = Trainer::new(recipe, model, latents, tokenizer, source);
    if let Some(dir) = dir {
        checkpoint::restore(dir, &mut trainer)?;
    }
    Ok(trainer)
}

/// The shape of the pretrained model in `dir`, which the recipe may repeat.
fn shape_of(dir: &Path, recipe: &Recipe) -> Result<ModelConfig> {
    let shape = ModelFiles::open(dir)?.description.model;
    let mut refused: Vec<String> = recipe
        .model
        .iter()
        .flat_map(|model| differences(model, &shape))
        .map(|d| format!("model.{}: found {}, wanted {}", d.key, d.found, d.wanted))
        .collect();
    if let Some(std) = recipe.ternary.init_std {
        refused.push(format!("ternary.init_std: found {std}, wanted nothing"));
    }
    match refused.is_empty() {
        true => Ok(shape),
        false => Err(Error::usage(format!(
            "init: {}, as the weights are those of {}",
            refused.join("; "),
            dir.display()
        ))),
    }
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

fn tokenizer(recipe: &Recipe, resume: Option<&Path>) -> Result<Option<Tokenizer>> {
    if recipe.task != Task::Lm {
        return Ok(None);
    }
    let tokenizer = match (resume, recipe.data.tokenizer.as_str(), &recipe.init) {
        // A checkpoint holds the tokenizer that it was trained with.
        (Some(dir), _, _) => Tokenizer::of(&files_of(dir)?),
        (None, "", Some(model)) => Tokenizer::of(&files_of(model)?),
        (None, "", None) => {
            Err(Error::usage("data.tokenizer: found nothing, wanted bytes, gpt2, or a tokenizer.json"))
        }
        (None, builtin @ ("bytes" | "gpt2"), _) => Tokenizer::open(builtin),
        (None, path, _) => {
            let path = path_text::read(path).map_err(|e| Error::usage(format!("data.tokenizer: {e}")))?;
            Tokenizer::at(&path)
        }
    };
    tokenizer.map(Some)
}

/// Refuses a training whose weights, gradients, moments and saved activations outgrow the machine's memory: an
/// allocation that fails would end the process without a word.
pub fn check_memory(model: &ModelConfig, recipe: &Recipe) -> Result<()> {
    let Some(memory) = total_memory() else { return Ok(()) };
    let [c, d, f] = [model.hidden_size, model.head_dim, model.intermediate_size].map(|n| n as u128);
    let [heads, kv, layers] = [model.heads, model.kv_heads, model.layers].map(|n| n as u128);
    // What a block saves of a row: two residual streams, queries, keys, values, attention's output, gate and up.
    let block = 2 * c + (2 * heads + 2 * kv) * d + heads + 2 * f;
    let seq = if recipe.task == Task::Lm { recipe.train.seq } else { 2 * recipe.data.sequence } as u128;
    let rows = recipe.train.batch as u128 * seq;
    let needed = parameter_bytes(model, &recipe.train) + 4 * rows * (layers * block + 6 * c);
    if needed > memory {
        let gib = |bytes: u128| bytes as f64 / (1u64 << 30) as f64;
        return Err(Error::usage(format!(
            "memory: found {:.1} GiB, wanted at least {:.1} GiB to train {} parameters on {rows} tokens at a time (a \
             smaller train.batch with a larger train.accumulate needs less)",
            gib(memory),
            gib(needed),
            model.parameters()
        )));
    }
    Ok(())
}

/// Bytes of latents, gradients and moments.
fn parameter_bytes(model: &ModelConfig, t: &TrainConfig) -> u128 {
    let all = model.parameters();
    let heads = if model.tie_embeddings { 1 } else { 2 };
    let moments = match t.optimizer {
        OptimizerKind::AdamW => 2 * all,
        OptimizerKind::Sgd => all,
        // Embedding and head are AdamW's.
        OptimizerKind::Muon => all + heads * (model.vocab_size * model.hidden_size) as u128,
    };
    let moments = match t.moments {
        MomentFormat::F32 => 4 * moments,
        // A code each, and an f32 for each block.
        MomentFormat::Int8 => moments + 4 * moments.div_ceil(BLOCK as u128),
    };
    8 * all + moments
}

/// Bytes of main memory and swap, where the system says.
fn total_memory() -> Option<u128> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| -> Option<u128> {
        info.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
    };
    Some(1024 * (kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0)))
}

/// The model before its first step, or as it was at the checkpoint.
fn starting_model(recipe: &Recipe, resume: Option<&Path>) -> Result<(Model, Latents)> {
    let ternary = &recipe.ternary;
    if let Some(dir) = resume.or(recipe.init.as_deref()) {
        return model::load_to_train(dir, Some(ternary));
    }
    random_model(recipe)
}

/// Random weights of the recipe's shape.
pub fn random_model(recipe: &Recipe) -> Result<(Model, Latents)> {
    let ternary = &recipe.ternary;
    let config = recipe.model.as_ref().expect("a validated recipe has a model or a start");
    let mut decoder = Decoder::new(config, ternary.scope, ternary.group);
    decoder.set_activations(ternary.activations);
    let latents = Latents::random(decoder.weights_mut(), recipe.seed, ternary.init_std)?;
    Ok((Model { decoder, description: Description::new(config.clone()) }, latents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_parameter_are_those_of_its_latent_gradient_and_moments() {
        let recipe: Recipe = toml::from_str(include_str!("../../recipes/wiki-75m.toml")).unwrap();
        let (model, mut t) = (recipe.model.unwrap(), recipe.train);
        let bytes = |t: &TrainConfig| parameter_bytes(&model, t) as f64 / model.parameters() as f64;
        assert_eq!((t.optimizer, bytes(&t)), (OptimizerKind::AdamW, 16.0));
        t.moments = MomentFormat::Int8;
        assert!((bytes(&t) - (10.0 + 8.0 / 128.0)).abs() < 1e-6, "{}", bytes(&t));
        t.optimizer = OptimizerKind::Sgd;
        assert!((bytes(&t) - (9.0 + 4.0 / 128.0)).abs() < 1e-6, "{}", bytes(&t));
        t.optimizer = OptimizerKind::Muon;
        assert!((9.1..10.0).contains(&bytes(&t)), "{}", bytes(&t));
    }
}
