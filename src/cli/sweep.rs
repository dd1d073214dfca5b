//! `ternlm sweep`: a grid of settings, each with several seeds, one training a process.

use clap::Args;
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use toml::{Table, Value};

use super::recipe;
use crate::config::Recipe;
use crate::error::{Error, Result};
use crate::files::{FolderLock, write_bytes};
use crate::report;
use crate::sweep::{self, FAILED, FILE, HTML, Plan, Results, Run};
use crate::train::group;
use crate::train::{self as training, checkpoint};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm sweep shakespeare --data input.txt --seeds 0,1,2 --grid train.muon_lr=0.01,0.02,0.04
  ternlm sweep copy --seeds 0,1,2 --grid train.lr=1e-3,2e-3 --grid ternary.scope=all,none --jobs 2
  ternlm sweep qwen3-0.6b-blocks --set init=Qwen3-0.6B --data train.txt --grid train.lr=1e-4,3e-4
  ternlm sweep plan.toml --out sweeps/lr
  ternlm sweep plan.toml --out sweeps/lr --table

A plan is a TOML file: recipe, data, seeds, and the tables [set] and [grid] of recipe keys. Every combination of the grid is \
trained with every seed, each by a process of its own. Called again, a sweep goes on: what has ended stays, what was \
interrupted resumes; values and seeds may be added. results.jsonl, results.csv and sweep.html are written after every run. \
Settings are ranked only where their means differ by more than seeds alone explain: of sweeps whose settings are all alike, at most \
one in twenty calls any of them worse. Vocabularies are compared by bits per byte; give data.val then, as the last tenth of the \
tokens of one is not quite that of another.")]
pub struct SweepArgs {
    /// A plan, or a built-in recipe or its TOML file, to be varied by --grid
    plan: PathBuf,
    /// A key of the recipe and the values to be tried, as in train.lr=1e-3,2e-3; may be repeated
    #[arg(long, value_name = "KEY=VALUES")]
    grid: Vec<String>,
    /// Seeds that every setting is trained with [default: 0]
    #[arg(long, value_delimiter = ',', value_name = "SEEDS")]
    seeds: Vec<u64>,
    /// A key of the recipe that is the same in all runs
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Text files or folders to train on (.txt, .raw, .tokens, .jsonl, .parquet)
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Folder of the sweep [default: sweeps/NAME]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Trainings at the same time; they share the threads
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Train nothing: show what there is, and make the tables and the page again
    #[arg(long)]
    table: bool,
}

pub fn run(args: SweepArgs) -> Result<()> {
    if let Some(launch) = group::launched() {
        let found = format!("{} says that an MPI launcher started several processes", launch.variable);
        return Err(Error::usage(format!("sweep: {found}, wanted one: its trainings are each alone")));
    }
    let (plan, recipes) = plan(&args)?;
    // A built-in recipe's name may hold a full stop.
    let built_in = recipe::built_in(&args.plan).is_some();
    let stem = args.plan.file_stem().filter(|_| !built_in);
    let name = stem.unwrap_or(args.plan.as_os_str());
    let out = args.out.clone().unwrap_or_else(|| Path::new("sweeps").join(name));
    let file = out.join(FILE);
    let unlike = |plan: &Plan, there: &Plan| match plan.differs(there) {
        None => Ok(()),
        Some(difference) => {
            let why =
                format!("{difference}, as in the sweep that is there; choose another folder (--out DIR)");
            Err(Error::input(&file, "plan", why, "the same plan, with more values or seeds at most"))
        }
    };
    if args.table {
        if !file.is_file() {
            return Err(Error::input(&out, "--out", format!("no {FILE}"), "the folder of a sweep"));
        }
        // Of all that was trained, whatever part of it is asked for.
        let there = Plan::read(&file)?;
        if is_varied(&args) {
            unlike(&plan, &there)?;
        }
        return show(&there, &out);
    }
    let threads = rayon::current_num_threads();
    if args.jobs == 0 || args.jobs > threads {
        return Err(Error::usage(format!(
            "--jobs {}: wanted 1 to {threads}, the threads there are",
            args.jobs
        )));
    }
    super::judge_folder(&out, FILE)?;
    let _lock = FolderLock::acquire(&out)?;
    if file.is_file() {
        unlike(&plan, &Plan::read(&file)?)?;
    }
    recipes.iter().try_for_each(|(run, recipe)| judge_trained(&out.join(run.folder()), recipe))?;
    write_bytes(&file, toml::to_string_pretty(&plan).expect("a plan has a TOML form").as_bytes())?;
    let failed = train_all(&plan, &out, args.jobs, threads / args.jobs)?;
    let shown = show(&plan, &out);
    if failed.is_empty() {
        return shown;
    }
    if let Err(why) = shown {
        tell!("warning: {why}");
    }
    Err(Error::CheckFailed(format!("{} runs came to no figure: {}", failed.len(), failed.join("; "))))
}

