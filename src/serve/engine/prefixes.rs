//! Beginnings of prompts whose keys and values are kept for the prompts to come.

use std::collections::VecDeque;

use crate::model::KvCache;

/// Prefixes that are kept at most; the pool's pages are the bound that matters.
const MOST: usize = 256;

/// Prefixes of whole chunks; the last one was used last.
pub struct Prefixes {
    chunk: usize,
    kept: VecDeque<(Vec<u32>, KvCache)>,
}

impl Prefixes {
    pub fn new(chunk: usize) -> Self {
        Self { chunk, kept: VecDeque::new() }
    }

    /// The longest beginning of `tokens`, of whole chunks and longer than `than`, that is kept.
    pub fn longest(&mut self, tokens: &[u32], than: usize) -> Option<KvCache> {
        let same = |kept: &[u32]| kept.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let lengths = self.kept.iter().map(|(kept, _)| same(kept) / self.chunk * self.chunk);
        let (len, at) = lengths.zip(0..).max()?;
        if len <= than {
            return None;
        }
        let used = self.kept.remove(at)?;
        let fork = used.1.fork(len);
        self.kept.push_back(used);
        Some(fork)
    }

    /// Keeps what a cache holds of `tokens`, if that is whole chunks. What it goes on from is kept with it.
    pub fn keep(&mut self, tokens: &[u32], cache: &KvCache) {
        if tokens.is_empty() || !tokens.len().is_multiple_of(self.chunk) {
            return;
        }
        self.kept.retain(|(kept, _)| !tokens.starts_with(kept));
        if let Some(at) = self.kept.iter().position(|(kept, _)| kept.starts_with(tokens)) {
            let longer = self.kept.remove(at).expect("just found");
            return self.kept.push_back(longer);
        }
        if self.kept.len() == MOST {
            self.drop_oldest();
        }
        self.kept.push_back((tokens.to_vec(), cache.fork(tokens.len())));
    }

    /// Gives up the prefix that was not used for the longest time; `false` if there is none.
    pub fn drop_oldest(&mut self) -> bool {
        self.kept.pop_front().is_some()
    }
}
