//! `ternlm train`: a recipe from start to report.

use clap::{Args, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use toml::Table;

use super::group::GroupArgs;
use super::{recipe, thousands};
use crate::config::{Recipe, Task, judge_name};
use crate::error::{Error, Result};
use crate::files::{self, FolderLock, path_text, read_text};
use crate::finish;
use crate::formats::ModelFiles;
use crate::measure::Perplexity;
use crate::report;
use crate::text::{Corpus, PassedOver, Tokens, default_cache_dir};
use crate::train::{
    self, Observer, Outcome, Preparing, Resume, Share, Source, StepReport, Together, Trainer, checkpoint,
};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm train copy
  ternlm train shakespeare --data input.txt
  ternlm train wiki-75m --data train.txt --set train.lr=1e-3 --out runs/wiki-fast
  ternlm train wiki-75m --data train.txt --set train.precision=bf16 --out runs/wiki-bf16
  ternlm train qwen3-0.6b-blocks --init Qwen3-0.6B --data text.txt
  ternlm train qwen3-0.6b-blocks --init SmolLM2-135M-Instruct.Q4_1.gguf --data text.txt
  ternlm train qwen3-0.6b-blocks --init Qwen3-0.6B --teacher Qwen3-0.6B --data text.txt
  ternlm train convert-smollm2 --init SmolLM2.gguf --teacher SmolLM2.gguf --data train.txt
  ternlm train convert-smollm2 --init SmolLM2.gguf --lessons lessons/smollm2 --data train.txt
  ternlm train wiki-75m --out runs/wiki-75m --resume
  ternlm train wiki-75m --resume --set train.steps=4000
  mpirun -n 8 ternlm train wiki-75m --data train.txt

With --resume, what the checkpoint fixes cannot change: the model, ternary.*, the tokenizer, the seed, the order of the \
data, the optimizer and its moments' format; nor can train.seq under data.order = \"epoch\". Steps, learning rate and \
schedule, decay, clipping, precision, batch, logging, validation, saving and report.* can, and are recorded. The text must be the \
one trained on so far, wherever it now lies, unless --other-data is given.

Under mpirun, mpiexec or srun (Open MPI, MPICH) the processes share out the sequences of each step: the recipe's batch is that \
of all of them. Each needs the text and, to resume, the run's folder; process 0 writes. Sequences and schedule are the same with \
any number of processes, which may change at a resume.")]
pub struct TrainArgs {
    /// A built-in recipe (copy, recall, shakespeare, shakespeare-bytes, wiki-75m, wiki-75m-best, wiki-10x, convert-smollm2, qwen3-0.6b-all, qwen3-0.6b-blocks) or a TOML file
    recipe: PathBuf,
    /// Seed of the weights, the data order and the samples
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of the run [default: runs/NAME]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Text files or folders to train on (.txt, .raw, .tokens, .jsonl, .parquet)
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Start from this pretrained model: a Hugging Face directory, a packed or GGUF file, or the folder of a run
    #[arg(long)]
    init: Option<PathBuf>,
    /// Learn from this model, too (recipe key distill.teacher): one of the same tokenizer, in a form that --init takes
    #[arg(long)]
    teacher: Option<PathBuf>,
    /// In place of --teacher: learn from what `ternlm teach` stored of one in this folder (recipe key distill.lessons)
    #[arg(long, value_name = "DIR", conflicts_with = "teacher")]
    lessons: Option<PathBuf>,
    /// Go on from the newest checkpoint of the run, by the run's own recipe.toml; a change asked for here that cannot
    /// take effect any more is refused
    #[arg(long)]
    resume: bool,
    /// With --resume: go on with another text than the one trained on so far
    #[arg(long, requires = "resume")]
    other_data: bool,
    /// Change a key of the recipe, as in train.lr=1e-3; may be repeated (ternlm info --keys lists them)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where tokenised texts are kept [default: TERNLM_CACHE, or the user's cache folder]
    #[arg(long)]
    cache: Option<PathBuf>,
    #[command(flatten)]
    group: GroupArgs,
}

/// What a training is at, for whoever asks it to stop; first what there is before its steps.
#[derive(Default)]
struct Phase(AtomicU8);

impl Phase {
    const STEPS: u8 = 1;
    const END: u8 = 2;

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::SeqCst);
    }

    /// What comes of the wish to stop.
    fn answer(&self) -> &'static str {
        match self.0.load(Ordering::SeqCst) {
            Self::STEPS => {
                "training stops after this step, unless it is the last; a checkpoint will be saved"
            }
            Self::END => "every step is taken; what is left of the run goes on to its end",
            _ => {
                "training has not begun: it stops after its next step, if one is left; a checkpoint will be saved"
            }
        }
    }
}

