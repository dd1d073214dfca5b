//! `ternlm bench`: how fast this machine trains, against what it could do at most.

use clap::{Args, Subcommand};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{recipe, thousands};
use crate::config::{ModelConfig, Recipe, Task};
use crate::error::{Error, Result};
use crate::files::{self, DirectoryWriter, IfExists};
use crate::formats::tensors::{Data, Tensor, write_safetensors};
use crate::kernels::{self, peak, profile};
use crate::model::{Role, Sequences, cross_entropy};
use crate::train::{Source, Synthetic, Trainer};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm bench train --recipe wiki-75m
  ternlm bench train --help")]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Training steps of a recipe's shape, from random weights on random tokens
    Train(TrainArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm bench train --recipe wiki-75m
  ternlm bench train --recipe qwen3-0.6b-all --warmup 0 --steps 3
  ternlm bench train --recipe wiki-75m --set ternary.scope=none --json
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
}

pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        Bench::Train(args) => train(args),
    }
}

fn train(args: TrainArgs) -> Result<()> {
    if args.steps == 0 {
        return Err(Error::usage("--steps 0: wanted 1 or more"));
    }
    let mut table = recipe::read(args.recipe.as_ref())?;
    // Neither texts nor pretrained weights are read.
    recipe::set(&mut table, "needs_init", toml::Value::Boolean(false))?;
    recipe::set(&mut table, "data.train", toml::Value::Array(vec!["none".into()]))?;
    args.set.iter().try_for_each(|assignment| recipe::set_text(&mut table, assignment))?;
    table.remove("init");
    let recipe = recipe::resolve(args.recipe.as_ref(), table)?;
    let mut trainer = random_trainer(recipe)?;
    if let Some(dir) = &args.export {
        export(dir, &trainer, args.warmup + args.steps)?;
    }
    let tell = |line: String| {
        if !args.json {
            say!("{line}");
        }
    };
    let tokens = trainer.recipe.train.batch * trainer.recipe.train.accumulate * trainer.source.seq();
    tell(format!(
        "{}: {} parameters, {} tokens a step, {} on {} threads",
        trainer.recipe.name,
        thousands(trainer.model.decoder.weights().map(|w| w.len() as u64).sum()),
        thousands(tokens as u64),
        kernels::Isa::current(),
        rayon::current_num_threads()
    ));
    let mut first_losses = Vec::new();
    for _ in 0..args.warmup {
        first_losses.push(trainer.step(false)?.loss);
    }
    let mut seconds = Vec::new();
    let mut losses = Vec::new();
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
    let memory = peak_memory();
    let total: f64 = seconds.iter().sum();
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let flops = flops_per_token(&trainer.model.decoder.config, trainer.source.seq()) * tokens as f64;
    let (gflops, limit, bandwidth) = (flops / median / 1e9, peak::fma_gflops(), peak::read_gbps());
    let moved = min_bytes_per_step(&trainer) / 1e9;
    let share_of_bandwidth = moved / median / bandwidth;
    if args.json {
        let phases: serde_json::Map<_, _> =
            phases.iter().map(|(p, s)| (name(*p).replace(' ', "_"), json!(s / args.steps as f64))).collect();
        let out = json!({
            "recipe": trainer.recipe.name, "seconds": seconds, "median_seconds": median, "losses": losses,
            "first_losses": first_losses,
            "tokens_per_step": tokens, "tok_per_s": tokens as f64 / median, "gflop_per_step": flops / 1e9,
            "gflops": gflops, "fma_peak_gflops": limit, "share_of_peak": gflops / limit,
            "min_gb_per_step": moved, "read_gb_per_s": bandwidth, "share_of_bandwidth": share_of_bandwidth,
            "peak_memory_bytes": memory, "seconds_by_phase": phases,
            "isa": kernels::Isa::current().to_string(), "threads": rayon::current_num_threads(),
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
    match memory {
        Some(bytes) => say!("peak memory {:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
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
    crate::model::save(&model, &trainer.model.decoder, &trainer.model.description, Some(&trainer.latents))?;
    let t = &trainer.recipe.train;
    let sequences = steps as usize * t.accumulate * t.batch;
    let (mut inputs, mut targets) =
        (vec![0; sequences * trainer.source.seq()], vec![0; sequences * trainer.source.seq()]);
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

fn random_trainer(recipe: Recipe) -> Result<Trainer> {
    let config = recipe.model.clone().ok_or_else(|| Error::usage("the recipe has no [model] table"))?;
    crate::train::check_memory(&config, &recipe)?;
    let (model, latents) = crate::train::random_model(&recipe)?;
    let source = match recipe.task {
        // Random tokens to be copied cost what a text of the same shape costs.
        Task::Lm => Source::Synthetic(Synthetic {
            task: Task::Copy,
            tokens: recipe.train.seq,
            vocab: config.vocab_size,
            seed: recipe.seed,
        }),
        _ => Source::synthetic(&recipe, config.vocab_size),
    };
    Ok(Trainer::new(recipe, model, latents, None, source))
}

/// Multiplications and additions of a training step per token: 6 a weight of every product (forward, input gradient,
/// weight gradient), and attention's `6 * 2 * T * H * D`, half of it when causal. Recomputation does not count.
fn flops_per_token(c: &ModelConfig, seq: usize) -> f64 {
    let attention = 12.0 * (seq * c.heads * c.head_dim * c.layers) as f64 * if c.causal { 0.5 } else { 1.0 };
    6.0 * (weights(c) + c.vocab_size * c.hidden_size) as f64 + attention
}

/// Weights of the products inside the blocks.
fn weights(c: &ModelConfig) -> usize {
    let ffn = if c.activation == crate::config::Activation::SwiGlu { 3 } else { 2 };
    let attention = c.hidden_size * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
    c.layers * (attention + ffn * c.hidden_size * c.intermediate_size)
}

/// Bytes that a step has to move where no cache keeps a tensor from one pass over it to the next: the passes over
/// weights, gradients, moments and logits that the step is made of, and what the blocks save, written once and read
/// once. What one kernel hands to the next and nobody saves counts nothing, so a large model moves more; one that fits
/// a cache, less.
fn min_bytes_per_step(trainer: &Trainer) -> f64 {
    let (decoder, t) = (&trainer.model.decoder, &trainer.recipe.train);
    let c = &decoder.config;
    let rows = t.batch * trainer.source.seq();
    let moments: usize =
        trainer.optimizer.tensors(decoder).iter().map(|m| m.shape.iter().product::<usize>()).sum();
    let parts = decoder.parts(Sequences::new(t.batch, trainer.source.seq()));
    let chunks = rows.div_ceil(parts).div_ceil(cross_entropy::rows_at_once(c.vocab_size));

    // Of the update: gradients are zeroed, read for the norm and read again; weights are read and written, moments too.
    let (mut once, mut each_batch) = (8 * moments, 0);
    for w in decoder.weights() {
        once += 4 * 5 * w.len();
        // What the products read: trits and scales, which the update writes while it has the latents, or the weights.
        let used = match w.ternary() {
            Some(t) => 4 * (t.words().len() + t.scales().len()),
            None => 4 * w.len(),
        };
        if w.ternary().is_some() {
            once += used;
        }
        // Of each part, forward and input gradient read the weights; the weight gradient reads and writes the sum. The head's
        // products are made chunk by chunk. Of an embedding that is no head a batch touches some rows, which count
        // nothing.
        let passes = match w.role {
            Role::Head => chunks,
            Role::Embedding if c.tie_embeddings => chunks,
            Role::Embedding => 0,
            _ => 1,
        };
        each_batch += parts * passes * (2 * used + 8 * w.len());
        // Gradients of further parts are added to those of the first and set to zero.
        each_batch += (parts - 1) * 4 * 4 * w.len();
    }
    // Logits are made, replaced by their gradient, and read by two products.
    each_batch += 4 * rows * (5 * c.vocab_size + 2 * c.layers * saved_by_block(c));
    (once + t.accumulate * each_batch) as f64
}

/// Values that a block keeps of a row for the backward pass: two residual streams, queries, keys, values, attention's
/// output and its log-sum-exps, and the projections of the feed-forward network.
fn saved_by_block(c: &ModelConfig) -> usize {
    let ffn = if c.activation == crate::config::Activation::SwiGlu { 2 } else { 1 };
    2 * c.hidden_size + (2 * c.heads + 2 * c.kv_heads) * c.head_dim + c.heads + ffn * c.intermediate_size
}

/// Most memory that this process has held, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(changes: &[&str]) -> f64 {
        let mut table = recipe::read("copy".as_ref()).unwrap();
        let shape = ["vocab_size=40000", "hidden_size=16", "heads=1", "kv_heads=1", "head_dim=16"];
        let shape = shape.into_iter().chain(["intermediate_size=32", "layers=2", "tie_embeddings=false"]);
        shape.for_each(|set| recipe::set_text(&mut table, &format!("model.{set}")).unwrap());
        changes.iter().for_each(|set| recipe::set_text(&mut table, set).unwrap());
        min_bytes_per_step(&random_trainer(recipe::resolve("copy".as_ref(), table).unwrap()).unwrap())
    }

    #[test]
    fn the_least_traffic_of_a_step_is_the_sum_of_its_passes() {
        // 32 sequences of 16 tokens; the logits of 512 rows come in two chunks, because 419 rows make 64 MiB.
        let (rows, ends) = (512.0, 40_000.0 * 16.0);
        let (blocks, gains) = (2.0 * (4.0 * 16.0 * 16.0 + 2.0 * 16.0 * 32.0), 5.0 * 16.0);
        let parameters = 2.0 * ends + blocks + gains;
        // Words and scales of a row: 1 and 1 where there are 16 inputs, 2 and 1 where there are 32.
        let (head_codes, block_codes) = (40_000.0 * 8.0, 2.0 * ((4.0 * 16.0 + 32.0) * 8.0 + 16.0 * 12.0));
        let projection = 2.0 * head_codes + block_codes;
        let update = (20.0 + 16.0) * parameters + projection;
        let head = 2.0 * (2.0 * head_codes + 8.0 * ends) + rows * 4.0 * 5.0 * 40_000.0;
        let saved = rows * 4.0 * 2.0 * 2.0 * (2.0 * 16.0 + 4.0 * 16.0 + 1.0 + 32.0);
        let batch = head + 2.0 * block_codes + 8.0 * blocks + 16.0 * gains + saved;
        assert_eq!(bytes(&[]), update + batch);
        assert_eq!(bytes(&["train.accumulate=3"]), update + 3.0 * batch);
        // Without the second moment, read and written.
        assert_eq!(bytes(&["train.optimizer=sgd"]), update + batch - 8.0 * parameters);
        // No projections, and products that read the weights: the head's in two chunks, each forward and backward.
        let dense = 2.0 * 2.0 * (4.0 * ends - head_codes) + 2.0 * (4.0 * blocks - block_codes);
        assert_eq!(bytes(&["ternary.scope=none"]), update + batch - projection + dense);
        // The embedding is the head: its own update is spared.
        let spared = (20.0 + 16.0) * ends + head_codes;
        assert_eq!(bytes(&["model.tie_embeddings=true"]), update + batch - spared);
    }
}
