//! What a training learns from: a model, or what was stored of one.

use rayon::prelude::*;
use std::path::Path;

use crate::config::{DistillConfig, ModelConfig, Precision, Recipe, Scope};
use crate::error::{Error, Result};
use crate::files::sha256_hex;
use crate::formats::lessons::{self, Index, Lessons};
use crate::formats::{ModelFiles, files_of, quoted};
use crate::kernels::{Distillation, Likely};
use crate::model::{self, Decoder, Form, Latents, Relations, Weight};
use crate::text::{Corpus, Tokenizer};

/// What stands before the digest of lessons: not even those of the same teacher are the same function as it.
pub(super) const LESSONS: &str = "lessons:";

/// Whom a training learns from: a model that is read and never changed, or what was stored of one.
#[derive(Debug)]
pub struct Taught {
    kind: Kind,
    digest: String,
}

#[derive(Debug)]
enum Kind {
    Model {
        decoder: Box<Decoder>,
        /// Where these are learnt.
        relations: Option<Relations>,
    },
    Stored {
        lessons: Lessons,
        /// Of the sequences that were asked for last.
        tokens: Vec<u32>,
        ln_p: Vec<f32>,
    },
}

impl Taught {
    /// The teacher of `recipe`, whose training reads tokens of `tokenizer`, `vocab` of them, in sequences of `seq`.
    ///
    /// # Errors
    /// A model that cannot be read, that has other tokens, fewer positions than the sequences, or other heads where relations are
    /// learnt.
    pub fn open(
        recipe: &Recipe,
        tokenizer: Option<&Tokenizer>,
        vocab: usize,
        seq: usize,
    ) -> Result<Option<Self>> {
        let Some(DistillConfig { teacher: Some(path), .. }) = recipe.taught() else { return Ok(None) };
        let bad = |field: &str, found: &dyn std::fmt::Display, wanted: String| {
            Err(Error::input(path, field, found, wanted))
        };
        let stored = ModelFiles::open(path)?;
        let shape = &stored.description.model;
        if shape.vocab_size != vocab {
            return bad(
                "vocab_size",
                &shape.vocab_size,
                format!("{vocab}, as the model that learns from it has"),
            );
        }
        if shape.max_positions < seq {
            return bad("max_positions", &shape.max_positions, format!("at least train.seq, {seq}"));
        }
        if !shape.causal {
            return bad("causal", &false, "true: it must see what the model that learns from it sees".into());
        }
        let relations = relations(recipe, path, shape)?;
        drop(stored);
        match (tokenizer, Tokenizer::of(&files_of(path)?)) {
            (Some(own), Ok(its)) => {
                if let Some(id) = first_difference(own, &its, vocab as u32) {
                    let said =
                        |t: &Tokenizer| t.token(id).map_or("nothing".into(), |token| format!("{token:?}"));
                    let wanted = format!("{}, as the tokenizer of the training has", said(own));
                    return bad(&format!("token {id}"), &said(&its), wanted);
                }
            }
            (_, Err(error)) => {
                tracing::warn!("whether the teacher has the tokens of the training is not known: {error}")
            }
            (None, _) => {}
        }
        Ok(Some(Self::model(model::load(path, None)?.decoder, relations)))
    }

    fn model(decoder: Decoder, relations: Option<Relations>) -> Self {
        Self { digest: digest(&decoder), kind: Kind::Model { decoder: Box::new(decoder), relations } }
    }

    /// The lessons of `recipe`, whose training reads `corpus` in `vocab` tokens.
    ///
    /// # Errors
    /// Lessons that cannot be read, or are of another text or vocabulary.
    pub fn stored(recipe: &Recipe, corpus: &Corpus, vocab: usize) -> Result<Option<Self>> {
        let Some(DistillConfig { lessons: Some(folder), .. }) = recipe.taught() else { return Ok(None) };
        let index = Index::read(folder)?;
        let bad = |field: &str, found: &dyn std::fmt::Display, wanted: String| {
            Err(Error::input(folder.join(lessons::FILE_NAME), field, found, wanted))
        };
        if index.vocabulary != vocab {
            let wanted = format!("{vocab}, as the model that learns from them has");
            return bad("vocabulary", &index.vocabulary, wanted);
        }
        if index.corpus != corpus.fingerprint {
            let wanted = format!("{:?}, the SHA-256 of the tokens trained on", corpus.fingerprint);
            return bad("corpus", &quoted(&index.corpus), wanted);
        }
        let positions = corpus.train.len() - 1;
        if index.positions != positions {
            return bad(
                "positions",
                &index.positions,
                format!("{positions}, as the text of the training has"),
            );
        }
        let lessons = Lessons::open(folder)?;
        let digest = format!("{LESSONS}{}", lessons.digest());
        Ok(Some(Self { kind: Kind::Stored { lessons, tokens: Vec::new(), ln_p: Vec::new() }, digest }))
    }

