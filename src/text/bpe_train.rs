//! Training of a byte-level BPE vocabulary.
//!
//! Text is cut into words by GPT-2's pattern; a word is a sequence of tokens, at first its bytes. Each step merges
//! the most frequent pair of neighbours everywhere. Of equally frequent pairs the one whose byte strings are
//! lexicographically greater wins (left strings first), so the result does not depend on the order of the text.

use rayon::prelude::*;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use tokenizers::utils::SysRegex;

use super::alphabet::{byte_order, to_chars};
use super::builtin::{END_OF_TEXT, byte_level_json};
use super::documents::training_texts;
use super::parallel_cuts::Cut;
use super::sources;
use super::tokenizer::Tokenizer;
use crate::config::DataConfig;
use crate::config::patterns::GPT2;
use crate::{Error, Result};

/// Text gathered before its words are counted in parallel, and the share of one task, in bytes.
const BATCH: usize = if cfg!(fuzzing) { 97 } else { 8 << 20 };
const CHUNK: usize = if cfg!(fuzzing) { 11 } else { 256 << 10 };
const MAX_VOCAB: usize = 1 << 20;

/// What vocabulary to train.
#[derive(Clone, Debug)]
pub struct BpeTrainer {
    /// Entries wanted: the special tokens, the 256 bytes, and one for each merge.
    pub vocab_size: usize,
    /// Special tokens. They get the first ids, cut the text where they occur, and are never merged. The first one
    /// ends a text.
    pub special: Vec<String>,
}

/// Words (as bytes) and how often they occur.
type Words = HashMap<Box<[u8]>, u64>;
type Pair = (u32, u32);

