//! The proof that a stored model is ternary, from its files alone.

use serde::Serialize;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use crate::config::{self, Scope};
use crate::error::{Error, Result};
use crate::formats::hf;
use crate::formats::manifest::{self, Manifest};
use crate::formats::{Form, ModelFiles, Stored};
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
    /// Largest `|w / s - t|` over the stored weights, `s` the largest `|w|` of a group, `t` the nearest of −1, 0, +1. NaN
    /// for latents, which are no weights, and for what is no matrix.
    pub max_error: f32,
}

/// What was found of a whole model.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    pub pass: bool,
    /// Failures of the model as a whole.
    pub reasons: Vec<String>,
    /// Of files that carry no note and no manifest: what makes them ternary. There is nothing to hold them against.
    pub recognised: Option<String>,
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
        largest(self.tensors.iter().map(|t| t.max_error))
    }
}

/// Checks every tensor of the model in `dir` that claims to be ternary, with the slow definition of the number system,
/// not with the kernels that trained it:
///
/// - a stored form of weights must hold −s, 0, +s and nothing else in each group, with one `s` that f16 can hold;
/// - latents must project to such weights with the scale that they define;
/// - codes, scales and stored bytes must have the digests that the trainer noted in `ternary.json`, unless the files were
///   recognised as ternary without a note of ours;
/// - no matrix that the model's scope promises to be ternary may be missing from the claim;
/// - the files hold the model's tensors and no others.
///
/// # Errors
/// Files that cannot be read, or a model that makes no claim. A claim that is wrong is no error but a `pass: false`.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(&TensorProof)) -> Result<Proof> {
    let stored = ModelFiles::open(dir)?;
    let file = stored.files.path_of(hf::FILE_NAME);
    let Some(note) = &stored.description.ternary else {
        return Err(match stored.gguf() {
            Some(gguf) => {
                let wanted =
                    "a ternary type (Q2_0, PQ2_0, PTQ1_0, TQ1_0, TQ2_0) of every matrix in the blocks";
                Error::input(gguf.path(), "tensor types", types_of(&stored)?, wanted)
            }
            None => {
                let found =
                    stored.recognised.as_deref().unwrap_or("nothing, and weights that are not ternary");
                Error::input(file, "ternlm", found, "the note that says which tensors are ternary")
            }
        });
    };
    let manifest = stored.recognised.is_none().then(|| Manifest::read(&stored.files)).transpose()?;
    let mut reasons = Vec::new();
    if let Some(manifest) = manifest.as_ref().filter(|m| m.form != note.form || m.group != note.group) {
        reasons.push(format!(
            "config.json says {} by groups of {}, {} says {} by {}",
            config::name(&note.form),
            note.group,
            manifest::FILE_NAME,
            config::name(&manifest.form),
            manifest.group
        ));
    }
    if note.tensors.is_empty() && note.scope != Scope::None {
        reasons.push("no tensor claims to be ternary".into());
    }
    let mut tensors = Vec::new();
    for name in &note.tensors {
        let proof = prove(&stored, manifest.as_ref(), note.form, note.group, name)?;
        progress(&proof);
        tensors.push(proof);
    }
    let claimed: HashSet<&str> = note.tensors.iter().map(String::as_str).collect();
    let promised = model::promised(&stored, note.scope);
    let mut not_ternary = Vec::new();
    // A tied head that is stored once more is the embedding.
    let twice = |name: &str| name == hf::HEAD && stored.description.model.tie_embeddings;
    for name in stored.names().filter(|name| !claimed.contains(name) && !twice(name)) {
        let tensor = stored.tensor(name)?;
        if promised.contains(name) {
            let scope = config::name(&note.scope);
            reasons.push(format!("{name} is a matrix that scope {scope} promises to be ternary"));
        }
        match manifest.as_ref().map(|manifest| manifest.tensors.get(name)) {
            Some(None) => reasons.push(format!("{name} is not in {}", manifest::FILE_NAME)),
            Some(Some(entry)) if entry.stored_sha256 != tensor.sha256() => {
                reasons.push(format!("{name}: its bytes are not those that were saved"));
            }
            _ => {}
        }
        not_ternary.push((name.to_string(), tensor.shape().to_vec()));
    }
    let listed = manifest.iter().flat_map(|manifest| manifest.tensors.keys());
    for name in listed.filter(|n| !stored.contains(n)) {
        reasons.push(format!("{name} is in {} but not in the file", manifest::FILE_NAME));
    }
    match model::unused(&stored) {
        Ok(names) => {
            reasons.extend(names.iter().map(|name| format!("{name} is in the file but not in the model")))
        }
        Err(missing) => reasons.push(missing.to_string()),
    }
    let pass = reasons.is_empty() && tensors.iter().all(|t| t.pass);
    let (form, scope, group) = (note.form, note.scope, note.group);
    let recognised = stored.recognised.clone();
    Ok(Proof { pass, reasons, recognised, form, scope, group, tensors, not_ternary })
}

