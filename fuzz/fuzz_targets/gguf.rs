//! A GGUF file: metadata, tensor infos, vocabulary, and weights that nobody vouches for, which are read, run and proved.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ternlm::formats::ModelFiles;
use ternlm::formats::gguf::{GgufFile, View, vocabulary};
use ternlm::measure;
use ternlm::model::{self, Sequences, State};
use ternlm::text::Tokenizer;
use ternlm_fuzz::{file, let_caught_panics_pass};

/// Values above which a tensor is not read, or a model not run: not a fault, but slow.
const MOST: u128 = 1 << 19;

fuzz_target!(init: let_caught_panics_pass(), |data: &[u8]| {
    let path = file("x.gguf", data);
    let Ok(gguf) = GgufFile::open(&path) else { return };
    for (key, value) in gguf.metadata() {
        assert!(gguf.get(key).is_some(), "{key} is listed");
        if let Some(list) = value.as_array() {
            assert_eq!(list.values().count(), list.len, "{key}");
        }
    }
    for (name, info) in gguf.tensors() {
        let len = info.shape.iter().map(|&n| n as u128).product::<u128>();
        if len > MOST {
            continue;
        }
        let (kind, shape, bytes) = (info.kind, &info.shape, gguf.bytes(info));
        let view = View { file: &path, name, kind, shape, bytes, paired_heads: None };
        view.read_f32_into(shape, &mut vec![0.0; len as usize]).ok();
    }
    if let Ok(files) = vocabulary(&gguf)
        && files.contains("tokenizer.json")
        && let Ok(tokenizer) = Tokenizer::of(&files)
        && let Ok(ids) = tokenizer.encode("ab a<s>é 12")
    {
        tokenizer.decode(&ids);
    }
    let Ok(stored) = ModelFiles::open(&path) else { return };
    if stored.description.model.parameters() > MOST {
        return;
    }
    if let Ok(model) = model::load(&path, None) {
        let seqs = Sequences::new(1, 3.min(model.decoder.config.max_positions));
        model.decoder.logits(&vec![0; seqs.rows()], seqs, &mut State::default());
    }
    measure::verify(&path, &mut |_| {}).ok();
});
