//! The command line: one file a subcommand.

#[macro_use]
mod output;

mod bench;
mod bench_run;
mod chat;
mod eval;
mod export;
mod finish;
mod generate;
mod group;
mod info;
pub mod recipe;
mod report;
mod sampling;
mod serve;
mod speculation;
mod sweep;
mod teach;
mod tensors;
mod tokenizer;
mod train;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};
use std::sync::OnceLock;

use crate::config::{Inputs, KvFormat};
use crate::error::{Error, Result};
use crate::finish::MODEL;
use crate::formats::{self, hf};
use crate::machine;
use crate::model::{self, Decoder, Model};
use crate::number::thousands;
use crate::ternary::Density;
use crate::text::Tokenizer;
use output::say_json;
pub use train::train;

/// Train, prove and run language models whose every weight is -1, 0 or +1.
#[derive(Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "\
Start here:
  ternlm train copy                            # a ternary model in seconds, no data needed
  ternlm train shakespeare --data input.txt    # a talking one in minutes, from any text
  ternlm verify runs/copy                      # the proof that its weights are ternary
  ternlm info                                  # this machine, and the recipes that are built in"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Threads to compute with [default: all cores, of several processes a share of them]
    #[arg(long, global = true, display_order = 1000)]
    threads: Option<usize>,
    /// Say more about what happens
    #[arg(long, short, global = true, display_order = 1000)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model by a recipe
    Train(train::TrainArgs),
    /// Store what a teacher says of a text, for trainings that learn from it
    Teach(teach::TeachArgs),
    /// Train many settings of a recipe with several seeds, and compare them
    Sweep(sweep::SweepArgs),
    /// Prove from the stored files that a model is ternary
    Verify(verify::VerifyArgs),
    /// Write a model in another form: packed, or for Hugging Face tools, MLX or llama.cpp
    Export(export::ExportArgs),
    /// Measure perplexity on a text
    Eval(eval::EvalArgs),
    /// Continue a text
    Generate(generate::GenerateArgs),
    /// Talk with a model that has a chat template
    Chat(chat::ChatArgs),
    /// Serve a model through OpenAI's API, with a chat page
    Serve(serve::ServeArgs),
    /// Train a tokenizer, or show what one does
    Tokenizer(tokenizer::TokenizerArgs),
    /// Show what a model, a run, a recipe or this machine is
    Info(info::InfoArgs),
    /// Make the report of a run again, or compare several runs
    Report(report::ReportArgs),
    /// Measure the speed of training or of running, against the machine's limit
    Bench(bench::BenchArgs),
}

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    call(std::env::args_os()).into()
}

/// How this program is started, where that is not by its own file: what `ternlm sweep` starts trainings with.
static STARTED_BY: OnceLock<Vec<OsString>> = OnceLock::new();

/// Says that commands are run by another program, such as an interpreter, with these arguments before those of a command.
pub fn started_by(program: Vec<OsString>) {
    let _ = STARTED_BY.set(program);
}

/// A process that takes the arguments of a command.
fn this_program() -> Result<Process> {
    match STARTED_BY.get().map(|all| &all[..]) {
        Some([program, arguments @ ..]) => {
            let mut process = Process::new(program);
            process.args(arguments);
            Ok(process)
        }
        _ => Ok(Process::new(std::env::current_exe().map_err(Error::io("find", "this program"))?)),
    }
}

/// Names out of files may hold anything, as what moves the cursor over a verdict.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Runs the command of these arguments, the first of which is the program's name, and says what went wrong in one sentence;
/// the exit status. Wrong arguments end the process.
pub fn call(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let parsed = signed(Cli::command()).try_get_matches_from(arguments);
    let done = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => start(cli),
        Err(error) if error.use_stderr() => error.exit(),
        // The help or the version.
        Err(text) => {
            output::write(|_| text.print());
            Ok(())
        }
    };
    match done.and(output::finish()) {
        Ok(()) => 0,
        Err(error) => {
            let line = printable(&error.to_string());
            // Of several processes that failed alike, one says so.
            if !line.is_empty() {
                tell!("error: {line}");
            }
            1
        }
    }
}

