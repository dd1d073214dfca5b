//! A GGUF file as a stored model: Hugging Face's names and files, and what of it is ternary.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use super::file::GgufFile;
use super::keys::{Keys, Tensors};
use super::names::{self, ROPE_FACTORS};
use super::tokenizer;
use super::types::Coding;
use super::view::View;
use crate::config::{self, Inputs};
use crate::error::Result;
use crate::files::Bundle;
use crate::formats::hf::{self, EMBEDDING, HEAD};
use crate::formats::recognise::{self, Found};
use crate::formats::tensors::TensorView;
use crate::formats::{Form, TernaryNote, bad_tensor};
use crate::ternary::Grouping;

/// Our own key for what inputs of ternary products are rounded to, where that is anything: no tool has one.
pub const INPUTS: &str = "ternlm.activations";

/// The value of [`INPUTS`] for such inputs.
pub fn inputs_note(inputs: Inputs) -> Option<String> {
    (inputs != Inputs::F32).then(|| config::name(&inputs))
}

/// A GGUF file whose tensors have Hugging Face names.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    /// By that name: the name in the file, and heads whose rows stand in pairs.
    tensors: BTreeMap<String, (String, Option<usize>)>,
    /// The tensors that are taken over as trits, and the inputs that share a scale.
    ternary: Option<(HashSet<String>, Grouping)>,
    /// What a person is told of that.
    pub recognised: Option<String>,
}

impl GgufModel {
    /// Opens a file and gives the files of a model directory that says the same.
    ///
    /// # Errors
    /// Those of [`GgufFile::open`]; an architecture, a tensor, a setting or a vocabulary that is not read.
    pub fn open(path: &Path) -> Result<(Self, Bundle)> {
        let file = GgufFile::open(path)?;
        let keys = Keys::of(&file)?;
        let heads = keys.heads()?;
        let mut tensors = BTreeMap::new();
        for name in file.tensors().keys().filter(|name| *name != ROPE_FACTORS) {
            let Some(ours) = names::to_hf(name) else {
                let wanted = format!("only tensors that {} has", keys.architecture);
                return Err(bad_tensor(path, name, "", "it in the file", wanted));
            };
            let paired = names::paired_heads(keys.architecture, &ours, heads);
            tensors.insert(ours, (name.clone(), paired));
        }
        let Some((embedding, _)) = tensors.get(EMBEDDING) else {
            return Err(bad_tensor(path, "token_embd.weight", "", "nothing", "this tensor"));
        };
        let vocab = file.tensors()[embedding].shape[0];
        let bias = |part: &str| tensors.contains_key(&format!("model.layers.0.{part}.bias"));
        let biases = ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"].map(bias);
        let rope_factors = file.tensors().contains_key(ROPE_FACTORS).then(|| view(&file, ROPE_FACTORS, None));
        let tied = !tensors.contains_key(HEAD);
        let mut config = keys.config(&Tensors { vocab, tied, biases, rope_factors })?;
        let mut this = Self { file, tensors, ternary: None, recognised: None };
        let found = match this.note() {
            Some(note) => Some(Found { said: this.types_of(&note), note: Some(note) }),
            None => this.ternary_values(),
        };
        this.recognised = found.as_ref().map(|found| found.said.clone());
        if let Some(mut note) = found.and_then(|found| found.note) {
            note.activations = this.inputs();
            config.insert("ternlm".into(), json!(note));
            this.ternary = Some((note.tensors.into_iter().collect(), note.group));
        }
        let mut held = tokenizer::files(&this.file, &mut config)?;
        held.insert(hf::FILE_NAME.into(), serde_json::to_vec(&config).expect("a map of JSON values"));
        Ok((this, Bundle::within(path, held)))
    }

    /// The container.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Inputs that share a scale of a tensor that is taken over as trits.
    pub fn grouping(&self, name: &str) -> Option<Grouping> {
        self.ternary.as_ref().filter(|(names, _)| names.contains(name)).map(|(_, grouping)| *grouping)
    }

