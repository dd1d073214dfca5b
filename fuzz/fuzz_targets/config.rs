//! `config.json` and `generation_config.json` of a model; what is read is written and read again.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use safetensors::Dtype;
use ternlm::files::Bundle;
use ternlm::formats::hf;
use ternlm_fuzz::{bundle, mutate_json};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let Ok(read) = hf::read_config(&bundle([hf::FILE_NAME, hf::GENERATION_NAME], data)) else { return };
    let written = hf::config_files(&read, Dtype::F32).map(|(name, bytes)| (name.to_string(), bytes));
    let again = hf::read_config(&Bundle::within("written", written.into())).expect("what was written");
    assert_eq!(again.model, read.model);
    assert_eq!(again.ternary, read.ternary);
    assert_eq!((again.eos, again.bos), (read.eos, read.bos));
});
