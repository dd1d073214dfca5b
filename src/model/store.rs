//! A decoder from a stored model, and to a Hugging Face directory.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use super::directory::unused;
use super::rotate::rotate;
use super::{Decoder, Latents, Weight};
use crate::config::{Inputs, Scope, TernaryConfig};
use crate::error::{Error, Result};
use crate::files::sha256_hex;
use crate::formats::hf::{self, HEAD};
use crate::formats::manifest::{self, Entry, Manifest, TernaryEntry};
use crate::formats::packed::{self, Contents, ToPack};
use crate::formats::tensors::{self, Data, Progress, Tensor, TensorFiles, by_width, write_in_order};
use crate::formats::{Description, Form, ModelFiles, NOTE_FORMAT, Stored, TernaryNote, quoted};
use crate::kernels;
use crate::ternary::{Density, Grouping, Stats, TernaryMatrix};

/// A decoder, and what its files say of the model besides.
#[derive(Clone, Debug)]
pub struct Model {
    pub decoder: Decoder,
    pub description: Description,
}

/// Loads the model at `path`. `ternary` says which matrices are to be ternary and how; without it that is what
/// `config.json` notes, and a foreign model stays in full precision. Matrices that are ternary already are taken over,
/// never projected again.
///
/// # Errors
/// Missing or misshapen tensors, tensors that the model would not use, values that are not finite, a tensor that claims
/// to be ternary and is not, a claim of tensors that are no matrices of the model, a model that is ternary by other groups
/// than asked for.
pub fn load(path: &Path, ternary: Option<&TernaryConfig>) -> Result<Model> {
    read(path, ternary, None, Trits::AsStored)
}

/// [`load`] with every ternary tensor as trits and scales in memory, judged one by one: to write it in another form.
pub fn load_trits(path: &Path) -> Result<Model> {
    read(path, None, None, Trits::InMemory)
}

/// [`load`], with the latents that a training goes on from: those that are stored, or such whose projection the stored
/// matrix is.
pub fn load_to_train(path: &Path, ternary: Option<&TernaryConfig>) -> Result<(Model, Latents)> {
    let mut latents = Latents::default();
    let model = read(path, ternary, Some(&mut latents), Trits::InMemory)?;
    Ok((model, latents))
}

/// [`load_to_train`] of a model in full precision, [rotated](rotate) before its matrices are projected.
pub fn load_rotated_to_train(path: &Path, ternary: &TernaryConfig) -> Result<(Model, Latents)> {
    let in_full = TernaryConfig { scope: Scope::None, ..ternary.clone() };
    let Model { decoder: mut dense, mut description } = load(path, Some(&in_full))?;
    rotate(&mut dense)?;
    (description.model, description.said_tied) = (dense.config.clone(), dense.config.tie_embeddings);
    let mut decoder = Decoder::unfilled(&dense.config, ternary.scope, ternary.group);
    decoder.set_inputs(ternary.activations);
    let mut latents = Latents::with_places(decoder.weights().count());
    for (weight, turned) in decoder.weights_mut().zip(dense.weights()) {
        latents.set(weight, turned.dense().to_vec())?;
    }
    Ok((Model { decoder, description }, latents))
}

/// Where the trits of a packed file are to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trits {
    /// Where the file is mapped.
    AsStored,
    InMemory,
}

