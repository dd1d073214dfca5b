//! What the tokens of a tokenizer are to grammars.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};

use super::tools::CallForm;
use crate::text::Tokenizer;

/// What a tokenizer's tokens are to grammars. Rows of the model without a token are never allowed.
/// Special tokens that `calls` is written with are text.
pub fn factory(
    tokenizer: &Tokenizer,
    vocab: usize,
    calls: Option<&CallForm>,
) -> Result<ParserFactory, String> {
    let written = |token: &[u8]| {
        calls.is_some_and(|form| std::str::from_utf8(token).is_ok_and(|token| form.is_written_with(token)))
    };
    let bytes = |id: u32| {
        let text = tokenizer.token_bytes(id);
        if tokenizer.stop_ids().contains(&id) || tokenizer.is_special(id) && !written(&text) {
            return [&[TokTrie::SPECIAL_TOKEN_MARKER], &text[..]].concat();
        }
        text
    };
    let mut words: Vec<Vec<u8>> = (0..vocab as u32).map(bytes).collect();
    // A model that never ends a text gets a token for it that no draw can choose.
    let stops: Vec<u32> = tokenizer.stop_ids().iter().copied().filter(|&id| (id as usize) < vocab).collect();
    let stops = if stops.is_empty() {
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], &b"<end>"[..]].concat());
        vec![vocab as u32]
    } else {
        stops
    };
    let info = TokRxInfo::new(words.len() as u32, stops[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&stops);
    let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
    factory.quiet();
    // Errors go to strangers: without what the parser holds. A state takes 1 to 2 kB.
    *factory.limits_mut() =
        ParserLimits { verbose_errors: false, max_lexer_states: 20_000, ..ParserLimits::default() };
    Ok(factory)
}
