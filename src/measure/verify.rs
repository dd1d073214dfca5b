//! The proof that a stored model is ternary, from its files alone.

use serde::Serialize;
use std::path::Path;

use crate::config::Scope;
use crate::error::{Error, Result};
use crate::formats::hf;
use crate::formats::manifest::{self, Manifest};
use crate::formats::{Form, ModelFiles};
use crate::model::{self, ternary_entry};
use crate::ternary::{Grouping, Stats, TernaryMatrix};

/// What was found of one tensor that claims to be ternary.
#[derive(Clone, Debug, Serialize)]
pub struct TensorProof {
    pub name: String,
    pub shape: Vec<usize>,
    pub pass: bool,
    /// Why it fails; empty when it passes.
    pub reasons: Vec<String>,
    #[serde(flatten)]
    pub stats: Stats,
    /// Largest `|w / s - t|` over all weights, `t` the nearest of −1, 0, +1.
    pub max_error: f32,
}

/// What was found of a whole model.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    pub pass: bool,
    /// Failures of the model as a whole.
    pub reasons: Vec<String>,
    pub form: Form,
    pub scope: Scope,
    pub group: Grouping,
    pub tensors: Vec<TensorProof>,
    /// Names and shapes of the tensors that make no claim.
    pub not_ternary: Vec<(String, Vec<usize>)>,
}

impl Proof {
    /// Counts over all ternary tensors; the scales' spread is not summed up.
    pub fn total(&self) -> Stats {
        self.tensors.iter().fold(Stats::default(), |mut sum, t| {
            sum.minus += t.stats.minus;
            sum.zero += t.stats.zero;
            sum.plus += t.stats.plus;
            sum.groups += t.stats.groups;
            sum.dead_groups += t.stats.dead_groups;
            sum
        })
    }

    /// Over all tensors; NaN if one could not be measured.
    pub fn max_error(&self) -> f32 {
        self.tensors
            .iter()
            .map(|t| t.max_error)
            .fold(0.0, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
    }
}

/// Checks every tensor of the model in `dir` that claims to be ternary, with the slow definition of the number system,
/// not with the kernels that trained it:
///
/// - a stored form of weights must hold −s, 0, +s and nothing else in each group, with one `s` that f16 can hold;
/// - latents must project to such weights with the scale that they define;
/// - codes, scales and stored bytes must have the digests that the trainer noted in `ternary.json`;
/// - no matrix that the model's scope promises to be ternary may be missing from the claim;
/// - the files hold the model's tensors and no others.
///
/// # Errors
/// Files that cannot be read, or a model that makes no claim. A claim that is wrong is no error but a `pass: false`.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(&TensorProof)) -> Result<Proof> {
    let stored = ModelFiles::open(dir)?;
    let file = stored.files.path_of(hf::FILE_NAME);
    let Some(note) = &stored.description.ternary else {
        return Err(Error::input(file, "ternlm", "nothing", "the note that says which tensors are ternary"));
    };
    let manifest = Manifest::read(&stored.files)?;
    let mut reasons = Vec::new();
    if manifest.form != note.form || manifest.group != note.group {
        reasons.push(format!(
            "config.json says {:?} by groups of {}, {} says {:?} by {}",
            note.form,
            note.group,
            manifest::FILE_NAME,
            manifest.form,
            manifest.group
        ));
    }
    if note.tensors.is_empty() && note.scope != Scope::None {
        reasons.push("no tensor claims to be ternary".into());
    }
    let mut tensors = Vec::new();
    for name in &note.tensors {
        let proof = prove(&stored, &manifest, note.form, note.group, name)?;
        progress(&proof);
        tensors.push(proof);
    }
    let mut not_ternary = Vec::new();
    for name in stored.names().filter(|n| !note.tensors.iter().any(|t| t == n)) {
        let shape = stored.tensor(name)?.shape().to_vec();
        let ends = ["model.embed_tokens.weight", "lm_head.weight"].contains(&name);
        let promised = match note.scope {
            Scope::None => false,
            Scope::Blocks => !ends,
            Scope::All => true,
        };
        if promised && shape.len() == 2 {
            reasons.push(format!("{name} is a matrix that scope {:?} promises to be ternary", note.scope));
        }
        match manifest.tensors.get(name) {
            None => reasons.push(format!("{name} is not in {}", manifest::FILE_NAME)),
            Some(entry) if entry.stored_sha256 != stored.tensor(name)?.sha256() => {
                reasons.push(format!("{name}: its bytes are not those that were saved"));
            }
            _ => {}
        }
        not_ternary.push((name.to_string(), shape));
    }
    for name in manifest.tensors.keys().filter(|n| !stored.contains(n)) {
        reasons.push(format!("{name} is in {} but not in the file", manifest::FILE_NAME));
    }
    match model::unused(&stored) {
        Ok(names) => {
            reasons.extend(names.iter().map(|name| format!("{name} is in the file but not in the model")))
        }
        Err(missing) => reasons.push(missing.to_string()),
    }
    let pass = reasons.is_empty() && tensors.iter().all(|t| t.pass);
    Ok(Proof { pass, reasons, form: note.form, scope: note.scope, group: note.group, tensors, not_ternary })
}

