//! `ternlm bench run`: how fast this machine reads prompts and makes tokens.

use clap::{Args, ValueEnum};
use serde_json::json;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{KvArgs, Precision, export, thousands};
use crate::config::{self, KvFormat, ModelConfig, Scope};
use crate::error::{Error, Result};
use crate::formats::Description;
use crate::kernels::{self, peak};
use crate::machine::peak_memory;
use crate::model::{self, Decoder, KvCache, KvPool, Role, Span, State, Wanted, Weight};
use crate::number::gib;
use crate::ternary::{Density, Grouping, TernaryMatrix};
use crate::text::Tokenizer;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm bench run wiki-75m.tern
  ternlm bench run --shape qwen3-0.6b --prompt 512 --gen 64
  ternlm bench run --shape qwen3-1.7b --density 2bit --batch 1,8 --json
  ternlm bench run --shape qwen3-8b --write 8b.tern

Every figure is the median of the rounds. Bytes are those of the weights that a token needs, read once. A file of --write \
holds random trits and the tokenizer of bytes: info, verify, generate and bench run take it, and what it writes is noise.")]
pub struct RunArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// A random model of this shape
    #[arg(long, value_enum)]
    shape: Option<Shape>,
    /// Trits of the random model, or of one that is not packed: base3 or 2bit
    #[arg(long, value_parser = export::density, default_value = "base3")]
    density: Density,
    /// What inputs of ternary products are rounded to
    #[arg(long, value_enum, default_value = "int8")]
    precision: Precision,
    #[command(flatten)]
    kv: KvArgs,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens made after it
    #[arg(long = "gen", default_value_t = 64)]
    made: usize,
    /// Sequences that make tokens together
    #[arg(long, value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Write the random model of --shape to this packed file, and measure nothing
    #[arg(
        long,
        value_name = "FILE",
        requires = "shape",
        conflicts_with_all = ["prompt", "made", "batch", "rounds", "json"]
    )]
    write: Option<PathBuf>,
    /// Replace the file of --write
    #[arg(long, requires = "write")]
    force: bool,
}

/// Published shapes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shape {
    /// That of the recipe wiki-75m
    #[value(name = "75m")]
    Wiki75m,
    #[value(name = "qwen3-0.6b")]
    Qwen3Small,
    #[value(name = "qwen3-1.7b")]
    Qwen3Middle,
    #[value(name = "qwen3-8b")]
    Qwen3Large,
}

impl Shape {
    /// As published.
    fn positions(self) -> usize {
        match self {
            Shape::Wiki75m => 1024,
            Shape::Qwen3Small | Shape::Qwen3Middle | Shape::Qwen3Large => 40_960,
        }
    }

    fn config(self, positions: usize) -> ModelConfig {
        // Width, layers, query and key heads and their width, feed-forward, vocabulary, one matrix for embedding and head.
        let (hidden_size, layers, heads, kv_heads, head_dim, intermediate_size, vocab_size, tied) = match self
        {
            Shape::Wiki75m => (512, 8, 8, 4, 64, 1376, 50257, false),
            Shape::Qwen3Small => (1024, 28, 16, 8, 128, 3072, 151_936, true),
            Shape::Qwen3Middle => (2048, 28, 16, 8, 128, 6144, 151_936, true),
            Shape::Qwen3Large => (4096, 36, 32, 8, 128, 12_288, 151_936, false),
        };
        ModelConfig {
            vocab_size,
            hidden_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate_size,
            qk_norm: true,
            tie_embeddings: tied,
            rope_theta: 1e6,
            max_positions: positions,
            ..ModelConfig::default()
        }
    }
}

/// Of a prompt, and of what is made after it.
const MOST_TOKENS: usize = 1 << 24;
/// Sequences of a pass.
const MOST_TOGETHER: usize = 1024;

