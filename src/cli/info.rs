//! `ternlm info`: what a model, a run, a recipe or this machine is.

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::tensors::{GgufInfo, TensorInfo, alike, show_types};
use super::{recipe, thousands};
use crate::config::{self, Inputs, ModelConfig, Scope};
use crate::error::{Error, Result};
use crate::files::{if_there, path_text, read_text};
use crate::formats::{self, Form, ModelFiles};
use crate::kernels::{Isa, peak};
use crate::machine;
use crate::measure::Needs;
use crate::model;
use crate::number;
use crate::report::{self, Versions};
use crate::ternary::Grouping;
use crate::text::Tokenizer;
use crate::train::{METRICS, Progress, Record, checkpoint, read_metrics};

/// Positions that memory is told for, unless asked.
const CONTEXT: usize = 2048;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm info
  ternlm info runs/wiki-75m
  ternlm info model.gguf
  ternlm info MODEL --json
  ternlm info MODEL --estimate --context 4096
  ternlm info --recipe copy > my.toml
  ternlm info --keys")]
pub struct InfoArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run; without it: this machine
    path: Option<PathBuf>,
    /// Print the TOML of a built-in recipe or of a file, with its comments
    #[arg(long, value_name = "NAME", conflicts_with_all = ["path", "json"])]
    recipe: Option<String>,
    /// Print every key that a recipe can have, with defaults and values
    #[arg(long, conflicts_with_all = ["path", "json", "recipe"])]
    keys: bool,
    /// Positions that the memory is told for [default: 2048, or all that the model has]
    #[arg(long, value_name = "N", requires = "path")]
    context: Option<usize>,
    /// Measure how fast this machine reads memory, and say how fast the model can be at most
    #[arg(long, requires = "path")]
    estimate: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: InfoArgs) -> Result<()> {
    if let Some(name) = &args.recipe {
        say!("{}", recipe::text(name.as_ref())?.trim_end());
        return Ok(());
    }
    if args.keys {
        say!("{}", recipe::KEYS.trim_end());
        return Ok(());
    }
    let Some(path) = &args.path else {
        return show(&Machine::new(), args.json);
    };
    let is_model = formats::is_model(path);
    let is_run = path.join(recipe::FILE).is_file() || !checkpoint::list(path).is_empty();
    if is_model || !is_run {
        let model = ModelInfo::read(&super::model_dir(path)?, &args)?;
        return show(&About { run: None, model: Some(model) }, args.json);
    }
    // A run that has only begun has no model yet.
    let model = super::model_dir(path).ok().map(|dir| ModelInfo::read(&dir, &args)).transpose()?;
    show(&About { run: Some(RunInfo::read(path)?), model }, args.json)
}

fn show(what: &(impl Serialize + Show), json: bool) -> Result<()> {
    match json {
        true => super::say_json(what),
        false => what.show(),
    }
    Ok(())
}

/// For people; [`Serialize`] is for programs.
trait Show {
    fn show(&self);
}

#[derive(Serialize)]
struct Machine {
    version: &'static str,
    os: String,
    cpu: String,
    isa: String,
    isa_available: Vec<String>,
    threads: usize,
    parquet: bool,
    recipes: Vec<&'static str>,
}

impl Machine {
    fn new() -> Self {
        let Versions { os, cpu, isa, .. } = Versions::current();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            os,
            cpu,
            isa,
            isa_available: Isa::available().iter().map(Isa::to_string).collect(),
            threads: rayon::current_num_threads(),
            parquet: cfg!(feature = "parquet"),
            recipes: recipe::BUILT_IN.iter().map(|(name, _)| *name).collect(),
        }
    }
}

impl Show for Machine {
    fn show(&self) {
        say!("ternlm {}, {}", self.version, self.os);
        say!("CPU: {}", if self.cpu.is_empty() { "unknown" } else { &self.cpu });
        say!("Instruction set: {}, of {}", self.isa, self.isa_available.join(", "));
        say!("Threads: {}", self.threads);
        say!("Parquet: {}", if self.parquet { "yes" } else { "no (build with --features parquet)" });
        say!("Recipes (ternlm info --recipe NAME shows one):");
        for (name, text) in recipe::BUILT_IN {
            say!("  {name:18} {}", first_sentence(text));
        }
    }
}

