//! `ternlm generate`

use clap::Args;
use serde_json::json;
use std::io::{Read, Write};
use std::path::PathBuf;

use super::sampling::SamplingArgs;
use crate::error::{Error, Result};
use crate::generate::{Sampler, Session};
use crate::model::{self, Purpose};
use crate::text::Tokenizer;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm generate runs/shakespeare --prompt 'ROMEO:' --temperature 0.8
  echo 'Once upon a time' | ternlm generate MODEL --prompt - --max-tokens 200
  ternlm generate MODEL --prompt 'The' --temperature 1 --top-p 0.9 --seed 7 --json")]
pub struct GenerateArgs {
    /// A model directory, or the folder of a run
    model: PathBuf,
    /// The text to continue; - reads it from standard input
    #[arg(long, short)]
    prompt: String,
    /// Most tokens to write
    #[arg(long, short = 'n', default_value_t = 128)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Do not stop at the end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Print text, tokens and speed as JSON when done
    #[arg(long)]
    json: bool,
}

pub fn run(args: GenerateArgs) -> Result<()> {
    let dir = super::model_dir(&args.model)?;
    let sampling = args.sampling.config()?;
    let tokenizer = Tokenizer::open(&dir.to_string_lossy())?;
    let prompt = match args.prompt.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(Error::io("read", "standard input"))?;
            text
        }
        text => text.to_string(),
    };
    let model = model::load(&dir, Purpose::Run, None)?;
    let (mut decoder, hf) = (model.decoder, model.hf);
    let stop = if args.ignore_eos { Vec::new() } else { hf.eos };
    let mut session = Session::new(&mut decoder, &tokenizer);
    session.set_tokens(tokenizer.encode_with_special(&prompt)?);
    let mut out = std::io::stdout();
    if !args.json {
        let _ = out.write_all(prompt.as_bytes());
    }
    let made = session.generate(&mut Sampler::new(sampling), args.max_tokens, &stop, &mut |piece| {
        // A closed pipe ends the text.
        args.json || (out.write_all(piece.as_bytes()).is_ok() && out.flush().is_ok())
    })?;
    let speed = made.tokens.len().saturating_sub(1) as f64 / made.decode_seconds.max(1e-9);
    if args.json {
        let value = json!({
            "prompt": prompt, "text": made.text, "tokens": made.tokens, "prompt_tokens": made.prompt_tokens,
            "stopped": made.stopped, "prefill_seconds": made.prefill_seconds, "decode_seconds": made.decode_seconds,
            "decode_tok_per_s": speed,
        });
        println!("{}", serde_json::to_string_pretty(&value).expect("text has a JSON form"));
    } else {
        println!();
        eprintln!(
            "[{} prompt tokens in {:.2} s, {} tokens at {speed:.1} tok/s]",
            made.prompt_tokens,
            made.prefill_seconds,
            made.tokens.len()
        );
    }
    Ok(())
}
