//! `ternlm bench`: how fast this machine trains, against what it could do at most.

use clap::{Args, Subcommand};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::group::GroupArgs;
use super::{bench_run, recipe, thousands};
use crate::error::{Error, Result};
use crate::files::{self, DirectoryWriter, IfExists};
use crate::formats::Form;
use crate::formats::tensors::{Data, Tensor, write_safetensors};
use crate::kernels::{self, peak, profile};
use crate::machine;
use crate::number::gib;
use crate::train::{self, Together, Trainer, cost, setup_random};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm bench train --recipe wiki-75m
  ternlm bench run --shape qwen3-0.6b
  ternlm bench run --help")]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Training steps of a recipe's shape, from random weights on random tokens
    Train(TrainArgs),
    /// Prompts read and tokens made by a model, or by a random one of a known shape
    Run(bench_run::RunArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm bench train --recipe wiki-75m
  ternlm bench train --recipe qwen3-0.6b-all --warmup 0 --steps 3
  ternlm bench train --recipe wiki-75m --set ternary.scope=none --json
  ternlm bench train --recipe wiki-75m --set train.precision=bf16
  ternlm bench train --recipe wiki-75m --steps 3 --export wiki-75m-steps")]
struct TrainArgs {
    /// A built-in recipe or a TOML file
    #[arg(long)]
    recipe: String,
    /// Steps that are timed
    #[arg(long, default_value_t = 5)]
    steps: u64,
    /// Steps before them
    #[arg(long, default_value_t = 1)]
    warmup: u64,
    /// Change a key of the recipe, as in train.batch=8; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Store the first weights, the batches and the recipe there, so that another program can take the same steps
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    #[command(flatten)]
    group: GroupArgs,
}

pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        Bench::Train(args) => train(args),
        Bench::Run(args) => bench_run::run(args),
    }
}

/// Of a measurement.
const MOST_STEPS: u64 = 1_000_000;
/// Tokens of the batches that are stored.
const MOST_EXPORTED: u128 = 1 << 28;

fn train(args: TrainArgs) -> Result<()> {
    for (option, n, least) in [("--steps", args.steps, 1), ("--warmup", args.warmup, 0)] {
        if !(least..=MOST_STEPS).contains(&n) {
            return Err(Error::usage(format!("{option} {n}: wanted {least} to {MOST_STEPS}")));
        }
    }
    let mut table = recipe::read(args.recipe.as_ref())?;
    // Neither texts nor pretrained weights are read.
    recipe::set(&mut table, "needs_init", toml::Value::Boolean(false))?;
    recipe::set(&mut table, "data.train", toml::Value::Array(vec!["none".into()]))?;
    args.set.iter().try_for_each(|assignment| recipe::set_text(&mut table, assignment))?;
    table.remove("init");
    if let Some(distill) = table.get_mut("distill").and_then(|distill| distill.as_table_mut()) {
        distill.remove("lessons");
        recipe::set(&mut table, "distill.teacher", "random".into())?;
    }
    if table.get("ternary").and_then(|t| t.get("rotate")) == Some(&true.into()) {
        // What is left of it in a step: a head that is no embedding.
        recipe::set(&mut table, "ternary.rotate", false.into())?;
        recipe::set(&mut table, "model.tie_embeddings", false.into())?;
    }
    let recipe = recipe::resolve(args.recipe.as_ref(), table)?;
    recipe::tell_idle(&recipe, &args.set);
    let mut together = args.group.join()?;
    let trainer = together.agree(setup_random(recipe, args.group.share(&together)));
    let mut trainer = trainer.map_err(|error| together.fail(error))?;
    let measured = measure(&args, &mut trainer, together);
    measured.map_err(|error| trainer.together.fail(error))?;
    trainer.together.leave()
}