/// Of the comment at the top of a recipe.
fn first_sentence(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# ")).collect();
    let text = lines.join(" ");
    text.split_once(". ").map_or(text.trim_end_matches('.'), |(first, _)| first).to_string()
}

/// A path given on the command line.
#[derive(Serialize)]
struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunInfo>,
    model: Option<ModelInfo>,
}

impl Show for About {
    fn show(&self) {
        if let Some(run) = &self.run {
            run.show();
        }
        match &self.model {
            Some(model) => model.show(),
            None => say!("No model yet"),
        }
    }
}

#[derive(Serialize)]
struct RunInfo {
    #[serde(serialize_with = "path_text::serialize")]
    dir: PathBuf,
    /// Name, task and steps of the saved recipe.
    recipe: Option<String>,
    task: Option<String>,
    steps: Option<u64>,
    #[serde(serialize_with = "path_text::option::serialize")]
    checkpoint: Option<PathBuf>,
    progress: Option<Progress>,
    /// The last training and validation lines of the metrics.
    train: Option<Record>,
    val: Option<Record>,
    #[serde(serialize_with = "path_text::option::serialize")]
    report: Option<PathBuf>,
}

impl RunInfo {
    fn read(dir: &Path) -> Result<Self> {
        let file = dir.join(recipe::FILE);
        let text = if_there(read_text(&file, recipe::MAX_BYTES))?;
        let table = text.map(|text| recipe::parse(&file, &text)).transpose()?.unwrap_or_default();
        let text = |key: &str| table.get(key).and_then(|v| v.as_str()).map(str::to_string);
        let steps = table.get("train").and_then(|t| t.get("steps")?.as_integer());
        let checkpoint = checkpoint::list(dir).pop();
        let records = if_there(read_metrics(&dir.join(METRICS)))?.unwrap_or_default();
        let last = |kind: fn(&Record) -> bool| records.iter().rev().find(|r| kind(r)).cloned();
        Ok(Self {
            dir: dir.into(),
            recipe: text("name"),
            task: text("task"),
            steps: steps.and_then(|n| n.try_into().ok()),
            progress: checkpoint.as_deref().map(checkpoint::progress).transpose()?,
            checkpoint,
            train: last(|r| matches!(r, Record::Train { .. })),
            val: last(|r| matches!(r, Record::Val { .. })),
            report: Some(dir.join(report::HTML)).filter(|file| file.is_file()),
        })
    }
}

impl Show for RunInfo {
    fn show(&self) {
        let of = |steps: Option<u64>| steps.map_or(String::new(), |n| format!(" of {}", thousands(n)));
        let unknown = || "unknown".to_string();
        let (name, task) =
            (self.recipe.clone().unwrap_or_else(unknown), self.task.clone().unwrap_or_else(unknown));
        say!("Run: {} (recipe {name}, task {task})", self.dir.display());
        match (&self.checkpoint, self.progress) {
            (Some(dir), Some(p)) => {
                say!("Last checkpoint: {}", dir.display());
                let (step, tokens) = (thousands(p.step), thousands(p.tokens));
                say!("Step: {step}{}, {tokens} tokens in {:.1} s", of(self.steps), p.elapsed_s);
            }
            _ => say!("No checkpoint yet{}", self.steps.map_or(String::new(), |n| format!("; {n} steps"))),
        }
        if let Some(Record::Train { step, loss, lr, tok_per_s, .. }) = &self.train {
            say!("Train loss: {loss:.4} at step {step} (lr {lr:.2e}, {tok_per_s:.0} tokens/s)");
        }
        if let Some(Record::Val { step, nll, ppl, .. }) = &self.val {
            say!("Validation: {nll:.4} nats/token, perplexity {ppl:.2}, at step {step}");
        }
        if let Some(file) = &self.report {
            say!("Report: {}", file.display());
        }
    }
}