pub fn run(args: TrainArgs) -> Result<()> {
    let (stop, phase) = (Arc::new(AtomicBool::new(false)), Arc::<Phase>::default());
    let (asked, at_hand) = (stop.clone(), phase.clone());
    // A second Ctrl-C does not wait for the checkpoint. Of one that ends a whole group of processes there may be several, from
    // the system and from a sweep.
    let first = OnceLock::new();
    let _ = ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            if first.get_or_init(Instant::now).elapsed() > Duration::from_secs(1) {
                std::process::exit(130);
            }
            return;
        }
        first.get_or_init(Instant::now);
        tell!("\n{} (Ctrl-C again to leave at once)", at_hand.answer());
    });
    follow(args, &stop, phase, None).map(|_| ())
}

/// `ternlm train` with these arguments, for a program that wants to be told of every step; a step that is under way when
/// `stop` becomes true is finished, and a checkpoint saved.
///
/// # Errors
/// Wrong arguments, and whatever the command would say.
pub fn train(
    arguments: impl IntoIterator<Item = OsString>,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Arguments {
        #[command(flatten)]
        of: TrainArgs,
    }
    let arguments = Arguments::try_parse_from(arguments).map_err(Error::usage)?;
    follow(arguments.of, stop, Arc::default(), Some(observer))
}

fn follow(
    mut args: TrainArgs,
    stop: &AtomicBool,
    phase: Arc<Phase>,
    told: Option<&mut dyn Observer>,
) -> Result<Outcome> {
    // The folder of a run means its model. Whether there is one is judged where it is needed.
    for path in [&mut args.init, &mut args.teacher].into_iter().flatten() {
        *path = super::model_dir(path).unwrap_or(std::mem::take(path));
    }
    let mut together = args.group.join()?;
    let leads = together.leads();
    let prepared = prepare(&args, &mut together);
    let prepared = together.agree(prepared).map_err(|error| together.fail(error))?;
    let Prepared { mut trainer, out, named, recorded, _lock } = prepared;
    together.set_patience(args.group.patience())?;
    let met = train::meet(&mut trainer, together, &args.group.describe(), args.group.shard());
    let met = met.and_then(|()| match leads {
        true => files::write_bytes(out.join(recipe::FILE), recipe::to_toml(&trainer.recipe).as_bytes()),
        false => Ok(()),
    });
    let met = met.and_then(|()| trainer.together.places());
    let places = met.map_err(|error| trainer.together.fail(error))?;
    if leads {
        if let Some(recorded) = recorded.as_ref().filter(|_| recipe::built_in(&args.recipe).is_none()) {
            tell_of_unheard(&args.recipe, named, recorded, &trainer.recipe);
        }
        describe(&trainer, &out);
        describe_processes(&places);
    }

    let left = trainer.progress.step < trainer.recipe.train.steps;
    phase.set(if left { Phase::STEPS } else { Phase::END });
    let mut show = Show::new(&trainer, phase, told);
    let outcome = train::run(&mut trainer, &out, stop, &mut show);
    show.bar.finish_and_clear();
    let outcome = outcome.map_err(|error| trainer.together.fail(error))?;
    trainer.together.leave()?;
    match &outcome {
        _ if !leads => {}
        Outcome::Finished => super::finish::finish(&mut trainer, &out)?,
        Outcome::Stopped(path) => {
            say!("Stopped at step {}; saved {}", trainer.progress.step, path.display());
            say!("Go on with: ternlm train {} --out {} --resume", args.recipe.display(), out.display());
        }
    }
    Ok(outcome)
}

