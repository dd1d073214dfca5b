//! `ternlm eval`

use clap::Args;
use serde_json::json;
use std::ffi::OsString;
use std::path::PathBuf;

use super::thousands;
use crate::config::Join;
use crate::error::{Error, Result};
use crate::files::path_text;
use crate::measure::{self, Windows};
use crate::text::{PassedOver, Reading, ReadingOptions};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm eval runs/wiki-75m --data wiki.test.raw
  ternlm eval runs/wiki-75m --data wiki.test.raw --context 128 --detokenize-wikitext
  ternlm eval runs/wiki-75m --data articles.jsonl --field body
  ternlm eval MODEL --data test.txt --context 1024 --stride 512 --json
  ternlm eval model.tern --data test.txt --precision int8 --kv f16
  ternlm eval model.gguf --data wiki.test.raw --context 512 --halves --tokens 60000

A text is read as a training reads it: a byte order mark is dropped, CRLF becomes LF, records of .jsonl and .parquet files \
are joined as data.join says. With --halves the windows do not overlap, each is read for itself, and of each only what \
follows its middle is scored: the figure that llama.cpp's perplexity tool gives for the same context. For the folder of a run, field and join are those of its recipe unless given here. \
Bits per byte and word perplexity count the bytes and words of the text that the predicted tokens stand for.")]
pub struct EvalArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    model: PathBuf,
    /// What inputs of ternary products are rounded to
    #[arg(long, value_enum, default_value = "trained")]
    precision: super::Precision,
    /// Score through a cache that keeps keys and values like this, as generation does, instead of whole windows
    #[arg(long, value_enum)]
    kv: Option<super::Kv>,
    /// The text, UTF-8: a text file, .jsonl, .parquet, or a folder of such files
    #[arg(long)]
    data: PathBuf,
    /// The text field of .jsonl and .parquet records [default: text]
    #[arg(long)]
    field: Option<String>,
    /// What stands between documents: auto, newline or eos [default: auto]
    #[arg(long, value_parser = join)]
    join: Option<Join>,
    /// Most tokens that a prediction sees [default: the model's positions, at most 1024]
    #[arg(long)]
    context: Option<usize>,
    /// Tokens predicted by each window [default: the context]
    #[arg(long)]
    stride: Option<usize>,
    /// Score the last half of each of disjoint windows, as llama.cpp's perplexity tool does
    #[arg(long, conflicts_with = "stride")]
    halves: bool,
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
    let decoder = super::load_model(&dir, args.precision)?.decoder;
    let config = &decoder.config;
    let context = args.context.unwrap_or(config.max_positions.min(1024));
    let stride = args.stride.unwrap_or(context);
    if context == 0 || context > config.max_positions {
        return Err(Error::usage(format!("--context {context}: wanted 1 to {}", config.max_positions)));
    }
    if stride == 0 || stride > context {
        return Err(Error::usage(format!("--stride {stride}: wanted 1 to the context of {context}")));
    }
    let data = super::recipe::of_run(&args.model)?.map(|recipe| recipe.data).unwrap_or_default();
    let options = ReadingOptions {
        field: args.field.unwrap_or(data.field),
        join: args.join.unwrap_or(data.join),
        detokenize_wikitext: args.detokenize_wikitext,
    };
    let most = args.tokens.unwrap_or(usize::MAX);
    if most < 2 {
        return Err(Error::usage(format!("--tokens {most}: wanted 2 or more")));
    }
    let text = Reading::to_measure(&args.data, &tokenizer, &options, most, config.vocab_size)?;
    let count = text.ids.len();
    let windows = match args.halves {
        true if context < 3 || count < context => {
            let wanted = format!("3 tokens or more, and a text of one window at least: this has {count}");
            return Err(Error::usage(format!("--halves --context {context}: wanted {wanted}")));
        }
        // Where a text begins with a token of its own, each window does.
        true => Windows::Halves { context, first: tokenizer.prefix().first().copied() },
        false => Windows::Sliding { context, stride },
    };
    let bar = super::count_bar("Evaluating", count as u64);
    let p =
        measure::perplexity_of(&decoder, &text, windows, args.kv.map(super::Kv::format), &mut |n| bar.inc(n));
    bar.finish_and_clear();
    let (bits, per_word) = (p.bits_per_byte(), p.per_word());
    if args.json {
        let out = json!({
            "model": path_text::write(&dir), "data": path_text::write(&args.data), "nll": p.nll, "ppl": p.ppl,
            "tokens": p.tokens, "context": p.context, "stride": p.stride, "halves": args.halves, "bytes": p.bytes, "bits_per_byte": bits,
            "words": p.words, "word_ppl": per_word, "detokenized": args.detokenize_wikitext,
            "passed_over": text.passed_over,
        });
        super::say_json(&out);
    } else {
        say!("{:.4} nats/token over {} tokens", p.nll, thousands(p.tokens));
        match args.halves {
            true => say!("perplexity {:.3} (context {context}, the last half of each window)", p.ppl),
            false => say!("perplexity {:.3} (context {context}, stride {stride})", p.ppl),
        }
        if let Some(bits) = bits {
            say!("{bits:.4} bits per byte over {} bytes", thousands(p.bytes));
        }
        if let Some(per_word) = per_word {
            let words = thousands(p.words);
            say!(
                "word perplexity {per_word:.2} over {words} words (one more for each line, as for WikiText)"
            );
        }
        if text.passed_over != PassedOver::default() {
            say!("{}", text.passed_over);
        }
    }
    Ok(())
}

/// `data.join` as recipes write it.
fn join(text: &str) -> std::result::Result<Join, String> {
    serde_json::from_value(text.into()).map_err(|_| "wanted auto, newline or eos".into())
}