pub fn run(args: RunArgs) -> Result<()> {
    let least = [("--prompt", args.prompt), ("--gen", args.made), ("--rounds", args.rounds)];
    if let Some((name, _)) =
        least.into_iter().chain(args.batch.iter().map(|n| ("--batch", *n))).find(|p| p.1 == 0)
    {
        return Err(Error::usage(format!("{name} 0: wanted 1 or more")));
    }
    if let (Some(path), Some(shape)) = (&args.write, args.shape) {
        return write(path, shape, &args);
    }
    let most = [("--prompt", &args.prompt, MOST_TOKENS), ("--gen", &args.made, MOST_TOKENS)];
    let batches = args.batch.iter().map(|n| ("--batch", n, MOST_TOGETHER));
    if let Some((name, n, most)) = most.into_iter().chain(batches).find(|(_, n, most)| *n > most) {
        return Err(Error::usage(format!("{name} {n}: wanted 1 to {most}")));
    }
    let positions = args.prompt + args.made + 1;
    let start = Instant::now();
    let mut decoder = match (&args.model, args.shape) {
        (Some(path), _) => super::load_model(&super::model_dir(path)?, args.precision)?.decoder,
        (None, Some(shape)) => random(&shape.config(positions), args.density, args.precision),
        (None, None) => unreachable!("one of the two is required"),
    };
    decoder.weights_mut().for_each(|weight| weight.pack(args.density));
    let loaded = start.elapsed().as_secs_f64();
    if positions > decoder.config.max_positions {
        let most = decoder.config.max_positions;
        return Err(Error::usage(format!("--prompt and --gen: {positions} positions, the model has {most}")));
    }
    let bytes = bytes_of_a_token(&decoder);
    let prompt: Vec<u32> = (0..args.prompt).map(|i| (i * 7919 % decoder.config.vocab_size) as u32).collect();
    let kv = args.kv.format(args.precision);
    let mut prefill = Vec::new();
    let mut decode: Vec<Vec<f64>> = vec![Vec::new(); args.batch.len()];
    for _ in 0..args.rounds {
        for (batch, rates) in args.batch.iter().zip(&mut decode) {
            let (read, made) = round(&decoder, kv, &prompt, args.made, *batch);
            prefill.push(read);
            rates.push(made);
        }
    }
    let bandwidth = peak::read_gbps();
    let read = median(&mut prefill);
    let rates: Vec<f64> = decode.iter_mut().map(|rates| median(rates)).collect();
    let name = match (&args.model, args.shape) {
        (Some(path), _) => path.display().to_string(),
        (_, shape) => {
            shape.and_then(|s| Some(s.to_possible_value()?.get_name().to_string())).unwrap_or_default()
        }
    };
    if args.json {
        super::say_json(&json!({
            "model": name, "density": args.density.to_string(), "inputs": decoder.inputs(),
            "isa": kernels::Isa::current().to_string(), "threads": rayon::current_num_threads(),
            "parameters": decoder.config.parameters() as u64, "load_seconds": loaded,
            "prompt": args.prompt, "gen": args.made, "prefill_tok_per_s": read,
            "first_token_seconds": args.prompt as f64 / read, "batch": args.batch, "decode_tok_per_s": rates,
            "bytes_per_token": bytes, "read_gb_per_s": bandwidth, "peak_memory_bytes": peak_memory(),
        }));
        return Ok(());
    }
    say!(
        "{name}: {} parameters, {} inputs, {} on {} threads, ready in {loaded:.2} s",
        thousands(decoder.config.parameters() as u64),
        config::name(&decoder.inputs()),
        kernels::Isa::current(),
        rayon::current_num_threads()
    );
    say!(
        "prefill of {}: {read:.0} tok/s, {:.3} s to the first token",
        args.prompt,
        args.prompt as f64 / read
    );
    for (batch, rate) in args.batch.iter().zip(&rates) {
        let gbps = rate / *batch as f64 * bytes as f64 / 1e9;
        say!(
            "decode of {batch} together: {rate:.1} tok/s, {:.3} ms a pass, {gbps:.1} GB/s of weights, {:.0} % of the \
             {bandwidth:.1} GB/s that this machine reads",
            1e3 * *batch as f64 / rate,
            100.0 * gbps / bandwidth
        );
    }
    if let Some(bytes) = peak_memory() {
        say!("peak memory {:.2} GiB", gib(bytes));
    }
    Ok(())
}

/// The random model as a file, a matrix at a time.
fn write(path: &Path, shape: Shape, args: &RunArgs) -> Result<()> {
    export::refuse_existing(path, "--write", args.force)?;
    let config = shape.config(shape.positions());
    let mut decoder = Decoder::unfilled(&config, Scope::All, Grouping::default());
    args.precision.set(&mut decoder);
    let ternary = decoder.weights().filter(|w| w.grouping().is_some()).map(Weight::len).sum::<usize>();
    // Each is made twice: for its digest, and to be written.
    let bar = super::count_bar("writing", 2 * ternary as u64);
    let trits = |weight: &Weight| {
        bar.inc(weight.len() as u64);
        Cow::Owned(random_trits(weight))
    };
    let (name, text) = Tokenizer::bytes().file();
    let files = vec![(name.to_string(), text)];
    model::save_packed_of(
        path,
        &decoder,
        &Description::new(config),
        files,
        args.density,
        &trits,
        &mut |_, _| {},
    )?;
    bar.finish_and_clear();
    export::say_packed(path, ternary)
}

/// The same for the same weight of the same shape.
fn random_trits(weight: &Weight) -> TernaryMatrix {
    let (rows, cols) = (weight.shape[0], weight.shape[1]);
    TernaryMatrix::random([rows, cols], weight.grouping().unwrap_or_default(), weight.index() as u64)
}

/// Random trits, gains of 1.
fn random(config: &ModelConfig, density: Density, precision: Precision) -> Decoder {
    let mut decoder = Decoder::unfilled(config, Scope::All, Grouping::default());
    for weight in decoder.weights_mut().filter(|weight| weight.grouping().is_some()) {
        weight.adopt(random_trits(weight));
        weight.pack(density);
    }
    precision.set(&mut decoder);
    decoder
}

/// Bytes of weights that every token meets: all but an embedding that is no head, of which it needs a row.
fn bytes_of_a_token(decoder: &Decoder) -> usize {
    let head = decoder.config.tie_embeddings;
    let met = decoder.weights().filter(|w| w.role != Role::Embedding || head);
    met.map(|w| w.packed().map_or(4 * w.len(), |packed| packed.bytes().len())).sum()
}

/// Tokens a second of the prompt, and of what `batch` sequences make after it.
fn round(decoder: &Decoder, kv: KvFormat, prompt: &[u32], made: usize, batch: usize) -> (f64, f64) {
    let mut state = State::default();
    let pool = KvPool::new(&decoder.config, kv, batch * (prompt.len() + made + 2 * kernels::PAGE));
    let mut first = pool.sequence();
    let start = Instant::now();
    decoder.read(prompt, &mut first, &mut state);
    let read = prompt.len() as f64 / start.elapsed().as_secs_f64();
    let mut caches: Vec<KvCache> = (0..batch).map(|_| first.fork(prompt.len())).collect();
    drop(first);
    let start = Instant::now();
    for step in 0..made {
        let tokens = [(step * 31 % decoder.config.vocab_size) as u32];
        let span = |cache| Span { tokens: &tokens, cache, wanted: Wanted::Last };
        let mut spans: Vec<Span<'_>> = caches.iter_mut().map(span).collect();
        decoder.advance(&mut spans, &mut state);
    }
    (read, (batch * made) as f64 / start.elapsed().as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
