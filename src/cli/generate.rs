//! `ternlm generate`

use clap::Args;
use std::path::PathBuf;

use super::output;
use super::sampling::{self, SamplingArgs};
use super::speculation::SpeculationArgs;
use crate::error::Result;
use crate::generate::{Sampler, Session, judge_prompt};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm generate runs/shakespeare --prompt 'ROMEO:' --temperature 0.8
  echo 'Once upon a time' | ternlm generate MODEL --prompt - --max-tokens 200
  ternlm generate MODEL --prompt 'The' --temperature 1 --top-p 0.9 --seed 7 --json
  ternlm generate MODEL --prompt - --lookup < code.txt
  ternlm generate qwen3-8b.tern --prompt 'The' --draft qwen3-0.6b.tern --draft-tokens 6")]
pub struct GenerateArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    model: PathBuf,
    /// What inputs of ternary products are rounded to
    #[arg(long, value_enum, default_value = "int8")]
    precision: super::Precision,
    #[command(flatten)]
    kv: super::KvArgs,
    /// The text to continue; - reads it from standard input
    #[arg(long, short)]
    prompt: String,
    /// Most tokens to write
    #[arg(long, short = 'n', default_value_t = 128)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    /// Do not stop at the end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Print text, tokens and speed as JSON when done
    #[arg(long)]
    json: bool,
}

pub fn run(args: GenerateArgs) -> Result<()> {
    let dir = super::model_dir(&args.model)?;
    let config = args.sampling.config()?;
    let tokenizer = super::tokenizer_of(&dir)?;
    let prompt = super::text_or_stdin(args.prompt)?;
    let decoder = super::load_packed(&dir, args.precision)?;
    let draft = args.speculation.draft(&dir, &tokenizer, args.precision)?;
    let stop = if args.ignore_eos { &[] } else { tokenizer.stop_ids() };
    let mut session = Session::new(&decoder, &tokenizer, args.kv.format(args.precision));
    session.speculate(args.speculation.with(draft.as_ref(), &decoder))?;
    let tokens = tokenizer.encode_prompt(&prompt)?;
    judge_prompt(&tokens, &tokenizer, &decoder.config)?;
    session.set_tokens(tokens);
    if !args.json {
        output::piece(&prompt);
    }
    let made = session.generate(&mut Sampler::new(config), args.max_tokens, stop, &mut |piece| {
        // A text that nobody sees ends.
        args.json || output::piece(piece)
    })?;
    if args.json {
        let mut value = sampling::made_json(&made);
        value["prompt"] = prompt.into();
        super::say_json(&value);
    } else {
        say!();
        tell!("[{}]", sampling::speed(&made));
    }
    Ok(())
}
