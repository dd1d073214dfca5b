//! Models as GGUF files: blocks against those of the Python package `gguf` (`fixtures/make_gguf.py`), whole models read back,
//! vocabularies against published files. llama.cpp itself is in `llama_cpp/`.

mod common;

use common::models::{self, llama3, logits, off, yarn};
use common::program::{Arg, ok, ternlm};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use ternlm::config::{Activation, ModelConfig, RopeScaling, Scope};
use ternlm::files::Bundle;
use ternlm::formats::gguf::write::{Item, write};
use ternlm::formats::gguf::{BlockType, GgufFile, Value, encode, tokens as gguf_tokens, vocabulary};
use ternlm::formats::{Description, npy};
use ternlm::measure;
use ternlm::model::{self, Decoder, fit};
use ternlm::ternary::{Grouping, TernaryMatrix};
use ternlm::text::Tokenizer;

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[track_caller]
fn export(from: &Path, kind: &str, to: &Path) -> String {
    ok(&[&"export", &from, &"--format", &"gguf", &"--type", &kind, &"--out", &to])
}

/// A model of random weights, everything ternary.
fn random(dir: &Path, qk_norm: bool, intermediate_size: usize) -> PathBuf {
    let (name, config) = if qk_norm { ("qwen3", models::qwen3()) } else { ("llama", models::llama()) };
    models::random(dir, name, &ModelConfig { intermediate_size, ..config })
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
        // What stands for the end that there is not, is none when it is read.
        assert!(file.get("tokenizer.ggml.eos_token_id").is_some());
        assert_eq!(Tokenizer::of(&files).unwrap().eos(), None);
        assert!(measure::verify(&to, &mut |_| {}).unwrap().pass, "{kind}");
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
        let args: [Arg; 8] = [&"export", &from, &"--format", &"gguf", &"--type", &kind, &"--out", &to];
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
    let config = of_rows(1);
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

/// A shape whose embedding has so many rows of 256.
fn of_rows(vocab_size: usize) -> ModelConfig {
    let llama = models::llama();
    ModelConfig { vocab_size, layers: 1, heads: 1, kv_heads: 1, head_dim: 256, tie_embeddings: true, ..llama }
}

/// One scale for all rows, also for a row of zeros; a number that a type holds as infinity is refused.
#[test]
fn what_is_rounded_stays_a_model() {
    let config = of_rows(2);
    let mut decoder = Decoder::new(&config, Scope::All, Grouping::Tensor);
    let mut rows = [0f32; 512];
    (rows[3], rows[127]) = (0.300_048_83, -0.300_048_83);
    let matrix = TernaryMatrix::from_values(&rows, 2, 256, Grouping::Tensor).unwrap();
    decoder.embed_tokens.weight.adopt(matrix);
    let bf16 = BlockType::by_name("BF16").unwrap();
    let (fitted, changes) = fit(decoder, bf16, true, Path::new("x")).unwrap();
    let scales = fitted.embed_tokens.weight.ternary().unwrap().scales().to_vec();
    assert_eq!(scales, [half::bf16::from_f32(0.300_048_83).to_f32(); 2]);
    assert_eq!(changes.weights, 2);

    let mut dense = Decoder::new(&config, Scope::None, Grouping::default());
    dense.embed_tokens.weight.dense_mut()[5] = 70_000.0;
    let error = fit(dense, BlockType::by_name("F16").unwrap(), true, Path::new("x")).unwrap_err().to_string();
    assert!(
        error.contains("model.embed_tokens.weight: found 70000, wanted numbers that F16 holds"),
        "{error}"
    );
}

/// Rotations, biases and norms of other families there and back: the same description, the same numbers to the bit but for
/// a factor that a file has in f32.
#[test]
fn what_is_written_is_the_same_model_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let biased = ModelConfig { qkv_bias: true, ..models::llama() };
    let rotated = |rope| ModelConfig { rope_scaling: Some(rope), ..models::llama() };
    for (name, config) in [
        ("qwen2", biased.clone()),
        ("biases", ModelConfig { o_bias: true, mlp_bias: true, ..biased }),
        ("bitnet", ModelConfig { sub_norm: true, tie_embeddings: true, ..models::llama() }),
        ("linear", rotated(RopeScaling::Linear { factor: 2.5 })),
        ("yarn", rotated(yarn(None, None, 32.0))),
        ("yarn-attention", rotated(yarn(Some(0.75), None, 32.0))),
        ("llama3", rotated(llama3(8.0, 4.0, 8192))),
        ("llama3-other", rotated(llama3(8.0, 2.0, 16))),
    ] {
        let from = models::random(dir.path(), name, &config);
        let to = dir.path().join(format!("{name}.gguf"));
        export(&from, "q2_0", &to);
        let read = model::load(&to, None).unwrap();
        let want = model::load(&from, None).unwrap();
        assert!(logits(&read.decoder) == logits(&want.decoder) || name == "yarn-attention", "{name}");
        let mut found = read.description.model;
        if let (Some(RopeScaling::Yarn { attention_factor: Some(x), .. }), "yarn-attention") =
            (&mut found.rope_scaling, name)
        {
            assert!((*x - 0.75).abs() < 1e-6, "{x}");
            *x = 0.75;
        }
        assert_eq!(found, config, "{name}");
        assert!(measure::verify(&to, &mut |_| {}).unwrap().pass, "{name}");
        let file = GgufFile::open(&to).unwrap();
        assert_eq!(file.tensors().contains_key("rope_freqs.weight"), name.starts_with("llama3"), "{name}");
        assert_eq!(file.get("ternlm.rope_scaling").is_some(), name == "llama3-other", "{name}");
    }
}

