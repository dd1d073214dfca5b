//! Logits, greedy texts and perplexities.

use std::path::{Path, PathBuf};
use std::process::Command;
use ternlm::config::{KvFormat, ModelConfig, RopeScaling};
use ternlm::formats::ModelFiles;
use ternlm::measure::{self, Windows};
use ternlm::model::{self, Decoder, State};
use ternlm::text::{Reading, ReadingOptions, Tokenizer};

use super::common::data;
use super::common::models::{llama, llama3, logits, off, qwen3, random, tokens, yarn};
use super::{export, probe};

/// The largest difference of logits from llama.cpp's, of the largest; none without llama.cpp.
fn logits_off(file: &Path) -> Option<f32> {
    let decoder = model::load(file, None).unwrap().decoder;
    let ids: Vec<String> = tokens(&decoder).iter().map(u32::to_string).collect();
    let raw = probe("logits", file, &ids, &[])?;
    let theirs: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Some(off(&theirs, &logits(&decoder)))
}

#[test]
fn llama_cpp_computes_what_we_compute() {
    let dir = tempfile::tempdir().unwrap();
    let rotated = |model: ModelConfig, rope: RopeScaling| ModelConfig { rope_scaling: Some(rope), ..model };
    let biased = ModelConfig { qkv_bias: true, ..llama() };
    for (name, config) in [
        // 300 units make no whole blocks.
        ("qwen3", ModelConfig { intermediate_size: 300, ..qwen3() }),
        ("llama", ModelConfig { intermediate_size: 300, ..llama() }),
        ("qwen2", biased.clone()),
        ("llama-biases", ModelConfig { o_bias: true, mlp_bias: true, ..biased }),
        ("bitnet", ModelConfig { sub_norm: true, tie_embeddings: true, ..llama() }),
        // Rows of 576 inputs: groups of 128 and a last one of 64.
        ("smollm2", ModelConfig { hidden_size: 576, heads: 9, kv_heads: 3, ..llama() }),
        ("linear", rotated(qwen3(), RopeScaling::Linear { factor: 2.5 })),
        ("yarn", rotated(qwen3(), yarn(None, None, 32.0))),
        ("yarn-attention", rotated(llama(), yarn(Some(0.75), None, 32.0))),
        ("yarn-mscale", rotated(llama(), yarn(None, Some(0.7), 32.0))),
        ("llama3", rotated(llama(), llama3(32.0, 4.0, 8192))),
        ("llama3-other", rotated(llama(), llama3(8.0, 2.0, 16))),
    ] {
        let from = random(dir.path(), name, &config);
        for (kind, bound) in [("f16", 2e-3), ("q2_0", 5e-2)] {
            let to = dir.path().join(format!("{name}-{kind}.gguf"));
            export(&from, kind, &to);
            let Some(off) = logits_off(&to) else { return };
            println!("{name}, {kind}: logits off by {off:.1e} of the largest");
            assert!(off < bound, "{name}, {kind}: {off}");
        }
        // That the rotation is seen at all.
        if config.rope_scaling.is_some() {
            let [turned, plain] = [config.clone(), ModelConfig { rope_scaling: None, ..config }]
                .map(|config| model::load(&random(dir.path(), "again", &config), None).unwrap().decoder);
            let seen = off(&logits(&turned), &logits(&plain));
            assert!(seen > 1e-2 || name == "llama3", "{name}: {seen}");
        }
    }
}

/// Greedy decoding, and the smallest lead of a token over the next best.
fn greedy(decoder: &Decoder, prompt: &[u32], count: usize) -> (Vec<String>, f32) {
    let (mut cache, mut state) = (decoder.cache(KvFormat::F32), State::default());
    let (mut new, mut said, mut lead) = (prompt.to_vec(), Vec::new(), f32::INFINITY);
    for _ in 0..count {
        let row = decoder.step(&new, &mut cache, &mut state);
        let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        let next = (0..row.len()).filter(|i| *i != best).map(|i| row[i]).fold(f32::NEG_INFINITY, f32::max);
        lead = lead.min(row[best] - next);
        new = vec![best as u32];
        said.push(best.to_string());
    }
    (said, lead)
}

/// `TERNLM_GGUF_MODELS`: trained models, separated by `:`.
fn trained() -> Vec<PathBuf> {
    let paths = std::env::var("TERNLM_GGUF_MODELS").unwrap_or_default();
    let paths: Vec<PathBuf> = paths.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        eprintln!("SKIPPED: TERNLM_GGUF_MODELS names no trained model");
    }
    paths
}

const GREEDY: usize = 64;