fn prove(
    stored: &ModelFiles,
    manifest: &Manifest,
    form: Form,
    group: Grouping,
    name: &str,
) -> Result<TensorProof> {
    let shape = stored.tensor(name)?.shape().to_vec();
    let mut proof = TensorProof {
        name: name.to_string(),
        shape: shape.clone(),
        pass: false,
        reasons: Vec::new(),
        stats: Stats::default(),
        max_error: f32::NAN,
    };
    let [rows, cols] = shape[..] else {
        proof.reasons.push(format!("{} dimensions, wanted a matrix", shape.len()));
        return Ok(proof);
    };
    let mut values = vec![0f32; rows * cols];
    stored.tensor(name)?.read_f32_into(&shape, &mut values)?;
    let matrix = match form {
        Form::Latent => TernaryMatrix::project(name, &values, rows, cols, group).map_err(|e| e.to_string()),
        Form::Unpacked => TernaryMatrix::from_values(&values, rows, cols, group),
    };
    let matrix = match matrix {
        Ok(matrix) => matrix,
        Err(why) => {
            proof.reasons.push(why);
            return Ok(proof);
        }
    };
    proof.stats = Stats::of(&matrix);
    proof.max_error = max_error(&matrix, (form == Form::Unpacked).then_some(&values[..]));
    if proof.max_error != 0.0 {
        proof.reasons.push(format!("a weight is {} scales away from -1, 0 and +1", proof.max_error));
    }
    if proof.stats.groups != (rows * cols.div_ceil(group.size(cols))) as u64 {
        proof.reasons.push(format!("{} scales", proof.stats.groups));
    }
    match manifest.tensors.get(name) {
        None => proof.reasons.push(format!("not in {}", manifest::FILE_NAME)),
        Some(entry) => {
            let found = ternary_entry(&matrix, &proof.stats);
            match &entry.ternary {
                None => proof.reasons.push(format!("{} does not call it ternary", manifest::FILE_NAME)),
                Some(noted) if *noted != found => {
                    proof.reasons.push("its trits or scales are not those that were trained".into());
                }
                _ => {}
            }
            if entry.stored_sha256 != stored.tensor(name)?.sha256() {
                proof.reasons.push("its bytes are not those that were saved".into());
            }
        }
    }
    proof.pass = proof.reasons.is_empty();
    Ok(proof)
}

/// `|w / s - t|` at its largest, of the stored weights or, for latents, of the projected ones.
fn max_error(matrix: &TernaryMatrix, stored: Option<&[f32]>) -> f32 {
    let cols = matrix.cols();
    let mut row_values = vec![0f32; cols];
    let mut worst = 0f32;
    for row in 0..matrix.rows() {
        match stored {
            Some(values) => row_values.copy_from_slice(&values[row * cols..(row + 1) * cols]),
            None => matrix.unpack_row(row, &mut row_values),
        }
        for (col, w) in row_values.iter().enumerate() {
            let s = matrix.scale(row, col);
            let ratio = if s > 0.0 { w / s } else { *w };
            let nearest = ratio.round().clamp(-1.0, 1.0);
            worst = worst.max((ratio - nearest).abs());
        }
    }
    worst
}
