//! `ternlm train`: a recipe from start to report.

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{recipe, thousands};
use crate::config::{Recipe, Task};
use crate::error::{Error, Result};
use crate::files::{self, FolderLock, read_text};
use crate::measure::Perplexity;
use crate::text::default_cache_dir;
use crate::train::{self, Observer, Outcome, StepReport, Trainer, checkpoint};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm train copy
  ternlm train shakespeare --data input.txt
  ternlm train wiki-75m --data train.txt --set train.lr=1e-3 --out runs/wiki-fast
  ternlm train qwen3-0.6b-blocks --init Qwen3-0.6B --data text.txt
  ternlm train wiki-75m --out runs/wiki-75m --resume")]
pub struct TrainArgs {
    /// A built-in recipe (copy, recall, shakespeare, wiki-75m, qwen3-0.6b-all, qwen3-0.6b-blocks) or a TOML file
    recipe: String,
    /// Seed of the weights, the data order and the samples
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of the run [default: runs/NAME]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Text files or folders to train on (.txt, .jsonl, .parquet)
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Start from the pretrained model in this Hugging Face directory
    #[arg(long)]
    init: Option<PathBuf>,
    /// Go on from the newest checkpoint of the run, with the recipe saved there
    #[arg(long)]
    resume: bool,
    /// Change a key of the recipe, as in train.lr=1e-3; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where tokenised texts are kept [default: TERNLM_CACHE, or the user's cache folder]
    #[arg(long)]
    cache: Option<PathBuf>,
}

/// The resolved recipe's name in a run's folder.
pub const RECIPE: &str = "recipe.toml";

pub fn run(args: TrainArgs) -> Result<()> {
    let named = recipe::read(&args.recipe)?;
    let name = named.get("name").and_then(|n| n.as_str()).unwrap_or("run").to_string();
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&name));
    // Held to the end, the report included.
    let _lock = FolderLock::acquire(&out)?;
    let (recipe, resume) = match args.resume {
        true => resumed(&args, &name, &out)?,
        false => (started(&args, named, &out)?, None),
    };
    let cache = args.cache.clone().unwrap_or_else(default_cache_dir);
    let reading = super::bytes_bar("Tokenising");
    let trainer = train::setup(recipe, resume.as_deref(), &cache, &|done, total| {
        reading.set_length(total);
        reading.set_position(done);
    });
    reading.finish_and_clear();
    let mut trainer = trainer?;
    std::fs::create_dir_all(&out).map_err(Error::io("create", &out))?;
    files::write_bytes(out.join(RECIPE), recipe::to_toml(&trainer.recipe).as_bytes())?;
    describe(&trainer, &out);

    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    // A second Ctrl-C does not wait for the checkpoint.
    let _ = ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        tell!("\nstopping after this step; a checkpoint will be saved (Ctrl-C again to leave at once)");
    });
    let mut show = Show::new(&trainer);
    let outcome = train::run(&mut trainer, &out, &stop, &mut show);
    show.bar.finish_and_clear();
    match outcome? {
        Outcome::Finished => super::finish::finish(&mut trainer, &out),
        Outcome::Stopped(path) => {
            say!("Stopped at step {}; saved {}", trainer.progress.step, path.display());
            say!("Go on with: ternlm train {} --out {} --resume", args.recipe, out.display());
            Ok(())
        }
    }
}

/// The recipe of a new run, whose folder must not hold one already.
fn started(args: &TrainArgs, mut table: toml::Table, out: &Path) -> Result<Recipe> {
    if out.join(RECIPE).exists() || !checkpoint::list(out).is_empty() {
        return Err(Error::usage(format!(
            "{} already holds a run: go on with it (--resume), or choose another folder (--out DIR)",
            out.display()
        )));
    }
    overrides(args, &mut table)?;
    Ok(absolute(recipe::resolve(&args.recipe, table)?))
}

/// With absolute paths, so that the run can be resumed from any folder.
fn absolute(mut recipe: Recipe) -> Recipe {
    let paths = recipe.data.train.iter_mut().chain(&mut recipe.data.val);
    for path in paths.chain(&mut recipe.init).chain(&mut recipe.report.test) {
        if let Ok(whole) = std::path::absolute(&*path) {
            *path = whole;
        }
    }
    let tokenizer = Path::new(&recipe.data.tokenizer);
    if !["bytes", "gpt2"].contains(&recipe.data.tokenizer.as_str())
        && tokenizer.exists()
        && let Ok(whole) = std::path::absolute(tokenizer)
    {
        recipe.data.tokenizer = whole.to_string_lossy().into_owned();
    }
    recipe
}

