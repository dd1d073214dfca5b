//! GGUF files whose counts, lengths, offsets and dimensions lie.

use std::path::Path;

use ternlm::formats::ModelFiles;
use ternlm::formats::gguf::GgufFile;
use ternlm::text::Tokenizer;

use super::common::gguf::{self, File, Shape, f32_bytes, list, text};
use super::{outcome, refused};

pub const NAME: &str = "x.gguf";

/// A model that is read to its last weight, if it is a model.
pub fn read(dir: &Path) -> ternlm::Result<()> {
    let path = dir.join(NAME);
    let file = GgufFile::open(&path)?;
    for (key, value) in file.metadata() {
        assert_eq!(file.get(key), Some(value).filter(|_| true), "{key}");
        value.as_array().into_iter().for_each(|list| assert!(list.values().count() == list.len));
    }
    let stored = ModelFiles::open(&path)?;
    for name in stored.names() {
        let tensor = stored.tensor(name)?;
        let shape = tensor.shape().to_vec();
        let mut out = vec![0.0; shape.iter().product()];
        tensor.read_f32_into(&shape, &mut out)?;
    }
    if stored.files.contains("tokenizer.json") {
        Tokenizer::of(&stored.files)?;
    }
    Ok(())
}

pub fn good() -> File {
    let shape = Shape {
        architecture: "llama",
        width: 4,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        feed_forward: 4,
        context: 8,
    };
    let mut file = shape.file();
    file.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", ["<unk>", "a", "b", "ab"]);
    file.f32s("tokenizer.ggml.scores", [0.0, -1.0, -2.0, -3.0])
        .i32s("tokenizer.ggml.token_type", [2, 1, 1, 1]);
    file.tensor("token_embd.weight", &[4, 4], gguf::F32, f32_bytes(&[0.5; 16]));
    for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        file.tensor(&format!("blk.0.{part}.weight"), &[4, 4], gguf::F16, vec![0; 32]);
    }
    for part in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
        file.tensor(&format!("{part}.weight"), &[4], gguf::F32, f32_bytes(&[1.0; 4]));
    }
    file
}

#[test]
fn headers() {
    let good = good().bytes();
    let changed = |at: usize, bytes: &[u8]| {
        let mut all = good.clone();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        all
    };
    refused(NAME, &changed(4, &1u32.to_le_bytes()), "version: found 1, wanted 2 or 3");
    refused(NAME, &changed(4, &4u32.to_le_bytes()), "version: found 4");
    refused(NAME, &changed(4, &3u32.to_be_bytes()), "version: found 3, of a big-endian file, wanted 2 or 3");
    assert_eq!(
        outcome(&super::kind(NAME), &changed(4, &2u32.to_le_bytes())),
        None,
        "version 2 has the same layout"
    );
    for count in [u64::MAX, 1 << 63, 1 << 32, 1 << 20] {
        refused(NAME, &changed(8, &count.to_le_bytes()), "tensor count: found");
        refused(NAME, &changed(16, &count.to_le_bytes()), "key count: found");
        // The length of the first key, and of its value.
        refused(NAME, &changed(24, &count.to_le_bytes()), "key 0 length: found");
        refused(
            NAME,
            &changed(24 + 8 + 20 + 4, &count.to_le_bytes()),
            "key \"general.architecture\" length: found",
        );
    }
    refused(NAME, &changed(24, &0u64.to_le_bytes()), "key 0 length: found 0");
    refused(NAME, &changed(32, b"\xff"), "key 0: found bytes that are no text");
    refused(NAME, &changed(24 + 8 + 20, &13u32.to_le_bytes()), "key \"general.architecture\" type: found 13");
}