/// Whether options make a plan of a recipe.
fn is_varied(args: &SweepArgs) -> bool {
    !(args.grid.is_empty() && args.seeds.is_empty() && args.set.is_empty() && args.data.is_empty())
}

/// The plan of the file, or of the recipe and the options, with absolute paths.
fn plan(args: &SweepArgs) -> Result<(Plan, Vec<(Run, Recipe)>)> {
    let options = is_varied(args);
    let is_plan = recipe::built_in(&args.plan).is_none() && {
        let table = recipe::read(&args.plan)?;
        ["recipe", "seeds"].iter().any(|key| table.contains_key(*key))
    };
    let mut plan = match (is_plan, options) {
        (true, false) => Plan::read(&args.plan)?,
        (true, true) => {
            let wanted = "a recipe with --grid, --seeds, --set and --data, or a plan without them";
            return Err(Error::usage(format!("{} is a plan: wanted {wanted}", args.plan.display())));
        }
        (false, _) => {
            let plan = Plan {
                recipe: args.plan.clone(),
                data: args.data.clone(),
                seeds: if args.seeds.is_empty() { vec![0] } else { args.seeds.clone() },
                set: each_once("--set", args.set.iter().map(|text| assignment(text)))?,
                grid: each_once("--grid", args.grid.iter().map(|text| values(text)))?,
            };
            plan.judge(&args.plan)?;
            plan
        }
    };
    let beside = if is_plan { args.plan.parent() } else { None };
    let absolute = |path: &mut PathBuf| {
        // A path in a plan is one beside it.
        let found = beside.map(|dir| dir.join(&*path)).filter(|path| path.exists()).unwrap_or(path.clone());
        *path = std::path::absolute(&found).unwrap_or(found);
    };
    plan.data.iter_mut().for_each(absolute);
    if recipe::built_in(&plan.recipe).is_none() {
        absolute(&mut plan.recipe);
    }
    if !args.table {
        plan.judge_new(&args.plan)?;
    }
    let recipes = judge_runs(&plan)?;
    Ok((plan, recipes))
}

/// What was trained before the recipe's file was changed is not a run of this sweep.
fn judge_trained(folder: &Path, recipe: &Recipe) -> Result<()> {
    let Some(there) = recipe::of_run(folder)? else { return Ok(()) };
    // Where files are is another's matter, and a report is made again. The shape of a start is that of its file.
    let judged = |key: &str| {
        let others = [
            "seed",
            "name",
            "data.train",
            "data.val",
            "data.tokenizer",
            "init",
            "distill.teacher",
            "distill.lessons",
        ];
        let shape = recipe.init.is_some() && key.starts_with("model.");
        !others.contains(&key) && !key.starts_with("report.") && !shape
    };
    match training::differences(recipe, &there).into_iter().find(|d| judged(&d.key)) {
        None => Ok(()),
        Some(d) => Err(Error::usage(format!(
            "{}: found {} in the recipe, wanted {}, as this run was trained: the recipe has changed since; choose another \
             folder (--out DIR), or remove this one",
            d.key,
            d.found,
            format_args!("{} in {}", d.wanted, folder.display())
        ))),
    }
}

/// The recipe of every run, before the first is trained. Those that start from a model are not judged without it.
fn judge_runs(plan: &Plan) -> Result<Vec<(Run, Recipe)>> {
    let named = recipe::read(&plan.recipe)?;
    let mut recipes = Vec::new();
    // Keys of the grid, as long as no run uses them.
    let mut idle: BTreeMap<&String, &str> = plan.grid.keys().map(|key| (key, "")).collect();
    let of_run = |run: &Run, why: Error| Error::usage(format!("{}: {why}", Run::name(&run.settings)));
    for run in plan.runs() {
        let mut table = named.clone();
        recipe::set_data(&mut table, &plan.data)?;
        run.assignments(&plan.set).try_for_each(|text| recipe::set_text(&mut table, &text))?;
        if table.contains_key("init") {
            // Judged with the model that it starts from, whose shape it has.
            idle.clear();
            table.remove("model");
            recipes.push((
                run.clone(),
                recipe::from_table(&plan.recipe, table).map_err(|why| of_run(&run, why))?,
            ));
            continue;
        }
        let recipe = recipe::resolve(&plan.recipe, table).map_err(|why| of_run(&run, why))?;
        if plan.grid.contains_key("data.train") && recipe.data.val.is_empty() {
            let wanted = "with data.val, the same text to be judged by for all";
            return Err(Error::usage(format!("grid of data.train: found no such text, wanted it {wanted}")));
        }
        idle.retain(|key, why| recipe.idle(key).map(|found| *why = found).is_some());
        recipes.push((run, recipe));
    }
    match idle.pop_first() {
        Some((key, why)) => Err(Error::usage(format!(
            "grid of {key}: found values that change nothing ({why}), wanted a key that some run uses"
        ))),
        None => Ok(recipes),
    }
}