/// What there is before the first step.
struct Prepared {
    trainer: Trainer,
    out: PathBuf,
    /// The recipe that the command line names.
    named: Table,
    /// The recipe of a resumed run before the command line changed it.
    recorded: Option<Recipe>,
    /// Process 0 holds it to the end, the report included.
    _lock: Option<FolderLock>,
}

/// Process 0 first: it tokenises a text that nobody has yet, and the others find it in the cache, if that is theirs, too.
fn prepare(args: &TrainArgs, together: &mut Together) -> Result<Prepared> {
    let leads = together.leads();
    if !leads {
        together.barrier()?;
    }
    let prepared = set_up(args, leads, args.group.share(together));
    if leads {
        together.barrier()?;
    }
    prepared
}

fn set_up(args: &TrainArgs, leads: bool, share: Share) -> Result<Prepared> {
    let named = recipe::read(&args.recipe)?;
    let name = named.get("name").and_then(|n| n.as_str()).unwrap_or("run").to_string();
    judge_name(&name, &args.recipe)?;
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&name));
    let (start, lock) = match args.resume {
        true => resumed(args, &name, &out, leads)?,
        false => started(args, &named, &out, leads)?,
    };
    let cache = args.cache.clone().unwrap_or_else(default_cache_dir);
    let (reading, calibrating) = (super::bytes_bar("Tokenising"), super::count_bar("Calibrating", 0));
    let merging = super::count_bar("Making the vocabulary", 0);
    let trainer = train::setup(start.recipe, start.resume.as_ref(), &cache, share, &|preparing| {
        let (bar, done, of) = match preparing {
            Preparing::Vocabulary(done, of) => (&merging, done, of),
            Preparing::Text(done, of) => (&reading, done, of),
            Preparing::Matrices(done, of) => (&calibrating, done, of),
        };
        bar.set_length(of);
        bar.set_position(done);
    });
    [merging, reading, calibrating].iter().for_each(ProgressBar::finish_and_clear);
    Ok(Prepared { trainer: trainer?, out, named, recorded: start.recorded, _lock: lock })
}

/// How a training begins.
struct Start {
    recipe: Recipe,
    /// The checkpoint of a resumed run, if it came so far.
    resume: Option<Resume>,
    /// The recipe of a resumed run before the command line changed it.
    recorded: Option<Recipe>,
}

/// A new run, whose folder must not hold one already: the process that `leads`, which will write into it, looks.
fn started(args: &TrainArgs, named: &Table, out: &Path, leads: bool) -> Result<(Start, Option<FolderLock>)> {
    let mut table = named.clone();
    overrides(args, &mut table)?;
    if let Some(dir) = table.get("init").and_then(|init| init.as_str()) {
        let dir = path_text::read(dir).map_err(|e| Error::usage(format!("init: {e}")))?;
        table = named.clone();
        if table.get("needs_init").and_then(|needs| needs.as_bool()) == Some(true) {
            // The shape that such a recipe states is the usual one.
            table.remove("model");
        }
        recipe::set_model(&mut table, &ModelFiles::open(&super::model_dir(dir.as_ref())?)?.description.model);
        overrides(args, &mut table)?;
    }
    let recipe = absolute(recipe::resolve(&args.recipe, table)?);
    // The run's folder has the name of the recipe, and a resume is of the recipe named.
    if Some(recipe.name.as_str()) != named.get("name").and_then(|n| n.as_str()) {
        let wanted = "none: --out DIR tells runs of a recipe apart";
        return Err(Error::usage(format!("--set name: found {}, wanted {wanted}", recipe.name)));
    }
    if recipe.task != Task::Lm && !args.data.is_empty() {
        return Err(Error::usage(format!(
            "--data: found a path, wanted none: {} makes its own sequences",
            recipe.name
        )));
    }
    if leads {
        recipe::tell_idle(&recipe, &args.set);
        let (warmup, steps) = (recipe.train.warmup, recipe.train.steps);
        if warmup >= steps {
            tracing::warn!(
                "train.warmup is {warmup} of train.steps = {steps}: the learning rate never reaches train.lr"
            );
        }
    }
    super::judge_folder(out, recipe::FILE)?;
    let lock = leads.then(|| FolderLock::acquire(out)).transpose()?;
    if leads && (out.join(recipe::FILE).exists() || !checkpoint::list(out).is_empty()) {
        return Err(Error::usage(format!(
            "{} already holds a run: go on with it (--resume), or choose another folder (--out DIR)",
            out.display()
        )));
    }
    let others = [finish::MODEL, train::METRICS, report::JSON, report::HTML];
    if let Some(other) = others.into_iter().find(|name| leads && out.join(name).exists()) {
        let wanted = "a folder without one, which the run would replace (--out DIR)";
        return Err(Error::input(out, "--out", format!("{other} of something else"), wanted));
    }
    Ok((Start { recipe, resume: None, recorded: None }, lock))
}

