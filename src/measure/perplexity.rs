//! How well a model predicts a text.

use serde::Serialize;

use crate::config::KvFormat;
use crate::kernels::{IGNORE, cross_entropy};
use crate::model::{Decoder, Loss, Sequences, Span, State, Wanted};
use crate::text::Reading;

/// Measured over a whole text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Nats per predicted token.
    pub nll: f64,
    /// `e^nll`
    pub ppl: f64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Most tokens a prediction could see.
    pub context: usize,
    /// Tokens predicted per window.
    pub stride: usize,
    /// Nats in all.
    pub sum: f64,
    /// UTF-8 bytes of the text that the predicted tokens stand for; 0 where that is not known.
    pub bytes: u64,
    /// Words of it, by the WikiText convention ([`crate::text::Extent`]).
    pub words: u64,
}

impl Perplexity {
    pub fn bits_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.sum / std::f64::consts::LN_2 / self.bytes as f64)
    }

    pub fn per_word(&self) -> Option<f64> {
        (self.words > 0).then(|| (self.sum / self.words as f64).exp())
    }
}

/// [`perplexity`], or with a format of keys and values [`perplexity_cached`], of a text that was read, with its bytes and
/// words.
pub fn perplexity_of(
    decoder: &Decoder,
    reading: &Reading,
    context: usize,
    stride: usize,
    kv: Option<KvFormat>,
    progress: &mut dyn FnMut(u64),
) -> Perplexity {
    let extent = reading.extent_from(1);
    let measured = match kv {
        None => perplexity(decoder, &reading.ids, context, stride, progress),
        Some(kv) => perplexity_cached(decoder, &reading.ids, context, stride, kv, progress),
    };
    Perplexity { bytes: extent.bytes, words: extent.words, ..measured }
}

/// Scores every token of `tokens` but the first, once, in windows of `context` tokens that advance by `stride`: a
/// window predicts its last `stride` tokens, so that each sees at least `context - stride` tokens before it.
/// `progress` is told how many tokens were done since it was last called.
///
/// ```
/// # use ternlm::config::{Activation, ModelConfig, Scope};
/// # use ternlm::{measure, model::Decoder, ternary::Grouping};
/// # let config = ModelConfig {
/// #     vocab_size: 256, hidden_size: 16, layers: 1, heads: 1, kv_heads: 1, head_dim: 16, intermediate_size: 16,
/// #     activation: Activation::SwiGlu, qk_norm: false, qkv_bias: false, o_bias: false, mlp_bias: false, sub_norm: false,
/// #     causal: true, tie_embeddings: false, rope_theta: 1e4, rms_norm_eps: 1e-6, max_positions: 64, rope_scaling: None,
/// # };
/// // Weights of zero give every one of 256 tokens the same probability.
/// let decoder = Decoder::new(&config, Scope::None, Grouping::default());
/// let tokens: Vec<u32> = b"one token is one byte".map(u32::from).to_vec();
/// let p = measure::perplexity(&decoder, &tokens, 8, 4, &mut |_| {});
/// assert_eq!((p.tokens, p.context, p.stride), (20, 8, 4));
/// assert!((p.ppl - 256.0).abs() < 1e-3 && (p.sum / 20.0 - 256f64.ln()).abs() < 1e-5);
/// ```
///
/// # Panics
/// On a context or stride of 0, a stride above the context, or a token outside the vocabulary.
pub fn perplexity(
    decoder: &Decoder,
    tokens: &[u32],
    context: usize,
    stride: usize,
    progress: &mut dyn FnMut(u64),
) -> Perplexity {
    let mut state = State::default();
    let score = |inputs: &[u32], targets: &[u32], len: usize| {
        decoder.loss(inputs, targets, Sequences::new(inputs.len() / len, len), &mut state)
    };
    in_windows(tokens, context, stride, score, progress)
}

/// [`perplexity`] as generation would have it: through a cache that keeps keys and values in this format.
///
/// # Panics
/// As [`perplexity`].
pub fn perplexity_cached(
    decoder: &Decoder,
    tokens: &[u32],
    context: usize,
    stride: usize,
    kv: KvFormat,
    progress: &mut dyn FnMut(u64),
) -> Perplexity {
    let mut state = State::default();
    let score = |inputs: &[u32], targets: &[u32], len: usize| {
        let mut loss = Loss::default();
        for (inputs, targets) in inputs.chunks(len).zip(targets.chunks(len)) {
            let mut cache = decoder.cache(kv);
            // Logits are as many as the vocabulary: some rows at a time.
            for (tokens, targets) in inputs.chunks(ROWS).zip(targets.chunks(ROWS)) {
                let span = Span { tokens, cache: &mut cache, wanted: Wanted::All };
                let mut logits = decoder.advance(&mut [span], &mut state);
                let (vocab, mut losses) = (decoder.config.vocab_size, vec![0.0; targets.len()]);
                cross_entropy(&mut logits, vocab, vocab, targets, None, &mut losses);
                let count = targets.iter().filter(|target| **target != IGNORE).count();
                loss += Loss { sum: losses.iter().map(|loss| *loss as f64).sum(), count };
            }
        }
        loss
    };
    in_windows(tokens, context, stride, score, progress)
}

/// Rows whose logits are in memory at once.
const ROWS: usize = 128;

/// Adds up what `score` says of equal windows: their inputs, what each is to predict or [`IGNORE`], and their length.
fn in_windows(
    tokens: &[u32],
    context: usize,
    stride: usize,
    mut score: impl FnMut(&[u32], &[u32], usize) -> Loss,
    progress: &mut dyn FnMut(u64),
) -> Perplexity {
    assert!(context > 0 && (1..=context).contains(&stride), "context {context}, stride {stride}");
    let mut loss = Loss::default();
    let mut scored = 0; // positions whose next token has been predicted
    let predictions = tokens.len().saturating_sub(1);
    // Equal windows go through the model together.
    let together = (2048 / context).max(1);
    while scored < predictions {
        let window = |scored: usize| {
            let end = (scored + if scored == 0 { context } else { stride }).min(predictions);
            (end.saturating_sub(context), end)
        };
        let (begin, end) = window(scored);
        let len = end - begin;
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        let mut next = scored;
        for _ in 0..together {
            let (begin, end) = window(next);
            if next >= predictions || end - begin != len {
                break;
            }
            inputs.extend_from_slice(&tokens[begin..end]);
            targets.extend((begin..end).map(|i| if i < next { IGNORE } else { tokens[i + 1] }));
            next = end;
        }
        loss += score(&inputs, &targets, len);
        progress((next - scored) as u64);
        scored = next;
    }
    let nll = loss.mean();
    let (ppl, tokens, sum) = (nll.exp(), loss.count as u64, loss.sum);
    Perplexity { nll, ppl, tokens, context, stride, sum, bytes: 0, words: 0 }
}
