//! A safetensors file: header, byte 0, data. Where the header is JSON, offsets may be made to fit, so that values are read.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::formats::tensors::TensorFiles;
use ternlm_fuzz::{file, fitted, mutate_json, parts, safetensors_bytes};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let [header, tensors] = parts(data);
    let (header, tensors) = fitted(header, tensors).unwrap_or((header.to_vec(), tensors.to_vec()));
    let Ok(files) = TensorFiles::open_file(file("model.safetensors", &safetensors_bytes(&header, &tensors)))
    else {
        return;
    };
    let names: Vec<&str> = files.names().collect();
    for (i, name) in names.iter().enumerate() {
        let view = files.tensor(name).expect("a name of the list");
        assert_eq!(&files.shared(name).expect("the same name")[..], view.bytes);
        let before = files.tensor(names[i.saturating_sub(1)]).expect("a name of the list");
        view.same_values(&before).ok();
        if view.bytes.len() <= 1 << 16 {
            let mut values = vec![0.0; view.shape.iter().product()];
            view.read_f32_into(view.shape, &mut values).ok();
        }
    }
});
