//! A text, and the same bytes as records: parts begin with a document's first, and what is read is no more than was there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ternlm::text::sources;
use ternlm_fuzz::file;

fuzz_target!(|data: &[u8]| {
    for name in ["a.txt", "a.jsonl"] {
        let [source] = &sources::list(&[file(name, data)]).expect("a file that is there")[..] else {
            panic!("one file is one source");
        };
        let (mut first, mut bytes) = (true, 0);
        let read = source.read("text", &mut |part| {
            assert!(part.begins || !first, "a document begins with its first part");
            assert!(part.read <= data.len() as u64);
            first = false;
            bytes += part.text.len();
            Ok(())
        });
        // An escape in JSON is longer than its text.
        if read.is_ok() {
            assert!(bytes <= data.len(), "{name}: {bytes} bytes of {}", data.len());
        }
    }
});
