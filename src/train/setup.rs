//! From a recipe to a trainer: tokenizer, model, data.

use std::path::Path;

use super::{Source, Trainer, checkpoint};
use crate::config::{Recipe, Task};
use crate::error::{Error, Result};
use crate::formats::hf::{self, HfConfig};
use crate::model::{self, Decoder, Model, Purpose};
use crate::text::{Corpus, Tokenizer};

/// Builds what `recipe`, which has been validated, describes: at step 0, or where the checkpoint in the folder `resume`
/// was made. `cache` is where tokenised texts are kept; `progress` is told bytes tokenised and bytes in all.
///
/// # Errors
/// Whatever is wrong with the files, or a tokenizer with more tokens than the model has rows.
pub fn setup(
    recipe: Recipe,
    resume: Option<&Path>,
    cache: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Trainer> {
    let parameters = match &recipe.init {
        Some(dir) => hf::read_config(dir)?.model.parameters(),
        None => recipe.model.as_ref().map_or(0, |m| m.parameters()),
    };
    check_memory(parameters)?;
    let tokenizer = tokenizer(&recipe, resume)?;
    let mut model = starting_model(&recipe, resume)?;
    let config = &model.decoder.config;
    if let Some(t) = &tokenizer {
        if t.vocab_size() > config.vocab_size {
            let found = format!("{} tokens", t.vocab_size());
            let wanted = format!("at most the model's vocab_size of {}", config.vocab_size);
            return Err(Error::input(t.name(), "vocabulary", found, wanted));
        }
        if model.hf.eos.is_empty() {
            model.hf.eos = t.eos().into_iter().collect();
            model.hf.bos = t.bos();
        }
    }
    let source = match (recipe.task, &tokenizer) {
        (Task::Lm, Some(t)) => Source::text(&recipe, Corpus::open(&recipe.data, t, cache, progress)?)?,
        _ => Source::synthetic(&recipe, config.vocab_size),
    };
    if source.seq() > config.max_positions {
        let wanted = format!("at most the model's {} positions", config.max_positions);
        return Err(Error::usage(format!("train.seq: found {}, wanted {wanted}", source.seq())));
    }
    let mut trainer = Trainer::new(recipe, model, tokenizer, source);
    if let Some(dir) = resume {
        checkpoint::restore(dir, &mut trainer)?;
    }
    Ok(trainer)
}

fn tokenizer(recipe: &Recipe, resume: Option<&Path>) -> Result<Option<Tokenizer>> {
    if recipe.task != Task::Lm {
        return Ok(None);
    }
    // A checkpoint holds the tokenizer that it was trained with.
    if let Some(dir) = resume {
        return Tokenizer::open(&dir.to_string_lossy()).map(Some);
    }
    let spec = match (recipe.data.tokenizer.as_str(), &recipe.init) {
        ("", Some(dir)) => dir.to_string_lossy().into_owned(),
        ("", None) => {
            return Err(Error::usage(
                "data.tokenizer: found nothing, wanted bytes, gpt2, or a tokenizer.json",
            ));
        }
        (spec, _) => spec.to_string(),
    };
    Tokenizer::open(&spec).map(Some)
}

/// Refuses a model whose weights, gradients and moments alone (16 bytes a parameter) outgrow the machine's memory:
/// an allocation that fails would end the process without a word.
pub fn check_memory(parameters: u128) -> Result<()> {
    let Some(memory) = total_memory() else { return Ok(()) };
    let needed = 16 * parameters;
    if needed > memory {
        let gib = |bytes: u128| bytes as f64 / (1u64 << 30) as f64;
        return Err(Error::usage(format!(
            "training {parameters} parameters: found {:.1} GiB of memory, wanted at least {:.1} GiB (16 bytes each for \
             the weight, its gradient and two moments)",
            gib(memory),
            gib(needed)
        )));
    }
    Ok(())
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
fn starting_model(recipe: &Recipe, resume: Option<&Path>) -> Result<Model> {
    let ternary = (recipe.ternary.scope, recipe.ternary.group);
    if let Some(dir) = resume.or(recipe.init.as_deref()) {
        return model::load(dir, Purpose::Train, Some(ternary));
    }
    let config = recipe.model.as_ref().expect("a validated recipe has a model or a start");
    let mut decoder = Decoder::new(config, ternary.0, ternary.1);
    decoder.init(recipe.seed, recipe.ternary.init_std);
    decoder.project()?;
    for param in decoder.params_mut() {
        param.take_flips();
    }
    Ok(Model { decoder, hf: HfConfig::new(config.clone()) })
}
