//! A decoder from and to a Hugging Face directory.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safetensors::Dtype;

use super::directory::{HEAD, open, unused};
use super::{Decoder, Param};
use crate::config::{Activations, Scope, TernaryConfig};
use crate::error::{Error, Result};
use crate::files::sha256_hex;
use crate::formats::Form;
use crate::formats::hf::{self, HfConfig, TernaryNote};
use crate::formats::manifest::{self, Entry, Manifest, TernaryEntry};
use crate::formats::quoted;
use crate::formats::tensors::{self, Checkpoint, Data, Tensor, write_safetensors};
use crate::ternary::{Grouping, Stats, TernaryMatrix};

/// What a loaded model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Latents are kept.
    Train,
    /// Ternary tensors keep their trits and scales only.
    Run,
}

/// A decoder and the configuration it came with.
#[derive(Clone, Debug)]
pub struct Model {
    pub decoder: Decoder,
    pub hf: HfConfig,
}

/// Loads `dir`. `ternary` says which matrices are to be ternary and how; without it that is what `config.json` notes,
/// and a foreign model stays in full precision. Matrices that are ternary already are taken over, never projected again.
///
/// # Errors
/// Missing or misshapen tensors, tensors that the model would not use, values that are not finite, a tensor that claims
/// to be ternary and is not, a claim of tensors that are no matrices of the model, a model that is ternary by other groups
/// than asked for.
pub fn load(dir: &Path, purpose: Purpose, ternary: Option<&TernaryConfig>) -> Result<Model> {
    let (hf, stored) = open(dir)?;
    let config_file = dir.join(hf::FILE_NAME);
    let unused = unused(&hf.model, &stored)?;
    if !unused.is_empty() {
        let named: Vec<String> = unused.iter().take(3).map(|name| quoted(name)).collect();
        let more = unused.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let wanted = format!("only tensors that the model of {} uses", config_file.display());
        return Err(Error::input(stored.source(), "tensors", named.join(", ") + &more, wanted));
    }
    if !hf.model.tie_embeddings && hf.raw.get("tie_word_embeddings") == Some(&true.into()) {
        tracing::warn!(
            "{}: tie_word_embeddings is true, but {HEAD} is not the embedding: the model gets this head of its own",
            config_file.display()
        );
    }
    // Before anything of that size is allocated.
    let held: u128 = stored.names().map(|n| stored.shape(n).map_or(0, elements)).sum();
    if held < hf.model.parameters() {
        let wanted = format!("the {} that {} describes", hf.model.parameters(), config_file.display());
        return Err(Error::input(dir, "weights", format!("{held} values"), wanted));
    }
    let note = hf.ternary.as_ref();
    let (scope, grouping, activations) = ternary
        .map(|t| (t.scope, t.group, t.activations))
        .or(note.map(|n| (n.scope, n.group, n.activations)))
        .unwrap_or((Scope::None, Grouping::default(), Activations::F32));
    let mut decoder = Decoder::new(&hf.model, scope, grouping);
    decoder.set_activations(activations);
    if let Some(note) = note {
        judge_claim(note, &decoder, ternary.is_none(), &config_file)?;
    }
    for param in decoder.params_mut() {
        let unpacked = note.filter(|n| n.form == Form::Unpacked && n.tensors.contains(&param.name));
        let shape = param.shape.clone();
        stored.read_f32_into(&param.name, &shape, &mut param.value)?;
        match (unpacked, param.grouping()) {
            (Some(note), Some(grouping)) if note.group != grouping => {
                let wanted = format!("groups of {grouping}; train from a checkpoint, which has the latents");
                return Err(Error::input(&config_file, "ternlm.group", note.group, wanted));
            }
            (Some(_), Some(grouping)) => {
                let matrix = TernaryMatrix::from_values(&param.value, shape[0], shape[1], grouping).map_err(
                    |why| Error::input(dir, &param.name, why, "the ternary tensor that config.json claims"),
                )?;
                param.adopt(matrix, purpose == Purpose::Train);
            }
            _ => param.project()?,
        }
        if purpose == Purpose::Run {
            param.drop_latents();
        }
        param.take_flips();
        if !crate::kernels::all_finite(&param.value) {
            return Err(Error::input(dir, &param.name, "a value that is not finite", "finite values"));
        }
    }
    Ok(Model { decoder, hf })
}