#[test]
fn models_that_llama_cpp_does_not_have_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let bitnet = ModelConfig { sub_norm: true, tie_embeddings: true, ..models::llama() };
    let rotated = |model: ModelConfig, rope| ModelConfig { rope_scaling: Some(rope), ..model };
    for (config, wanted) in [
        (
            ModelConfig { activation: Activation::Relu2Glu, ..bitnet.clone() },
            "hidden_act: found \"relu2\", wanted SiLU: llama.cpp's bitnet has it in place of ReLU²",
        ),
        (ModelConfig { tie_embeddings: false, ..bitnet.clone() }, "tie_word_embeddings: found false"),
        (ModelConfig { qkv_bias: true, ..bitnet.clone() }, "sub_norm: found true, wanted without biases"),
        // Units of zeros would count in the norm.
        (ModelConfig { intermediate_size: 300, ..bitnet }, "down_proj.weight\": found 300 inputs"),
        (rotated(models::qwen3(), llama3(8.0, 4.0, 8192)), "llama.cpp's qwen3 has no table of factors"),
        (
            rotated(models::qwen3(), yarn(None, None, 16.0)),
            "wanted beta_fast 32, beta_slow 1 and truncate true",
        ),
        (ModelConfig { activation: Activation::Gelu, ..models::llama() }, "model_type: found ternlm"),
    ] {
        let from = models::random(dir.path(), "from", &config);
        let to = dir.path().join("x.gguf");
        let out = ternlm(&[&"export", &from, &"--format", &"gguf", &"--out", &to]);
        assert!(!out.status.success() && !to.exists());
        assert!(stderr(&out).contains(wanted), "{}", stderr(&out));
    }
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
    let said = refused(original.replacen("\"end_of_word_suffix\": \"\"", "\"end_of_word_suffix\": \"x\"", 1));
    assert!(said.contains("tokenizer.json: model.end_of_word_suffix: found"), "{said}");
    let stripped = r#""added_tokens": [{"id": 256, "content": "<s>", "lstrip": true, "special": true}]"#;
    let said = refused(original.replacen("\"added_tokens\": []", stripped, 1));
    assert!(said.contains("tokenizer.json: added_tokens \"<s>\" lstrip: found true"), "{said}");
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

