//! `ternlm export`

use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

use crate::config::Inputs;
use crate::error::{Error, Result};
use crate::files::{Bundle, DirectoryWriter, FileWriter, IfExists};
use crate::formats::gguf::{BlockType, GgufFile, names};
use crate::formats::tensors::{self, Progress, TensorFiles};
use crate::formats::{self, packed};
use crate::model::{self, Decoder, Model, Rounding, Weight};
use crate::number::thousands;
use crate::ternary::Density;
use crate::text::Tokenizer;
use crate::train::checkpoint;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm export runs/wiki-75m --out wiki-75m.tern
  ternlm export runs/wiki-75m --density 2bit --out wiki-75m-2bit.tern
  ternlm export wiki-75m.tern --format unpacked --out wiki-75m-hf
  ternlm export runs/wiki-75m --format gguf --out wiki-75m.gguf
  ternlm export runs/wiki-75m --format gguf --type tq2_0 --lossy --out wiki-75m-tq2.gguf
  ternlm export wiki-75m.tern --format mlx --out wiki-75m-mlx
  ternlm export SmolLM2.Q4_1.gguf --format unpacked --out smollm2

Then:
  llama-cli -m wiki-75m.gguf -p 'The history of the'
  mlx_lm.generate --model wiki-75m-mlx --prompt 'The history of the'
  python -c \"import transformers as t; t.AutoModelForCausalLM.from_pretrained('smollm2')\"

A packed file holds trits and scales as they were trained, configuration, tokenizer and chat template; every \
command that takes a model takes it. Matrices that are not ternary are stored \
in f16. A folder for MLX has two bits a weight and a scale and a bias for 128, 64 or 32 inputs, as many as fit; nothing \
is rounded, and matrices and gains that are not ternary are in f16 or bf16 where that holds them exactly, else in f32. \
A model without any ternary matrix, such as a pretrained one, can be written as --format unpacked and as a GGUF file of \
type f16, bf16 or f32. What was written is read back and compared, weight by weight.")]
pub struct ExportArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    model: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Packed)]
    format: Format,
    /// Trits of a packed file: base3, five in a byte, or 2bit, four [default: base3]
    #[arg(long, value_parser = density)]
    density: Option<Density>,
    /// How a GGUF file holds ternary matrices [default: q2_0]
    #[arg(long = "type", value_enum)]
    kind: Option<GgufType>,
    /// Let a GGUF type round what it does not hold, and say what that changes
    #[arg(long)]
    lossy: bool,
    /// The file, or for unpacked and mlx the folder, to write
    #[arg(long, short)]
    out: PathBuf,
    /// Replace what is there
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One file of packed trits, to run
    Packed,
    /// A Hugging Face directory whose ternary tensors are the weights −s, 0, +s
    Unpacked,
    /// A directory for MLX (mlx-lm), two bits a weight
    Mlx,
    /// One file for llama.cpp
    Gguf,
}

/// Types of a GGUF file.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum GgufType {
    /// Two bits, a scale for 64 weights: 2.25 bits, nothing rounded
    #[value(name = "q2_0")]
    Q2_0,
    /// Two bits, a scale for 128 weights: 2.125 bits, nothing rounded; a fork of llama.cpp reads it
    #[value(name = "pq2_0")]
    Pq2_0,
    /// Two bits, a scale for 256 weights: 2.0625 bits; refused where neighbouring scales differ, unless --lossy
    #[value(name = "tq2_0")]
    Tq2_0,
    /// Base 3, a scale for 256 weights: 1.6875 bits; as tq2_0
    #[value(name = "tq1_0")]
    Tq1_0,
    /// Numbers of 16 bits, which hold ternary weights exactly
    F16,
    /// Numbers of 16 bits with fewer digits; refused where they are too few, unless --lossy
    Bf16,
    /// Numbers of 32 bits
    F32,
}

impl ExportArgs {
    fn kind(&self) -> GgufType {
        self.kind.unwrap_or(GgufType::Q2_0)
    }

    /// Refuses what says something of another format than the one to write.
    fn judge(&self) -> Result<()> {
        let (packed, gguf) = (self.format == Format::Packed, self.format == Format::Gguf);
        for (option, there, its_own, format) in [
            ("--density", self.density.is_some(), packed, "packed"),
            ("--type", self.kind.is_some(), gguf, "gguf"),
            ("--lossy", self.lossy, gguf, "gguf"),
        ] {
            if there && !its_own {
                return Err(Error::usage(format!("{option}: wanted with --format {format} alone")));
            }
        }
        Ok(())
    }

