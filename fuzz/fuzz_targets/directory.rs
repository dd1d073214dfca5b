//! `config.json` and one safetensors file in a folder: numbers, weights −s, 0, +s that are recognised, MLX's and BitNet's
//! packings. Offsets are made to fit.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::formats::{ModelFiles, Stored};
use ternlm::measure;
use ternlm::model::{self, Rounding, Sequences, State};
use ternlm_fuzz::{file, fitted, folder, mutate_json, parts, safetensors_bytes};

/// Values above which a model is not run: not a fault, but slow.
const MOST: u128 = 1 << 18;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let [config, header, tensors] = parts(data);
    let (header, tensors) = fitted(header, tensors).unwrap_or((header.to_vec(), tensors.to_vec()));
    file("config.json", config);
    file("model.safetensors", &safetensors_bytes(&header, &tensors));
    let Ok(stored) = ModelFiles::open(folder()) else { return };
    for name in stored.names() {
        let tensor = stored.tensor(name).expect("a name of the list");
        if let (Stored::Trits(trits), &[rows, cols]) = (tensor, tensor.shape())
            && rows * cols <= MOST as usize
            && let Ok(matrix) = trits.matrix(rows, cols)
        {
            assert!(matrix.scales().iter().all(|scale| scale.is_finite() && *scale >= 0.0));
        }
    }
    if let Ok(model) = model::load_trits(folder())
        && model.description.model.parameters() <= MOST
    {
        let seqs = Sequences::new(1, 3.min(model.decoder.config.max_positions));
        let tokens = vec![0; seqs.rows()];
        model.decoder.logits(&tokens, seqs, &mut State::default());
        model::check(folder(), &model.decoder, Rounding::Nothing, &mut |_, _| {}).expect("what was read");
    }
    measure::verify(folder(), &mut |_| {}).ok();
});
