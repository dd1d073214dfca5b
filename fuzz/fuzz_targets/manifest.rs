//! `ternary.json`; what is read is written and read again.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::formats::manifest::{FILE_NAME, Manifest};
use ternlm_fuzz::{bundle, mutate_json};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let Ok(read) = Manifest::read(&bundle([FILE_NAME], data)) else { return };
    let again = Manifest::read(&bundle([FILE_NAME], &read.text())).expect("what was written");
    assert_eq!(again, read);
});