    /// Whether the form is one for a model without any ternary weight, too.
    fn holds_numbers(&self) -> bool {
        let numbers = matches!(self.kind(), GgufType::F16 | GgufType::Bf16 | GgufType::F32);
        self.format == Format::Unpacked || (self.format == Format::Gguf && numbers)
    }
}

pub(super) fn density(text: &str) -> std::result::Result<Density, String> {
    serde_json::from_value(text.into()).map_err(|_| "wanted base3 or 2bit".into())
}

/// What is there is replaced only where `force` says so.
pub(super) fn refuse_existing(path: &Path, option: &str, force: bool) -> Result<()> {
    match path.symlink_metadata().is_ok() && !force {
        true => Err(Error::input(path, option, "something there", "a new name, or --force to replace it")),
        false => Ok(()),
    }
}

/// A folder that is replaced goes with all that is in it: it is an empty one, or a model and nothing besides. A run, a
/// checkpoint, a clone, a project that has a config.json are more.
fn refuse_others(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let has = |name: &&str| folder.join(name).exists();
    let weights = [tensors::FILE_NAME, tensors::INDEX_NAME].iter().any(has);
    let more =
        [super::recipe::FILE, checkpoint::TRAINER].iter().any(has) || entries.iter().any(|e| e.is_dir());
    if entries.is_empty() || (formats::is_model(folder) && weights && !more) {
        return Ok(());
    }
    let found = "a folder that holds more than a model";
    Err(Error::input(folder, "--out", found, "a new name, or a model to replace"))
}

/// The sizes of a packed file that has been written.
pub(super) fn say_packed(path: &Path, ternary: usize) -> Result<()> {
    let bytes = packed::PackedFile::open(path)?.0.packed_bytes();
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    say!(
        "{}: {} ternary weights in {} bytes, {:.3} bits each with scales; the file has {} bytes",
        path.display(),
        thousands(ternary as u64),
        thousands(bytes as u64),
        8.0 * bytes as f64 / ternary as f64,
        thousands(size)
    );
    Ok(())
}

pub fn run(args: ExportArgs) -> Result<()> {
    args.judge()?;
    let path = super::model_dir(&args.model)?;
    refuse_existing(&args.out, "--out", args.force)?;
    if matches!(args.format, Format::Unpacked | Format::Mlx) {
        refuse_others(&args.out)?;
    }
    let model = model::load_trits(&path)?;
    let ternary: usize = model.decoder.weights().filter(|w| w.ternary().is_some()).map(|w| w.len()).sum();
    if ternary == 0 && !args.holds_numbers() {
        let wanted = "a model with ternary tensors (train or convert one first), or a form for numbers: --format unpacked, \
                      or --format gguf with --type f16, bf16 or f32";
        return Err(Error::input(&path, "model", "none that is ternary", wanted));
    }
    let files = formats::files_of(&path)?;
    if Tokenizer::is_in(&files) && !files.contains("tokenizer.json") {
        // In a form that is not read: what is written would have none, and be no model of texts. This says so.
        Tokenizer::of(&files)?;
    }
    let mut beside = Vec::new();
    for name in packed::EMBEDDED.into_iter().filter(|name| !packed::WRITTEN_ANEW.contains(name)) {
        if let Some(bytes) = files.read(name, packed::MAX_FILE)? {
            beside.push((name.to_string(), bytes));
        }
    }
    let out = &args.out;
    if args.format == Format::Gguf {
        return export_gguf(model, &files, &args);
    }
    let (decoder, description) = (&model.decoder, &model.description);
    match args.format {
        Format::Packed => {
            let density = args.density.unwrap_or(Density::Base3);
            let writer = FileWriter::new(out)?;
            let file = writer.path();
            with_bar("Writing", &mut |progress| {
                let files = beside.clone();
                model::save_packed_of(&file, decoder, description, files, density, &model::held, progress)
            })?;
            checked(&file, decoder, Rounding::Matrices)?;
            writer.commit()?;
            say_packed(out, ternary)?;
        }
        _ => {
            let exists = if args.force { IfExists::Replace } else { IfExists::Refuse };
            let writer = DirectoryWriter::new(out, exists)?;
            if args.format == Format::Unpacked && decoder.inputs() != Inputs::F32 {
                tracing::warn!("the model was trained with inputs of 8 bits; other tools do not round them");
            }
            with_bar("Writing", &mut |progress| match args.format {
                Format::Mlx => model::save_mlx(writer.path(), decoder, description, progress),
                _ => model::save_unpacked(writer.path(), decoder, description, progress),
            })?;
            for (name, bytes) in beside {
                crate::files::write_bytes(writer.path().join(name), &bytes)?;
            }
            checked(writer.path(), decoder, Rounding::Nothing)?;
            writer.commit()?;
            say_folder(out, decoder, args.format)?;
        }
    }
    say!("Read back: every weight is the one that was to be written");
    Ok(())
}

