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
    /// ```
    /// # use ternlm::measure::Perplexity;
    /// // Eight tokens of a bit each for four bytes, which are two words.
    /// let sum = 8.0 * 2f64.ln();
    /// let measured = Perplexity { nll: sum / 8.0, ppl: 2.0, tokens: 8, context: 9, stride: 1, sum, bytes: 4, words: 2 };
    /// assert_eq!(measured.bits_per_byte(), Some(2.0));
    /// assert!((measured.per_word().unwrap() - 16.0).abs() < 1e-9);
    /// ```
    pub fn bits_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.sum / std::f64::consts::LN_2 / self.bytes as f64)
    }

    pub fn per_word(&self) -> Option<f64> {
        (self.words > 0).then(|| (self.sum / self.words as f64).exp())
    }
}

/// Which windows of a text go through the model, and which of their tokens are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Windows of `context` tokens that advance by `stride`: every token but the first is scored, once, by a window that shows at
    /// least `context - stride` tokens before it, or all that there are.
    Sliding { context: usize, stride: usize },
    /// Windows of `context` tokens one after the other, each for itself, of which the last `context - context / 2 - 1` are
    /// scored: the figure of llama.cpp's perplexity tool. `first`: what stands in the place of each window's first token.
    Halves { context: usize, first: Option<u32> },
}

impl Windows {
    /// Most tokens of a window.
    pub fn context(self) -> usize {
        match self {
            Windows::Sliding { context, .. } | Windows::Halves { context, .. } => context,
        }
    }
}

/// [`perplexity`] of a text that was read. Bytes and words are counted where every token is scored.
pub fn perplexity_of(
    decoder: &Decoder,
    reading: &Reading,
    windows: Windows,
    kv: Option<KvFormat>,
    progress: &mut dyn FnMut(u64),
) -> Perplexity {
    let measured = perplexity(decoder, &reading.ids, windows, kv, progress);
    match windows {
        Windows::Sliding { .. } => {
            let extent = reading.extent_from(1);
            Perplexity { bytes: extent.bytes, words: extent.words, ..measured }
        }
        Windows::Halves { .. } => measured,
    }
}

/// Rows whose logits are in memory at once.
const ROWS: usize = 128;

/// One window: its tokens, and the first position whose next token is scored.
struct Window {
    begin: usize,
    end: usize,
    scored: usize,
}

impl Windows {
    /// The window after `last`, in which the model sees no more than `predictions` tokens of the text.
    fn after(self, last: Option<&Window>, predictions: usize) -> Option<Window> {
        let done = last.map_or(0, |last| last.end);
        match self {
            Windows::Sliding { context, stride } => {
                let end = (done + if done == 0 { context } else { stride }).min(predictions);
                (done < predictions).then(|| Window { begin: end.saturating_sub(context), end, scored: done })
            }
            // The last token of each is only predicted.
            Windows::Halves { context, .. } => {
                let begin = last.map_or(0, |last| last.end + 1);
                let end = begin + context - 1;
                (end <= predictions).then_some(Window { begin, end, scored: begin + context / 2 })
            }
        }
    }
}

/// Scores `tokens` in windows: whole ones, or with a format of keys and values as generation would have it, through a cache
/// that keeps them so. `progress` is told how many tokens were done since it was last called.
///
/// ```
/// # use ternlm::config::{ModelConfig, Scope};
/// # use ternlm::measure::{self, Windows};
/// # use ternlm::{model::Decoder, ternary::Grouping};
/// # let config = ModelConfig {
/// #     vocab_size: 256, hidden_size: 16, layers: 1, heads: 1, kv_heads: 1, head_dim: 16, intermediate_size: 16,
/// #     max_positions: 64,
/// #     ..ModelConfig::default()
/// # };
/// // Weights of zero give every one of 256 tokens the same probability.
/// let decoder = Decoder::new(&config, Scope::None, Grouping::default());
/// let tokens: Vec<u32> = b"one token is one byte".map(u32::from).to_vec();
/// let windows = Windows::Sliding { context: 8, stride: 4 };
/// let p = measure::perplexity(&decoder, &tokens, windows, None, &mut |_| {});
/// assert_eq!((p.tokens, p.context, p.stride), (20, 8, 4));
/// assert!((p.ppl - 256.0).abs() < 1e-3 && (p.sum / 20.0 - 256f64.ln()).abs() < 1e-5);
/// ```
///
/// # Panics
/// On a context or stride of 0, a stride above the context, or a token outside the vocabulary.
pub fn perplexity(
    decoder: &Decoder,
    tokens: &[u32],
    windows: Windows,
    kv: Option<KvFormat>,
    progress: &mut dyn FnMut(u64),
) -> Perplexity {
    let context = windows.context();
    let (stride, first) = match windows {
        Windows::Sliding { stride, .. } => (stride, None),
        Windows::Halves { first, .. } => (context, first),
    };
    assert!(context > 0 && (1..=context).contains(&stride), "context {context}, stride {stride}");
    let (mut loss, mut state) = (Loss::default(), State::default());
    let predictions = tokens.len().saturating_sub(1);
    // Equal windows go through the model together.
    let together = (2048 / context).max(1);
    let (mut next, mut told) = (windows.after(None, predictions), 0);
    while let Some(window) = &next {
        let len = window.end - window.begin;
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        let mut passed = told;
        for _ in 0..together {
            let Some(window) = next.as_ref().filter(|window| window.end - window.begin == len) else { break };
            let at = inputs.len();
            inputs.extend_from_slice(&tokens[window.begin..window.end]);
            if let Some(first) = first {
                inputs[at] = first;
            }
            let targets_of =
                (window.begin..window.end).map(|i| if i < window.scored { IGNORE } else { tokens[i + 1] });
            targets.extend(targets_of);
            passed = window.end;
            next = windows.after(next.as_ref(), predictions);
        }
        loss += score(decoder, &inputs, &targets, len, kv, &mut state);
        progress((passed - told) as u64);
        told = passed;
    }
    let nll = loss.mean();
    let (ppl, tokens, sum) = (nll.exp(), loss.count as u64, loss.sum);
    Perplexity { nll, ppl, tokens, context, stride, sum, bytes: 0, words: 0 }
}