fn read(
    path: &Path,
    ternary: Option<&TernaryConfig>,
    mut latents: Option<&mut Latents>,
    trits_in: Trits,
) -> Result<Model> {
    let stored = ModelFiles::open(path)?;
    if let Some(said) = &stored.recognised {
        tracing::warn!("{}: {said}", path.display());
    }
    let description = &stored.description;
    let config_file = stored.files.path_of(hf::FILE_NAME);
    let unused = unused(&stored)?;
    if !unused.is_empty() {
        let named: Vec<String> = unused.iter().take(3).map(|name| quoted(name)).collect();
        let more = unused.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let wanted = format!("only tensors that the model of {} uses", config_file.display());
        return Err(Error::input(stored.source(), "tensors", named.join(", ") + &more, wanted));
    }
    if description.said_tied && !description.model.tie_embeddings {
        tracing::warn!(
            "{}: tie_word_embeddings is true, but {HEAD} is not the embedding: the model gets this head of its own",
            config_file.display()
        );
    }
    // Before anything of that size is allocated.
    let held: u128 = stored.names().map(|n| stored.tensor(n).map_or(0, |t| elements(t.shape()))).sum();
    if held < description.model.parameters() {
        let wanted =
            format!("the {} that {} describes", description.model.parameters(), config_file.display());
        return Err(Error::input(path, "weights", format!("{held} values"), wanted));
    }
    let note = description.ternary.as_ref();
    let (scope, grouping, inputs) = ternary
        .map(|t| (t.scope, t.group, t.activations))
        .or(note.map(|n| (n.scope, n.group, n.activations)))
        .unwrap_or((Scope::None, Grouping::default(), Inputs::F32));
    let mut decoder = Decoder::unfilled(&description.model, scope, grouping);
    decoder.set_inputs(inputs);
    if let Some(note) = note {
        judge_claim(note, &decoder, ternary.is_none(), &config_file)?;
    }
    if let Some(latents) = &mut latents {
        **latents = Latents::with_places(decoder.weights().count());
    }
    for weight in decoder.weights_mut() {
        let (tensor, shape) = (stored.tensor(&weight.name)?, weight.shape.clone());
        match (tensor, weight.grouping()) {
            (Stored::Trits(trits), Some(grouping)) if trits.grouping != grouping => {
                let wanted = format!(
                    "groups of {grouping}; train from a checkpoint, which has the latents, or by the groups that it \
                     has (--set ternary.group={:?})",
                    trits.grouping.to_string()
                );
                return Err(Error::input(&config_file, "ternlm.group", trits.grouping, wanted));
            }
            (Stored::Trits(trits), Some(_)) if trits_in == Trits::AsStored && trits.packed().is_some() => {
                let matrix = trits.packed().expect("just seen");
                if [matrix.rows(), matrix.cols()] != shape[..] {
                    let found = format!("shape [{}, {}]", matrix.rows(), matrix.cols());
                    return Err(Error::input(path, &weight.name, found, format!("{shape:?}")));
                }
                weight.adopt_packed(matrix.clone());
            }
            (Stored::Trits(trits), Some(_)) => {
                let matrix = trits.matrix(shape[0], shape[1])?;
                match &mut latents {
                    Some(latents) => latents.adopt(weight, matrix),
                    None => weight.adopt(matrix),
                }
            }
            (tensor, _) => {
                let mut values = vec![0.0; weight.len()];
                tensor.read_f32_into(&shape, &mut values)?;
                if !kernels::all_finite(&values) {
                    let wanted = "finite values";
                    return Err(Error::input(path, &weight.name, "a value that is not finite", wanted));
                }
                match &mut latents {
                    Some(latents) => latents.set(weight, values)?,
                    None => drop(weight.set(&values)?),
                }
            }
        }
    }
    Ok(Model { decoder, description: stored.description })
}

/// `ternlm.tensors` may name matrices of the model alone; with the note's own scope, all that the scope promises.
fn judge_claim(note: &TernaryNote, decoder: &Decoder, own_scope: bool, file: &Path) -> Result<()> {
    let bad = |found: String, wanted: &str| Err(Error::input(file, "ternlm.tensors", found, wanted));
    let matrices: HashSet<&str> =
        decoder.weights().filter(|w| w.role.is_matrix()).map(|w| &*w.name).collect();
    if let Some(name) = note.tensors.iter().find(|name| !matrices.contains(name.as_str())) {
        return bad(quoted(name), "names of the model's matrices");
    }
    let claimed: HashSet<&str> = note.tensors.iter().map(|name| name.as_str()).collect();
    let odd = |p: &&Weight| p.grouping().is_some() != claimed.contains(&*p.name);
    match decoder.weights().find(odd).filter(|_| own_scope) {
        Some(p) if p.grouping().is_some() => bad(format!("no {:?}", p.name), "every matrix of ternlm.scope"),
        Some(p) => bad(format!("{:?}", p.name), "only matrices of ternlm.scope"),
        None => Ok(()),
    }
}