/// The keys with their values, none of them twice.
fn each_once<T>(option: &str, all: impl Iterator<Item = Result<(String, T)>>) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for one in all {
        let (key, value) = one?;
        if found.insert(key.clone(), value).is_some() {
            return Err(Error::usage(format!(
                "{option} {key}: found twice, wanted once, with all its values"
            )));
        }
    }
    Ok(found)
}

fn assignment(text: &str) -> Result<(String, Value)> {
    let mut table = Table::new();
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    recipe::set_text(&mut table, &format!("value={value}"))?;
    match table.remove("value") {
        Some(value) if text.contains('=') => Ok((key.trim().to_string(), value)),
        _ => Err(Error::usage(format!("--set {text}: wanted KEY=VALUE, as in train.lr=1e-3"))),
    }
}

/// `train.lr=1e-3,2e-3`; a list of lists in brackets is one of TOML.
fn values(text: &str) -> Result<(String, Vec<Value>)> {
    let Some((key, list)) = text.split_once('=') else {
        return Err(Error::usage(format!("--grid {text}: wanted KEY=VALUE,VALUE, as in train.lr=1e-3,2e-3")));
    };
    let parsed =
        format!("values = [{list}]").parse::<Table>().ok().and_then(|mut table| table.remove("values"));
    let values = match parsed {
        Some(Value::Array(values)) => values,
        _ => list.split(',').map(|one| Ok(assignment(&format!("one={one}"))?.1)).collect::<Result<_>>()?,
    };
    Ok((key.trim().to_string(), values))
}

/// Trains what has not ended, some at a time; what became of those that came to nothing.
fn train_all(plan: &Plan, out: &Path, jobs: usize, threads: usize) -> Result<Vec<String>> {
    let runs = plan.runs();
    let todo: Vec<&Run> =
        runs.iter().filter(|run| !out.join(run.folder()).join(report::JSON).is_file()).collect();
    say!(
        "{}: {} settings with {} seeds, {} runs of which {} have ended; into {}",
        plan.recipe.display(),
        runs.len() / plan.seeds.len(),
        plan.seeds.len(),
        runs.len(),
        runs.len() - todo.len(),
        out.display()
    );
    let bar = super::count_bar("Runs", runs.len() as u64);
    bar.set_position((runs.len() - todo.len()) as u64);
    bar.enable_steady_tick(Duration::from_secs(1));
    let stop = Arc::new(AtomicBool::new(false));
    let running = Arc::new(Mutex::new(Vec::new()));
    let (asked, children) = (stop.clone(), running.clone());
    let _ = ctrlc::set_handler(move || {
        let again = asked.swap(true, Ordering::SeqCst);
        if !again {
            tell!("\nstopping; the trainings save checkpoints (Ctrl-C again to leave at once)");
        }
        children.lock().expect("no thread panics while it is held").iter().for_each(|id| ask_to_stop(*id));
        if again {
            std::process::exit(130);
        }
    });
    let (next, failed, spoilt) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(None));
    let work = || {
        while let Some(run) = todo.get(next.fetch_add(1, Ordering::SeqCst))
            && !stop.load(Ordering::SeqCst)
        {
            let mark = out.join(run.folder()).with_extension(FAILED);
            let _ = std::fs::remove_file(&mark);
            match train(plan, run, out, threads, (&stop, &running)) {
                Ok(()) => {}
                Err(_) if stop.load(Ordering::SeqCst) => return,
                Err(why) => {
                    if let Err(why) = write_bytes(&mark, why.to_string().as_bytes()) {
                        bar.suspend(|| tell!("warning: {why}"));
                    }
                    let label = format!("{}, seed {}: {why}", Run::name(&run.settings), run.seed);
                    bar.suspend(|| tell!("{label}"));
                    failed.lock().expect("no thread panics while it is held").push(label);
                }
            }
            bar.inc(1);
            // What others would be trained on now cannot be compared with what there is.
            if let Err(why) = sweep::judge_texts(plan, out) {
                stop.store(true, Ordering::SeqCst);
                running
                    .lock()
                    .expect("no thread panics while it is held")
                    .iter()
                    .for_each(|id| ask_to_stop(*id));
                *spoilt.lock().expect("no thread panics while it is held") = Some(why);
                return;
            }
            if let Err(why) = tables(plan, out, &bar) {
                bar.suspend(|| tell!("warning: {why}"));
            }
        }
    };
    thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    bar.finish_and_clear();
    if let Some(why) = spoilt.into_inner().unwrap_or_default() {
        return Err(why);
    }
    if stop.load(Ordering::SeqCst) {
        tables(plan, out, &bar)?;
        return Err(Error::usage("stopped; the same command goes on from here"));
    }
    Ok(failed.into_inner().unwrap_or_default())
}