/// The recipe that the run was started with, and its newest checkpoint. What the command line sets is changed.
fn resumed(args: &TrainArgs, name: &str, out: &Path) -> Result<(Recipe, Option<PathBuf>)> {
    let saved = out.join(RECIPE);
    if !saved.is_file() {
        let found = format!("{} holds no {RECIPE}", out.display());
        return Err(Error::usage(format!("--resume: {found}, wanted the folder of a run that was started")));
    }
    let mut table = recipe::parse(&saved, &read_text(&saved, recipe::MAX_BYTES)?)?;
    overrides(args, &mut table)?;
    let recipe = absolute(recipe::resolve(&saved.to_string_lossy(), table)?);
    if recipe.name != name {
        return Err(Error::input(&saved, "name", &recipe.name, format!("the recipe to resume, {name}")));
    }
    Ok((recipe, checkpoint::list(out).pop()))
}

fn overrides(args: &TrainArgs, table: &mut toml::Table) -> Result<()> {
    let text = |path: &PathBuf| toml::Value::String(path.to_string_lossy().into_owned());
    if !args.data.is_empty() {
        recipe::set(table, "data.train", toml::Value::Array(args.data.iter().map(text).collect()))?;
    }
    if let Some(init) = &args.init {
        recipe::set(table, "init", text(init))?;
    }
    if let Some(seed) = args.seed {
        let seed = i64::try_from(seed)
            .map_err(|_| Error::usage(format!("--seed {seed}: wanted at most {}", i64::MAX)))?;
        recipe::set(table, "seed", toml::Value::Integer(seed))?;
    }
    args.set.iter().try_for_each(|assignment| recipe::set_text(table, assignment))
}

fn describe(trainer: &Trainer, out: &Path) {
    let decoder = &trainer.model.decoder;
    let ternary: usize = decoder.params().filter(|p| p.ternary().is_some()).map(|p| p.len()).sum();
    let all: usize = decoder.params().map(|p| p.len()).sum();
    let t = &trainer.recipe.train;
    let tokens = t.batch * t.accumulate * trainer.source.seq();
    say!(
        "{}: {} parameters, {} of them ternary; {} steps of {} tokens; {} on {} threads; into {}",
        trainer.recipe.name,
        thousands(all as u64),
        thousands(ternary as u64),
        t.steps,
        thousands(tokens as u64),
        crate::kernels::Isa::current(),
        rayon::current_num_threads(),
        out.display()
    );
    if trainer.progress.step > 0 {
        say!("Resumed at step {}", trainer.progress.step);
    }
}

/// A progress bar where there is a terminal, and a line for everything that is logged.
struct Show {
    bar: ProgressBar,
    task: Task,
    steps: u64,
}

impl Show {
    fn new(trainer: &Trainer) -> Self {
        let steps = trainer.recipe.train.steps;
        let bar = ProgressBar::new(steps).with_position(trainer.progress.step);
        let style = "{bar:32} {pos}/{len} {msg} left {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        bar.reset_eta();
        Self { bar, task: trainer.recipe.task, steps }
    }

    fn say(&self, line: String) {
        self.bar.suspend(|| say!("{line}"));
    }
}

impl Observer for Show {
    fn stepped(&mut self, report: &StepReport, tok_per_s: f64, logged: bool) {
        self.bar.set_position(report.index + 1);
        self.bar.set_message(format!("loss {:.4}, {tok_per_s:.0} tok/s,", report.loss));
        if logged {
            let mut line = format!("Step {}: loss={:.4}", report.index, report.loss);
            if self.task == Task::Lm {
                line += &format!(
                    "  lr={:.2e}  grad_norm={:.3}  {tok_per_s:.0} tok/s  {:.1}%",
                    report.lr,
                    report.grad_norm,
                    100.0 * (report.index + 1) as f64 / self.steps as f64
                );
            }
            self.say(line);
        }
    }

    fn validated(&mut self, step: u64, p: &Perplexity) {
        self.say(format!("Validation after {step} steps: {:.4} nats/token, perplexity {:.2}", p.nll, p.ppl));
    }

    fn saved(&mut self, path: &Path) {
        tracing::info!("saved {}", path.display());
    }
}
