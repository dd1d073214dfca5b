//! A stored model loaded, proved to be ternary, and used: a directory, a packed or GGUF file, or the folder of a run.
//!
//!     cargo run --release -- train copy
//!     cargo run --release --example run_model runs/copy/model

use std::io::Write;
use ternlm::config::KvFormat;
use ternlm::formats;
use ternlm::generate::{Sampler, SamplingConfig, Session};
use ternlm::measure;
use ternlm::model::{self, Sequences, State};
use ternlm::text::Tokenizer;
use ternlm::{Error, Result};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or_else(|| Error::usage("usage: run_model MODEL [PROMPT]"))?;
    let path = ternlm::cli::model_dir(path.as_ref())?;
    let prompt = args.next().unwrap_or("Once upon a time".into());

    let proof = measure::verify(&path, &mut |_| {})?;
    let total = proof.total();
    println!(
        "{}: {} weights in {} tensors: {} are -1, {} are 0, {} are +1",
        if proof.pass { "ternary" } else { "NOT TERNARY" },
        total.weights(),
        proof.tensors.len(),
        total.minus,
        total.zero,
        total.plus
    );
    if !proof.pass {
        return Err(Error::CheckFailed(format!("{} is not what it claims to be", path.display())));
    }

    // A ternary tensor has trits and scales; there are no latents.
    let decoder = model::load(&path, None)?.decoder;
    let files = formats::files_of(&path)?;
    if !Tokenizer::is_in(&files) {
        // A synthetic task has tokens without a text.
        let vocab = decoder.config.vocab_size as u32;
        let tokens: Vec<u32> = (0..16).map(|i| (37 * i + 11) % vocab).collect();
        let seqs = Sequences::new(1, tokens.len());
        let predicted = decoder.predict(&tokens, seqs, &mut State::default());
        println!("tokens     {tokens:?}\npredicted  {predicted:?}");
        return Ok(());
    }
    let tokenizer = Tokenizer::of(&files)?;
    let mut session = Session::new(&decoder, &tokenizer, KvFormat::F16);
    session.set_tokens(tokenizer.encode_prompt(&prompt)?);
    let mut sampler = Sampler::new(SamplingConfig { temperature: 0.8, ..SamplingConfig::default() });
    print!("{prompt}");
    session.generate(&mut sampler, 200, tokenizer.stop_ids(), &mut |piece| {
        print!("{piece}");
        std::io::stdout().flush().is_ok()
    })?;
    println!();
    Ok(())
}
