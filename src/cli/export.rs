//! `ternlm export`

use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{DirectoryWriter, IfExists};
use crate::formats::tensors::{self, Progress, TensorFiles};
use crate::formats::{self, packed};
use crate::model::{self, Decoder, Rounding};
use crate::report::thousands;
use crate::ternary::Density;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm export runs/wiki-75m --out wiki-75m.tern
  ternlm export runs/wiki-75m --density 2bit --out wiki-75m-2bit.tern
  ternlm export wiki-75m.tern --format unpacked --out wiki-75m-hf
  ternlm export wiki-75m.tern --format mlx --out wiki-75m-mlx       then: mlx_lm.generate --model wiki-75m-mlx

A packed file holds trits and scales as they were trained, configuration, tokenizer and chat template. verify, eval,
generate, chat, info and train take it wherever they take a model directory. Matrices that are not ternary are stored
in f16. A folder for MLX has two bits a weight and a scale and a bias for 128, 64 or 32 inputs, as many as fit; nothing
is rounded, and matrices and gains that are not ternary are in f16 or bf16 where that holds them exactly, else in f32.
What was written is read back and compared, weight by weight.")]
pub struct ExportArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    model: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Packed)]
    format: Format,
    /// Trits of a packed file: base3, five in a byte, or 2bit, four
    #[arg(long, value_parser = density, default_value = "base3")]
    density: Density,
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
}

pub(super) fn density(text: &str) -> std::result::Result<Density, String> {
    serde_json::from_value(text.into()).map_err(|_| "wanted base3 or 2bit".into())
}

/// A packed file is replaced only where `force` says so.
pub(super) fn refuse_existing(path: &Path, option: &str, force: bool) -> Result<()> {
    match path.exists() && !force {
        true => Err(Error::input(path, option, "something there", "a new name, or --force to replace it")),
        false => Ok(()),
    }
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
    let path = super::model_dir(&args.model)?;
    refuse_existing(&args.out, "--out", args.force)?;
    let model = model::load_trits(&path)?;
    let ternary: usize = model.decoder.weights().filter(|w| w.ternary().is_some()).map(|w| w.len()).sum();
    if ternary == 0 {
        let wanted = "a model with ternary tensors (train or convert one first)";
        return Err(Error::input(&path, "model", "none that is ternary", wanted));
    }
    let files = formats::files_of(&path)?;
    let mut beside = Vec::new();
    for name in packed::EMBEDDED.into_iter().filter(|name| !packed::WRITTEN_ANEW.contains(name)) {
        if let Some(bytes) = files.read(name, packed::MAX_FILE)? {
            beside.push((name.to_string(), bytes));
        }
    }
    let (decoder, description, out) = (&model.decoder, &model.description, &args.out);
    match args.format {
        Format::Packed => {
            with_bar("Writing", &mut |progress| {
                let files = beside.clone();
                model::save_packed_of(out, decoder, description, files, args.density, &model::held, progress)
            })?;
            checked(out, decoder, Rounding::Matrices)?;
            say_packed(out, ternary)?;
        }
        Format::Unpacked | Format::Mlx => {
            let exists = if args.force { IfExists::Replace } else { IfExists::Refuse };
            let writer = DirectoryWriter::new(out, exists)?;
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
    let (mut bytes, mut ternary) = (0, 0);
    for weight in decoder.weights().filter(|weight| weight.ternary().is_some()) {
        ternary += weight.len();
        let stem = weight.name.trim_end_matches("weight");
        for part in ["weight", "scales", "biases"].map(|part| format!("{stem}{part}")) {
            bytes += if stored.contains(&part) { stored.bytes(&part)?.len() } else { 0 };
        }
    }
    let file = dir.join(tensors::FILE_NAME);
    let size = std::fs::metadata(&file).map_err(Error::io("read", &file))?.len();
    say!(
        "{}: {} ternary weights as {}, {:.3} bits each; the weights have {} bytes",
        dir.display(),
        thousands(ternary as u64),
        if format == Format::Mlx { "codes, scales and biases of MLX" } else { "-s, 0, +s in f16" },
        8.0 * bytes as f64 / ternary as f64,
        thousands(size)
    );
    Ok(())
}