/// The types of all tensors, each once.
fn types_of(stored: &ModelFiles) -> Result<String> {
    let types = stored.names().map(|name| Ok(stored.tensor(name)?.coding()));
    Ok(types.collect::<Result<BTreeSet<String>>>()?.into_iter().collect::<Vec<_>>().join(", "))
}

fn prove(
    stored: &ModelFiles,
    manifest: Option<&Manifest>,
    form: Form,
    group: Grouping,
    name: &str,
) -> Result<TensorProof> {
    let tensor = stored.tensor(name)?;
    let shape = tensor.shape().to_vec();
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
    let matrix = match (form, &tensor) {
        (Form::Packed | Form::Mlx | Form::BitNet | Form::Gguf, Stored::Trits(trits)) => {
            let matrix = trits.matrix(rows, cols).map_err(|e| e.to_string());
            // Trits and scales are all that such bytes can say.
            proof.max_error = if matrix.is_ok() { 0.0 } else { f32::NAN };
            matrix
        }
        (Form::Packed | Form::Mlx | Form::BitNet | Form::Gguf, _) => Err("its values are not packed".into()),
        (form, tensor) => {
            let mut values = vec![0f32; rows * cols];
            tensor.read_f32_into(&shape, &mut values)?;
            if form == Form::Latent {
                TernaryMatrix::project(name, &values, rows, cols, group).map_err(|e| e.to_string())
            } else {
                proof.max_error = max_error(&values, cols, group);
                TernaryMatrix::from_values(&values, rows, cols, group)
            }
        }
    };
    let matrix = match matrix {
        Ok(matrix) => matrix,
        Err(why) => {
            proof.reasons.push(why);
            if proof.max_error > 0.0 {
                let far = format!("a weight is {} scales away from -1, 0 and +1", proof.max_error);
                proof.reasons.push(far);
            }
            return Ok(proof);
        }
    };
    proof.stats = Stats::of(&matrix);
    match manifest.map(|manifest| manifest.tensors.get(name)) {
        None => {}
        Some(None) => proof.reasons.push(format!("not in {}", manifest::FILE_NAME)),
        Some(Some(entry)) => {
            let found = ternary_entry(&matrix, &proof.stats);
            match &entry.ternary {
                None => proof.reasons.push(format!("{} does not call it ternary", manifest::FILE_NAME)),
                Some(noted) if *noted != found => {
                    proof.reasons.push("its trits or scales are not those that were trained".into());
                }
                _ => {}
            }
            if entry.stored_sha256 != tensor.sha256() {
                proof.reasons.push("its bytes are not those that were saved".into());
            }
        }
    }
    proof.pass = proof.reasons.is_empty();
    Ok(proof)
}

/// `|w / s - t|` at its largest, of stored weights in rows of `cols`: `s` is the largest `|w|` of those that share a scale.
fn max_error(weights: &[f32], cols: usize, grouping: Grouping) -> f32 {
    let of_group = |group: &[f32]| {
        let s = largest(group.iter().map(|w| w.abs()));
        let ratios = group.iter().map(|w| w / s);
        if s == 0.0 { 0.0 } else { largest(ratios.map(|ratio| (ratio - ratio.round()).abs())) }
    };
    match grouping {
        Grouping::Tensor => of_group(weights),
        Grouping::Size(_) => {
            let rows = weights.chunks(cols.max(1));
            largest(rows.flat_map(|row| row.chunks(grouping.size(cols))).map(of_group))
        }
    }
}