/// With negative numbers as values, which each option judges for itself: they are no options of one letter.
fn signed(command: clap::Command) -> clap::Command {
    let signed_arg = |arg: clap::Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(signed_arg).mut_subcommands(signed)
}

fn start(cli: Cli) -> Result<()> {
    let level = match &cli.command {
        _ if cli.verbose => "ternlm=debug",
        // A line for each request.
        Command::Serve(_) => "ternlm=warn,ternlm::serve=info",
        _ => "ternlm=warn",
    };
    tell_log(level);
    threads(cli.threads)?;
    run(cli.command)
}

/// From here on says on the standard error what is logged, at these levels unless `TERNLM_LOG` says others; once in a process.
pub fn tell_log(levels: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TERNLM_LOG").unwrap_or_else(|_| levels.into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::coloured())
        .log_internal_errors(false)
        .try_init();
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Train(args) => train::run(args),
        Command::Teach(args) => teach::run(args),
        Command::Sweep(args) => sweep::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Export(args) => export::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Tokenizer(args) => tokenizer::run(args),
        Command::Info(args) => info::run(args),
        Command::Report(args) => report::run(args),
        Command::Bench(args) => bench::run(args),
    }
}

/// This thread is one of the workers: no work changes hands at the start of a parallel loop.
fn threads(count: Option<usize>) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    // More threads than cores only wait for each other; a few are useful to test with.
    let most = (4 * cores).max(64);
    let count = match count {
        Some(n) if n == 0 || n > most => {
            return Err(Error::usage(format!("--threads {n}: wanted 1 to {most}")));
        }
        Some(n) => n,
        None => crate::train::group::threads_of_each(cores, machine::cores().unwrap_or(cores)),
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .use_current_thread()
        .build_global()
        .map_err(|e| Error::usage(format!("--threads {count}: {e}")))
}

/// Where the model lies that `path` means: there, or, of a run, the finished model or else the newest checkpoint.
pub fn model_dir(path: &Path) -> Result<PathBuf> {
    let finished = path.join(MODEL);
    let newest = crate::train::checkpoint::list(path).pop();
    if !formats::is_model(path) && formats::is_model(&finished) {
        tell_of_later(path, newest.as_deref());
    }
    [Some(path.to_path_buf()), Some(finished), newest]
        .into_iter()
        .flatten()
        .find(|path| formats::is_model(path))
        .ok_or_else(|| {
            let wanted =
                "a model directory with a config.json, a packed or GGUF file, or the folder of a run";
            Error::input(path, "model", if path.exists() { "none of them" } else { "nothing there" }, wanted)
        })
}

/// What tells whose a folder is.
const FOLDERS: [(&str, &str); 4] = [
    (recipe::FILE, "a run"),
    (hf::FILE_NAME, "a model"),
    (crate::sweep::FILE, "a sweep"),
    (formats::lessons::FILE_NAME, "lessons"),
];

/// Judges the folder `out`, that of a command whose folders hold the file `own`.
fn judge_folder(out: &Path, own: &str) -> Result<()> {
    match FOLDERS.into_iter().find(|(file, _)| *file != own && out.join(file).exists()) {
        None => Ok(()),
        Some((file, what)) => {
            Err(Error::input(out, "--out", format!("{what} ({file})"), "a folder without one"))
        }
    }
}

/// Says where a training went on after the model of the run was written.
fn tell_of_later(run: &Path, newest: Option<&Path>) {
    let Some(step) = newest.and_then(crate::train::checkpoint::step_of) else { return };
    let Ok(summary) = crate::report::read(run) else { return };
    if step > summary.steps {
        tracing::warn!(
            "{} is the model after {} steps; its training has gone on to step {step} and not ended (--resume)",
            run.join(MODEL).display(),
            summary.steps
        );
    }
}

/// The tokenizer stored with the model at `dir`.
pub fn tokenizer_of(dir: &Path) -> Result<Tokenizer> {
    let files = formats::files_of(dir)?;
    if !Tokenizer::is_in(&files) {
        let wanted = "a model of texts (copy and recall make models of bare tokens)";
        return Err(Error::input(dir, "tokenizer.json", "nothing", wanted));
    }
    Tokenizer::of(&files)
}