/// `ternlm.tensors` may name matrices of the model alone; with the note's own scope, all that the scope promises.
fn judge_claim(note: &TernaryNote, decoder: &Decoder, own_scope: bool, file: &Path) -> Result<()> {
    let bad = |found: String, wanted: &str| Err(Error::input(file, "ternlm.tensors", found, wanted));
    let matrices: HashSet<&str> = decoder.params().filter(|p| p.is_matrix()).map(|p| &*p.name).collect();
    if let Some(name) = note.tensors.iter().find(|name| !matrices.contains(name.as_str())) {
        return bad(quoted(name), "names of the model's matrices");
    }
    let claimed: HashSet<&str> = note.tensors.iter().map(|name| name.as_str()).collect();
    let odd = |p: &&Param| p.ternary().is_some() != claimed.contains(&*p.name);
    match decoder.params().find(odd).filter(|_| own_scope) {
        Some(p) if p.ternary().is_some() => bad(format!("no {:?}", p.name), "every matrix of ternlm.scope"),
        Some(p) => bad(format!("{:?}", p.name), "only matrices of ternlm.scope"),
        None => Ok(()),
    }
}

fn elements(shape: &[usize]) -> u128 {
    shape.iter().map(|&n| n as u128).product()
}

/// Writes `config.json`, `generation_config.json`, `model.safetensors` and `ternary.json` into `dir`, which exists.
///
/// [`Form::Latent`] stores every tensor as f32, from which training goes on; [`Form::Unpacked`] stores a ternary tensor
/// as its weights −s, 0, +s in f16, which any Hugging Face tool loads, and everything else as f32.
pub fn save(dir: &Path, decoder: &Decoder, hf: &HfConfig, form: Form) -> Result<()> {
    let ternary = decoder.params().filter(|p| p.ternary().is_some());
    let note = TernaryNote {
        format: hf::NOTE_FORMAT,
        form,
        scope: decoder.scope,
        group: decoder.grouping,
        activations: decoder.activations(),
        tensors: ternary.map(|p| p.name.clone()).collect(),
    };
    let hf = HfConfig { ternary: Some(note), ..hf.clone() };
    hf::write_config(dir, &hf, Dtype::F32)?;
    let stored: Vec<Tensor<'_>> = decoder
        .params()
        .map(|p| Tensor { name: p.name.clone(), shape: p.shape.clone(), data: data_of(p, form) })
        .collect();
    // `format: pt` is what Hugging Face's own loader asks for.
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(dir.join(tensors::FILE_NAME), &stored, &metadata)?;
    let written = Checkpoint::open(dir)?;
    let entries = decoder.params().map(|p| Ok((p.name.clone(), entry_of(p, written.bytes(&p.name)?))));
    let manifest = Manifest {
        format: manifest::FORMAT,
        form,
        group: decoder.grouping,
        tensors: entries.collect::<Result<_>>()?,
    };
    manifest.write(dir)
}

fn data_of(param: &Param, form: Form) -> Data<'_> {
    match (form, param.ternary()) {
        (Form::Unpacked, Some(matrix)) => Data::Rows {
            dtype: Dtype::F16,
            fill: Box::new(|rows, out| {
                for (row, out) in rows.zip(out.chunks_mut(matrix.cols())) {
                    crate::kernels::unpack_row(matrix, row, out);
                }
            }),
        },
        _ => Data::F32(&param.value),
    }
}

fn entry_of(param: &Param, stored: &[u8]) -> Entry {
    let ternary = param.ternary().map(|matrix| ternary_entry(matrix, &Stats::of(matrix)));
    Entry { shape: param.shape.clone(), ternary, stored_sha256: sha256_hex([stored]) }
}

/// What the manifest says of a ternary matrix.
pub fn ternary_entry(matrix: &TernaryMatrix, stats: &Stats) -> TernaryEntry {
    TernaryEntry {
        group_size: matrix.group(),
        groups: stats.groups,
        minus: stats.minus,
        zero: stats.zero,
        plus: stats.plus,
        dead_groups: stats.dead_groups,
        digest: sha256_hex(matrix.digest_chunks()),
    }
}