    /// One in full precision of the shape and with the weights of a model, for its costs.
    pub fn random(recipe: &Recipe) -> Result<Option<Self>> {
        if recipe.taught().is_none() {
            return Ok(None);
        }
        let config = recipe.model.as_ref().expect("a recipe with a shape");
        let relations = relations(recipe, Path::new("random"), config)?;
        let mut decoder = Decoder::new(config, Scope::None, recipe.ternary.group);
        Latents::random(decoder.weights_mut(), recipe.seed, None)?;
        Ok(Some(Self::model(decoder, relations)))
    }

    /// SHA-256 of its shape and weights, wherever they are stored; of lessons, that of these.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The model, whose products are then rounded so; none where there are lessons.
    pub fn decoder(&mut self, precision: Precision) -> Option<&Decoder> {
        match &mut self.kind {
            Kind::Model { decoder, .. } => {
                decoder.set_precision(precision);
                Some(decoder)
            }
            Kind::Stored { .. } => None,
        }
    }

    /// What it has to say of sequences of `seq` tokens that begin at `starts` of the text, by products that are rounded so.
    ///
    /// # Errors
    /// Lessons that are damaged.
    pub fn lesson(
        &mut self,
        precision: Precision,
        how: &DistillConfig,
        starts: &[usize],
        seq: usize,
    ) -> Result<model::Teacher<'_>> {
        let DistillConfig { weight, temperature, direction, .. } = *how;
        match &mut self.kind {
            Kind::Model { decoder, relations } => {
                decoder.set_precision(precision);
                let how = Distillation { weight, temperature, direction };
                Ok(model::Teacher::Model { decoder, how, relations: *relations })
            }
            Kind::Stored { lessons, tokens, ln_p } => {
                let top = lessons.index().top;
                tokens.resize(starts.len() * seq * top, 0);
                ln_p.resize(tokens.len(), 0.0);
                let sequences = tokens.chunks_mut(seq * top).zip(ln_p.chunks_mut(seq * top));
                for (start, (tokens, ln_p)) in starts.iter().zip(sequences) {
                    lessons.read(*start, tokens, ln_p)?;
                }
                Ok(model::Teacher::Stored { likely: Likely { top, tokens, ln_p }, weight })
            }
        }
    }
}

/// Where the training of `recipe` learns relations from a teacher of that shape, stored at `path`: of another number of layers
/// the one that ends at the same share of them.
fn relations(recipe: &Recipe, path: &Path, teacher: &ModelConfig) -> Result<Option<Relations>> {
    let Some(how) = recipe.taught().filter(|how| how.relates()) else { return Ok(None) };
    let own = recipe.model.as_ref().expect("a recipe with a shape");
    let layer = how.related_layer(own.layers);
    if layer >= own.layers {
        let wanted = format!("0 to {}: the model that learns has {} layers", own.layers - 1, own.layers);
        return Err(Error::usage(format!("distill.relation_layer: found {layer}, wanted {wanted}")));
    }
    let heads = [("heads", teacher.heads, own.heads), ("kv_heads", teacher.kv_heads, own.kv_heads)];
    for (field, found, own) in heads {
        if found != own {
            let wanted = format!(
                "{own}, as the model that learns from it has: distill.relations compares head by head"
            );
            return Err(Error::input(path, field, found, wanted));
        }
    }
    let of_teacher = ((layer + 1) * teacher.layers).div_ceil(own.layers) - 1;
    Ok(Some(Relations { weight: how.relations, layer, of_teacher }))
}

/// The first token below `vocab` that the two do not share.
fn first_difference(a: &Tokenizer, b: &Tokenizer, vocab: u32) -> Option<u32> {
    if a.fingerprint() == b.fingerprint() {
        return None;
    }
    (0..vocab).find(|&id| a.token(id) != b.token(id))
}

fn digest(decoder: &Decoder) -> String {
    let of_weight = |weight: &Weight| match &weight.form {
        Form::Dense(values) => {
            let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            sha256_hex(values.chunks(1 << 16).map(bytes))
        }
        Form::Ternary(_, matrix) => sha256_hex(matrix.digest_chunks()),
        Form::Packed(matrix) => sha256_hex([matrix.bytes()]),
    };
    let weights: Vec<&Weight> = decoder.weights().collect();
    let digests: Vec<String> =
        weights.into_par_iter().map(|weight| format!("{} {}", weight.name, of_weight(weight))).collect();
    let shape = serde_json::to_string(&decoder.config).expect("plain data has a JSON form");
    sha256_hex(std::iter::once(shape).chain(digests))
}