#[test]
fn what_is_there_stays_until_another_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let from = random(dir.path(), true, 256);
    let to = dir.path().join("out/x.gguf");
    export(&from, "q2_0", &to);
    let before = fs::read(&to).unwrap();
    // The name that an unused row gets, as a token of another row: no reader takes a vocabulary with a token twice.
    let tokenizer = fs::read_to_string(from.join("tokenizer.json")).unwrap();
    let clash = r#""added_tokens": [{"id": 256, "content": "[PAD258]", "special": true}]"#;
    let clash = tokenizer.replacen("\"added_tokens\": []", clash, 1);
    assert_ne!(clash, tokenizer);
    fs::write(from.join("tokenizer.json"), clash).unwrap();
    let out = ternlm(&[&"export", &from, &"--format", &"gguf", &"--out", &to, &"--force"]);
    assert!(!out.status.success() && stderr(&out).contains("every token once"), "{}", stderr(&out));
    assert!(fs::read(&to).unwrap() == before, "the old file is there as it was");
    assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1, "and nothing beside it");
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

const PIECES: [&str; 8] = ["<unk>", "<s>", "</s>", "<0x21>", "▁", "a", "b", "▁a"];

/// A `tokenizer.json` of SentencePiece's kind for texts of `a`, `b` and spaces.
fn of_pieces(normalizer: Json, pre_tokenizer: Json) -> Json {
    let vocab: Map<String, Json> =
        PIECES.iter().enumerate().map(|(id, piece)| (piece.to_string(), json!(id))).collect();
    let added = |id: usize| {
        json!({"id": id, "content": PIECES[id], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0), added(1), added(2)],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["▁ a"]},
    })
}

/// With the scheme, or with none.
fn metaspace(scheme: Option<&str>) -> Json {
    let mut json = json!({"type": "Metaspace", "replacement": "▁", "split": false});
    if let Some(scheme) = scheme {
        json["prepend_scheme"] = scheme.into();
    }
    json
}

fn prepend() -> Json {
    json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})
}

/// The tokenizer of a folder with these files, and that of the GGUF file that is made of them.
fn both(files: &[(&str, &Json)]) -> [Tokenizer; 2] {
    let held = files.iter().map(|(name, json)| (name.to_string(), json.to_string().into_bytes()));
    let files = Bundle::within("folder", held.collect());
    let shape = ModelConfig { vocab_size: PIECES.len(), ..models::llama() };
    let metadata = gguf_tokens::metadata(&files, &Description::new(shape), PIECES.len()).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    write(&file, &metadata, &[], &mut |_, _| {}).unwrap();
    let read = vocabulary(&GgufFile::open(&file).unwrap()).unwrap();
    [files, read].map(|files| Tokenizer::of(&files).unwrap())
}

/// The folder's tokens are those that Python's tokenizers 0.23.3 gives, the file's those of llama.cpp's rule: a space before every
/// text that begins or follows a special token (llama-vocab.cpp). They differ where an export says so, as the next test has it.
#[test]
fn spaces_of_a_metaspace_are_said_as_far_as_a_file_can() {
    let texts = ["a b", "<s>a</s>b", " a", "<s> a"];
    let never = ["a ▁ b", "<s> a </s> b", "▁a", "<s> ▁a"];
    let unless_there = ["▁a ▁ b", "<s> ▁a </s> ▁ b", "▁a", "<s> ▁a"];
    let at_the_start = ["▁a ▁ b", "<s> a </s> b", "▁a", "<s> ▁a"];
    let always = ["▁a ▁ b", "<s> ▁a </s> ▁ b", "▁ ▁a", "<s> ▁ ▁a"];
    for (normalizer, pre_tokenizer, wanted) in [
        (Json::Null, metaspace(Some("never")), [never, never]),
        (Json::Null, metaspace(Some("always")), [unless_there, always]),
        (Json::Null, metaspace(None), [unless_there, always]),
        (Json::Null, metaspace(Some("first")), [at_the_start, always]),
        (prepend(), Json::Null, [always, always]),
        (prepend(), metaspace(Some("never")), [always, always]),
        (prepend(), metaspace(Some("first")), [always, always]),
    ] {
        let json = of_pieces(normalizer, pre_tokenizer);
        let got = both(&[("tokenizer.json", &json)]).map(|tokenizer| {
            texts.map(|text| {
                let ids = tokenizer.encode(text).unwrap();
                ids.iter().map(|&id| PIECES[id as usize]).collect::<Vec<_>>().join(" ")
            })
        });
        assert_eq!(got, wanted.map(|tokens| tokens.map(String::from)), "{json}");
    }
}

