//! `ternlm teach`: what a teacher says of a text, stored for trainings.

use clap::Args;
use std::path::PathBuf;
use toml::{Table, Value};

use super::{recipe, thousands};
use crate::error::{Error, Result};
use crate::files::path_text;
use crate::formats::lessons;
use crate::text::default_cache_dir;
use crate::train::{Teaching, group};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm teach convert-smollm2 --teacher SmolLM2.gguf --data train.txt --out lessons/smollm2
  ternlm train convert-smollm2 --init SmolLM2.gguf --lessons lessons/smollm2 --data train.txt
  ternlm teach wiki-75m --teacher runs/large --data train.txt --out lessons/wiki --top 32

Of the recipe the text (data.*), train.seq and train.precision count. The teacher reads windows of train.seq tokens, half a window \
apart, and of every position of the text its likeliest next tokens are stored with their probabilities: 4 bytes each, so \
positions x top x 4 bytes (6 each of a vocabulary above 65,536). A training reads them in place of the teacher, with any seed and \
order of the data and any train.seq, at a temperature of 1 and in the forward direction. Called again, it goes on after the files \
that are whole.")]
pub struct TeachArgs {
    /// A built-in recipe or a TOML file, whose text is read as `train` reads it
    recipe: PathBuf,
    /// The model to learn from: one of the same tokenizer, in a form that `train --init` takes
    #[arg(long, value_name = "MODEL")]
    teacher: PathBuf,
    /// Text files or folders to train on (.txt, .raw, .tokens, .jsonl, .parquet)
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Folder of the lessons
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Likeliest tokens of each position [default: 64]
    #[arg(long)]
    top: Option<usize>,
    /// Positions of a file: what is lost when the command is interrupted
    #[arg(long, value_name = "POSITIONS", default_value_t = 65_536)]
    shard: usize,
    /// Change a key of the recipe, as in train.seq=512; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where tokenised texts are kept [default: TERNLM_CACHE, or the user's cache folder]
    #[arg(long)]
    cache: Option<PathBuf>,
}

pub fn run(args: TeachArgs) -> Result<()> {
    if let Some(launch) = group::launched() {
        let found = format!("{} says that an MPI launcher started several processes", launch.variable);
        return Err(Error::usage(format!("teach: {found}, wanted one")));
    }
    let mut table = recipe::read(&args.recipe)?;
    recipe::set_data(&mut table, &args.data)?;
    args.set.iter().try_for_each(|assignment| recipe::set_text(&mut table, assignment))?;
    let teacher = Value::String(path_text::write(&super::model_dir(&args.teacher)?));
    let mut distill = Table::new();
    distill.insert("teacher".into(), teacher.clone());
    table.insert("distill".into(), Value::Table(distill));
    // Where the training is to start from a model, its tokenizer is the teacher's, too.
    if table.get("needs_init") == Some(&Value::Boolean(true)) && !table.contains_key("init") {
        table.insert("init".into(), teacher);
    }
    let recipe = recipe::resolve(&args.recipe, table)?;
    super::judge_folder(&args.out, lessons::FILE_NAME)?;
    let cache = args.cache.clone().unwrap_or_else(default_cache_dir);
    let reading = super::bytes_bar("Tokenising");
    let teaching = Teaching::open(&recipe, args.top, args.shard, &args.out, &cache, &|done, total| {
        reading.set_length(total);
        reading.set_position(done);
    });
    reading.finish_and_clear();
    let teaching = teaching?;
    let (index, done) = (teaching.index.clone(), teaching.done());
    say!(
        "{} positions, the {} likeliest of {} tokens at each: {} bytes in {} files; products in {}; into {}",
        thousands(index.positions as u64),
        index.top,
        thousands(index.vocabulary as u64),
        thousands(u64::try_from(index.bytes()).unwrap_or(u64::MAX)),
        thousands(index.shards() as u64),
        index.precision,
        args.out.display()
    );
    if done > 0 {
        say!("{} positions were there already", thousands(done));
    }
    let bar = super::count_bar("Teaching", index.positions as u64).with_position(done);
    bar.reset_eta();
    let ran = teaching.run(&|positions| bar.inc(positions));
    bar.finish_and_clear();
    ran?;
    let (recipe, out) = (args.recipe.display(), args.out.display());
    say!("Learn from it, on the same text, with: ternlm train {recipe} --lessons {out}");
    Ok(())
}