#[derive(Serialize)]
struct ModelInfo {
    #[serde(serialize_with = "path_text::serialize")]
    dir: PathBuf,
    architecture: String,
    config: ModelConfig,
    parameters: u64,
    ternary_weights: u64,
    /// Of the tensors in their file, scales included.
    stored_bits_per_weight: f64,
    /// Absent for a model that says nothing of it.
    ternary: Option<TernaryInfo>,
    /// How weights without a note of ours were known to be ternary, or why they are not taken for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    recognised: Option<String>,
    /// What is particular to a GGUF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    gguf: Option<GgufInfo>,
    tensors: Vec<TensorInfo>,
    /// Names of tensors for which the model has no use; it is not loaded with them.
    unused: Vec<String>,
    files: BTreeMap<String, u64>,
    tokenizer: Option<Value>,
    /// Absent for a model that makes no text.
    needs: Option<Needs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
}

/// What this machine can do with a model, at most.
#[derive(Serialize)]
struct Estimate {
    read_gb_per_s: f64,
    /// After nothing, and after the context.
    decode_tok_per_s: [f64; 2],
    available_memory_bytes: Option<u64>,
}

impl Estimate {
    fn of(needs: &Needs) -> Self {
        let read = peak::read_gbps();
        Self {
            read_gb_per_s: read,
            decode_tok_per_s: [0, needs.context].map(|n| needs.tok_per_s(read, n)),
            available_memory_bytes: machine::Memory::now().map(|memory| memory.available),
        }
    }
}

#[derive(Serialize)]
struct TernaryInfo {
    form: Form,
    scope: Scope,
    group: Grouping,
    /// What inputs of ternary products are rounded to.
    activations: Inputs,
    /// `log2(3)` for a trit and 16 for each scale; absent without any ternary weight.
    ideal_bits_per_weight: Option<f64>,
}

impl ModelInfo {
    fn read(dir: &Path, args: &InfoArgs) -> Result<Self> {
        let stored = ModelFiles::open(dir)?;
        let unused = model::unused(&stored)?;
        let description = &stored.description;
        let note = description.ternary.as_ref();
        let is_ternary = |name: &str| note.is_some_and(|note| note.tensors.iter().any(|t| t == name));
        let tensors =
            stored.names().map(|name| Ok(TensorInfo::of(name, &stored.tensor(name)?, is_ternary(name))));
        let tensors: Vec<TensorInfo> = tensors.collect::<Result<_>>()?;
        let ternary = || tensors.iter().filter(|t| t.ternary);
        let ternary_weights: u64 = ternary().map(TensorInfo::len).sum();
        let ternary = note.map(|note| {
            let scales: u64 = ternary().map(|t| t.scales(note.group)).sum();
            TernaryInfo {
                form: note.form,
                scope: note.scope,
                group: note.group,
                activations: note.activations,
                ideal_bits_per_weight: (ternary_weights > 0)
                    .then(|| 3f64.log2() + 16.0 * scales as f64 / ternary_weights as f64),
            }
        });
        let tokenizer = match stored.files.contains("tokenizer.json") {
            true => Some(super::tokenizer::describe(&Tokenizer::of(&stored.files)?)),
            false => None,
        };
        let most = description.model.max_positions;
        let context = args.context.unwrap_or(most.min(CONTEXT));
        if context == 0 || context > most {
            return Err(Error::usage(format!(
                "--context {context}: wanted 1 to {most}, the model's positions"
            )));
        }
        let needs = description.model.causal.then(|| Needs::of(&stored, context)).transpose()?;
        let estimate = needs.as_ref().filter(|_| args.estimate).map(Estimate::of);
        let files = stored.files.list()?;
        let held: u64 = tensors.iter().map(TensorInfo::len).sum();
        let bytes: u64 = tensors.iter().map(|t| t.bytes).sum();
        Ok(Self {
            dir: dir.into(),
            architecture: description.architecture.into(),
            parameters: description.model.parameters() as u64,
            config: description.model.clone(),
            ternary_weights,
            stored_bits_per_weight: 8.0 * bytes as f64 / held.max(1) as f64,
            ternary,
            recognised: stored.recognised.clone(),
            gguf: stored.gguf().map(GgufInfo::of),
            tensors,
            unused: unused.into_iter().map(String::from).collect(),
            files: files.into_iter().map(|(name, size)| (path_text::write(name.as_ref()), size)).collect(),
            tokenizer,
            needs,
            estimate,
        })
    }
}