fn elements(shape: &[usize]) -> u128 {
    shape.iter().map(|&n| n as u128).product()
}

/// Writes `config.json`, `generation_config.json`, `model.safetensors` and `ternary.json` into `dir`, which exists.
///
/// With `latents` every tensor is stored as f32, from which training goes on ([`Form::Latent`]). Without them a ternary
/// tensor is stored as its weights −s, 0, +s in f16, which Hugging Face's tools load, and everything else as f32
/// ([`Form::Unpacked`]).
pub fn save(
    dir: &Path,
    decoder: &Decoder,
    description: &Description,
    latents: Option<&Latents>,
) -> Result<()> {
    let data = |weight| data_of(weight, latents);
    save_as(dir, decoder, description, latents.is_some(), &data, &mut |_, _| {})
}

/// [`save`] of weights −s, 0, +s, with every other tensor in f16 or bf16 where that holds it exactly; `progress` is told how
/// many of the bytes have been written.
pub fn save_unpacked(
    dir: &Path,
    decoder: &Decoder,
    description: &Description,
    progress: Progress<'_>,
) -> Result<()> {
    let data = |weight| match data_of(weight, None) {
        Data::F32(values) => exactly(values),
        other => other,
    };
    save_as(dir, decoder, description, false, &data, progress)
}

fn save_as<'a>(
    dir: &Path,
    decoder: &'a Decoder,
    description: &Description,
    latent: bool,
    data: &dyn Fn(&'a Weight) -> Data<'a>,
    progress: Progress<'_>,
) -> Result<()> {
    let form = if latent { Form::Latent } else { Form::Unpacked };
    let description = described(description, decoder, form);
    hf::write_config(dir, &description, Dtype::F32)?;
    let stored: Vec<Tensor<'_>> = decoder
        .weights()
        .map(|p| Tensor { name: p.name.clone(), shape: p.shape.clone(), data: data(p) })
        .collect();
    // `format: pt` is what Hugging Face's own loader asks for.
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_in_order(&dir.join(tensors::FILE_NAME), &by_width(&stored), &metadata, 8, progress)?;
    let written = TensorFiles::open(dir)?;
    manifest_of(decoder, form, |name| Ok(sha256_hex([written.bytes(name)?])))?.write(dir)
}

/// The description with a note of the decoder's ternary tensors.
pub(super) fn described(description: &Description, decoder: &Decoder, form: Form) -> Description {
    let ternary = decoder.weights().filter(|w| w.ternary().is_some());
    let note = TernaryNote {
        format: NOTE_FORMAT,
        form,
        scope: decoder.scope,
        group: decoder.grouping,
        activations: decoder.inputs(),
        tensors: ternary.map(|w| w.name.clone()).collect(),
    };
    let mut description = description.clone();
    (description.ternary, description.packing) = (Some(note), None);
    description
}

/// `digest`: of the bytes of a tensor as it is stored.
pub(super) fn manifest_of(
    decoder: &Decoder,
    form: Form,
    digest: impl Fn(&str) -> Result<String>,
) -> Result<Manifest> {
    let entry = |w: &Weight| {
        let ternary = w.ternary().map(|matrix| ternary_entry(matrix, &Stats::of(matrix)));
        Ok((w.name.clone(), Entry { shape: w.shape.clone(), ternary, stored_sha256: digest(&w.name)? }))
    };
    let tensors = decoder.weights().map(entry).collect::<Result<_>>()?;
    Ok(Manifest { format: manifest::FORMAT, form, group: decoder.grouping, tensors })
}

