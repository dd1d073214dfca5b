//! A training on disk, from which it goes on bit for bit.
//!
//! `RUN/checkpoints/step-00000500/` is a Hugging Face directory with the latents in `model.safetensors`, and beside it
//! `optimizer.safetensors` (moments, losses, what is watched) and `trainer.json` ([`Progress`], pending flip counts, the
//! recipe and the text that it was trained by, and digests that tie the files together).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Progress, Residuals, Trainer};
use crate::config::Recipe;
use crate::error::{Error, Result};
use crate::files::{self, Bundle, DirectoryWriter, IfExists, if_there, sha256_hex};
use crate::formats::Form;
use crate::formats::manifest::{self, Manifest};
use crate::formats::tensors::{Data, Tensor, TensorFiles, by_width, write_safetensors};
use crate::ternary::Flips;

const OPTIMIZER: &str = "optimizer.safetensors";
pub const TRAINER: &str = "trainer.json";
/// Bytes of a `trainer.json`; ours have a line or two for each tensor.
const MAX_TRAINER: u64 = 16 << 20;
/// The only version of `trainer.json` so far.
const FORMAT: u32 = 1;

/// `trainer.json`. What is optional is absent from the checkpoints of earlier versions.
#[derive(Serialize, Deserialize)]
pub(super) struct Saved {
    format: u32,
    pub progress: Progress,
    /// The last step, counted from 1, that multiplied with latents; 0: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_soft: Option<u64>,
    /// The recipe as it was followed, with the model that was trained.
    pub recipe: Option<Recipe>,
    /// [`crate::text::Corpus::fingerprint`] of the text; absent for a synthetic task, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<String>,
    /// [`super::Taught::digest`] of the model or the lessons that the training learns from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// SHA-256 of `ternary.json`, which has those of the model's tensors.
    manifest: Option<String>,
    /// SHA-256 of the losses in `optimizer.safetensors`: no other training has them.
    losses: Option<String>,
    /// Trits that changed since the last log line, by tensor.
    flips: BTreeMap<String, Flips>,
}

/// The folder of a run's checkpoints.
pub fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// The checkpoint of a run after so many steps.
pub fn path(run: &Path, step: u64) -> PathBuf {
    folder(run).join(format!("step-{step:08}"))
}

/// Whole checkpoints of a run, oldest first.
pub fn list(run: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder(run)) else { return Vec::new() };
    let mut found: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            path.join(TRAINER).is_file().then_some((step_of(&path)?, path))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The newest whole checkpoint of a run.
///
/// # Errors
/// A folder that is there and cannot be read.
pub fn newest(run: &Path) -> Result<Option<PathBuf>> {
    let folder = folder(run);
    if_there(fs::read_dir(&folder).map_err(Error::io("list", &folder)))?;
    Ok(list(run).pop())
}

/// Writes the training as it stands, under a sibling name until it is whole, then removes all but the newest `keep`.
pub fn save(run: &Path, trainer: &Trainer) -> Result<PathBuf> {
    let parent = folder(run);
    fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
    let target = path(run, trainer.progress.step);
    let writer = DirectoryWriter::new(&target, IfExists::Replace)?;
    let dir = writer.path();
    trainer.save_model(dir, Form::Latent)?;
    write_safetensors(dir.join(OPTIMIZER), &tensors(trainer), &BTreeMap::new())?;
    let weights = trainer.model.decoder.weights();
    let flips =
        weights.map(|p| (p.name.clone(), trainer.latents.flips(p))).filter(|(_, f)| f.total() > 0).collect();
    let file = Saved {
        format: FORMAT,
        progress: trainer.progress,
        last_soft: Some(trainer.last_soft),
        recipe: Some(trainer.recipe.clone()),
        corpus: trainer.source.fingerprint().map(String::from),
        teacher: trainer.teacher.as_ref().map(|teacher| teacher.digest().to_string()),
        manifest: Some(digest_of_manifest(dir)?),
        losses: Some(digest_of_losses(&trainer.losses)),
        flips,
    };
    let mut text = serde_json::to_vec_pretty(&file).expect("plain data has a JSON form");
    text.push(b'\n');
    files::write_bytes(dir.join(TRAINER), &text)?;
    writer.commit()?;
    tidy(run, trainer.recipe.train.keep)?;
    Ok(target)
}

/// What [`save`] on process 0 needs of the others, which all call this.
pub fn help_to_save(trainer: &Trainer) -> Result<()> {
    for tensor in by_width(&tensors(trainer)) {
        if let Data::Stream { write, .. } = &tensor.data {
            write(&mut std::io::sink())?;
        }
    }
    Ok(())
}

/// Removes all but the newest `keep` checkpoints of a run, and what killed processes left among them.
pub fn tidy(run: &Path, keep: usize) -> Result<()> {
    let all = list(run);
    for old in &all[..all.len().saturating_sub(keep)] {
        files::remove_folder(old)?;
    }
    match folder(run) {
        parent if parent.is_dir() => files::sweep(parent).map(drop),
        _ => Ok(()),
    }
}

/// How far the training had come when the checkpoint in `dir` was made.
pub fn progress(dir: &Path) -> Result<Progress> {
    read(dir).map(|file| file.progress)
}

