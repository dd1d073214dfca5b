//! The decode loop: prompt in, text out as it comes.

use serde::Serialize;
use std::time::Instant;

use super::Sampler;
use super::speculate::{Proposer, Speculation};
use crate::config::{KvFormat, ModelConfig};
use crate::error::{Error, Result};
use crate::model::{Decoder, KvCache, Span, State, Wanted};
use crate::text::{TokenStream, Tokenizer};

/// Whether a model of that shape can go on from `tokens`.
///
/// # Errors
/// An empty prompt, a token without a row in the model, or no position left to write at.
pub fn judge_prompt(tokens: &[u32], tokenizer: &Tokenizer, model: &ModelConfig) -> Result<()> {
    if tokens.is_empty() {
        return Err(Error::usage("the prompt holds no token: give at least one character"));
    }
    tokenizer.fits("the prompt", tokens.iter().copied(), model.vocab_size)?;
    let (found, positions) = (tokens.len(), model.max_positions);
    if found >= positions {
        return Err(Error::usage(format!("{found} tokens of prompt: the model has {positions} positions")));
    }
    Ok(())
}

/// One conversation with a model: the tokens so far and their cache.
///
/// ```
/// # use ternlm::config::{KvFormat, ModelConfig, Scope};
/// # use ternlm::{model::Decoder, ternary::Grouping};
/// use ternlm::generate::{Sampler, SamplingConfig, Session};
/// use ternlm::text::Tokenizer;
/// # let config = ModelConfig {
/// #     vocab_size: 256, hidden_size: 16, layers: 1, heads: 1, kv_heads: 1, head_dim: 16, intermediate_size: 16,
/// #     tie_embeddings: true, max_positions: 64,
/// #     ..ModelConfig::default()
/// # };
/// # let mut decoder = Decoder::new(&config, Scope::All, Grouping::default());
/// # ternlm::model::Latents::random(decoder.weights_mut(), 0, None)?;
/// // A decoder over bytes; `model::load` reads one from a directory, with the ids that end a text.
/// let tokenizer = Tokenizer::bytes();
/// let mut session = Session::new(&decoder, &tokenizer, KvFormat::F16);
/// session.set_tokens(tokenizer.encode_prompt("To be")?);
/// let mut shown = String::new();
/// let made = session.generate(&mut Sampler::new(SamplingConfig::default()), 8, &[], &mut |piece| {
///     shown.push_str(piece);
///     true
/// })?;
/// assert_eq!((made.prompt_tokens, made.tokens.len(), made.text), (5, 8, shown));
/// assert_eq!(session.tokens().len(), 13, "the next call goes on from here");
/// # Ok::<(), ternlm::Error>(())
/// ```
pub struct Session<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    cache: KvCache,
    state: State,
    /// Prompt and answers so far; all but the last few are in the cache.
    tokens: Vec<u32>,
    proposer: Option<Proposer<'a>>,
}

/// What one call of [`Session::generate`] did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Generated {
    pub tokens: Vec<u32>,
    pub text: String,
    pub prompt_tokens: usize,
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
    /// Tokens that were proposed for the model to judge, and those of them that are part of the text.
    pub proposed: usize,
    pub accepted: usize,
    /// A stop token or the caller ended it, not the limit.
    pub stopped: bool,
}

impl Generated {
    /// Tokens a second after the first one, which the prompt's pass through the model gives.
    pub fn tok_per_s(&self) -> f64 {
        self.tokens.len().saturating_sub(1) as f64 / self.decode_seconds.max(1e-9)
    }
}

impl<'a> Session<'a> {
    /// A conversation that keeps keys and values in this format.
    pub fn new(decoder: &'a Decoder, tokenizer: &'a Tokenizer, kv: KvFormat) -> Self {
        let cache = decoder.cache(kv);
        Self { decoder, tokenizer, cache, state: State::default(), tokens: Vec::new(), proposer: None }
    }