    /// The tensor `name`, not yet read.
    pub fn tensor(&self, name: &str) -> Result<View<'_>> {
        let Some((stored, paired_heads)) = self.tensors.get(name) else {
            return Err(bad_tensor(self.file.path(), name, "", "nothing", "this tensor"));
        };
        Ok(view(&self.file, stored, *paired_heads))
    }

    /// How a ternary model is stored, a sentence for people.
    fn types_of(&self, note: &TernaryNote) -> String {
        let kinds = note.tensors.iter().filter_map(|name| self.tensor(name).ok()).map(|view| view.kind.name);
        let kinds = kinds.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        let (count, groups) = (note.tensors.len(), note.group);
        format!("{count} matrices are of a ternary type of GGUF ({kinds}), groups of {groups}")
    }

    /// Numbers that are −s, 0, +s.
    fn ternary_values(&self) -> Option<Found> {
        let mut matrices = Vec::new();
        for name in self.names() {
            let view = self.tensor(name).ok().filter(|view| view.shape.len() == 2);
            let Some(View { file, kind, shape, bytes, .. }) = view else { continue };
            let dtype = match kind.coding {
                Coding::F32 => Dtype::F32,
                Coding::F16 => Dtype::F16,
                Coding::Bf16 => Dtype::BF16,
                // Of the blocks nothing else may be there; of the ends it makes them no ternary ones.
                _ => Dtype::U8,
            };
            // The order of rows changes nothing.
            matrices.push((name, TensorView { file, name, dtype, shape, bytes }));
        }
        recognise::among(&matrices, Form::Gguf)
    }

    /// What of the model is ternary: all matrices, or all inside of the blocks. A model of which only some are holds
    /// their weights as values, exactly.
    fn note(&self) -> Option<TernaryNote> {
        let mut matrices: Vec<&str> = self.names().filter(|name| names::is_projection(name)).collect();
        matrices.extend([EMBEDDING, HEAD].into_iter().filter(|name| self.contains(name)));
        let is_ternary = |name: &&str| self.tensor(name).is_ok_and(|view| view.kind.is_ternary());
        let ternary: HashSet<&str> = matrices.iter().copied().filter(is_ternary).collect();
        let all = matrices.iter().copied();
        let note = recognise::note(all, &ternary, Form::Gguf, Grouping::default(), Inputs::F32);
        let Some(note) = note else {
            if !ternary.is_empty() {
                tracing::warn!(
                    "{}: {} of {} matrices are ternary: all are held as plain values",
                    self.file.path().display(),
                    ternary.len(),
                    matrices.len()
                );
            }
            return None;
        };
        let views = || note.tensors.iter().filter_map(|name| self.tensor(name).ok());
        // A scale for each 128 inputs is written twice where blocks have 64.
        let halves = views().filter(|view| view.kind.block == 64);
        let pairs = halves.clone().all(|view| view.scales_in_pairs());
        let group_of = |view: &View<'_>| if view.kind.block == 64 && pairs { 128 } else { view.kind.block };
        let group = views().map(|view| group_of(&view)).min().unwrap_or(128);
        Some(TernaryNote { group: Grouping::Size(group), ..note })
    }

    /// What inputs of ternary products are rounded to, as an export of ours says; other tools say nothing.
    fn inputs(&self) -> Inputs {
        let said = self.file.get(INPUTS).and_then(|value| value.as_str());
        said.and_then(|said| serde_json::from_value(json!(said)).ok()).unwrap_or_default()
    }
}

fn view<'a>(file: &'a GgufFile, name: &str, paired_heads: Option<usize>) -> View<'a> {
    let (name, info) = file.tensors().get_key_value(name).expect("names come from the file");
    let bytes = file.bytes(info);
    View { file: file.path(), name, kind: info.kind, shape: &info.shape, bytes, paired_heads }
}
