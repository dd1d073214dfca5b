//! `ternlm export`

use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{DirectoryWriter, IfExists};
use crate::formats::{self, packed};
use crate::model;
use crate::report::thousands;
use crate::ternary::Density;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm export runs/wiki-75m --out wiki-75m.tern
  ternlm export runs/wiki-75m --density 2bit --out wiki-75m-2bit.tern
  ternlm export wiki-75m.tern --format unpacked --out wiki-75m-hf

A packed file holds trits and scales as they were trained, configuration, tokenizer and chat template. verify, eval,
generate, chat, info and train take it wherever they take a model directory. Matrices that are not ternary are stored
in f16.")]
pub struct ExportArgs {
    /// A model directory, a packed file, or the folder of a run
    model: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Packed)]
    format: Format,
    /// Trits of a packed file: base3, five in a byte, or 2bit, four
    #[arg(long, value_parser = density, default_value = "base3")]
    density: Density,
    /// The file, or for unpacked the folder, to write
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
    match args.format {
        Format::Packed => {
            model::save_packed(&args.out, &model.decoder, &model.description, beside, args.density)?;
            say_packed(&args.out, ternary)?;
        }
        Format::Unpacked => {
            let exists = if args.force { IfExists::Replace } else { IfExists::Refuse };
            let writer = DirectoryWriter::new(&args.out, exists)?;
            model::save(writer.path(), &model.decoder, &model.description, None)?;
            for (name, bytes) in beside {
                crate::files::write_bytes(writer.path().join(name), &bytes)?;
            }
            writer.commit()?;
            say!("{}: {} ternary weights as -s, 0, +s in f16", args.out.display(), thousands(ternary as u64));
        }
    }
    Ok(())
}
