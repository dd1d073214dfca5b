//! A packed model: header, `config.json`, `ternary.json`, data. Offsets and sizes are made to fit, so that weights nobody
//! vouches for are unpacked, multiplied with and proved.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde_json::{Map, Value, json};
use ternlm::config::Inputs;
use ternlm::formats::packed::PackedFile;
use ternlm::kernels::{Matrix, To, linear};
use ternlm::measure;
use ternlm::model::{self, Sequences, State};
use ternlm_fuzz::{file, fitted, mutate_json, parts, safetensors_bytes};

/// Values above which a model is not run: not a fault, but slow.
const MOST: u128 = 1 << 18;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

/// The header with the two small files among its tensors, and their bytes before those of the others.
fn with_files(header: &[u8], config: &[u8], manifest: &[u8], data: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let listed: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let mut all = Map::new();
    for (name, bytes) in [("file/config.json", config), ("file/ternary.json", manifest)] {
        all.insert(name.into(), json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": [0, 0]}));
    }
    all.extend(listed);
    let (header, _) = fitted(&serde_json::to_vec(&all).ok()?, data)?;
    // Once more with the length that is known by now, so that the small files stand at their places.
    let held: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    let ends = held.iter().filter_map(|(_, tensor)| tensor["data_offsets"][1].as_u64());
    let rest = ends.max()?.checked_sub((config.len() + manifest.len()) as u64)? as usize;
    let rest = data.iter().copied().chain(std::iter::once(0)).cycle().take(rest);
    Some((header, config.iter().chain(manifest).copied().chain(rest).collect()))
}

fuzz_target!(|data: &[u8]| {
    let [header, config, manifest, tensors] = parts(data);
    let (header, tensors) =
        with_files(header, config, manifest, tensors).unwrap_or((header.to_vec(), tensors.to_vec()));
    let path = file("model.tern", &safetensors_bytes(&header, &tensors));
    let Ok((packed, _)) = PackedFile::open(&path) else { return };
    for (matrix, [rows, cols]) in packed.names().filter_map(|name| packed.matrix(name)) {
        assert_eq!([matrix.rows(), matrix.cols()], [*rows, *cols]);
        // Bytes that no trits make give some numbers, and nothing worse.
        let x: Vec<f32> = (0..3 * cols).map(|i| i as f32).collect();
        let mut y = vec![0.0; 3 * rows];
        for inputs in [Inputs::Int8, Inputs::F32] {
            linear::forward(&x, Matrix::packed(matrix, inputs), &mut y, To::Set);
        }
        // Judged are places past the end, too.
        let unpacked = matrix.unpack(0..*rows);
        assert!(matrix.judge().is_err() || unpacked.is_ok(), "judged twice, differently");
    }
    if let Ok(model) = model::load_trits(&path)
        && model.description.model.parameters() <= MOST
    {
        let seqs = Sequences::new(1, 3.min(model.decoder.config.max_positions));
        let tokens = vec![0; seqs.rows()];
        model.decoder.logits(&tokens, seqs, &mut State::default());
    }
    measure::verify(&path, &mut |_| {}).ok();
});