/// With absolute paths, so that the run can be resumed from any folder.
fn absolute(mut recipe: Recipe) -> Recipe {
    let paths = recipe.data.train.iter_mut().chain(&mut recipe.data.val);
    let taught = recipe.distill.iter_mut();
    let taught = taught.flat_map(|distill| distill.teacher.iter_mut().chain(&mut distill.lessons));
    for path in paths.chain(&mut recipe.init).chain(taught).chain(&mut recipe.report.test) {
        if let Ok(whole) = std::path::absolute(&*path) {
            *path = whole;
        }
    }
    if recipe.data.tokenizer_is_path()
        && let Ok(path) = path_text::read(&recipe.data.tokenizer)
        && path.exists()
        && let Ok(whole) = std::path::absolute(path)
    {
        recipe.data.tokenizer = path_text::write(&whole);
    }
    recipe
}

/// A run that goes on from its newest checkpoint by its own recipe. What the command line changes is judged.
fn resumed(args: &TrainArgs, name: &str, out: &Path, leads: bool) -> Result<(Start, Option<FolderLock>)> {
    let saved = out.join(recipe::FILE);
    if !saved.is_file() {
        let found = format!("--resume: {} holds no {}", out.display(), recipe::FILE);
        return Err(Error::usage(match checkpoint::list(out).is_empty() {
            true => format!(
                "{found}: there is nothing to resume there; start the run with: ternlm train {} --out {} (and its other options)",
                args.recipe.display(),
                out.display()
            ),
            false => format!("{found}, wanted the folder of a run that was started"),
        }));
    }
    let lock = leads.then(|| FolderLock::acquire(out)).transpose()?;
    let mut table = recipe::parse(&saved, &read_text(&saved, recipe::MAX_BYTES)?)?;
    let found = table.get("name").and_then(|n| n.as_str()).unwrap_or("run");
    if found != name {
        return Err(Error::input(&saved, "name", found, format!("the recipe to resume, {name}")));
    }
    let newest = checkpoint::newest(out)?;
    if newest.is_none() {
        let ended = [finish::MODEL, report::JSON].into_iter().find(|name| out.join(name).exists());
        if let Some(name) = ended {
            let model = match name == finish::MODEL {
                true => format!(" (--init {}: from its model)", out.display()),
                false => String::new(),
            };
            return Err(Error::usage(format!(
                "--resume: {} holds {name} and no checkpoint: there is nothing to resume there, and to begin anew would replace \
                 it; start the run in another folder with: ternlm train {} --out DIR{model}",
                out.display(),
                args.recipe.display()
            )));
        }
        if leads {
            tracing::warn!("{} holds no checkpoint: the run begins anew", out.display());
        }
    }
    let resume = newest.map(|dir| Resume::open(&dir, args.other_data)).transpose()?;
    if resume.is_none() && table.contains_key("init") {
        // It starts anew, with the shape of whatever it starts from.
        table.remove("model");
    }
    if let Some(resume) = &resume {
        if resume.recipe().is_none() && table.contains_key("init") {
            // Earlier versions recorded the shape in the recipe's file, and trained the one of `init`.
            table.remove("model");
        }
        recipe::set_model(&mut table, resume.model());
    }
    let recorded = absolute(recipe::from_table(&saved, table.clone())?);
    overrides(args, &mut table)?;
    let recipe = absolute(recipe::from_table(&saved, table)?);
    if let Some(resume) = &resume {
        resume.judge(&recorded, &recipe)?;
    }
    recipe.validate(&saved)?;
    if resume.is_none() {
        recipe.judge_new(&saved)?;
    }
    if leads {
        recipe::tell_idle(&recipe, &args.set);
    }
    Ok((Start { recipe, resume, recorded: Some(recorded) }, lock))
}