impl BpeTrainer {
    /// A vocabulary of `size` entries, the first one `<|endoftext|>`, of the text that `data` trains on, without its
    /// [end](DataConfig::trained_share), where some of the tokens will be held out.
    ///
    /// # Errors
    /// Those of [`BpeTrainer::train`], and files that cannot be read.
    pub fn of_training_text(
        data: &DataConfig,
        size: usize,
        progress: impl FnMut(u64, u64),
    ) -> Result<Tokenizer> {
        let texts = || Ok(training_texts(sources::list(&data.train)?, &data.field));
        let mut left = usize::MAX;
        if data.trained_share() < 1.0 {
            let lengths = texts()?.map(|text| text.map(|text| text.len()));
            let all: usize = lengths.sum::<Result<usize>>()?;
            left = (all as f64 * data.trained_share()) as usize;
        }
        let trained = texts()?.map_while(|text| {
            let cut = text.map(|mut text| {
                let end = (0..=left.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
                text.truncate(end.expect("0 is a boundary"));
                left -= text.len();
                text
            });
            cut.as_ref().map_or(true, |text| !text.is_empty()).then_some(cut)
        });
        let trainer = Self { vocab_size: size, special: vec![END_OF_TEXT.into()] };
        trainer.train(trained, progress)
    }

    /// Trains on `texts`; `progress(entries, wanted)` is called as the vocabulary grows. The result has fewer entries
    /// than wanted when no pair is left to merge.
    ///
    /// # Errors
    /// A vocabulary too small for the bytes, unusable special tokens, an error among `texts`, or no text at all.
    pub fn train(
        &self,
        texts: impl Iterator<Item = Result<String>>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Tokenizer> {
        let least = self.special.len() + 256;
        if !(least..=MAX_VOCAB).contains(&self.vocab_size) {
            let size = self.vocab_size;
            return Err(Error::usage(format!(
                "a vocabulary of {size}: wanted {least} (256 bytes and the special tokens) to {MAX_VOCAB}"
            )));
        }
        let byte = |token: &String| (0..=u8::MAX).any(|byte| *token == to_chars(&[byte]));
        for (i, token) in self.special.iter().enumerate() {
            if token.is_empty() || byte(token) || self.special[..i].contains(token) {
                return Err(Error::usage(format!(
                    "special tokens: found {token:?}, wanted a text that is neither a byte's nor there already"
                )));
            }
        }
        let words = self.count_words(texts)?;
        if words.is_empty() {
            return Err(Error::usage("the files hold no text to make a vocabulary of"));
        }
        let mut merger = Merger::new(words);
        let wanted = self.vocab_size - self.special.len();
        while merger.tokens.len() < wanted && merger.step() {
            progress((merger.tokens.len() + self.special.len()) as u64, self.vocab_size as u64);
        }
        let mut tokens = self.special.clone();
        tokens.extend(merger.tokens.iter().map(|t| to_chars(t)));
        let merges: Vec<(String, String)> = merger
            .merges
            .iter()
            .map(|&(a, b)| (to_chars(&merger.tokens[a as usize]), to_chars(&merger.tokens[b as usize])))
            .collect();
        let special: Vec<u32> = (0..self.special.len() as u32).collect();
        let json = byte_level_json(&tokens, &merges, &special, true)?;
        let tokenizer = Tokenizer::from_json(Path::new("trained tokenizer"), json)?;
        Ok(if special.is_empty() { tokenizer } else { tokenizer.with_eos(0) })
    }

    fn count_words(&self, texts: impl Iterator<Item = Result<String>>) -> Result<Words> {
        let pattern = SysRegex::new(GPT2).expect("a valid pattern");
        let mut words = Words::new();
        let (mut batch, mut size) = (Vec::new(), 0);
        let mut count = |batch: &mut Vec<String>| {
            let chunks: Vec<&str> = batch
                .iter()
                .flat_map(|text| self.between_specials(text))
                .flat_map(|text| Cut::Gpt2.chunks(text, CHUNK))
                .collect();
            let parts: Vec<HashMap<&[u8], u64>> =
                chunks.into_par_iter().map(|chunk| count_chunk(&pattern, chunk)).collect();
            for (word, n) in parts.into_iter().flatten() {
                match words.get_mut(word) {
                    Some(total) => *total += n,
                    None => drop(words.insert(word.into(), n)),
                }
            }
            batch.clear();
        };
        for text in texts {
            let text = text?;
            size += text.len();
            batch.push(text);
            if size >= BATCH {
                count(&mut batch);
                size = 0;
            }
        }
        count(&mut batch);
        Ok(words)
    }

    /// What lies between the special tokens: the leftmost wins, of those the longest.
    fn between_specials<'a>(&self, text: &'a str) -> Vec<&'a str> {
        // Next occurrence of each special token, looked up again only when passed.
        let mut next: Vec<Option<usize>> = self.special.iter().map(|s| text.find(s.as_str())).collect();
        let mut parts = Vec::new();
        let mut start = 0;
        loop {
            for (at, special) in next.iter_mut().zip(&self.special) {
                if at.is_some_and(|at| at < start) {
                    *at = text[start..].find(special.as_str()).map(|i| start + i);
                }
            }
            let first = next
                .iter()
                .zip(&self.special)
                .filter_map(|(at, special)| Some((at.as_ref()?, special.len())))
                .min_by_key(|&(at, len)| (at, std::cmp::Reverse(len)));
            let Some((&at, len)) = first else { break };
            parts.push(&text[start..at]);
            start = at + len;
        }
        parts.push(&text[start..]);
        parts
    }
}

fn count_chunk<'a>(pattern: &SysRegex, text: &'a str) -> HashMap<&'a [u8], u64> {
    let mut words = HashMap::new();
    let mut end = 0;
    for (start, stop) in pattern.find_iter(text) {
        debug_assert_eq!(start, end, "the pattern covers the text");
        *words.entry(&text.as_bytes()[start..stop]).or_insert(0) += 1;
        end = stop;
    }
    // Matching gives up in a run of a million spaces; encoding takes the rest as one word too.
    if end != text.len() {
        *words.entry(&text.as_bytes()[end..]).or_insert(0) += 1;
    }
    words
}

/// A pair in the queue. Counts go stale; the queue is corrected when such an entry comes up.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    left: Arc<[u8]>,
    right: Arc<[u8]>,
    pair: Pair,
}

struct Merger {
    /// Bytes of each token; the first 256 are the single bytes in GPT-2's order.
    tokens: Vec<Arc<[u8]>>,
    ids: HashMap<Arc<[u8]>, u32>,
    merges: Vec<Pair>,
    /// Each different word as token ids, with its frequency.
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    /// Words in which a pair has occurred; some may no longer hold it.
    places: HashMap<Pair, HashSet<u32>>,
    queue: BinaryHeap<Candidate>,
}