/// Writes a packed model: `files` are what is embedded beside the configuration. A ternary tensor is packed, a matrix that is
/// not is rounded to f16, and gains and biases stay f32. The decoder holds its trits in memory ([`load_trits`]).
///
/// # Errors
/// A value of a matrix that f16 cannot hold, or a disk that is full.
pub fn save_packed(
    path: &Path,
    decoder: &Decoder,
    description: &Description,
    files: Vec<(String, Vec<u8>)>,
    density: Density,
) -> Result<()> {
    save_packed_of(path, decoder, description, files, density, &held, &mut |_, _| {})
}

/// The trits of a ternary weight that holds them in memory.
pub fn held(weight: &Weight) -> Cow<'_, TernaryMatrix> {
    Cow::Borrowed(weight.ternary().expect("trits in memory"))
}

/// [`save_packed`] of trits that `trits` makes when the turn of a weight comes, the same ones twice: for a digest, and to be
/// written. No more than one matrix is in memory.
pub fn save_packed_of<'a>(
    path: &Path,
    decoder: &'a Decoder,
    description: &Description,
    files: Vec<(String, Vec<u8>)>,
    density: Density,
    trits: &dyn Fn(&'a Weight) -> Cow<'a, TernaryMatrix>,
    progress: Progress<'_>,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let (mut matrices, mut others): (Vec<ToPack<'_>>, Vec<Tensor<'_>>) = Default::default();
    for weight in decoder.weights() {
        let (name, shape) = (weight.name.clone(), weight.shape.clone());
        let (ternary, stored_sha256) = match (weight.grouping(), &shape[..]) {
            (Some(grouping), &[rows, cols]) => {
                let matrix = trits(weight);
                let entry = ternary_entry(&matrix, &Stats::of(&matrix));
                let digest = sha256_hex([kernels::pack(&matrix, grouping, density).bytes()]);
                let pack = move || kernels::pack(&trits(weight), grouping, density);
                matrices.push((name.clone(), [rows, cols], Box::new(pack)));
                (Some(entry), digest)
            }
            _ => {
                let (values, half) = (weight.dense(), weight.role.is_matrix());
                let data = if half { Data::F32AsF16(values) } else { Data::F32(values) };
                others.push(Tensor { name: name.clone(), shape: shape.clone(), data });
                (None, digest_of(values, half))
            }
        };
        tensors.insert(name, Entry { shape, ternary, stored_sha256 });
    }
    let manifest =
        Manifest { format: manifest::FORMAT, form: Form::Packed, group: decoder.grouping, tensors };
    let mut all = vec![(manifest::FILE_NAME.to_string(), manifest.text())];
    let description = described(description, decoder, Form::Packed);
    all.extend(hf::config_files(&description, Dtype::F32).map(|(name, text)| (name.to_string(), text)));
    all.extend(files);
    packed::write(
        path,
        &Contents { density, grouping: decoder.grouping, matrices, others, files: all },
        progress,
    )
}

/// SHA-256 of values as they are stored, f16 or f32.
fn digest_of(values: &[f32], half: bool) -> String {
    let chunk = |values: &[f32]| -> Vec<u8> {
        match half {
            true => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            false => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    };
    sha256_hex(values.chunks(1 << 16).map(chunk))
}

fn data_of<'a>(weight: &'a Weight, latents: Option<&'a Latents>) -> Data<'a> {
    match (latents, weight.ternary()) {
        (Some(latents), _) => Data::F32(latents.of(weight)),
        (None, Some(matrix)) => Data::Rows {
            dtype: Dtype::F16,
            fill: Box::new(|rows, out| {
                for (row, out) in rows.zip(out.chunks_mut(matrix.cols())) {
                    kernels::unpack_row(matrix, row, out);
                }
            }),
        },
        (None, None) => Data::F32(weight.dense()),
    }
}

/// Values in the narrowest type that holds them exactly.
pub(super) fn exactly(values: &[f32]) -> Data<'_> {
    if values.iter().all(|x| f16::from_f32(*x).to_f32() == *x) {
        Data::F32AsF16(values)
    } else if values.iter().all(|x| bf16::from_f32(*x).to_f32() == *x) {
        Data::F32AsBf16(values)
    } else {
        Data::F32(values)
    }
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