/// Says where the recipe's file, named on the command line, is not what is followed: it may have been edited in the hope
/// that it would be.
fn tell_of_unheard(file: &Path, named: Table, recorded: &Recipe, followed: &Recipe) {
    let Ok(file_recipe) = recipe::from_table(file, named.clone()).map(absolute) else { return };
    let named = toml::Value::Table(named);
    let said = |key: &str| key.split('.').try_fold(&named, |value, key| value.get(key)).is_some();
    let changed = train::differences(followed, recorded);
    let unheard: Vec<String> = train::differences(&file_recipe, recorded)
        .into_iter()
        .filter(|d| said(&d.key) && !changed.iter().any(|c| c.key == d.key))
        .filter(|d| !(recorded.needs_init && d.key.starts_with("model.")))
        .map(|d| format!("{} ({} there, {} in the run)", d.key, d.found, d.wanted))
        .collect();
    if !unheard.is_empty() {
        tracing::warn!(
            "the run goes on by its own {}, not by {}, which differs: {}. Changes are asked for by --set",
            recipe::FILE,
            file.display(),
            unheard.join(", ")
        );
    }
}

fn overrides(args: &TrainArgs, table: &mut Table) -> Result<()> {
    recipe::set_data(table, &args.data)?;
    let paths =
        [("init", &args.init), ("distill.teacher", &args.teacher), ("distill.lessons", &args.lessons)];
    for (key, path) in paths {
        if let Some(path) = path {
            recipe::set(table, key, toml::Value::String(path_text::write(path)))?;
        }
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
    let ternary: usize = decoder.weights().filter(|w| w.ternary().is_some()).map(|w| w.len()).sum();
    let t = &trainer.recipe.train;
    let tokens = t.batch * t.accumulate * trainer.source.seq();
    say!(
        "{}: {} parameters, {} of them ternary; {} steps of {} tokens; products in {}, {} on {} threads{}; into {}",
        trainer.recipe.name,
        thousands(decoder.config.parameters() as u64),
        thousands(ternary as u64),
        t.steps,
        thousands(tokens as u64),
        t.precision,
        crate::kernels::Isa::current(),
        rayon::current_num_threads(),
        match trainer.together.size() {
            1 => String::new(),
            size => format!(" of each of {size} processes"),
        },
        out.display()
    );
    if let Source::Text { corpus, .. } = &trainer.source {
        describe_text(corpus, &trainer.recipe);
    }
    if trainer.progress.step > 0 {
        say!("Resumed at step {}", trainer.progress.step);
    }
}

/// So that whoever is told that one has died knows which.
fn describe_processes(places: &[String]) {
    if places.len() > 1 {
        let named: Vec<String> =
            places.iter().enumerate().map(|(rank, place)| format!("{rank} ({place})")).collect();
        say!("Processes: {}", named.join(", "));
    }
}

/// What is trained on and what is held out; a validation that was asked for and cannot be made is no secret.
fn describe_text(corpus: &Corpus, recipe: &Recipe) {
    let size =
        |t: &Tokens| format!("{} tokens ({} bytes)", thousands(t.len() as u64), thousands(t.text_bytes()));
    say!("Text: {} to train on; {} held out", size(&corpus.train), size(&corpus.val));
    if corpus.passed_over != PassedOver::default() {
        say!("{}", corpus.passed_over);
    }
    let asked = recipe.data.val_fraction > 0.0 || recipe.train.eval_every > 0;
    if corpus.val.len() < 2 && asked {
        tell!(
            "warning: there will be no validation: {} tokens are held out and 2 are needed (data.val_fraction = {}); use \
             more text, or a text of its own (data.val)",
            corpus.val.len(),
            recipe.data.val_fraction
        );
    }
}

/// A progress bar where there is a terminal, and a line for everything that is logged.
struct Show<'a> {
    bar: ProgressBar,
    task: Task,
    steps: u64,
    /// Whether what happens is shown.
    shown: bool,
    /// Seconds since the last line, and how many of them were spent waiting for other processes.
    since: (Instant, f64),
    phase: Arc<Phase>,
    /// Who is told besides.
    told: Option<&'a mut dyn Observer>,
}

