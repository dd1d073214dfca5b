//! A training on disk, from which it goes on bit for bit.
//!
//! `RUN/checkpoints/step-00000500/` is a Hugging Face directory with the latents in `model.safetensors`, and beside it
//! `optimizer.safetensors` (moments, losses, first scales) and `trainer.json` ([`Progress`] and pending flip counts).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Progress, Trainer};
use crate::error::{Error, Result};
use crate::files::{self, DirectoryWriter, IfExists};
use crate::formats::Form;
use crate::formats::tensors::{Checkpoint, Data, Tensor, write_safetensors};
use crate::model;
use crate::ternary::Flips;

const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINER: &str = "trainer.json";
/// Bytes of a `trainer.json`; ours have a line or two for each tensor.
const MAX_TRAINER: u64 = 16 << 20;
/// The only version of `trainer.json` so far.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct TrainerFile {
    format: u32,
    progress: Progress,
    /// Trits that changed since the last log line, by tensor.
    flips: BTreeMap<String, Flips>,
}

/// The folder of a run's checkpoints.
pub fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Whole checkpoints of a run, oldest first.
pub fn list(run: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder(run)) else { return Vec::new() };
    let mut found: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let step = name.to_str()?.strip_prefix("step-")?.parse().ok()?;
            entry.path().join(TRAINER).is_file().then(|| (step, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Writes the training as it stands, under a sibling name until it is whole, then removes all but the newest `keep`.
pub fn save(run: &Path, trainer: &Trainer) -> Result<PathBuf> {
    let parent = folder(run);
    fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
    let target = parent.join(format!("step-{:08}", trainer.progress.step));
    let writer = DirectoryWriter::new(&target, IfExists::Replace)?;
    let dir = writer.path();
    let decoder = &trainer.model.decoder;
    model::save(dir, decoder, &trainer.model.hf, Form::Latent)?;
    if let Some(tokenizer) = &trainer.tokenizer {
        tokenizer.save(dir)?;
    }
    let mut tensors = trainer.optimizer.tensors(decoder);
    let losses = Data::F32(&trainer.losses);
    tensors.push(Tensor { name: "losses".into(), shape: vec![trainer.losses.len()], data: losses });
    let ternary = decoder.params().filter(|p| p.ternary().is_some());
    for (param, scales) in ternary.zip(&trainer.start_scales) {
        let name = format!("start_scales.{}", param.name);
        tensors.push(Tensor { name, shape: vec![scales.len()], data: Data::F32(scales) });
    }
    write_safetensors(dir.join(OPTIMIZER), &tensors, &BTreeMap::new())?;
    let flips =
        decoder.params().map(|p| (p.name.clone(), p.flips())).filter(|(_, f)| f.total() > 0).collect();
    let file = TrainerFile { format: FORMAT, progress: trainer.progress, flips };
    let mut text = serde_json::to_vec_pretty(&file).expect("plain data has a JSON form");
    text.push(b'\n');
    files::write_bytes(dir.join(TRAINER), &text)?;
    writer.commit()?;

    let all = list(run);
    for old in &all[..all.len().saturating_sub(trainer.recipe.train.keep)] {
        fs::remove_dir_all(old).map_err(Error::io("remove", old))?;
    }
    files::sweep(&parent)?;
    Ok(target)
}

/// How far the training had come when the checkpoint in `dir` was made.
pub fn progress(dir: &Path) -> Result<Progress> {
    read_trainer(dir).map(|file| file.progress)
}

fn read_trainer(dir: &Path) -> Result<TrainerFile> {
    let path = dir.join(TRAINER);
    let text = files::read_limited(&path, MAX_TRAINER)?;
    let file: TrainerFile = serde_json::from_slice(&text)
        .map_err(|e| Error::input(&path, "JSON", e, "what a checkpoint of this version holds"))?;
    match file.format {
        FORMAT => Ok(file),
        other => Err(Error::input(&path, "format", other, FORMAT)),
    }
}

/// Puts the training back to where the checkpoint in `dir` was made. The trainer's model has been loaded from `dir`.
pub fn restore(dir: &Path, trainer: &mut Trainer) -> Result<()> {
    let file = read_trainer(dir)?;
    let stored = Checkpoint::open_file(dir.join(OPTIMIZER))?;
    trainer.optimizer.restore(&trainer.model.decoder, &stored)?;
    let steps = usize::try_from(file.progress.step).unwrap_or(usize::MAX);
    if stored.shape("losses")? != [steps] {
        let found = format!("{:?} losses", stored.shape("losses")?);
        return Err(Error::input(
            dir.join(OPTIMIZER),
            "losses",
            found,
            format!("one for each of {steps} steps"),
        ));
    }
    trainer.losses = vec![0.0; steps];
    stored.read_f32_into("losses", &[steps], &mut trainer.losses)?;
    let mut starts = trainer.start_scales.iter_mut();
    for param in trainer.model.decoder.params_mut() {
        if param.ternary().is_some() {
            let scales = starts.next().expect("a start for every ternary tensor");
            stored.read_f32_into(&format!("start_scales.{}", param.name), &[scales.len()], scales)?;
        }
        param.set_flips(file.flips.get(&param.name).copied().unwrap_or_default());
    }
    trainer.progress = file.progress;
    Ok(())
}