/// The tokenizer that is called so on the command line.
fn named_tokenizer(name: &OsStr) -> Result<Tokenizer> {
    match name.to_str() {
        Some(name) => Tokenizer::open(name),
        None => Tokenizer::at(name.as_ref()),
    }
}

/// What inputs of ternary products are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Precision {
    /// As the model was trained: not rounded, unless it was trained with 8 bits
    Trained,
    /// Not rounded: exactly the weights' function
    F32,
    /// To 8 bits, a scale for each token: faster on every processor
    Int8,
}

impl Precision {
    fn set(self, decoder: &mut Decoder) {
        match self {
            Precision::Trained => {}
            Precision::F32 => decoder.set_inputs(Inputs::F32),
            Precision::Int8 => decoder.set_inputs(Inputs::Int8),
        }
    }
}

/// How the keys and values of a text are kept.
#[derive(clap::Args)]
struct KvArgs {
    /// How keys and values are kept; f16 unless --precision f32 asks for everything as computed
    #[arg(long, value_enum)]
    kv: Option<Kv>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kv {
    /// As computed
    F32,
    /// Half precision
    F16,
    /// 8 bits, a scale for each head and position
    Int8,
}

impl Kv {
    fn format(self) -> KvFormat {
        match self {
            Kv::F32 => KvFormat::F32,
            Kv::F16 => KvFormat::F16,
            Kv::Int8 => KvFormat::Int8,
        }
    }
}

impl KvArgs {
    fn format(&self, precision: Precision) -> KvFormat {
        let default = if precision == Precision::F32 { Kv::F32 } else { Kv::F16 };
        self.kv.unwrap_or(default).format()
    }
}

/// The model at `dir`, ready to run on texts.
fn load_model(dir: &Path, precision: Precision) -> Result<Model> {
    let mut model = model::load(dir, None)?;
    precision.set(&mut model.decoder);
    let config = &model.decoder.config;
    if !config.causal {
        let wanted = "true: a model that sees the tokens to come writes no text";
        return Err(Error::input(dir.join(hf::FILE_NAME), "causal", false, wanted));
    }
    Ok(model)
}

/// [`load_model`] to generate with: its matrices of trits packed.
fn load_packed(dir: &Path, precision: Precision) -> Result<Decoder> {
    let mut decoder = load_model(dir, precision)?.decoder;
    decoder.weights_mut().for_each(|weight| weight.pack(Density::TwoBit));
    Ok(decoder)
}

/// `text` as given on the command line; `-` reads standard input, less the newline that `echo` or an editor ends it with.
fn text_or_stdin(text: String) -> Result<String> {
    if text != "-" {
        return Ok(text);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Error::io("read", "standard input"))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// A bar over bytes; drawn where there is a terminal.
fn bytes_bar(what: &'static str) -> ProgressBar {
    bar(0, what, "{prefix} {bar:32} {bytes}/{total_bytes} left {eta}")
}

/// A bar over `total` things.
fn count_bar(what: &'static str, total: u64) -> ProgressBar {
    bar(total, what, "{prefix} {bar:32} {human_pos}/{human_len} left {eta}")
}

fn bar(total: u64, what: &'static str, style: &str) -> ProgressBar {
    ProgressBar::new(total)
        .with_prefix(what)
        .with_style(ProgressStyle::with_template(style).expect("a valid template"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// What clap breaks at the width of a terminal is not broken before, and no example is too long for one.
    #[test]
    fn helps_are_as_wide_as_the_terminal() {
        let mut commands = vec![Cli::command()];
        while let Some(command) = commands.pop() {
            let help = command.get_after_help().map(|text| text.to_string()).unwrap_or_default();
            let lines: Vec<&str> = help.lines().collect();
            for (i, line) in lines.iter().enumerate() {
                let next = lines.get(i + 1).copied().unwrap_or_default();
                let (prose, goes_on) = (!line.starts_with("  "), !next.is_empty() && !next.starts_with("  "));
                assert!(!(prose && !line.is_empty() && goes_on), "{}: {line}", command.get_name());
                assert!(prose || line.chars().count() <= 98, "{}: {line}", command.get_name());
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }
}