/// One training to its end, in a process of its own, which says what it does in a file beside the folder of the run.
fn train(
    plan: &Plan,
    run: &Run,
    out: &Path,
    threads: usize,
    (stop, running): (&AtomicBool, &Mutex<Vec<u32>>),
) -> Result<()> {
    let folder = out.join(run.folder());
    let log = folder.with_extension("log");
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let open = || File::create(&log).map_err(Error::io("write", &log));
    let mut command = super::this_program()?;
    command.args(["--threads", &threads.to_string(), "train"]).arg(&plan.recipe);
    command.arg("--out").arg(&folder).args(["--seed", &run.seed.to_string()]);
    if !plan.data.is_empty() {
        command.arg("--data").args(&plan.data);
    }
    for text in run.assignments(&plan.set) {
        command.args(["--set", &text]);
    }
    if folder.join(recipe::FILE).is_file() || !checkpoint::list(&folder).is_empty() {
        command.arg("--resume");
    }
    let file = open()?;
    command.stdin(Stdio::null()).stderr(file.try_clone().map_err(Error::io("write", &log))?).stdout(file);
    let all = || running.lock().expect("no thread panics while it is held");
    let mut child = {
        let mut all = all();
        // Whoever says stop has said so before he looks at what is running.
        if stop.load(Ordering::SeqCst) {
            return Err(Error::usage("stopped before it began"));
        }
        let child = command.spawn().map_err(Error::io("run", command.get_program()))?;
        all.push(child.id());
        child
    };
    let status = loop {
        {
            // A process that has been waited for is none of those that are running.
            let mut all = all();
            if let Some(status) = child.try_wait().map_err(Error::io("wait for", command.get_program()))? {
                all.retain(|id| *id != child.id());
                break status;
            }
        }
        thread::sleep(Duration::from_millis(20));
    };
    // A bar of the recipe that was missed is no failure of the run.
    if folder.join(report::JSON).is_file() {
        return Ok(());
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(Error::CheckFailed(format!("{status}: {last} ({})", log.display())))
}

/// Asks a training that has not been waited for to save a checkpoint and end. (Where there are no such signals, Ctrl-C reaches
/// it as it reaches this process.)
fn ask_to_stop(id: u32) {
    #[cfg(unix)]
    if let Ok(id) = i32::try_from(id) {
        use nix::sys::signal::{Signal, kill};
        // It may have ended by itself.
        let _ = kill(nix::unistd::Pid::from_raw(id), Signal::SIGTERM);
    }
    #[cfg(not(unix))]
    let _ = id;
}

/// Writes what there is so far.
fn tables(plan: &Plan, out: &Path, bar: &ProgressBar) -> Result<Results> {
    let results = Results::read(plan, out)?;
    results.write(out)?;
    sweep::write_page(plan, &results, out)?;
    let best = results.rows.first().and_then(|row| Some((row.sample?, Run::name(&row.settings))));
    if let Some((best, label)) = best {
        bar.set_message(format!("best {:.4} {label}", best.mean));
    }
    Ok(results)
}

/// The settings, the best first, and what can be said of them.
fn show(plan: &Plan, out: &Path) -> Result<()> {
    let results = tables(plan, out, &ProgressBar::hidden())?;
    say!("{}; lower is better", results.figure);
    let labels: BTreeMap<usize, String> =
        results.rows.iter().enumerate().map(|(i, row)| (i, Run::name(&row.settings))).collect();
    let width = labels.values().map(|label| label.chars().count()).max().unwrap_or(0);
    for (i, row) in results.rows.iter().enumerate() {
        let (mean, spread) = match row.sample {
            Some(s) => (format!("{:.4}", s.mean), s.spread.map_or("–".into(), |d| format!("± {d:.4}"))),
            None => ("–".into(), "–".into()),
        };
        let verdict = row.verdict(i == 0);
        let (runs, all) = (row.figures.len(), row.figures.len() + row.without);
        let of = if runs < all { format!(" of {all}") } else { String::new() };
        say!("{:width$}  {mean:>10} {spread:>10}  {runs}{of} runs  {verdict}", labels[&i]);
    }
    match results.noise {
        Some(noise) => say!(
            "Seeds alone: standard deviation {:.4}, {} degrees of freedom; settings inside of that are not ranked",
            noise.deviation,
            noise.degrees
        ),
        None if !results.comparable => {
            say!(
                "Not ranked: a token of one is not a token of another, and no text with known bytes is held out"
            )
        }
        None => {
            say!("Not ranked: no setting without a failed run has two runs, so nothing is known of the noise")
        }
    }
    say!("{}", out.join(HTML).display());
    Ok(())
}