#[test]
fn spaces_that_llama_cpp_puts_elsewhere_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let from = random(dir.path(), false, 256);
    let to = dir.path().join("x.gguf");
    let mut normalized = of_pieces(prepend(), Json::Null);
    normalized["added_tokens"][1]["normalized"] = true.into();
    for (json, told) in [
        (of_pieces(Json::Null, metaspace(Some("first"))), "\"first\" puts no space"),
        (of_pieces(Json::Null, metaspace(Some("always"))), "\"always\" puts no space"),
        (of_pieces(Json::Null, metaspace(None)), "\"always\" puts no space"),
        (normalized, "the added token \"<s>\" (normalized: true) is found behind a space alone"),
        (of_pieces(Json::Null, metaspace(Some("never"))), ""),
        (of_pieces(prepend(), metaspace(Some("first"))), ""),
        (of_pieces(prepend(), Json::Null), ""),
    ] {
        fs::write(from.join("tokenizer.json"), json.to_string()).unwrap();
        let out = ternlm(&[&"export", &from, &"--format", &"gguf", &"--out", &to, &"--force"]);
        let said = stderr(&out);
        assert!(out.status.success() && said.contains(told), "{told}: {said}");
        assert_eq!(said.contains("other tokens"), !told.is_empty(), "{json}: {said}");
    }
}

/// What transformers 4.57 puts around texts by the two keys (`LlamaTokenizerFast.update_post_processor`), where `tokenizer.json`
/// says nothing; and what it says itself, as transformers 5.24 reads it.
#[test]
fn a_directory_and_its_file_begin_prompts_alike() {
    let begins = json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true, "bos_token": "<s>"});
    let ends = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "add_eos_token": true,
        "bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}});
    let unnamed = json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true});
    let neither =
        json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": false, "bos_token": "<s>"});
    let other = json!({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": true, "bos_token": "<s>"});
    let map = json!({"bos_token": {"content": "<s>"}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let token = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let template = |single: Json| {
        json!({"type": "TemplateProcessing", "single": single, "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}})
    };
    let (silent, none) = (Json::Null, json!({}));
    for (post_processor, config, map, whole) in [
        (&silent, &begins, &none, &[1, 7][..]),
        (&silent, &ends, &none, &[1, 7, 2][..]),
        (&silent, &unnamed, &map, &[1, 7][..]),
        (&silent, &unnamed, &none, &[7][..]),
        (&silent, &neither, &none, &[7][..]),
        (&silent, &other, &none, &[7][..]),
        (&template(json!([token, text])), &neither, &none, &[1, 7][..]),
        (&template(json!([text])), &begins, &none, &[7][..]),
    ] {
        let mut json = of_pieces(prepend(), Json::Null);
        json["post_processor"] = post_processor.clone();
        let files =
            [("tokenizer.json", &json), ("tokenizer_config.json", config), ("special_tokens_map.json", map)];
        for (tokenizer, place) in both(&files).into_iter().zip(["folder", "file"]) {
            let what = format!("{place}: {post_processor} {config} {map}");
            assert_eq!(tokenizer.encode_with_special("a").unwrap(), whole, "{what}");
            let prompt: Vec<u32> = whole.iter().copied().filter(|id| *id != 2).collect();
            assert_eq!(tokenizer.encode_prompt("a").unwrap(), prompt, "{what}");
        }
    }
}
