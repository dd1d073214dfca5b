//! `ternlm serve`

use clap::Args;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::model::KvPool;
use crate::number::gib;
use crate::serve::{self, Options, Served, Stop};
use crate::ternary::Density;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm serve model.tern
  ternlm serve MODEL --port 8080 --context 8192 --parallel 16
  TERNLM_API_KEY=secret ternlm serve model.tern --host 0.0.0.0
  curl localhost:8080/v1/completions -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 40}'

The chat page is at http://localhost:8080/; it, chat and responses need a chat template, the model's own or that of --template. Paths: /v1/completions, /v1/chat/completions, /v1/responses, /v1/embeddings, \
/v1/models, /v1/models/NAME, /tokenize, /detokenize, /tokenizer_info, /health, /metrics. An answer depends on its prompt, settings and seed, not on what runs \
beside it. Each request is one line on standard error: ids, tokens and times, never a text; --verbose says more. Ctrl-C or \
SIGTERM: no new requests, and what runs ends within the grace time; a second one ends at once.")]
pub struct ServeArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    model: PathBuf,
    /// The address to listen at; this machine alone unless told otherwise
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen at; 0: any that is free
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Refuse requests without this key; better given as TERNLM_API_KEY, which other users of the machine do not see
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// What requests call the model; another name is answered with 404 [default: the name of its file or folder]
    #[arg(long)]
    name: Option<String>,
    /// What inputs of ternary products are rounded to
    #[arg(long, value_enum, default_value = "int8")]
    precision: super::Precision,
    #[command(flatten)]
    kv: super::KvArgs,
    /// A Jinja chat template to use instead of the model's
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Tokens of prompt and answer together at most [default: the model's positions, at most 4096]
    #[arg(long)]
    context: Option<usize>,
    /// Answers that are made together
    #[arg(long, default_value_t = Options::default().parallel)]
    parallel: usize,
    /// Prompts that wait; more are refused with status 429
    #[arg(long, default_value_t = Options::default().queue)]
    queue: usize,
    /// Tokens of prompts read between two tokens of running answers: more reads faster, and lets answers wait longer
    #[arg(long, default_value_t = Options::default().chunk)]
    chunk: usize,
    /// Bytes of a request at most
    #[arg(long, default_value_t = Options::default().body)]
    body: usize,
    /// Open connections at most; more wait
    #[arg(long, default_value_t = Options::default().connections)]
    connections: usize,
    /// Seconds that a request may take
    #[arg(long, default_value_t = Options::default().time.as_secs())]
    time: u64,
    /// Seconds that a client may take to send a request, or to take some of an answer
    #[arg(long, default_value_t = Options::default().patience.as_secs())]
    patience: u64,
    /// Seconds that running requests have once the server is told to stop
    #[arg(long, default_value_t = Options::default().grace.as_secs())]
    grace: u64,
}

pub fn run(args: ServeArgs) -> Result<()> {
    let key = std::env::var("TERNLM_API_KEY").ok().filter(|key| !key.is_empty());
    let mut options = Options {
        context: args.context.unwrap_or(Options::default().context),
        parallel: args.parallel,
        queue: args.queue,
        chunk: args.chunk,
        body: args.body,
        connections: args.connections,
        time: Duration::from_secs(args.time),
        patience: Duration::from_secs(args.patience),
        grace: Duration::from_secs(args.grace),
        api_key: args.api_key.or(key),
        kv: args.kv.format(args.precision),
    };
    options.validate()?;
    let dir = super::model_dir(&args.model)?;
    // Before the model is loaded: a port that is taken is known at once.
    let address = format!("{}:{}", args.host, args.port);
    let listener =
        TcpListener::bind((args.host.as_str(), args.port)).map_err(Error::io("listen at", &address))?;
    let address = listener.local_addr().map_err(Error::io("listen at", &address))?;
    tell!("loading {}", dir.display());
    let tokenizer = super::tokenizer_of(&dir)?;
    let template = match &args.template {
        Some(file) => Some(ChatTemplate::from_file(file, &tokenizer)?),
        None => ChatTemplate::of(&tokenizer)?,
    };
    let mut decoder = super::load_model(&dir, args.precision)?.decoder;
    let bar = super::count_bar("packing", decoder.weights().count() as u64);
    for weight in decoder.weights_mut() {
        weight.pack(Density::TwoBit);
        // A file that is replaced while it is served changes nothing.
        weight.keep_in_memory();
        bar.inc(1);
    }
    bar.finish_and_clear();
    let config = &decoder.config;
    if let Some(context) = args.context.filter(|context| *context > config.max_positions) {
        return Err(Error::usage(format!(
            "--context {context}: the model has {} positions",
            config.max_positions
        )));
    }
    options.context = options.context.min(config.max_positions);
    let pool = KvPool::new(config, options.kv, options.context);
    let most = pool.page_bytes() as u64 * (options.context.div_ceil(crate::kernels::PAGE) + 1) as u64;
    let most = most.saturating_mul(options.parallel as u64);
    if let Some(there) = Memory::now().map(|memory| memory.available).filter(|there| *there < most) {
        return Err(Error::usage(format!(
            "keys and values of --parallel {} times --context {} take up to {:.1} GiB, and {:.1} GiB are free: lower one of \
             them, or --kv int8",
            options.parallel,
            options.context,
            gib(most),
            gib(there)
        )));
    }
    let name = args.name.unwrap_or_else(|| {
        let named = if args.model.is_dir() { args.model.file_name() } else { args.model.file_stem() };
        named.map_or("model".into(), |name| name.to_string_lossy().into_owned())
    });
    let stop = Stop::default();
    stop_by_signal(stop.clone())?;
    let served = Served::new(name.clone(), config, tokenizer, template, &options);
    if !address.ip().is_loopback() && options.api_key.is_none() {
        tell!("warning: whoever reaches {address} may use this server: --host 127.0.0.1, or TERNLM_API_KEY");
    }
    say!("serving {name} at http://{address}");
    super::output::piece("");
    serve::serve(&decoder, served, &options, listener, stop)
}

/// Ctrl-C and SIGTERM ask the server to stop; a second one ends the process.
fn stop_by_signal(stop: Stop) -> Result<()> {
    let asked = std::sync::atomic::AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if asked.swap(true, std::sync::atomic::Ordering::Relaxed) {
            std::process::exit(130);
        }
        stop.ask();
    })
    .map_err(|e| Error::usage(format!("no handler for Ctrl-C: {e}")))
}
