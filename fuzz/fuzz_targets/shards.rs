//! `model.safetensors.index.json` over two shards, beside a third file.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::formats::tensors::TensorFiles;
use ternlm_fuzz::{file, folder, mutate_json, safetensors_bytes};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(
    init: {
        let shard = |name: &str, tensor: &str| {
            let header = format!(r#"{{"{tensor}":{{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}}}"#);
            file(name, &safetensors_bytes(header.as_bytes(), &[1, 2, 3, 4]));
        };
        shard("model-00001-of-00002.safetensors", "a");
        shard("model-00002-of-00002.safetensors", "b");
    },
    |data: &[u8]| {
        file("model.safetensors.index.json", data);
        if let Ok(files) = TensorFiles::open(folder()) {
            files.names().for_each(|name| assert!(files.tensor(name).is_ok(), "a name of the list"));
        }
    }
);
