//! `ternlm chat`

use clap::Args;
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use super::output;
use super::sampling::{self, SamplingArgs};
use super::speculation::SpeculationArgs;
use crate::chat::{ChatTemplate, Message};
use crate::error::{Error, Result};
use crate::generate::{Generated, Sampler, Session};
use crate::text::Tokenizer;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm chat MODEL
  ternlm chat MODEL --system 'Answer in one sentence.' --temperature 0.7 --top-p 0.9
  ternlm chat MODEL --message 'What is a trit?' --message 'And a bit?' --json
  ternlm chat runs/wiki-75m --template chat.jinja
  ternlm chat MODEL --lookup
  ternlm chat qwen3-8b.tern --draft qwen3-0.6b.tern

Typed in a line of their own, /reset starts a new conversation and /exit ends it.")]
pub struct ChatArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    model: PathBuf,
    /// What inputs of ternary products are rounded to
    #[arg(long, value_enum, default_value = "int8")]
    precision: super::Precision,
    #[command(flatten)]
    kv: super::KvArgs,
    /// What the model is told before the conversation
    #[arg(long)]
    system: Option<String>,
    /// Say this and end, instead of reading standard input; may be repeated, for several turns
    #[arg(long, short, value_name = "TEXT")]
    message: Vec<String>,
    /// A Jinja chat template to use instead of the model's
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Most tokens of one answer
    #[arg(long, short = 'n', default_value_t = 512)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    /// Print the conversation, tokens and speed as JSON when done
    #[arg(long, requires = "message")]
    json: bool,
}

pub fn run(args: ChatArgs) -> Result<()> {
    let dir = super::model_dir(&args.model)?;
    let config = args.sampling.config()?;
    let tokenizer = super::tokenizer_of(&dir)?;
    let template = match &args.template {
        Some(file) => ChatTemplate::from_file(file, &tokenizer)?,
        None => ChatTemplate::of(&tokenizer)?.ok_or_else(|| {
            let wanted = "one: continue texts with `ternlm generate`, or name a template (--template FILE)";
            Error::input(&dir, "chat template", "none", wanted)
        })?,
    };
    let decoder = super::load_packed(&dir, args.precision)?;
    let draft = args.speculation.draft(&dir, &tokenizer, args.precision)?;
    let mut session = Session::new(&decoder, &tokenizer, args.kv.format(args.precision));
    session.speculate(args.speculation.with(draft.as_ref(), &decoder))?;
    let messages: Vec<Message> = args.system.map(|text| Message::new("system", text)).into_iter().collect();
    let mut chat = Chat {
        session,
        tokenizer: &tokenizer,
        template,
        start: messages.len(),
        messages,
        sampler: Sampler::new(config),
        max_tokens: args.max_tokens,
    };
    if args.message.is_empty() {
        return converse(&mut chat);
    }
    let mut turns = Vec::new();
    for text in args.message {
        if args.json {
            turns.push(sampling::made_json(&chat.answer(text, &mut |_| true)?));
        } else {
            show_answer(&mut chat, text)?;
        }
    }
    if args.json {
        super::say_json(&json!({ "messages": chat.messages, "turns": turns }));
    }
    Ok(())
}

/// Turns from standard input, a line each, until it ends.
fn converse(chat: &mut Chat<'_>) -> Result<()> {
    let stdin = std::io::stdin();
    let terminal = stdin.is_terminal();
    if terminal {
        tell!("[/reset starts a new conversation, /exit ends it]");
    }
    loop {
        if terminal {
            let _ = write!(std::io::stderr(), "> ");
        }
        let mut line = String::new();
        if stdin.lock().read_line(&mut line).map_err(Error::io("read", "standard input"))? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/reset" => {
                chat.messages.truncate(chat.start);
                tell!("[a new conversation]");
            }
            text => match show_answer(chat, text.to_string()) {
                // The message is forgotten: a shorter one, or a new conversation, may do.
                Err(error @ Error::Usage(_)) if terminal => tell!("error: {error}"),
                other => other?,
            },
        }
        if !output::piece("") {
            return Ok(());
        }
    }
}

/// Answers on standard output as the text comes.
fn show_answer(chat: &mut Chat<'_>, text: String) -> Result<()> {
    // A text that nobody sees ends.
    let made = chat.answer(text, &mut output::piece)?;
    say!();
    tracing::info!("{}", sampling::speed(&made));
    Ok(())
}

struct Chat<'a> {
    session: Session<'a>,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    messages: Vec<Message>,
    /// Messages that every conversation begins with.
    start: usize,
    sampler: Sampler,
    max_tokens: usize,
}

impl Chat<'_> {
    /// One turn. A message that cannot be answered is taken back.
    fn answer(&mut self, text: String, on_text: &mut dyn FnMut(&str) -> bool) -> Result<Generated> {
        self.messages.push(Message::new("user", text));
        let made = self.generate(on_text).inspect_err(|_| drop(self.messages.pop()))?;
        self.messages.push(Message::new("assistant", made.text.clone()));
        Ok(made)
    }

    fn generate(&mut self, on_text: &mut dyn FnMut(&str) -> bool) -> Result<Generated> {
        let prompt = self.template.render(&self.messages, true)?;
        // The template has written the special tokens already.
        self.session.set_tokens(self.tokenizer.encode(&prompt)?);
        self.session.generate(&mut self.sampler, self.max_tokens, self.tokenizer.stop_ids(), on_text)
    }
}