/// A file for llama.cpp.
fn export_gguf(model: Model, files: &Bundle, args: &ExportArgs) -> Result<()> {
    let name = args.kind().to_possible_value().expect("no type is hidden").get_name().to_uppercase();
    let kind = BlockType::by_name(&name).expect("a type of ggml");
    let (units, out) = (model.decoder.config.intermediate_size, &args.out);
    let (decoder, changes) = model::fit(model.decoder, kind, args.lossy, out)?;
    let writer = FileWriter::new(out)?;
    with_bar("Writing", &mut |progress| {
        model::save_gguf(&writer.path(), &decoder, &model.description, files, kind, progress)
    })?;
    checked(&writer.path(), &decoder, Rounding::Nothing)?;
    writer.commit()?;
    let file = GgufFile::open(out)?;
    let tensor = |weight: &Weight| names::from_hf(&weight.name).and_then(|name| file.tensors().get(&name));
    let size = std::fs::metadata(out).map_err(Error::io("read", out))?.len();
    let of = |weight: &Weight| Ok(tensor(weight).map_or(0, |tensor| file.bytes(tensor).len()));
    say!("{}; the file has {} bytes", shares(out, &decoder, &format!("in {name}"), &of)?, thousands(size));
    let wider = |weight: &&Weight| {
        let found = tensor(weight).map(|tensor| tensor.kind.name);
        weight.role.is_matrix() && kind.block == 1 && found != Some(kind.name)
    };
    match decoder.weights().filter(wider).count() {
        0 => {}
        n => say!(
            "{n} matrices that {name} does not hold exactly are in a type that does; --lossy rounds them"
        ),
    }
    let wide = decoder.config.intermediate_size;
    if wide != units {
        say!("Feed-forward networks have {wide} units, {units} and zeros: the function is the same");
    }
    match changes.weights {
        0 => say!("Nothing is rounded"),
        n => say!(
            "{} of {} weights are changed, by {:.2} % at most and {:.2} % in the mean over those that are not 0",
            thousands(n),
            thousands(changes.not_zero),
            100.0 * changes.largest,
            100.0 * changes.mean()
        ),
    }
    say!("Read back: every weight is the one that was to be written");
    Ok(())
}

/// Shows how far `work` is.
fn with_bar(what: &'static str, work: &mut dyn FnMut(Progress<'_>) -> Result<()>) -> Result<()> {
    let bar = super::bytes_bar(what);
    let done = work(&mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    done
}

/// Compares what was written with what was to be.
fn checked(path: &Path, decoder: &Decoder, rounding: Rounding) -> Result<()> {
    with_bar("Checking", &mut |progress| model::check(path, decoder, rounding, progress))
}

/// The size of a folder of weights that has been written.
fn say_folder(dir: &Path, decoder: &Decoder, format: Format) -> Result<()> {
    let stored = TensorFiles::open(dir)?;
    let of = |weight: &Weight| {
        let stem = weight.name.strip_suffix("weight");
        let parts = stem.map(|stem| ["weight", "scales", "biases"].map(|part| format!("{stem}{part}")));
        let names = parts.map_or(vec![weight.name.clone()], Vec::from);
        let held = names.iter().filter(|name| stored.contains(name));
        held.map(|name| Ok(stored.bytes(name)?.len())).sum()
    };
    let file = dir.join(tensors::FILE_NAME);
    let size = std::fs::metadata(&file).map_err(Error::io("read", &file))?.len();
    let form =
        if format == Format::Mlx { "as codes, scales and biases of MLX" } else { "as -s, 0, +s in f16" };
    say!("{}; the weights have {} bytes", shares(dir, decoder, form, &of)?, thousands(size));
    Ok(())
}

/// How many weights are ternary in what `form`, and their bits; of a model that has none, all weights. `bytes` are those that a
/// tensor was written with.
fn shares(
    path: &Path,
    decoder: &Decoder,
    form: &str,
    bytes: &dyn Fn(&Weight) -> Result<usize>,
) -> Result<String> {
    let any = decoder.weights().any(|weight| weight.ternary().is_some());
    let (mut count, mut held) = (0, 0);
    for weight in decoder.weights().filter(|weight| weight.ternary().is_some() == any) {
        count += weight.len();
        held += bytes(weight)?;
    }
    let form = if any { format!("ternary weights {form}") } else { "weights, none of them ternary".into() };
    let bits = 8.0 * held as f64 / count as f64;
    Ok(format!("{}: {} {form}, {bits:.3} bits each", path.display(), thousands(count as u64)))
}