fn measure(args: &TrainArgs, trainer: &mut Trainer, together: Together) -> Result<()> {
    train::meet(trainer, together, &args.group.describe(), args.group.shard())?;
    trainer.together.set_patience(args.group.patience())?;
    let (leads, processes) = (trainer.together.leads(), trainer.together.size());
    if let Some(dir) = args.export.as_ref().filter(|_| leads) {
        export(dir, trainer, args.warmup + args.steps)?;
    }
    let tell = |line: String| {
        if leads && !args.json {
            say!("{line}");
        }
    };
    let tokens = trainer.recipe.train.batch * trainer.recipe.train.accumulate * trainer.source.seq();
    tell(format!(
        "{}: {} parameters, {} tokens a step, products in {}, {} on {} threads",
        trainer.recipe.name,
        thousands(trainer.model.decoder.config.parameters() as u64),
        thousands(tokens as u64),
        trainer.recipe.train.precision,
        kernels::Isa::current(),
        rayon::current_num_threads()
    ));
    let mut first_losses = Vec::new();
    for _ in 0..args.warmup {
        first_losses.push(trainer.step(false)?.loss);
    }
    let mut seconds = Vec::new();
    let mut losses = Vec::new();
    let (waited, spent) = (trainer.together.waited(), trainer.together.spent());
    profile::start();
    for i in 0..args.steps {
        let start = Instant::now();
        let report = trainer.step(false)?;
        seconds.push(start.elapsed().as_secs_f64());
        losses.push(report.loss);
        tell(format!("step {i}: {:.3} s, loss {:.4}", seconds[i as usize], report.loss));
    }
    let phases = profile::stop();
    first_losses.extend(&losses);
    let memory = machine::peak_memory();
    if !leads {
        return Ok(());
    }
    let total: f64 = seconds.iter().sum();
    let each = args.steps as f64;
    let waited = (trainer.together.waited() - waited).as_secs_f64() / each;
    let now = trainer.together.spent();
    let reduced = (now.time - spent.time).as_secs_f64() / each;
    let sent = (now.bytes - spent.bytes) as f64 / 1e6 / each;
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    // A teacher's forward pass is a third of what a step without it multiplies.
    let models = if trainer.teacher.is_some() { 4.0 / 3.0 } else { 1.0 };
    let flops =
        models * cost::flops_per_token(&trainer.model.decoder.config, trainer.source.seq()) * tokens as f64;
    let (gflops, limit, bandwidth) = (flops / median / 1e9, peak::fma_gflops(), peak::read_gbps());
    let moved = cost::least_traffic(trainer) / 1e9;
    let share_of_bandwidth = moved / median / bandwidth;
    if args.json {
        let phases: serde_json::Map<_, _> =
            phases.iter().map(|(p, s)| (name(*p).replace(' ', "_"), json!(s / args.steps as f64))).collect();
        let out = json!({
            "recipe": trainer.recipe.name, "precision": trainer.recipe.train.precision, "seconds": seconds, "median_seconds": median, "losses": losses,
            "first_losses": first_losses,
            "tokens_per_step": tokens, "tok_per_s": tokens as f64 / median, "gflop_per_step": flops / 1e9,
            "gflops": gflops, "fma_peak_gflops": limit, "share_of_peak": gflops / limit,
            "min_gb_per_step": moved, "read_gb_per_s": bandwidth, "share_of_bandwidth": share_of_bandwidth,
            "peak_memory_bytes": memory, "seconds_by_phase": phases,
            "isa": kernels::Isa::current().to_string(), "threads": rayon::current_num_threads(),
            "processes": processes, "waiting_seconds": waited, "reduction_seconds": reduced, "mb_sent_per_step": sent,
        });
        super::say_json(&out);
        return Ok(());
    }
    say!("{:.1} tokens/s (median step {median:.3} s)", tokens as f64 / median);
    say!(
        "{gflops:.1} GFLOP/s, {:.1} % of the {limit:.1} GFLOP/s that this machine's FMA units reach",
        100.0 * gflops / limit
    );
    say!(
        "memory traffic at least {moved:.2} GB a step, {:.2} GB/s, {:.1} % of the {bandwidth:.1} GB/s that this machine \
         reads",
        moved / median,
        100.0 * share_of_bandwidth
    );
    if processes > 1 {
        say!(
            "{processes} processes, {:.1} tokens/s each; {sent:.1} MB sent a step, added up in {reduced:.3} s, {waited:.3} s of \
             the step waiting",
            tokens as f64 / median / processes as f64
        );
    }
    match memory {
        Some(bytes) => say!("peak memory {:.2} GiB", gib(bytes)),
        None => say!("peak memory: this system does not say"),
    }
    for (phase, spent) in phases {
        let each = spent / args.steps as f64;
        say!("  {:<14} {each:>9.4} s  {:>5.1} %", name(phase), 100.0 * spent / total);
    }
    Ok(())
}

/// Writes what another program needs to take the same steps: `model/` with the latents, `batches.safetensors` with
/// `inputs` and `targets` (`[steps, accumulate, batch, seq]`, `u32::MAX` where nothing is asked), `recipe.toml`.
fn export(dir: &Path, trainer: &Trainer, steps: u64) -> Result<()> {
    let writer = DirectoryWriter::new(dir, IfExists::Refuse)?;
    let at = writer.path();
    let model = at.join("model");
    std::fs::create_dir(&model).map_err(Error::io("create", &model))?;
    trainer.save_model(&model, Form::Latent)?;
    let t = &trainer.recipe.train;
    let sequences = steps as u128 * t.accumulate as u128 * t.batch as u128;
    let tokens = sequences * trainer.source.seq() as u128;
    if tokens > MOST_EXPORTED {
        let wanted = format!("at most {MOST_EXPORTED} tokens in all steps");
        return Err(Error::input(dir, "--export", tokens, wanted));
    }
    let (mut inputs, mut targets) = (vec![0; tokens as usize], vec![0; tokens as usize]);
    trainer.source.fill(0, &mut inputs, &mut targets);
    let shape = vec![steps as usize, t.accumulate, t.batch, trainer.source.seq()];
    let tensor = |name: &str, data| Tensor { name: name.into(), shape: shape.clone(), data: Data::U32(data) };
    let tensors = [tensor("inputs", &inputs), tensor("targets", &targets)];
    write_safetensors(at.join("batches.safetensors"), &tensors, &BTreeMap::new())?;
    let text = toml::to_string(&trainer.recipe).expect("a recipe has a TOML form");
    files::write_bytes(at.join("recipe.toml"), text.as_bytes())?;
    writer.commit()
}

fn name(phase: profile::Phase) -> &'static str {
    match phase {
        profile::Phase::Projection => "projection",
        profile::Phase::Forward => "forward products",
        profile::Phase::InputGradient => "input gradient",
        profile::Phase::WeightGradient => "weight gradient",
        profile::Phase::Attention => "attention",
        profile::Phase::CrossEntropy => "cross-entropy",
        profile::Phase::Elementwise => "element-wise",
        profile::Phase::Optimizer => "optimizer",
        profile::Phase::Data => "data",
        profile::Phase::Other => "other",
    }
}
