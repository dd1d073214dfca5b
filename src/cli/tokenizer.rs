//! `ternlm tokenizer`: train a vocabulary, look at one, and see what it does to a text.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;

use super::thousands;
use crate::error::{Error, Result};
use crate::text::{BpeTrainer, Reading, ReadingOptions, Tokenizer, documents, sources};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm tokenizer train input.txt --vocab-size 4096 --out tokenizer --special '<|endoftext|>'
  ternlm tokenizer encode gpt2 --text 'Hello world'
  ternlm tokenizer decode gpt2 15496 995
  ternlm tokenizer info tokenizer --json")]
pub struct TokenizerArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a byte-level BPE vocabulary
    Train(TrainArgs),
    /// Show the token ids of a text
    Encode(EncodeArgs),
    /// Show the text of token ids
    Decode(DecodeArgs),
    /// Show a tokenizer's size and special tokens
    Info(InfoArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm tokenizer train input.txt --vocab-size 4096 --out tokenizer
  ternlm tokenizer train texts/ --vocab-size 32000 --out tok --special '<|end|>'
  ternlm tokenizer train a.jsonl b.jsonl --field body --vocab-size 8192 --out tokenizer --force")]
struct TrainArgs {
    /// Text files or folders (.txt, .raw, .tokens, .jsonl, .parquet)
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Entries: the special tokens, the 256 bytes, and one for each merge
    #[arg(long)]
    vocab_size: usize,
    /// Folder for tokenizer.json and tokenizer_config.json
    #[arg(long)]
    out: PathBuf,
    /// A special token; may be repeated, the first one ends a text
    #[arg(long, value_name = "TOKEN")]
    special: Vec<String>,
    /// The text field of .jsonl and .parquet records
    #[arg(long, default_value = "text")]
    field: String,
    /// Replace a tokenizer.json that is there already
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm tokenizer encode gpt2 --text 'Hello world'
  echo 'Hello world' | ternlm tokenizer encode MODEL --text - --json
  ternlm tokenizer encode tokenizer/tokenizer.json --file input.txt")]
struct EncodeArgs {
    /// bytes, gpt2, a tokenizer.json, or a folder that holds one
    tokenizer: OsString,
    #[command(flatten)]
    input: Input,
    /// Print ids, tokens and their number as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text; - reads it from standard input
    #[arg(long, short)]
    text: Option<String>,
    /// A file that holds the text; its ids are those that a training on it sees
    #[arg(long, short)]
    file: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm tokenizer decode gpt2 15496 995
  ternlm tokenizer decode bytes $(ternlm tokenizer encode bytes --text 'Hello')")]
struct DecodeArgs {
    /// bytes, gpt2, a tokenizer.json, or a folder that holds one
    tokenizer: OsString,
    /// Token ids
    #[arg(required = true)]
    ids: Vec<u32>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm tokenizer info gpt2
  ternlm tokenizer info MODEL --json")]
struct InfoArgs {
    /// bytes, gpt2, a tokenizer.json, or a folder that holds one
    tokenizer: OsString,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: TokenizerArgs) -> Result<()> {
    match args.command {
        Command::Train(args) => train(args),
        Command::Encode(args) => encode(args),
        Command::Decode(args) => decode(args),
        Command::Info(args) => info(args),
    }
}

fn train(args: TrainArgs) -> Result<()> {
    let target = args.out.join("tokenizer.json");
    if target.exists() && !args.force {
        return Err(Error::usage(format!(
            "{} exists: choose another folder (--out DIR), or replace it (--force)",
            target.display()
        )));
    }
    let files = sources::list(&args.files)?;
    // Texts of records are a little less than their files.
    let reading = super::bytes_bar("Reading");
    reading.set_length(files.iter().map(|f| f.bytes).sum());
    let texts = documents::training_texts(files, &args.field)
        .inspect(|text| reading.inc(text.as_ref().map_or(0, |t| t.len() as u64)));
    let merging = super::count_bar("Merging", args.vocab_size as u64);
    let trainer = BpeTrainer { vocab_size: args.vocab_size, special: args.special };
    let tokenizer = trainer.train(texts, |entries, _| {
        reading.finish_and_clear();
        merging.set_position(entries);
    });
    reading.finish_and_clear();
    merging.finish_and_clear();
    let tokenizer = tokenizer?;
    tokenizer.save(&args.out)?;
    let size = tokenizer.vocab_size();
    say!("{} tokens: {}", thousands(size as u64), target.display());
    if size < args.vocab_size {
        say!("Fewer than the {} wanted: every word is one token", thousands(args.vocab_size as u64));
    }
    Ok(())
}

fn encode(args: EncodeArgs) -> Result<()> {
    let tokenizer = super::named_tokenizer(&args.tokenizer)?;
    let ids = match (args.input.text, args.input.file) {
        (None, Some(file)) => Reading::open(&file, &tokenizer, &ReadingOptions::default())?.ids,
        (text, _) => tokenizer.encode(&super::text_or_stdin(text.unwrap_or_default())?)?,
    };
    if args.json {
        let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.token(id)).collect();
        super::say_json(&json!({ "ids": ids, "tokens": tokens, "count": ids.len() }));
    } else {
        say!("{}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

fn decode(args: DecodeArgs) -> Result<()> {
    let tokenizer = super::named_tokenizer(&args.tokenizer)?;
    let size = tokenizer.vocab_size();
    if let Some(id) = args.ids.iter().find(|id| **id as usize >= size) {
        return Err(Error::usage(format!("id {id}: wanted below {size}, the size of {}", tokenizer.name())));
    }
    say!("{}", tokenizer.decode(&args.ids));
    Ok(())
}

fn info(args: InfoArgs) -> Result<()> {
    let tokenizer = super::named_tokenizer(&args.tokenizer)?;
    if args.json {
        super::say_json(&describe(&tokenizer));
        return Ok(());
    }
    let named = |id: u32| format!("{id} ({})", tokenizer.token(id).unwrap_or_default().escape_debug());
    let maybe = |id: Option<u32>| id.map_or("none".to_string(), named);
    let stop: Vec<String> = tokenizer.stop_ids().iter().map(|&id| named(id)).collect();
    say!("{}: {} tokens", tokenizer.name(), thousands(tokenizer.vocab_size() as u64));
    say!("Begins a text: {}", maybe(tokenizer.bos()));
    say!("Ends a text: {}", maybe(tokenizer.eos()));
    if stop.len() > 1 {
        say!("Stops generation: {}", stop.join(", "));
    }
    say!("Chat template: {}", if tokenizer.chat_template().is_some() { "yes" } else { "none" });
    say!("Fingerprint: {}", tokenizer.fingerprint());
    let special = special(&tokenizer);
    say!("Special tokens: {}", special.len());
    for (id, token) in special {
        say!("  {id}  {}", token.escape_debug());
    }
    Ok(())
}

/// What a program may want to know of a tokenizer.
pub fn describe(tokenizer: &Tokenizer) -> Value {
    let special: Vec<_> =
        special(tokenizer).into_iter().map(|(id, token)| json!({ "id": id, "token": token })).collect();
    json!({
        "name": tokenizer.name(), "vocab_size": tokenizer.vocab_size(), "bos": tokenizer.bos(),
        "eos": tokenizer.eos(), "stop": tokenizer.stop_ids(), "special": special,
        "chat_template": tokenizer.chat_template().is_some(), "fingerprint": tokenizer.fingerprint(),
    })
}

fn special(tokenizer: &Tokenizer) -> Vec<(u32, String)> {
    let ids = (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.is_special(id));
    ids.map(|id| (id, tokenizer.token(id).unwrap_or_default())).collect()
}
