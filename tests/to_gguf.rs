//! Models as GGUF files: blocks against those of the Python package `gguf` (`fixtures/make_gguf.py`), whole models read back,
//! vocabularies against published files, and, where there is one, llama.cpp itself (`llama_cpp/probe.cpp`).

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use ternlm::config::{Activation, KvFormat, ModelConfig, Scope};
use ternlm::files::Bundle;
use ternlm::formats::gguf::write::Item;
use ternlm::formats::gguf::{BlockType, GgufFile, Value, encode, tokens as gguf_tokens};
use ternlm::formats::{Description, npy};
use ternlm::measure;
use ternlm::model::{self, Decoder, Latents, Sequences, State, fit};
use ternlm::ternary::{Grouping, TernaryMatrix};
use ternlm::text::Tokenizer;

fn ternlm(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ternlm")).args(args.iter().map(|a| a.as_ref())).output().unwrap()
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[track_caller]
fn export(from: &Path, kind: &str, to: &Path) -> String {
    let out = ternlm(&[&"export", &from, &"--format", &"gguf", &"--type", &kind, &"--out", &to]);
    assert!(out.status.success(), "{}", stderr(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// A model of random weights, everything ternary, with the tokenizer of bytes and five rows more than that has.
fn random(dir: &Path, qk_norm: bool, intermediate_size: usize) -> PathBuf {
    let config = ModelConfig {
        vocab_size: 261,
        hidden_size: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        intermediate_size,
        activation: Activation::SwiGlu,
        qk_norm,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        sub_norm: false,
        causal: true,
        tie_embeddings: qk_norm,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        max_positions: 256,
        rope_scaling: None,
    };
    let mut decoder = Decoder::new(&config, Scope::All, Grouping::Size(128));
    Latents::random(decoder.weights_mut(), 1, None).unwrap();
    let gains = decoder.weights_mut().filter(|w| !w.role.is_matrix());
    for (i, weight) in gains.enumerate() {
        weight.dense_mut().iter_mut().enumerate().for_each(|(j, x)| *x = 1.0 + ((i + j) as f32).sin() / 5.0);
    }
    let out = dir.join(if qk_norm { "qwen3" } else { "llama" });
    fs::create_dir_all(&out).unwrap();
    model::save(&out, &decoder, &Description::new(config), None).unwrap();
    Tokenizer::bytes().save(&out).unwrap();
    out
}

fn tokens(decoder: &Decoder) -> Vec<u32> {
    (0..21).map(|i| (i * 37 % decoder.config.vocab_size) as u32).collect()
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let tokens = tokens(decoder);
    decoder.logits(&tokens, Sequences::new(1, tokens.len()), &mut State::default())
}

/// The largest difference, of the largest number.
fn off(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(0f32, |a, x| a.max(x.abs()));
    got.iter().zip(want).fold(0f32, |off, (a, b)| off.max((a - b).abs())) / size
}

#[test]
fn blocks_have_the_bytes_of_the_reference() {
    let (_, plain) = npy::read(common::fixture("gguf/ternary.npy")).unwrap();
    let (_, quantised) = npy::read(common::fixture("gguf/blocks.npy")).unwrap();
    let file = GgufFile::open(&common::fixture("gguf/blocks.gguf")).unwrap();
    let alone = |name: &str| fs::read(common::fixture(&format!("gguf/{name}.bin"))).unwrap();
    let within = |name: &str| file.bytes(&file.tensors()[name]).to_vec();
    for (name, values, group, want) in [
        ("Q2_0", &plain[..512], 64, alone("Q2_0")),
        ("PQ2_0", &plain[512..1024], 128, alone("PQ2_0")),
        // One scale where the block has two groups.
        ("TQ1_0", &quantised[11 * 512..12 * 512], 128, within("TQ1_0")),
        ("TQ2_0", &quantised[12 * 512..], 128, within("TQ2_0")),
    ] {
        let matrix = TernaryMatrix::from_values(values, 2, 256, Grouping::Size(group)).unwrap();
        let kind = BlockType::by_name(name).unwrap();
        let mut bytes = Vec::new();
        (0..2).for_each(|row| encode::trits(kind, &matrix, row, &mut bytes));
        assert!(bytes == want, "{name}");
    }
    for (at, name) in ["F32", "F16", "BF16"].into_iter().enumerate() {
        let mut bytes = Vec::new();
        encode::values(BlockType::by_name(name).unwrap(), &quantised[at * 512..][..512], &mut bytes);
        assert!(bytes == within(name), "{name}");
    }
}

#[test]
fn a_file_holds_the_model_that_it_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    for (qk_norm, kind, architecture) in
        [(true, "q2_0", "qwen3"), (true, "pq2_0", "qwen3"), (false, "q2_0", "llama"), (false, "f16", "llama")]
    {
        // 300 units make no whole blocks, and become 320 or 384.
        let from = random(dir.path(), qk_norm, 300);
        let to = dir.path().join(format!("{architecture}-{kind}.gguf"));
        let said = export(&from, kind, &to);
        assert!(said.contains("bits each") && said.contains("Read back"), "{said}");
        let file = GgufFile::open(&to).unwrap();
        assert_eq!(file.get("general.architecture"), Some(Value::String(architecture)));
        let q = &file.tensors()["blk.1.attn_q.weight"];
        assert_eq!(q.kind.name.to_lowercase(), kind);
        assert_eq!(file.tensors()["blk.0.attn_norm.weight"].kind.name, "F32");
        assert_eq!(file.tensors().contains_key("output.weight"), !qk_norm);
        let [read, want] = [&to, &from].map(|path| model::load(path, None).unwrap().decoder);
        assert!(off(&logits(&read), &logits(&want)) < 1e-5, "{kind}");
        let files = ternlm::formats::files_of(&to).unwrap();
        let text = "É 1\n\u{0}x";
        let [a, b] = [Tokenizer::of(&files).unwrap(), Tokenizer::bytes()].map(|t| t.encode(text).unwrap());
        assert_eq!(a, b);
        if kind != "f16" {
            assert!(measure::verify(&to, &mut |_| {}).unwrap().pass);
        }
        let again = ternlm(&[&"export", &from, &"--format", &"gguf", &"--out", &to]);
        assert!(!again.status.success() && stderr(&again).contains("--force"));
    }
}

#[test]
fn what_a_type_does_not_hold_is_refused_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let from = random(dir.path(), true, 320);
    for kind in ["tq2_0", "tq1_0", "bf16"] {
        let to = dir.path().join(format!("{kind}.gguf"));
        let args: [&dyn AsRef<std::ffi::OsStr>; 8] =
            [&"export", &from, &"--format", &"gguf", &"--type", &kind, &"--out", &to];
        let refused = ternlm(&args);
        let said = stderr(&refused);
        assert!(!refused.status.success() && !to.exists());
        assert!(said.contains("model.embed_tokens.weight row 0: found the scale"), "{said}");
        assert!(said.contains("--lossy"), "{said}");
        let lossy = ternlm(&[&args[..], &[&"--lossy"]].concat());
        let said = String::from_utf8_lossy(&lossy.stdout);
        assert!(lossy.status.success(), "{}", stderr(&lossy));
        assert!(said.contains("weights are changed") && said.contains("Read back"), "{said}");
    }
    // By hand: scales 1 and 0.5, of which 2 and 1 weights are not 0: the mean over the three is 5/6 in f16, off by 1/6 and
    // 2/3 of them.
    let config = ModelConfig {
        vocab_size: 1,
        hidden_size: 256,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 256,
        intermediate_size: 256,
        activation: Activation::SwiGlu,
        qk_norm: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        sub_norm: false,
        causal: true,
        tie_embeddings: true,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        max_positions: 8,
        rope_scaling: None,
    };
    let mut decoder = Decoder::new(&config, Scope::All, Grouping::Size(128));
    let mut row = [0f32; 256];
    (row[3], row[127], row[128]) = (1.0, -1.0, -0.5);
    let matrix = TernaryMatrix::from_values(&row, 1, 256, Grouping::Size(128)).unwrap();
    decoder.embed_tokens.weight.adopt(matrix);
    let kind = BlockType::by_name("TQ2_0").unwrap();
    let error = fit(decoder.clone(), kind, false, Path::new("x")).unwrap_err().to_string();
    assert!(error.contains("row 0: found the scales 1 and 0.5 in columns 0 to 255"), "{error}");
    let (fitted, changes) = fit(decoder, kind, true, Path::new("x")).unwrap();
    let scale = half::f16::from_f32(5.0 / 6.0).to_f32();
    assert_eq!(fitted.embed_tokens.weight.ternary().unwrap().scales(), [scale]);
    assert_eq!((changes.weights, changes.not_zero), (3, 3));
    assert!((changes.largest - 2.0 / 3.0).abs() < 1e-3 && (changes.mean() - 1.0 / 3.0).abs() < 1e-3);
}

#[test]
fn what_has_no_place_in_a_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let from = random(dir.path(), true, 256);
    let original = fs::read_to_string(from.join("tokenizer.json")).unwrap();
    let refused = |text: String| {
        fs::write(from.join("tokenizer.json"), text).unwrap();
        let to = dir.path().join("x.gguf");
        let out = ternlm(&[&"export", &from, &"--format", &"gguf", &"--out", &to]);
        assert!(!out.status.success() && !to.exists());
        stderr(&out)
    };
    let said = refused(original.replace("\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}"));
    assert!(said.contains("tokenizer.json: normalizer: found") && said.contains("Lowercase"), "{said}");
    let said = refused(original.replacen("\"add_prefix_space\": false", "\"add_prefix_space\": true", 1));
    assert!(said.contains("tokenizer.json: pre_tokenizer: found"), "{said}");
    fs::write(from.join("tokenizer.json"), original).unwrap();
    // A block of 256 and rows of 128 inputs.
    let tiny = common::fixture("ternary-tiny/mlx");
    let to = dir.path().join("tiny.gguf");
    let out = ternlm(&[&"export", &tiny, &"--format", &"gguf", &"--type", &"tq2_0", &"--out", &to]);
    assert!(stderr(&out).contains("found 128 inputs, wanted a multiple of 256"), "{}", stderr(&out));
    // Groups of 32 with a scale each.
    let out = ternlm(&[&"export", &tiny, &"--format", &"gguf", &"--out", &to]);
    assert!(stderr(&out).contains("mlp.down_proj.weight row 0: found the scales"), "{}", stderr(&out));
}

fn data_files(tokenizer: &str) -> Option<Bundle> {
    let dir = common::data(&format!("tokenizers/{tokenizer}"))?;
    let names = ["tokenizer.json", "tokenizer_config.json"];
    let held = names.iter().filter_map(|name| Some((name.to_string(), fs::read(dir.join(name)).ok()?)));
    Some(Bundle::within(tokenizer, held.collect()))
}

fn metadata(tokenizer: &str, rows: usize) -> Option<BTreeMap<String, Item>> {
    let shape = ModelConfig {
        vocab_size: rows,
        ..model::load(&common::fixture("qwen3-tiny"), None).unwrap().decoder.config
    };
    let files = data_files(tokenizer)?;
    Some(
        gguf_tokens::metadata(&files, &Description::new(shape), rows).unwrap().unwrap().into_iter().collect(),
    )
}

fn texts(metadata: &BTreeMap<String, Item>, key: &str) -> Vec<String> {
    match &metadata[key] {
        Item::Texts(texts) => texts.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

/// What llama.cpp's own converter made of the same tokenizers.
#[test]
fn vocabularies_are_those_of_published_files() {
    for (tokenizer, rows, file) in [
        ("gpt2", 50_257, "ckpt/gguf/ggml-vocab-gpt-2.gguf"),
        ("llama2", 32_000, "ckpt/gguf/ggml-vocab-llama-spm.gguf"),
    ] {
        let (Some(ours), Some(file)) = (metadata(tokenizer, rows), common::data(file)) else { return };
        let file = GgufFile::open(&file).unwrap();
        let list = |key: &str| file.get(key).unwrap().as_array().unwrap();
        let strings = |key: &str| -> Vec<String> {
            list(key).values().map(|value| value.as_str().unwrap().to_string()).collect()
        };
        let kind = file.get("tokenizer.ggml.model").unwrap().as_str().unwrap();
        assert_eq!(ours["tokenizer.ggml.model"], Item::Text(kind.into()));
        assert!(
            texts(&ours, "tokenizer.ggml.tokens") == strings("tokenizer.ggml.tokens"),
            "{tokenizer}: tokens"
        );
        let types: Vec<i32> =
            list("tokenizer.ggml.token_type").values().map(|value| value.as_u64().unwrap() as i32).collect();
        assert!(ours["tokenizer.ggml.token_type"] == Item::I32s(types), "{tokenizer}: types");
        if kind == "gpt2" {
            assert!(texts(&ours, "tokenizer.ggml.merges") == strings("tokenizer.ggml.merges"));
            assert_eq!(ours["tokenizer.ggml.pre"], Item::Text("gpt-2".into()));
        } else {
            // Scores are ranks: only their order counts, and that of pieces which nothing makes says nothing.
            let Item::F32s(scores) = &ours["tokenizer.ggml.scores"] else { panic!("no scores") };
            let theirs: Vec<f64> =
                list("tokenizer.ggml.scores").values().map(|value| value.as_f64().unwrap()).collect();
            let least = scores.iter().copied().fold(0f32, f32::min);
            // Runs of spaces have all the same score there, the least.
            let made = (259..rows).filter(|id| scores[*id] > least && theirs[*id] > -1e8);
            let mut order: Vec<usize> = made.collect();
            assert!(order.len() > 29_000);
            order.sort_by(|a, b| theirs[*b].total_cmp(&theirs[*a]));
            assert!(order.windows(2).all(|pair| scores[pair[0]] > scores[pair[1]]), "{tokenizer}: scores");
            assert_eq!(ours["tokenizer.ggml.add_space_prefix"], Item::Bool(true));
            assert_eq!(ours["tokenizer.ggml.add_bos_token"], Item::Bool(true));
            assert_eq!(ours["tokenizer.ggml.bos_token_id"], Item::U32(1));
        }
    }
    if let Some(ours) = metadata("qwen3", 151_936) {
        assert_eq!(ours["tokenizer.ggml.pre"], Item::Text("qwen2".into()));
        let tokens = texts(&ours, "tokenizer.ggml.tokens");
        assert_eq!((&*tokens[151_643], &*tokens[151_935]), ("<|endoftext|>", "[PAD151935]"));
        let Item::I32s(types) = &ours["tokenizer.ggml.token_type"] else { panic!("no types") };
        // A normal one, a special one, one of tools, an unused one.
        assert_eq!([0, 151_643, 151_657, 151_935].map(|id: usize| types[id]), [1, 3, 4, 5]);
        assert!(matches!(&ours["tokenizer.chat_template"], Item::Text(text) if text.contains("im_start")));
    }
}

/// `TERNLM_LLAMA_PROBE` names what `llama_cpp/probe.cpp` was compiled to.
fn probe(what: &str, file: &Path, args: &[String], input: &[u8]) -> Option<Vec<u8>> {
    let Some(program) = std::env::var_os("TERNLM_LLAMA_PROBE") else {
        eprintln!("SKIPPED: TERNLM_LLAMA_PROBE names no program made of tests/llama_cpp/probe.cpp");
        return None;
    };
    let mut run = Command::new(program)
        .arg(what)
        .arg(file)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin.take().unwrap().write_all(input).unwrap();
    let out = run.wait_with_output().unwrap();
    assert!(out.status.success(), "{what} of {}", file.display());
    Some(out.stdout)
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

/// `TERNLM_GGUF_MODELS`: further models, separated by `:`.
#[test]
fn llama_cpp_computes_what_we_compute() {
    let dir = tempfile::tempdir().unwrap();
    let further = std::env::var("TERNLM_GGUF_MODELS").unwrap_or_default();
    let further = further.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
    let own = [random(dir.path(), true, 300), random(dir.path(), false, 300)];
    for (i, from) in own.into_iter().chain(further).enumerate() {
        for (kind, bound) in [("f16", 2e-3), ("q2_0", 5e-2)] {
            let to = dir.path().join(format!("{i}-{kind}.gguf"));
            println!("{}", export(&from, kind, &to).trim_end());
            let decoder = model::load(&to, None).unwrap().decoder;
            let ids: Vec<String> = tokens(&decoder).iter().map(u32::to_string).collect();
            let Some(raw) = probe("logits", &to, &ids, &[]) else { return };
            let theirs: Vec<f32> =
                raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let off = off(&theirs, &logits(&decoder));
            println!("{kind}: logits off by {off:.1e} of the largest");
            assert!(off < bound, "{kind}: {off}");
            if i < 2 {
                continue;
            }
            // A trained model: greedy text.
            let tokenizer = Tokenizer::of(&ternlm::formats::files_of(&from).unwrap()).unwrap();
            let prompt = tokenizer.encode_prompt("The history of the").unwrap();
            let (ours, lead) = greedy(&decoder, &prompt, 64);
            let mut args = vec!["64".to_string()];
            args.extend(prompt.iter().map(u32::to_string));
            let said = String::from_utf8(probe("greedy", &to, &args, &[]).unwrap()).unwrap();
            let said: Vec<&str> = said.split_whitespace().collect();
            let same = ours.iter().zip(&said).take_while(|(a, b)| a == b).count();
            println!("{kind}: {same} of 64 greedy tokens are the same; the smallest lead here is {lead:.1e}");
            assert!(kind != "f16" || same == 64);
        }
    }
}

/// The hard texts of llama.cpp's own tests, through files that were written here.
#[test]
fn llama_cpp_cuts_texts_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    for (tokenizer, rows, vectors) in
        [("gpt2", 50_257, "gpt-2"), ("qwen3", 151_936, "qwen2"), ("llama2", 32_000, "llama-spm")]
    {
        let vectors = common::data(&format!("tokenizers/ggml-vectors/ggml-vocab-{vectors}.gguf.inp"));
        let (Some(files), Some(vectors)) = (data_files(tokenizer), vectors) else { return };
        let from = random(dir.path(), true, 256);
        let to = dir.path().join(format!("{tokenizer}.gguf"));
        let loaded = model::load_trits(&from).unwrap();
        // The model's own rows are too few for these vocabularies; a vocabulary needs no more of it than its shape.
        let mut description = loaded.description.clone();
        description.model.vocab_size = rows;
        let metadata = gguf_tokens::metadata(&files, &description, rows).unwrap().unwrap();
        let mut all = vec![("general.architecture".to_string(), Item::Text("qwen3".into()))];
        for (key, n) in [
            ("context_length", 64),
            ("embedding_length", 64),
            ("block_count", 1),
            ("feed_forward_length", 64),
            ("attention.head_count", 1),
            ("attention.head_count_kv", 1),
        ] {
            all.push((format!("qwen3.{key}"), Item::U32(n)));
        }
        all.push(("qwen3.attention.layer_norm_rms_epsilon".into(), Item::F32(1e-6)));
        all.extend(metadata);
        ternlm::formats::gguf::write::write(&to, &all, &[], &mut |_, _| {}).unwrap();
        let ours = Tokenizer::of(&files).unwrap();
        let hard = fs::read_to_string(vectors).unwrap();
        let hard: Vec<&str> = hard.split("\n__ggml_vocab_test__\n").filter(|text| !text.is_empty()).collect();
        assert!(hard.len() > 40);
        let input: Vec<u8> = hard.iter().flat_map(|text| [text.as_bytes(), &[0]].concat()).collect();
        let Some(said) = probe("tokens", &to, &[], &input) else { return };
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.lines().count(), hard.len());
        for (text, theirs) in hard.iter().zip(said.lines()) {
            let ids: Vec<String> = ours.encode_prompt(text).unwrap().iter().map(u32::to_string).collect();
            assert_eq!(ids.join(" "), theirs, "{tokenizer}: {text:?}");
        }
        println!("{tokenizer}: {} texts, the same ids", hard.len());
    }
}