/// What `trainer.json` in `dir` says.
pub(super) fn read(dir: &Path) -> Result<Saved> {
    let path = dir.join(TRAINER);
    let text = files::read_limited(&path, MAX_TRAINER)?;
    let file: Saved = serde_json::from_slice(&text)
        .map_err(|e| Error::input(&path, "JSON", e, "what a checkpoint of this version holds"))?;
    if file.format != FORMAT {
        return Err(Error::input(&path, "format", file.format, FORMAT));
    }
    match step_of(dir) {
        Some(step) if step != file.progress.step => {
            let wanted = format!("{step}, as the folder's name says");
            Err(Error::input(&path, "progress.step", file.progress.step, wanted))
        }
        _ => Ok(file),
    }
}

/// The step in the name of a checkpoint's folder, after which it was saved.
pub fn step_of(dir: &Path) -> Option<u64> {
    dir.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

fn digest_of_manifest(dir: &Path) -> Result<String> {
    Ok(sha256_hex([files::read_limited(&dir.join(manifest::FILE_NAME), MAX_TRAINER)?]))
}

fn digest_of_losses(losses: &[f32]) -> String {
    sha256_hex(losses.iter().map(|loss| loss.to_le_bytes()))
}

/// Refuses a model that is not the one that the manifest in `dir` was written with, or a manifest that is not the one
/// that `saved` was.
fn check_model(dir: &Path, saved: &Saved) -> Result<()> {
    let Some(wanted) = &saved.manifest else { return Ok(()) };
    let found = digest_of_manifest(dir)?;
    if found != *wanted {
        let wanted = format!("{wanted}, as in {TRAINER}: these files are of two checkpoints");
        return Err(Error::input(dir.join(manifest::FILE_NAME), "SHA-256", found, wanted));
    }
    let stored = TensorFiles::open(dir)?;
    let tensors: Vec<_> = Manifest::read(&Bundle::folder(dir))?.tensors.into_iter().collect();
    tensors.into_par_iter().try_for_each(|(name, entry)| {
        let tensor = stored.tensor(&name)?;
        let found = sha256_hex([tensor.bytes]);
        if found != entry.stored_sha256 {
            let wanted = format!("{}, as in {}", entry.stored_sha256, manifest::FILE_NAME);
            return Err(Error::input(tensor.file, format!("{name}: SHA-256"), found, wanted));
        }
        Ok(())
    })
}

/// Puts the training back to where the checkpoint in `dir` was made. The trainer's model has been loaded from `dir`.
///
/// # Errors
/// Files that are of another training, or of another moment, than `trainer.json` is.
pub fn restore(dir: &Path, trainer: &mut Trainer) -> Result<()> {
    let file = read(dir)?;
    check_model(dir, &file)?;
    trainer.last_soft = last_soft(dir, &file, &trainer.recipe)?;
    let path = dir.join(OPTIMIZER);
    let stored = TensorFiles::open_file(&path)?;
    trainer.optimizer.restore(&trainer.model.decoder, &stored)?;
    let steps = usize::try_from(file.progress.step).unwrap_or(usize::MAX);
    if stored.shape("losses")? != [steps] {
        let found = format!("{:?} losses", stored.shape("losses")?);
        return Err(Error::input(&path, "losses", found, format!("one for each of {steps} steps")));
    }
    trainer.losses = vec![0.0; steps];
    stored.read_f32_into("losses", &[steps], &mut trainer.losses)?;
    let found = digest_of_losses(&trainer.losses);
    if let Some(wanted) = file.losses.filter(|wanted| *wanted != found) {
        let wanted = format!("{wanted}, as in {TRAINER}: these files are of two checkpoints");
        return Err(Error::input(&path, "losses: SHA-256", found, wanted));
    }
    trainer.watch.restore(&trainer.model.decoder, &stored)?;
    for param in trainer.model.decoder.weights() {
        trainer.latents.set_flips(param, file.flips.get(&param.name).copied().unwrap_or_default());
    }
    let known: BTreeSet<String> = tensors(trainer).into_iter().map(|t| t.name).collect();
    if let Some(name) = stored.names().find(|name| !known.contains(*name)) {
        return Err(Error::input(&path, name, "a tensor", "only those of the model in config.json"));
    }
    trainer.progress = file.progress;
    Ok(())
}

/// [`Saved::last_soft`]; of a checkpoint from before it was kept, by the plan that it was trained by.
fn last_soft(dir: &Path, file: &Saved, asked: &Recipe) -> Result<u64> {
    let done = file.progress.step;
    match file.last_soft {
        Some(step) if step > done => {
            let wanted = format!("at most the {done} steps that are done");
            Err(Error::input(dir.join(TRAINER), "last_soft", step, wanted))
        }
        Some(step) => Ok(step),
        None => {
            let recipe = file.recipe.as_ref().unwrap_or(asked);
            Ok(Residuals::end(&recipe.ternary, recipe.train.steps).min(done))
        }
    }
}

/// What `optimizer.safetensors` holds.
fn tensors(trainer: &Trainer) -> Vec<Tensor<'_>> {
    let decoder = &trainer.model.decoder;
    let mut tensors = trainer.optimizer.tensors(decoder, &trainer.together);
    let losses = Data::F32(&trainer.losses);
    tensors.push(Tensor { name: "losses".into(), shape: vec![trainer.losses.len()], data: losses });
    tensors.extend(trainer.watch.tensors(decoder));
    tensors
}