/// The loss of windows of `len` tokens, of which each target is to be predicted that is not [`IGNORE`].
fn score(
    decoder: &Decoder,
    inputs: &[u32],
    targets: &[u32],
    len: usize,
    kv: Option<KvFormat>,
    state: &mut State,
) -> Loss {
    let Some(kv) = kv else {
        return decoder.loss(inputs, targets, Sequences::new(inputs.len() / len, len), state);
    };
    let mut loss = Loss::default();
    for (inputs, targets) in inputs.chunks(len).zip(targets.chunks(len)) {
        let mut cache = decoder.cache(kv);
        // Logits are as many as the vocabulary: some rows at a time.
        for (tokens, targets) in inputs.chunks(ROWS).zip(targets.chunks(ROWS)) {
            let span = Span { tokens, cache: &mut cache, wanted: Wanted::All };
            let mut logits = decoder.advance(&mut [span], state);
            let (vocab, mut losses) = (decoder.config.vocab_size, vec![0.0; targets.len()]);
            cross_entropy(&mut logits, vocab, vocab, targets, None, &mut losses);
            let count = targets.iter().filter(|target| **target != IGNORE).count();
            let sum = losses.iter().map(|loss| *loss as f64).sum();
            loss += Loss { sum, count, ..Loss::default() };
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelConfig, Scope};
    use crate::ternary::Grouping;
    use crate::text::Tokenizer;

    /// By the description of llama.cpp's tool: of every whole window of 8, tokens 5, 6 and 7 are scored.
    #[test]
    fn halves_are_those_of_disjoint_windows() {
        let config = ModelConfig {
            vocab_size: 256,
            hidden_size: 16,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            intermediate_size: 16,
            max_positions: 64,
            ..ModelConfig::default()
        };
        let mut decoder = Decoder::new(&config, Scope::None, Grouping::default());
        for weight in decoder.weights_mut() {
            let values = weight.normal(0.3, 5);
            weight.set(&values).unwrap();
        }
        let reading = Reading::of_text("twenty-seven bytes are here", &Tokenizer::bytes()).unwrap();
        assert_eq!(reading.ids.len(), 27);
        for first in [None, Some(7)] {
            let (mut sum, mut count) = (0.0, 0);
            for window in reading.ids.chunks_exact(8) {
                let mut inputs = window.to_vec();
                inputs[0] = first.unwrap_or(inputs[0]);
                let logits = decoder.logits(&inputs, Sequences::new(1, 8), &mut State::default());
                for at in 5..8 {
                    let row = &logits[(at - 1) * 256..at * 256];
                    let all: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                    sum += all.ln() - f64::from(row[window[at] as usize]);
                    count += 1;
                }
            }
            let windows = Windows::Halves { context: 8, first };
            for kv in [None, Some(KvFormat::F32)] {
                let mut told = 0;
                let p = perplexity_of(&decoder, &reading, windows, kv, &mut |n| told += n);
                assert_eq!((p.tokens, count, p.bytes), (9, 9, 0));
                assert!((p.nll - sum / 9.0).abs() < 1e-5, "{} and {}", p.nll, sum / 9.0);
                assert!(told <= 27 && told > 20);
            }
        }
    }
}