#[test]
fn metadata() {
    let refused = |key: &str, kind: u32, bytes: Vec<u8>, field: &str| {
        let mut file = good();
        file.keys.push((key.into(), kind, bytes));
        refused(NAME, &file.bytes(), field);
    };
    let length = |kind: u32, n: u64| [&kind.to_le_bytes()[..], &n.to_le_bytes()].concat();
    refused("k", 7, vec![2], "key \"k\": found the byte 2");
    refused(
        "k",
        8,
        text("a").into_iter().chain([0xff]).take(9).map(|b| b | 0x80).collect(),
        "key \"k\" length",
    );
    for kind in [0, 4, 8, 9, 12] {
        for n in [u64::MAX, 1 << 61, 1 << 40] {
            refused("k", 9, length(kind, n), "key \"k\" length: found");
        }
    }
    refused("k", 9, length(13, 0), "key \"k\" element type: found 13");
    refused("k", 9, list(7, [vec![1], vec![3]]), "key \"k\"[1]: found the byte 3");
    refused(
        "k",
        9,
        list(8, [text("a"), vec![1, 0, 0, 0, 0, 0, 0, 0, 0xff]]),
        "key \"k\"[1]: found bytes that are no text",
    );
    let mut nested = list(4, []);
    for depth in 0..100 {
        if depth < 2 {
            let mut file = good();
            file.keys.push(("k".into(), 9, list(9, [nested.clone()])));
            assert_eq!(outcome(&super::kind(NAME), &file.bytes()), None, "a list of lists is sound");
        }
        nested = list(9, [nested]);
    }
    refused("k", 9, nested, "key \"k\"[0][0][0]: found lists inside of lists");
    refused("general.architecture", 8, text("llama"), "key \"general.architecture\": found it a second time");
    refused(
        "split.count",
        2,
        3u16.to_le_bytes().to_vec(),
        "key \"split.count\": found 3, wanted 1, the whole model",
    );
    for (kind, bytes) in
        [(4, 0u32.to_le_bytes().to_vec()), (4, 48u32.to_le_bytes().to_vec()), (8, text("32"))]
    {
        refused("general.alignment", kind, bytes, "general.alignment: found");
    }
    refused(
        "general.alignment",
        10,
        (1u64 << 40).to_le_bytes().to_vec(),
        "general.alignment: found 1099511627776",
    );
}

#[test]
fn tensors() {
    let refused = |change: &dyn Fn(&mut File), field: &str| {
        let mut file = good();
        change(&mut file);
        refused(NAME, &file.bytes(), field);
    };
    let q = "tensor \"blk.0.attn_q.weight\"";
    let field = |what: &str| format!("{q} {what}");
    refused(&|f| f.tensors[1].shape = vec![], &field("dimensions: found 0"));
    refused(&|f| f.tensors[1].shape = vec![1; 5], &field("dimensions: found 5"));
    refused(&|f| f.tensors[1].shape = vec![0, 4], &field("shape: found 0"));
    refused(&|f| f.tensors[1].shape = vec![4, 1 << 40], &field("size: found"));
    refused(&|f| f.tensors[1].shape = vec![1 << 33, 1 << 33], &field("shape: found"));
    refused(&|f| f.tensors[1].shape = vec![1 << 62, 2], &field("shape: found"));
    refused(&|f| f.tensors[1].kind = 4, &field("type: found 4"));
    refused(
        &|f| f.tensors[1].kind = 2,
        &field("shape: found [4, 4] of Q4_0, wanted rows of a multiple of 32"),
    );
    refused(&|f| f.tensors[1].offset = Some(u64::MAX), &field("offset: found 18446744073709551615"));
    refused(&|f| f.tensors[1].offset = Some(65), &field("offset: found 65, wanted a multiple of 32"));
    refused(&|f| f.tensors[0].offset = Some(32), "tensor \"");
    refused(&|f| f.tensors[2].offset = Some(64), "tensor \"");
    refused(&|f| f.tensors[1].bytes.resize(100, 0), &field("size: found 32 bytes"));
    refused(
        &|f| f.tensors.last_mut().unwrap().bytes.resize(16 + 32, 0),
        "tensor \"output_norm.weight\" size: found 16 bytes",
    );
    refused(&|f| f.tensors[1].name = "x".repeat(65), "tensor 1 name length: found 65");
    refused(
        &|f| f.tensors[1].name = "token_embd.weight".into(),
        "tensor \"token_embd.weight\": found it a second time",
    );
    refused(&|f| _ = f.tensors.remove(0), "tensor \"token_embd.weight\": found nothing");
    refused(&|f| f.tensors[1].kind = 24, &field("type: found I8, wanted a type that is read"));
    // An unknown number of the ternary types, with blocks of neither size.
    let third = |f: &mut File| {
        f.tensors[0].shape = vec![64, 128];
        f.tensors[0].kind = 42;
        f.tensors[0].bytes = vec![0; 64 * 40];
    };
    refused(&third, "tensor \"token_embd.weight\" size: found 2304 bytes of Q2_0");
    // A type that is known and not read is named.
    let unread = |f: &mut File| {
        f.tensors[0].shape = vec![3, 256];
        f.tensors[0].kind = 10;
        f.tensors[0].bytes = vec![0; 3 * 84];
    };
    refused(&unread, "tensor \"token_embd.weight\" type: found Q2_K, wanted a type that is read");
}