impl<'a> Show<'a> {
    fn new(trainer: &Trainer, phase: Arc<Phase>, told: Option<&'a mut dyn Observer>) -> Self {
        let steps = trainer.recipe.train.steps;
        let shown = trainer.together.leads();
        let bar = if shown { ProgressBar::new(steps) } else { ProgressBar::hidden() };
        let bar = bar.with_position(trainer.progress.step);
        let style = "{bar:32} {pos}/{len} {msg} left {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        bar.reset_eta();
        Self { bar, task: trainer.recipe.task, steps, shown, since: (Instant::now(), 0.0), phase, told }
    }

    fn say(&self, line: String) {
        if self.shown {
            self.bar.suspend(|| say!("{line}"));
        }
    }
}

impl Observer for Show<'_> {
    fn stepped(&mut self, report: &StepReport, tok_per_s: f64, logged: bool) {
        if report.index + 1 == self.steps {
            self.phase.set(Phase::END);
        }
        self.bar.set_position(report.index + 1);
        self.bar.set_message(format!("loss {:.4}, {tok_per_s:.0} tok/s,", report.loss));
        self.since.1 += report.waited_s;
        if logged {
            let mut line = format!("Step {}: loss={:.4}", report.index, report.loss);
            if let Some(divergence) = report.divergence {
                line += &format!("  divergence={divergence:.4}");
            }
            if let Some(relations) = report.relations {
                line += &format!("  relations={relations:.2e}");
            }
            if self.task == Task::Lm {
                line += &format!(
                    "  lr={:.2e}  grad_norm={:.3}  {tok_per_s:.0} tok/s  {:.1}%",
                    report.lr,
                    report.grad_norm,
                    100.0 * (report.index + 1) as f64 / self.steps as f64
                );
            }
            if report.processes > 1 {
                let seconds = self.since.0.elapsed().as_secs_f64();
                line += &format!(
                    "  {} processes: {tok_per_s:.0} tok/s in all, {:.0} each, {:.1}% of the time waiting",
                    report.processes,
                    tok_per_s / report.processes as f64,
                    100.0 * self.since.1 / seconds
                );
            }
            self.since = (Instant::now(), 0.0);
            self.say(line);
        }
        if let Some(told) = &mut self.told {
            told.stepped(report, tok_per_s, logged);
        }
    }

    fn validated(&mut self, step: u64, p: &Perplexity) {
        let bits = super::finish::bits_per_byte(p.bits_per_byte());
        self.say(format!(
            "Validation after {step} steps: {:.4} nats/token, perplexity {:.2}{bits}",
            p.nll, p.ppl
        ));
        if let Some(told) = &mut self.told {
            told.validated(step, p);
        }
    }

    fn advised(&mut self, text: &str) {
        self.bar.suspend(|| tell!("warning: {text}"));
        if let Some(told) = &mut self.told {
            told.advised(text);
        }
    }

    fn saved(&mut self, path: &Path) {
        tracing::info!("saved {}", path.display());
        if let Some(told) = &mut self.told {
            told.saved(path);
        }
    }
}