#[test]
fn llama_cpp_goes_on_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    for (i, from) in trained().into_iter().enumerate() {
        for (kind, bound) in [("f16", 2e-3), ("q2_0", 5e-2)] {
            let to = dir.path().join(format!("{i}-{kind}.gguf"));
            println!("{}", export(&from, kind, &to).trim_end());
            let Some(off) = logits_off(&to) else { return };
            println!("{kind}: logits off by {off:.1e} of the largest");
            assert!(off < bound, "{kind}: {off}");
            let decoder = model::load(&to, None).unwrap().decoder;
            let tokenizer = Tokenizer::of(&ternlm::formats::files_of(&from).unwrap()).unwrap();
            let prompt = tokenizer.encode_prompt("The history of the").unwrap();
            let (ours, lead) = greedy(&decoder, &prompt, GREEDY);
            let mut args = vec![GREEDY.to_string()];
            args.extend(prompt.iter().map(u32::to_string));
            let said = String::from_utf8(probe("greedy", &to, &args, &[]).unwrap()).unwrap();
            let said: Vec<&str> = said.split_whitespace().collect();
            let same = ours.iter().zip(&said).take_while(|(a, b)| a == b).count();
            println!(
                "{kind}: {same} of {GREEDY} greedy tokens are the same; the smallest lead is {lead:.1e}"
            );
            // A lead that is smaller than what logits are off by decides nothing.
            let size = logits(&decoder).iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(same == GREEDY || lead < 4.0 * off * size, "{kind}: {same} tokens, lead {lead}");
        }
    }
}

const CONTEXT: usize = 512;
const WINDOWS: usize = 20;

/// What `llama-perplexity`, which `TERNLM_LLAMA_PERPLEXITY` names, says of the same windows by its own defaults.
fn by_their_program(file: &Path, text: &Path) -> Option<f64> {
    let program = std::env::var_os("TERNLM_LLAMA_PERPLEXITY")?;
    let mut run = Command::new(program);
    run.arg("-m").arg(file).arg("-f").arg(text);
    run.args(["-c", &CONTEXT.to_string(), "--chunks", &WINDOWS.to_string(), "-t", "2"]);
    // A pipe loses the end of what it says.
    let log = file.with_extension("log");
    let said = std::fs::File::create(&log).unwrap();
    run.stdout(said.try_clone().unwrap()).stderr(said).status().unwrap();
    let said = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    let (_, found) = said.split_once("Final estimate: PPL = ").unwrap_or_else(|| panic!("{said}"));
    Some(found.split_whitespace().next().unwrap().parse().unwrap())
}

/// The first windows of a text as llama.cpp scores them, against `eval --halves` of the same file.
#[test]
fn perplexities_are_those_of_llama_cpp() {
    let Some(text) = data("wikitext-2-raw/wiki.test.raw") else { return };
    let whole = std::fs::read(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (i, from) in trained().into_iter().enumerate() {
        let mut of_blocks = Vec::new();
        // With ternary types that engine's inputs have 8 bits.
        for (kind, bound) in [("f16", 5e-4), ("q2_0", 5e-3), ("tq2_0", 5e-3), ("tq1_0", 5e-3)] {
            let width = ModelFiles::open(&from).unwrap().description.model.hidden_size;
            if kind.starts_with("tq") && !width.is_multiple_of(256) {
                println!("{kind}: rows of {width} inputs are no whole blocks");
                continue;
            }
            let to = dir.path().join(format!("{i}-{kind}.gguf"));
            println!("{}", export(&from, kind, &to).trim_end());
            let decoder = model::load(&to, None).unwrap().decoder;
            let tokenizer = Tokenizer::of(&ternlm::formats::files_of(&to).unwrap()).unwrap();
            let mut reading = Reading::open(&text, &tokenizer, &ReadingOptions::default()).unwrap();
            reading.truncate(CONTEXT * WINDOWS);
            let windows = Windows::Halves { context: CONTEXT, first: tokenizer.prefix().first().copied() };
            let ours = measure::perplexity_of(&decoder, &reading, windows, None, &mut |_| {}).ppl;
            let args = [CONTEXT, WINDOWS].map(|n| n.to_string());
            let Some(said) = probe("halves", &to, &args, &whole) else { return };
            let theirs: f64 = String::from_utf8(said).unwrap().trim().parse().unwrap();
            for (by, theirs) in [("theirs", Some(theirs)), ("llama-perplexity", by_their_program(&to, &text))]
            {
                let Some(theirs) = theirs else { continue };
                let off = ours / theirs - 1.0;
                println!("{kind}: perplexity {ours:.4}, {by} {theirs:.4}: {:+.3} %", 100.0 * off);
                assert!(off.abs() < bound, "{kind}: {ours}, {by} {theirs}");
            }
            if kind.starts_with("tq") {
                of_blocks.push((ours, theirs));
            }
        }
        // The same weights in two types of one scale for 256.
        if let [(ours, theirs), (also_ours, also_theirs)] = of_blocks[..] {
            assert!(ours == also_ours && (theirs / also_theirs - 1.0).abs() < 1e-4, "{of_blocks:?}");
        }
    }
}
