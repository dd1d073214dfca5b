//! A vocabulary made of a text. Of words: its merges are those of the definition, and a text is encoded as they leave it. Of a
//! file: neither how it is cut nor the order of its pieces makes a difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;
use ternlm::text::{BpeTrainer, Tokenizer, documents, sources};
use ternlm_fuzz::file;

const LETTERS: [char; 6] = ['a', 'b', 'c', 'é', '猫', 'A'];

type Token = Vec<u8>;

/// The definition, without any cleverness: count all pairs, merge the best, repeat. The tokens that come of it.
fn merge(words: &mut [Vec<Token>], steps: usize) -> Vec<Token> {
    let mut made = Vec::new();
    while made.len() < steps {
        let mut counts: HashMap<(&[u8], &[u8]), u64> = HashMap::new();
        for pair in words.iter().flat_map(|word| word.windows(2)) {
            *counts.entry((&pair[0], &pair[1])).or_default() += 1;
        }
        let Some(((left, right), _)) = counts.into_iter().max_by_key(|&(pair, n)| (n, pair)) else { break };
        let (left, right) = (left.to_vec(), right.to_vec());
        for word in words.iter_mut() {
            let mut i = 0;
            while i + 1 < word.len() {
                if word[i] == left && word[i + 1] == right {
                    let right = word.remove(i + 1);
                    word[i].extend(right);
                }
                i += 1;
            }
        }
        made.push([left, right].concat());
    }
    made
}

fn trained(vocab_size: usize, special: &[&str], texts: impl Iterator<Item = String>) -> Option<Tokenizer> {
    let special = special.iter().map(|token| token.to_string()).collect();
    BpeTrainer { vocab_size, special }.train(texts.map(Ok), |_, _| {}).ok()
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let steps = usize::from(first % 32);

    let words = data.split(|byte| byte % 16 == 0).filter(|word| !word.is_empty());
    let words: Vec<String> = words
        .map(|word| word.iter().map(|&byte| LETTERS[usize::from(byte) % LETTERS.len()]).collect())
        .collect();
    // A newline is a word of its own.
    if let Some(tokenizer) = trained(256 + steps, &[], std::iter::once(words.join("\n"))) {
        let mut merged: Vec<Vec<Token>> =
            words.iter().map(|word| word.bytes().map(|byte| vec![byte]).collect()).collect();
        let made = merge(&mut merged, steps);
        let tokens = (256..tokenizer.vocab_size() as u32).map(|id| tokenizer.token_bytes(id));
        assert_eq!(tokens.collect::<Vec<Token>>(), made);
        let ids = tokenizer.encode(&words.join("\n")).expect("a text");
        let found: Vec<Token> = ids.into_iter().map(|id| tokenizer.token_bytes(id)).collect();
        assert_eq!(found, merged.join(&[b'\n'].to_vec()));
    }

    let list = sources::list(&[file("a.txt", data)]).expect("a file that is there");
    let pieces: ternlm::Result<Vec<String>> = documents::training_texts(list, "text").collect();
    let Ok(pieces) = pieces else { return };
    let (text, special) = (pieces.concat(), ["<|endoftext|>", "ab"]);
    let of = |texts: Vec<String>| trained(258 + steps, &special, texts.into_iter());
    let Some(whole) = of(vec![text.clone()]) else { return };
    let other_way = pieces.iter().rev().cloned().collect();
    for tokenizer in [of(pieces), of(other_way)] {
        assert_eq!(tokenizer.expect("the same text").fingerprint(), whole.fingerprint());
    }
    assert_eq!(whole.decode(&whole.encode(&text).expect("a text")), text);
});
