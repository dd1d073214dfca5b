//! Incremental decoding: text as soon as it is certain.

use super::decoder::Decoders;
use super::tokenizer::Tokenizer;

/// Turns ids into text one at a time. What [`TokenStream::push`] returns is always whole characters; their sequence,
/// with that of [`TokenStream::finish`], is what [`Tokenizer::decode`] gives for all ids at once.
///
/// Held back are the bytes of an unfinished character and, under a SentencePiece tokenizer, a run of byte tokens: one wrong
/// byte makes all of it U+FFFD.
pub struct TokenStream {
    tokenizer: Tokenizer,
    state: State,
    /// Text that belongs to the tokens before this stream.
    before: usize,
}

enum State {
    /// Decoding is concatenation; the start of an unfinished character.
    Bytes(Vec<u8>),
    Chain(Decoders),
    /// A chain that only the tokenizers crate knows: decoded at the end.
    Whole(Vec<u32>),
}

impl TokenStream {
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let state = match tokenizer.decoders() {
            None => State::Bytes(Vec::new()),
            Some(Some(chain)) => State::Chain(chain.clone()),
            Some(None) => State::Whole(Vec::new()),
        };
        TokenStream { tokenizer: tokenizer.clone(), state, before: 0 }
    }

    /// A stream whose text begins after that of `ids`, which [`Tokenizer::decode`] gives: a character that they leave
    /// unfinished is finished here, and a space that only the beginning of a text loses stays.
    pub fn after(tokenizer: &Tokenizer, ids: &[u32]) -> Self {
        let mut stream = Self::new(tokenizer);
        for &id in ids {
            stream.push(id);
        }
        match &mut stream.state {
            State::Bytes(_) => {}
            State::Chain(chain) => chain.settle(),
            State::Whole(ids) => stream.before = tokenizer.decode(ids).len(),
        }
        stream
    }

    /// The text that `id` makes certain.
    pub fn push(&mut self, id: u32) -> String {
        match &mut self.state {
            State::Bytes(pending) => {
                pending.extend_from_slice(self.tokenizer.bytes_of(id));
                take_whole(pending)
            }
            State::Chain(chain) => {
                let mut text = String::new();
                if let Some(token) = self.tokenizer.token(id) {
                    chain.push(token, &mut text);
                }
                text
            }
            State::Whole(ids) => {
                ids.push(id);
                String::new()
            }
        }
    }

    /// What is left: the bytes of an unfinished character become U+FFFD.
    pub fn finish(self) -> String {
        match self.state {
            State::Bytes(pending) => String::from_utf8_lossy(&pending).into_owned(),
            State::Chain(chain) => {
                let mut text = String::new();
                chain.finish(&mut text);
                text
            }
            State::Whole(ids) => {
                let text = self.tokenizer.decode(&ids);
                text.get(self.before..).unwrap_or_default().to_string()
            }
        }
    }
}

/// Takes the whole characters off `pending`, invalid bytes as U+FFFD in the way of `String::from_utf8_lossy`.
pub fn take_whole(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let rest = &pending[used..];
        match std::str::from_utf8(rest) {
            Err(e) if e.valid_up_to() == 0 && e.error_len().is_none() => break,
            _ if chunk.invalid().is_empty() => {}
            _ => {
                text.push(char::REPLACEMENT_CHARACTER);
                used += chunk.invalid().len();
            }
        }
    }
    pending.drain(..used);
    text
}