/// 0 of none; NaN if one is.
fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::formats::Description;
    use crate::formats::tensors::{self, Data, Dtype, Tensor, TensorFiles, write_safetensors};
    use crate::model::{Decoder, Latents};
    use serde_json::{Value, json};
    use std::fs;

    const Q: &str = "model.layers.0.self_attn.q_proj.weight";
    const NORM: &str = "model.norm.weight";
    const LATENT: Form = Form::Latent;
    const UNPACKED: Form = Form::Unpacked;

    /// A model of one layer whose blocks are ternary.
    fn saved(form: Form) -> tempfile::TempDir {
        let config = ModelConfig {
            vocab_size: 16,
            hidden_size: 16,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            intermediate_size: 24,
            qk_norm: true,
            max_positions: 32,
            ..ModelConfig::default()
        };
        let mut decoder = Decoder::new(&config, Scope::Blocks, Grouping::Size(8));
        let latents = Latents::random(decoder.weights_mut(), 1, None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let latents = (form == Form::Latent).then_some(&latents);
        model::save(dir.path(), &decoder, &Description::new(config), latents).unwrap();
        dir
    }

    /// Of a model directory.
    type Change = fn(&Path);

    struct Held {
        name: String,
        shape: Vec<usize>,
        dtype: Dtype,
        values: Vec<f32>,
    }

    fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut Vec<Held>)) {
        let stored = TensorFiles::open(dir).unwrap();
        let read = |name: &str| {
            let view = stored.tensor(name).unwrap();
            let mut values = vec![0.0; view.shape.iter().product()];
            view.read_f32_into(view.shape, &mut values).unwrap();
            Held { name: name.into(), shape: view.shape.into(), dtype: view.dtype, values }
        };
        let mut all: Vec<Held> = stored.names().map(read).collect();
        edit(&mut all);
        let tensors: Vec<Tensor<'_>> = all
            .iter()
            .map(|t| {
                let data = match t.dtype {
                    Dtype::F16 => Data::F32AsF16(&t.values),
                    _ => Data::F32(&t.values),
                };
                Tensor { name: t.name.clone(), shape: t.shape.clone(), data }
            })
            .collect();
        write_safetensors(dir.join(tensors::FILE_NAME), &tensors, &Default::default()).unwrap();
    }

    fn edit(dir: &Path, name: &str, edit: impl FnOnce(&mut Held)) {
        edit_tensors(dir, |all| edit(all.iter_mut().find(|t| t.name == name).unwrap()));
    }

    fn edit_json(dir: &Path, file: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap();
        edit(&mut value);
        fs::write(dir.join(file), value.to_string()).unwrap();
    }

    fn edit_manifest(dir: &Path, edit: impl FnOnce(&mut Value)) {
        edit_json(dir, manifest::FILE_NAME, edit);
    }

    /// The proof of a copy that was changed, and all its reasons.
    fn changed(form: Form, change: impl FnOnce(&Path)) -> (Proof, Vec<String>) {
        let dir = saved(form);
        change(dir.path());
        let proof = verify(dir.path(), &mut |_| {}).unwrap();
        let of_tensors = proof.tensors.iter().flat_map(|t| &t.reasons);
        let reasons: Vec<String> = proof.reasons.iter().chain(of_tensors).cloned().collect();
        assert_eq!(proof.pass, reasons.is_empty());
        (proof, reasons)
    }

    #[test]
    fn what_is_saved_is_proved() {
        let (unpacked, reasons) = changed(UNPACKED, |_| {});
        assert_eq!((reasons, unpacked.max_error(), unpacked.tensors.len()), (vec![], 0.0, 7));
        let (latent, reasons) = changed(LATENT, |_| {});
        assert!(reasons.is_empty() && latent.max_error().is_nan());
        assert_eq!(latent.total(), unpacked.total());
    }

    #[test]
    fn every_check_of_a_tensor_can_fail() {
        let trained = "its trits or scales are not those that were trained";
        let bytes = "its bytes are not those that were saved";
        type Case<'a> = (Form, Change, &'a [&'a str], f32);
        let cases: [Case; 11] = [
            (
                UNPACKED,
                |dir| {
                    edit(dir, Q, |t| {
                        t.values[..8].copy_from_slice(&[1.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
                    })
                },
                &[
                    "row 0, column 1: 0.25 is none of -1, 0, +1",
                    "a weight is 0.25 scales away from -1, 0 and +1",
                ],
                0.25,
            ),
            (
                UNPACKED,
                |dir| {
                    edit(dir, Q, |t| {
                        t.dtype = Dtype::F32;
                        t.values[8..16].fill(0.1);
                    });
                },
                &["row 0, column 8: scale 0.1 is not an f16 number"],
                0.0,
            ),
            (
                UNPACKED,
                |dir| edit(dir, Q, |t| t.values[..8].fill(f32::NAN)),
                &["row 0, column 0: NaN"],
                f32::NAN,
            ),
            (UNPACKED, |dir| edit(dir, Q, |t| t.values[..8].fill(0.5)), &[trained, bytes], 0.0),
            (
                UNPACKED,
                |dir| edit(dir, Q, |t| *t.values.iter_mut().find(|w| **w == 0.0).unwrap() = -0.0),
                &[bytes],
                0.0,
            ),
            (LATENT, |dir| edit(dir, Q, |t| t.values[..8].fill(0.5)), &[trained, bytes], f32::NAN),
            (LATENT, |dir| edit(dir, Q, |t| t.values[3] *= 1.000_001), &[bytes], f32::NAN),
            (
                LATENT,
                |dir| edit(dir, Q, |t| t.values[3] = f32::NAN),
                &["the latent at row 0, column 3"],
                f32::NAN,
            ),
            (
                UNPACKED,
                |dir| edit_manifest(dir, |m| drop(m["tensors"].as_object_mut().unwrap().remove(Q))),
                &["not in ternary.json"],
                0.0,
            ),
            (
                UNPACKED,
                |dir| edit_manifest(dir, |m| m["tensors"][Q]["ternary"] = Value::Null),
                &["ternary.json does not call it ternary"],
                0.0,
            ),
            (
                UNPACKED,
                |dir| edit_manifest(dir, |m| m["tensors"][Q]["ternary"]["dead_groups"] = json!(31)),
                &[trained],
                0.0,
            ),
        ];
        for (at, (form, change, wanted, far)) in cases.into_iter().enumerate() {
            let (proof, reasons) = changed(form, change);
            assert_eq!(reasons.len(), wanted.len(), "{at}: {reasons:?}");
            for (reason, wanted) in reasons.iter().zip(wanted) {
                assert!(reason.contains(wanted), "{at}: {reason}");
            }
            let q = proof.tensors.iter().find(|t| t.name == Q).unwrap();
            assert!(!q.pass && (q.max_error == far || q.max_error.is_nan() && far.is_nan()), "{at}: {q:?}");
        }
        // Any number of dimensions may be claimed.
        let (_, reasons) = changed(UNPACKED, |dir| {
            edit_json(dir, hf::FILE_NAME, |c| {
                c["ternlm"]["tensors"].as_array_mut().unwrap().push(json!(NORM))
            });
        });
        assert_eq!(reasons, ["1 dimensions, wanted a matrix"]);
    }

    #[test]
    fn every_check_of_the_whole_can_fail() {
        type Case<'a> = (Change, &'a str);
        let cases: [Case; 10] = [
            (
                |dir| edit_json(dir, hf::FILE_NAME, |c| c["ternlm"]["group"] = json!(4)),
                "config.json says unpacked by groups of 4, ternary.json says unpacked by 8",
            ),
            (
                |dir| edit_manifest(dir, |m| m["form"] = json!("latent")),
                "config.json says unpacked by groups of 8, ternary.json says latent by 8",
            ),
            (
                |dir| edit_json(dir, hf::FILE_NAME, |c| c["ternlm"]["tensors"] = json!([])),
                "no tensor claims to be ternary",
            ),
            (
                |dir| {
                    edit_json(dir, hf::FILE_NAME, |c| {
                        drop(c["ternlm"]["tensors"].as_array_mut().unwrap().remove(0))
                    })
                },
                "model.layers.0.self_attn.q_proj.weight is a matrix that scope blocks promises to be ternary",
            ),
            (
                |dir| edit_json(dir, hf::FILE_NAME, |c| c["ternlm"]["scope"] = json!("all")),
                "lm_head.weight is a matrix that scope all promises to be ternary",
            ),
            (
                |dir| edit_manifest(dir, |m| drop(m["tensors"].as_object_mut().unwrap().remove(NORM))),
                "model.norm.weight is not in ternary.json",
            ),
            (
                |dir| edit(dir, NORM, |t| t.values[0] = 2.0),
                "model.norm.weight: its bytes are not those that were saved",
            ),
            (
                |dir| edit_manifest(dir, |m| m["tensors"]["ghost"] = m["tensors"][NORM].clone()),
                "ghost is in ternary.json but not in the file",
            ),
            (
                |dir| {
                    edit_tensors(dir, |all| {
                        all.push(Held {
                            name: "score".into(),
                            shape: vec![1],
                            dtype: Dtype::F32,
                            values: vec![1.0],
                        });
                    });
                },
                "score is in the file but not in the model",
            ),
            (
                |dir| edit_json(dir, hf::FILE_NAME, |c| c["num_hidden_layers"] = json!(2)),
                "model.layers.1.input_layernorm.weight",
            ),
        ];
        for (change, wanted) in cases {
            let (proof, reasons) = changed(UNPACKED, change);
            assert!(!proof.pass && reasons.iter().any(|r| r.contains(wanted)), "{wanted}: {reasons:?}");
        }
    }
}