    /// From now on tokens are proposed, as many in a pass as the model judges with the bits that it has for each alone
    /// ([`Decoder::rows_alike`]). What is drawn stays the same, token for token: time alone is saved, or lost.
    ///
    /// # Errors
    /// A draft model of another vocabulary.
    pub fn speculate(&mut self, speculation: Speculation<'a>) -> Result<()> {
        let judged = self.decoder.rows_alike() - 1;
        let vocab = self.decoder.config.vocab_size;
        self.proposer = match speculation {
            Speculation::Off => None,
            _ => Some(Proposer::new(speculation, vocab, judged, self.cache.format())?),
        };
        Ok(())
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Replaces what the model has read; the cache keeps the part that both begin with.
    pub fn set_tokens(&mut self, tokens: Vec<u32>) {
        let same = tokens.iter().zip(&self.tokens).take_while(|(a, b)| a == b).count();
        self.cache.truncate(same);
        self.tokens = tokens;
    }

    /// Draws up to `limit` tokens after those so far. `stop` tokens end the text and are not part of it; `on_text` gets
    /// every piece of whole characters and ends the text by returning false.
    ///
    /// # Errors
    /// An empty prompt, a token without a row in the model, or a sequence that would outgrow the model's positions.
    pub fn generate(
        &mut self,
        sampler: &mut Sampler,
        limit: usize,
        stop: &[u32],
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let config = &self.decoder.config;
        let (vocab, positions) = (config.vocab_size, config.max_positions);
        judge_prompt(&self.tokens, self.tokenizer, config)?;
        sampler.set_prompt(self.tokens.len());
        let start = Instant::now();
        let mut out = Generated { prompt_tokens: self.tokens.len(), ..Generated::default() };
        let mut logits = self.prefill();
        out.prefill_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut stream = TokenStream::after(self.tokenizer, &self.tokens);
        // What the last pass read after the last token: row `i` of the logits stands after the first `i` of them.
        let mut proposed: Vec<u32> = Vec::new();
        'text: while out.tokens.len() < limit {
            let mut accepted = 0;
            for (i, logits) in logits.chunks_exact_mut(vocab).enumerate() {
                // The draw that follows a token without proposals, and so the same draw.
                let token = sampler.sample(logits, &self.tokens);
                if stop.contains(&token) {
                    out.stopped = true;
                    break 'text;
                }
                self.tokens.push(token);
                out.tokens.push(token);
                let agrees = proposed.get(i) == Some(&token);
                accepted += usize::from(agrees);
                out.accepted += usize::from(agrees);
                let piece = stream.push(token);
                out.text.push_str(&piece);
                if !piece.is_empty() && !on_text(&piece) {
                    out.stopped = true;
                    break 'text;
                }
                if self.tokens.len() >= positions || out.tokens.len() >= limit {
                    break 'text;
                }
                if !agrees {
                    break;
                }
            }
            // The last token is to be read; proposals past it were wrong.
            self.cache.truncate(self.tokens.len() - 1);
            let room = (limit - out.tokens.len()).min(positions - self.tokens.len()) - 1;
            let mut read = self.tokens[self.tokens.len() - 1..].to_vec();
            if let Some(proposer) = &mut self.proposer {
                proposer.judged(proposed.len(), accepted);
                proposed = proposer.propose(&self.tokens, room);
                out.proposed += proposed.len();
                read.extend(&proposed);
            }
            let span = Span { tokens: &read, cache: &mut self.cache, wanted: Wanted::All };
            logits = self.decoder.advance(&mut [span], &mut self.state);
        }
        // With and without proposals the next call finds the same cache.
        self.cache.truncate(self.tokens.len() - 1);
        let rest = stream.finish();
        out.text.push_str(&rest);
        if !rest.is_empty() {
            on_text(&rest);
        }
        out.decode_seconds = start.elapsed().as_secs_f64();
        Ok(out)
    }

    /// Brings the cache up to the last token; the logits after it.
    fn prefill(&mut self) -> Vec<f32> {
        // The last token goes through the model in any case: its logits are wanted.
        self.cache.truncate(self.tokens.len() - 1);
        self.decoder.read(&self.tokens[self.cache.len()..], &mut self.cache, &mut self.state)
    }
}