impl Show for ModelInfo {
    fn show(&self) {
        let c = &self.config;
        say!("Model: {} ({})", self.dir.display(), self.architecture);
        say!(
            "Layers: {}, width {}, feed-forward {} ({}), {} heads of {}, {} for keys and values",
            c.layers,
            c.hidden_size,
            c.intermediate_size,
            config::name(&c.activation),
            c.heads,
            c.head_dim,
            c.kv_heads
        );
        say!(
            "Vocabulary: {}, {} positions, output head {}",
            thousands(c.vocab_size as u64),
            thousands(c.max_positions as u64),
            if c.tie_embeddings { "tied to the embedding" } else { "of its own" }
        );
        if let Some(scaling) = &c.rope_scaling {
            say!("Rotation: base {}, {scaling}", c.rope_theta);
        }
        let share = 100.0 * self.ternary_weights as f64 / self.parameters.max(1) as f64;
        let (all, ternary) = (thousands(self.parameters), thousands(self.ternary_weights));
        say!("Parameters: {all}, {ternary} of them ternary ({share:.2} %)");
        show_types(&self.tensors, self.stored_bits_per_weight);
        if let Some(t) = &self.ternary {
            let inputs = if t.activations == Inputs::Int8 { ", inputs of 8 bits" } else { "" };
            let (scope, form) = (config::name(&t.scope), config::name(&t.form));
            say!("Ternary: scope {scope}, groups of {}, stored as {form}{inputs}", t.group);
            if let Some(bits) = t.ideal_bits_per_weight {
                let bytes = (bits * self.ternary_weights as f64 / 8.0).ceil() as u64;
                say!("Packed ideally: {bits:.4} bits per ternary weight, {} bytes", thousands(bytes));
            }
        }
        self.recognised.iter().for_each(|how| say!("Recognised: {how}"));
        match &self.tokenizer {
            Some(t) => say!(
                "Tokenizer: {} tokens, ends a text with {}, {}",
                t["vocab_size"],
                t["eos"],
                if t["chat_template"] == true { "with a chat template" } else { "without a chat template" }
            ),
            None => say!("Tokenizer: none"),
        }
        self.gguf.iter().for_each(GgufInfo::show);
        if let Some(needs) = &self.needs {
            show_needs(needs, self.config.max_positions);
        }
        if let Some(estimate) = &self.estimate {
            estimate.show();
        }
        for name in &self.unused {
            say!("Not used by the model: {}", name.escape_debug());
        }
        say!("Files:");
        for (name, bytes) in &self.files {
            say!("  {:>15}  {}", thousands(*bytes), name.escape_debug());
        }
        say!("Tensors:");
        for ((name, shape, kind), count) in alike(&self.tensors) {
            let times = if count > 1 { format!("{count} x ") } else { String::new() };
            say!("  {name}  {times}{shape:?}  {kind}");
        }
    }
}

fn show_needs(needs: &Needs, positions: usize) {
    let held = needs.weights.iter().map(|h| format!("{} bytes in {}", thousands(h.bytes), h.form));
    let held: Vec<String> = held.collect();
    say!("Weights while it runs: {}; a token reads {}", held.join(", "), thousands(needs.bytes_per_token));
    say!(
        "Keys and values: {} bytes a position, {} at {}",
        thousands(needs.kv_bytes_per_position),
        gib(needs.kv_bytes_at_most),
        thousands(positions as u64)
    );
    say!(
        "Memory to generate up to {} positions: {} (weights {}, keys and values {}, other {}), and the tokenizer",
        thousands(needs.context),
        gib(needs.resident_bytes),
        gib(needs.weight_bytes),
        gib(needs.kv_bytes),
        gib(needs.working_bytes)
    );
}

impl Show for Estimate {
    fn show(&self) {
        let [first, last] = self.decode_tok_per_s;
        let read = self.read_gb_per_s;
        say!(
            "Decode: at most {first:.1} tok/s at the start, {last:.1} at that context, by the {read:.1} GB/s that this \
             machine reads"
        );
        if let Some(bytes) = self.available_memory_bytes {
            say!("Memory available now: {}", gib(bytes));
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.3} GiB", number::gib(bytes))
}