impl Merger {
    fn new(words: Words) -> Self {
        let tokens: Vec<Arc<[u8]>> = byte_order().map(|b| Arc::from([b])).collect();
        let ids: HashMap<Arc<[u8]>, u32> = tokens.iter().cloned().zip(0..).collect();
        let mut id_of_byte = [0; 256];
        byte_order().zip(0..).for_each(|(b, id)| id_of_byte[usize::from(b)] = id);
        let words: Vec<(Vec<u32>, u64)> = words
            .into_iter()
            .filter(|(word, _)| word.len() > 1)
            .map(|(word, n)| (word.iter().map(|&b| id_of_byte[usize::from(b)]).collect(), n))
            .collect();
        let mut this = Merger {
            tokens,
            ids,
            merges: Vec::new(),
            words,
            counts: HashMap::new(),
            places: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (at, (word, n)) in this.words.iter().enumerate() {
            for pair in word.windows(2).map(|w| (w[0], w[1])) {
                *this.counts.entry(pair).or_insert(0) += n;
                this.places.entry(pair).or_default().insert(at as u32);
            }
        }
        let pairs: Vec<Pair> = this.counts.keys().copied().collect();
        pairs.into_iter().for_each(|pair| this.enqueue(pair));
        this
    }

    fn enqueue(&mut self, pair: Pair) {
        if let Some(&count) = self.counts.get(&pair).filter(|&&n| n > 0) {
            let [left, right] = [pair.0, pair.1].map(|id| self.tokens[id as usize].clone());
            self.queue.push(Candidate { count, left, right, pair });
        }
    }

    /// Merges the best pair; `false` when there is none.
    fn step(&mut self) -> bool {
        let pair = loop {
            let Some(top) = self.queue.pop() else { return false };
            match self.counts.get(&top.pair) {
                Some(&count) if count == top.count => break top.pair,
                // Pairs that grew have a newer entry; one that shrank comes back with its true count.
                Some(&count) if count < top.count => self.enqueue(top.pair),
                _ => {}
            }
        };
        let joined: Arc<[u8]> =
            [&self.tokens[pair.0 as usize][..], &self.tokens[pair.1 as usize]].concat().into();
        // Two ways to the same bytes share an id: a vocabulary names each byte string once.
        let id = match self.ids.get(&joined) {
            Some(&id) => id,
            None => {
                let id = self.tokens.len() as u32;
                self.tokens.push(joined.clone());
                self.ids.insert(joined, id);
                id
            }
        };
        self.merges.push(pair);
        let places = self.places.remove(&pair).unwrap_or_default();
        let mut grown = HashSet::new();
        for at in places {
            let (word, n) = &mut self.words[at as usize];
            let (counts, places) = (&mut self.counts, &mut self.places);
            merge_word(word, pair, id, |change, times| match change {
                Change::Gone(old) => {
                    if let Some(count) = counts.get_mut(&old) {
                        *count -= *n * times;
                    }
                }
                Change::Come(new) => {
                    *counts.entry(new).or_insert(0) += *n * times;
                    places.entry(new).or_default().insert(at);
                    grown.insert(new);
                }
            });
        }
        self.counts.remove(&pair);
        grown.into_iter().for_each(|pair| self.enqueue(pair));
        true
    }
}

enum Change {
    Gone(Pair),
    Come(Pair),
}

/// Replaces each `pair` in `word`, from the left, by `id`; `changed` hears how often which neighbours go and come.
fn merge_word(word: &mut Vec<u32>, pair: Pair, id: u32, mut changed: impl FnMut(Change, u64)) {
    let (mut read, mut write) = (0, 0);
    while read < word.len() {
        // Runs of the pair are taken at once: within one the neighbours change on both sides.
        let run = word[read..].chunks_exact(2).take_while(|w| (w[0], w[1]) == pair).count();
        if run == 0 {
            word[write] = word[read];
            (read, write) = (read + 1, write + 1);
            continue;
        }
        changed(Change::Gone(pair), run as u64);
        if run > 1 {
            changed(Change::Gone((pair.1, pair.0)), run as u64 - 1);
            changed(Change::Come((id, id)), run as u64 - 1);
        }
        if write > 0 {
            changed(Change::Gone((word[write - 1], pair.0)), 1);
            changed(Change::Come((word[write - 1], id)), 1);
        }
        read += 2 * run;
        if let Some(&next) = word.get(read) {
            changed(Change::Gone((pair.1, next)), 1);
            changed(Change::Come((id, next)), 1);
        }
        word[write..write + run].fill(id);
        write += run;
    }
    word.truncate(write);
}
