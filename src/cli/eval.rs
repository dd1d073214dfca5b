//! `ternlm eval`

use clap::Args;
use serde_json::json;
use std::ffi::OsString;
use std::path::PathBuf;

use super::thousands;
use crate::error::{Error, Result};
use crate::files::path_text;
use crate::measure;
use crate::text::read_text;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm eval runs/wiki-75m --data wiki.test.raw
  ternlm eval runs/wiki-75m --data wiki.test.raw --context 128 --detokenize-wikitext
  ternlm eval MODEL --data test.txt --context 1024 --stride 512 --json")]
pub struct EvalArgs {
    /// A model directory, or the folder of a run
    model: PathBuf,
    /// The text, UTF-8
    #[arg(long)]
    data: PathBuf,
    /// Most tokens that a prediction sees [default: the model's positions, at most 1024]
    #[arg(long)]
    context: Option<usize>,
    /// Tokens predicted by each window [default: the context]
    #[arg(long)]
    stride: Option<usize>,
    /// Read only so many tokens
    #[arg(long)]
    tokens: Option<usize>,
    /// A tokenizer other than the model's: bytes, gpt2, or a tokenizer.json
    #[arg(long)]
    tokenizer: Option<OsString>,
    /// Undo WikiText's tokenisation first (" @-@ ", " , "), for models trained on ordinary text; words and bytes are
    /// still counted in the text as given
    #[arg(long)]
    detokenize_wikitext: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: EvalArgs) -> Result<()> {
    let dir = super::model_dir(&args.model)?;
    let tokenizer = match &args.tokenizer {
        Some(name) => super::named_tokenizer(name)?,
        None => super::tokenizer_of(&dir)?,
    };
    let text = read_text(&args.data)?;
    let mut decoder = super::load_model(&dir, &tokenizer)?.decoder;
    let config = &decoder.config;
    let context = args.context.unwrap_or(config.max_positions.min(1024));
    let stride = args.stride.unwrap_or(context);
    if context == 0 || context > config.max_positions {
        return Err(Error::usage(format!("--context {context}: wanted 1 to {}", config.max_positions)));
    }
    if stride == 0 || stride > context {
        return Err(Error::usage(format!("--stride {stride}: wanted 1 to the context of {context}")));
    }
    let measured = if args.detokenize_wikitext { measure::detokenize_wikitext(&text) } else { text.clone() };
    let mut tokens = tokenizer.encode_with_special(&measured)?;
    let whole = tokens.len();
    tokens.truncate(args.tokens.unwrap_or(usize::MAX));
    if tokens.len() < 2 {
        return Err(Error::input(&args.data, "text", format!("{} tokens", tokens.len()), "2 or more"));
    }
    // A part of the text has its own bytes and words.
    let text = if tokens.len() < whole { tokenizer.decode_plain(&tokens) } else { text };
    let bar = super::count_bar("Evaluating", tokens.len() as u64);
    let p = measure::perplexity(&mut decoder, &tokens, context, stride, &mut |n| bar.inc(n));
    bar.finish_and_clear();
    let (bytes, words) = (text.len() as u64, measure::words(&text));
    let (bits, per_word) = (p.bits_per_byte(bytes), p.per_word(words));
    if args.json {
        let out = json!({
            "model": path_text::write(&dir), "data": path_text::write(&args.data), "nll": p.nll, "ppl": p.ppl, "tokens": p.tokens, "context": p.context,
            "stride": p.stride, "bytes": bytes, "bits_per_byte": bits, "words": words, "word_ppl": per_word,
            "detokenized": args.detokenize_wikitext,
        });
        super::say_json(&out);
    } else {
        say!("{:.4} nats/token over {} tokens", p.nll, thousands(p.tokens));
        say!("perplexity {:.3} (context {context}, stride {stride})", p.ppl);
        say!("{bits:.4} bits per byte over {} bytes", thousands(bytes));
        say!(
            "word perplexity {per_word:.2} over {} words (one more for each line, as for WikiText)",
            thousands(words)
        );
    }
    Ok(())
}
