//! Incremental decoding: text as soon as it is whole.

use super::tokenizer::Tokenizer;

/// Longest wait for the rest of a character, in tokens: a character has at most 4 bytes.
const MAX_WAIT: usize = 8;

/// Turns ids into text one at a time. What [`TokenStream::push`] returns is always whole characters; their sequence,
/// with that of [`TokenStream::finish`], is what [`Tokenizer::decode`] gives for all ids at once. (Exception: after
/// invalid bytes a SentencePiece tokenizer may decode differently as a whole than in parts.)
pub struct TokenStream {
    tokenizer: Tokenizer,
    /// Byte-level tokenizers: the start of an unfinished character.
    pending: Vec<u8>,
    /// Other tokenizers: `ids[..read]` have been given out; they stay because decoding depends on the tokens before.
    ids: Vec<u32>,
    read: usize,
}

impl TokenStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        TokenStream { tokenizer, pending: Vec::new(), ids: Vec::new(), read: 0 }
    }

    /// The text that `id` completes: empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_byte_level() {
            self.tokenizer.push_bytes(id, &mut self.pending);
            return self.take_whole();
        }
        self.ids.push(id);
        let (before, after) = self.decoded();
        let waiting = self.ids.len() - self.read;
        if after.len() <= before || after.ends_with(char::REPLACEMENT_CHARACTER) && waiting < MAX_WAIT {
            // Tokens without any text (special ones in some decoders) must not pile up.
            if waiting >= MAX_WAIT {
                self.advance();
            }
            return String::new();
        }
        self.advance();
        after.get(before..).unwrap_or_default().to_string()
    }

    /// What is left: the bytes of an unfinished character become U+FFFD. The stream then starts anew.
    pub fn finish(&mut self) -> String {
        let bytes = std::mem::take(&mut self.pending);
        if self.tokenizer.is_byte_level() {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        let (before, after) = self.decoded();
        self.ids.clear();
        self.read = 0;
        after.get(before..).unwrap_or_default().to_string()
    }

    /// Length of the text of the ids given out, and the text of all ids kept.
    fn decoded(&self) -> (usize, String) {
        (self.tokenizer.decode(&self.ids[..self.read]).len(), self.tokenizer.decode(&self.ids))
    }

    /// The ids that were new become the context of the next ones.
    fn advance(&mut self) {
        self.ids.drain(..self.read);
        self.read = self.ids.len();
    }

    /// Takes the whole characters off `pending`, invalid bytes as U+FFFD in the way of `String::from_utf8_lossy`.
    fn take_whole(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let rest = &self.pending[used..];
            match std::str::from_utf8(rest) {
                Err(e) if e.valid_up_to() == 0 && e.error_len().is_none() => break,
                _ if chunk.invalid().is_empty() => {}
                _ => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    used += chunk.invalid().len();
                }
            }
        }
        self.pending.drain(..used);
        text
    }
}
