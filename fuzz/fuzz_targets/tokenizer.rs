//! A tokenizer and the files beside it, then a text to encode: ids are in the vocabulary, and come back as some text.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::text::{Reading, TokenStream, Tokenizer};
use ternlm_fuzz::{bundle, let_caught_panics_pass, mutate_json, parts};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

const FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "text"];

fuzz_target!(
    init: let_caught_panics_pass(),
    |data: &[u8]| {
        let Ok(tokenizer) = Tokenizer::of(&bundle(FILES, data)) else { return };
        let [.., text] = parts::<{ FILES.len() }>(data);
        let text = format!("a {}", String::from_utf8_lossy(text));
        let vocab = tokenizer.vocab_size();
        if let Ok(ids) = tokenizer.encode(&text) {
            assert!(ids.iter().all(|&id| (id as usize) < vocab), "{ids:?} of {vocab}");
            let whole = tokenizer.decode(&ids);
            let mut stream = TokenStream::new(&tokenizer);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            streamed += &stream.finish();
            assert_eq!(streamed, whole, "one id at a time, and all at once");
            tokenizer.decode_plain(&ids);
            // Where nothing is added to a text, one in chunks has the ids of the whole.
            let plain = tokenizer.encode("a").ok();
            if plain.is_some()
                && tokenizer.encode_with_special("a").ok() == plain
                && let Ok(whole) = tokenizer.encode_with_special(&text)
            {
                assert_eq!(ids, whole);
            }
            if let Ok(here) = tokenizer.encode_here(&text) {
                assert_eq!(here.ids, ids);
                assert!(here.bytes.iter().map(|&bytes| bytes as usize).sum::<usize>() <= text.len());
            }
        }
        tokenizer.encode_with_special(&text).ok();
        if let Ok(reading) = Reading::of_text(&text, &tokenizer) {
            assert!(reading.extent_from(0).bytes <= text.len() as u64);
        }
        tokenizer.decode(&[0, vocab as u32, u32::MAX]);
    }
);
