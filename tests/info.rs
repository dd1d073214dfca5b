//! What `ternlm info` says of a model in every format that is read. Bits a weight are those of each format's description.

mod common;

use common::gguf::{self, File, Shape, f32_bytes};
use common::program::{Arg, ok};
use common::{edit_json, models};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use ternlm::config::{ModelConfig, Scope};
use ternlm::formats::Description;
use ternlm::model::{self, Decoder, Latents};
use ternlm::ternary::Grouping;
use ternlm::text::Tokenizer;

/// What it says to programs, and to people.
#[track_caller]
fn info(path: &Path) -> (Value, String) {
    let text = ok(&[&"info", &path, &"--json"]);
    (serde_json::from_str::<Value>(&text).unwrap()["model"].take(), ok(&[&"info", &path]))
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "wanted {wanted:?} in\n{text}");
    }
}

/// Of [`models::llama`]: embedding and head of 261 rows; in each layer q and o, k and v of half as many rows, three of the
/// feed-forward network; all of 256 inputs.
const MATRICES: u64 = 2 * 261 * 256 + 2 * (2 * 256 + 2 * 128 + 3 * 256) * 256;
const GAINS: u64 = (2 * 2 + 1) * 256;

/// A directory of such a model in every projection, with the tokenizer of bytes and a chat template.
fn start(dir: &Path, grouping: Grouping) -> std::path::PathBuf {
    let config = models::llama();
    let mut decoder = Decoder::new(&config, Scope::All, grouping);
    Latents::random(decoder.weights_mut(), 3, None).unwrap();
    let out = dir.join("start");
    fs::create_dir(&out).unwrap();
    model::save(&out, &decoder, &Description::new(config), None).unwrap();
    Tokenizer::bytes().save(&out).unwrap();
    edit_json(&out.join("tokenizer_config.json"), |settings| {
        settings["chat_template"] = json!("{% for m in messages %}{{ m.content }}{% endfor %}");
    });
    out
}

#[test]
fn ternary_models_in_every_format() {
    assert_eq!((MATRICES, GAINS), (920_064, 1280));
    let whole = |form: &str, group: Value| json!({"form": form, "scope": "all", "group": group});
    let gguf = |kind: &'static str| vec!["--format", "gguf", "--type", kind];
    // The type of a tensor, and bits of it: codes, and 16 for each scale.
    for (grouping, options, ternary, coding, bits, recognised) in [
        (128, vec!["--density", "base3"], whole("packed", json!(128)), "base3", 28.0 * 8.0 / 128.0, None),
        (128, vec!["--density", "2bit"], whole("packed", json!(128)), "2bit", 34.0 * 8.0 / 128.0, None),
        (128, vec!["--format", "unpacked"], whole("unpacked", json!(128)), "F16", 16.0, None),
        (128, vec!["--format", "mlx"], whole("mlx", json!(128)), "MLX 2bit", 2.0 + 32.0 / 128.0, None),
        (
            128,
            gguf("q2_0"),
            whole("gguf", json!(128)),
            "Q2_0",
            18.0 * 8.0 / 64.0,
            Some("(Q2_0), groups of 128"),
        ),
        (
            128,
            gguf("pq2_0"),
            whole("gguf", json!(128)),
            "PQ2_0",
            34.0 * 8.0 / 128.0,
            Some("(PQ2_0), groups of 128"),
        ),
        (
            128,
            gguf("f16"),
            whole("gguf", json!(128)),
            "F16",
            16.0,
            Some("every matrix is ternary already, one scale for 128"),
        ),
        (
            128,
            gguf("f32"),
            whole("gguf", json!(128)),
            "F32",
            32.0,
            Some("every matrix is ternary already, one scale for 128"),
        ),
        (
            0,
            gguf("tq2_0"),
            whole("gguf", json!(256)),
            "TQ2_0",
            66.0 * 8.0 / 256.0,
            Some("(TQ2_0), groups of 256"),
        ),
        (
            0,
            gguf("tq1_0"),
            whole("gguf", json!(256)),
            "TQ1_0",
            54.0 * 8.0 / 256.0,
            Some("(TQ1_0), groups of 256"),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let from = start(dir.path(), if grouping == 0 { Grouping::Tensor } else { Grouping::Size(grouping) });
        let to = dir.path().join("to");
        let mut args: Vec<Arg> = vec![&"export", &from, &"--out", &to];
        args.extend(options.iter().map(|option| option as Arg));
        ok(&args);
        let (json, text) = info(&to);
        println!("{text}");
        assert_eq!(json["architecture"], "llama", "{options:?}");
        assert_eq!(
            (&json["parameters"], &json["ternary_weights"]),
            (&json!(MATRICES + GAINS), &json!(MATRICES))
        );
        for key in ["form", "scope", "group"] {
            assert_eq!(json["ternary"][key], ternary[key], "{options:?}: {key}");
        }
        // log2(3) for a trit, and what its share of a scale takes.
        let group = ternary["group"].as_f64().unwrap();
        let ideal = json["ternary"]["ideal_bits_per_weight"].as_f64().unwrap();
        assert!((ideal - (1.584_962_500_7 + 16.0 / group)).abs() < 1e-9, "{options:?}: {ideal}");
        // Every matrix in that type, and gains in f32 or in as few bits as hold a 1.
        let matrices =
            json["tensors"].as_array().unwrap().iter().filter(|t| t["shape"].as_array().unwrap().len() == 2);
        let (mut count, mut bytes) = (0, 0);
        for tensor in matrices {
            assert_eq!(
                (&tensor["dtype"], &tensor["ternary"]),
                (&json!(coding), &json!(true)),
                "{options:?}: {tensor}"
            );
            (count, bytes) = (count + 1, bytes + tensor["bytes"].as_u64().unwrap());
        }
        // A packed file has rows in blocks of 16: 272 for 261 of embedding and head.
        let empty = if options[0] == "--density" { 2 * 11 * 256 } else { 0 };
        let bits = bits * (MATRICES + empty) as f64 / MATRICES as f64;
        assert_eq!((count, bytes), (16, (bits * MATRICES as f64 / 8.0).round() as u64), "{options:?}");
        let all = json["stored_bits_per_weight"].as_f64().unwrap();
        let least = bits * MATRICES as f64 / (MATRICES + GAINS) as f64;
        assert!(all > least && all <= least + 32.0 * GAINS as f64 / MATRICES as f64, "{options:?}: {all}");
        match recognised {
            Some(how) => says(json["recognised"].as_str().unwrap(), &[how]),
            None => assert_eq!(json["recognised"], Value::Null, "{options:?}"),
        }
        // Gains of 1 are in F16 where they may, and in F32 elsewhere.
        let all_alike = coding == "F32" || options.contains(&"unpacked");
        let in_coding =
            if all_alike { format!("21 in {coding} (921,344") } else { format!("16 in {coding} (920,064") };
        // 256 bytes; what the file says of the end of a text and of chats.
        let tokenizer = &json["tokenizer"];
        assert_eq!(tokenizer["chat_template"], true, "{options:?}");
        assert!(tokenizer["vocab_size"].as_u64().unwrap() >= 256, "{tokenizer}");
        says(
            &text,
            &[
                "(llama)\nLayers: 2, width 256, feed-forward 256 (swiglu), 4 heads of 64, 2 for keys and values\n",
                "Vocabulary: 261, 256 positions, output head of its own\n",
                "Parameters: 921,344, 920,064 of them ternary (99.86 %)\n",
                &format!("{in_coding} weights, {bits:.4} bits each)"),
                &format!("Ternary: scope all, groups of {group}, stored as "),
                ", with a chat template\n",
                &format!("lm_head.weight  [261, 256]  ternary, in {coding}\n"),
            ],
        );
        assert_eq!(
            text.contains("GGUF: version 3, name to, vocabulary gpt2, cut as gpt-2\n"),
            options.contains(&"gguf"),
            "{text}"
        );
    }
}

#[test]
fn ternary_models_of_other_tools() {
    let tiny = |name: &str| common::fixture("ternary-tiny").join(name);
    let (json, text) = info(&tiny("mlx"));
    assert_eq!((&json["architecture"], &json["ternary"]["group"]), (&json!("qwen3"), &json!(32)));
    says(
        &text,
        &[
            "16 in MLX 2bit (233,472 weights, 2.3816 bits each)",
            "Ternary: scope all, groups of 32, stored as mlx\n",
            "Recognised: packed by MLX: every matrix is ternary already",
            "Tokenizer: none\n",
        ],
    );
    // One scale a matrix, which multiplies here and divides there.
    let dir = tempfile::tempdir().unwrap();
    let divided = dir.path().join("divides");
    fs::create_dir(&divided).unwrap();
    fs::copy(tiny("bitnet").join("model.safetensors"), divided.join("model.safetensors")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(tiny("bitnet").join("config.json")).unwrap()).unwrap();
    config["quantization_config"] = json!({"quant_method": "bitnet", "linear_class": "bitlinear"});
    fs::write(divided.join("config.json"), config.to_string()).unwrap();
    for path in [tiny("bitnet"), divided] {
        let (json, text) = info(&path);
        let ternary = &json["ternary"];
        assert_eq!(
            (&ternary["form"], &ternary["scope"], &ternary["group"], &ternary["activations"]),
            (&json!("bitnet"), &json!("blocks"), &json!("tensor"), &json!("int8"))
        );
        says(
            &text,
            &[
                "Parameters: 32,960, 30,720 of them ternary (93.20 %)\n",
                // Four codes a byte, and a scale of 16 bits for each of 7 matrices.
                "7 in BitNet 2bit (30,720 weights, 2.0036 bits each), 4 in BF16 (2,240 weights, 16.0000 bits each)\n",
                "Ternary: scope blocks, groups of tensor, stored as bitnet, inputs of 8 bits\n",
                "Recognised: packed by BitNet: every matrix of the blocks is ternary already, one scale for each matrix",
            ],
        );
    }
    let (json, text) = info(&tiny("plain"));
    assert_eq!(
        (&json["ternary"]["form"], &json["ternary"]["activations"]),
        (&json!("unpacked"), &json!("f32"))
    );
    says(
        &text,
        &[
            "Stored: 16.0000 bits a weight: 11 in BF16 (32,960 weights, 16.0000 bits each)\n",
            "Ternary: scope blocks, groups of tensor, stored as unpacked\n",
            "Recognised: every matrix of the blocks is ternary already, one scale for each matrix: taken as it is, never",
        ],
    );
    // BitNet b1.58's architecture, packed.
    let (json, text) = info(&common::fixture("architectures/bitnet-packed"));
    assert_eq!((&json["architecture"], &json["config"]["sub_norm"]), (&json!("bitnet"), &json!(true)));
    says(&text, &["(relu2glu)", "stored as bitnet, inputs of 8 bits\n", "in BitNet 2bit ("]);
}

#[test]
fn models_of_numbers() {
    let (json, text) = info(&common::fixture("qwen3-tiny"));
    assert_eq!(
        (&json["ternary"], &json["recognised"], &json["tokenizer"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!((&json["architecture"], &json["ternary_weights"]), (&json!("qwen3"), &json!(0)));
    says(
        &text,
        &[
            "0 of them ternary (0.00 %)\n",
            "Stored: 16.0000 bits a weight: 25 in BF16 (12,856 weights, ",
            "Tokenizer: none\n",
        ],
    );
    assert!(!text.contains("Ternary:") && !text.contains("Recognised:"), "{text}");
}

/// Types of ggml, the bytes of a block and its weights, by their numbers.
const TYPES: [(&str, u32, usize, usize); 9] = [
    ("BF16", 30, 2, 1),
    ("Q8_0", 8, 34, 32),
    ("Q4_0", 2, 18, 32),
    ("Q4_1", 3, 20, 32),
    ("Q5_0", 6, 22, 32),
    ("Q4_K", 12, 144, 256),
    ("Q5_K", 13, 176, 256),
    ("Q6_K", 14, 210, 256),
    ("F16", 1, 2, 1),
];

#[test]
fn gguf_files_of_every_type() {
    let c = ModelConfig { tie_embeddings: true, ..models::llama() };
    for (name, kind, bytes, weights) in TYPES {
        let shape = Shape {
            architecture: "llama",
            width: c.hidden_size,
            layers: 1,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            feed_forward: c.intermediate_size,
            context: c.max_positions,
        };
        let mut file = shape.file();
        file.text("general.name", "Some model").text("tokenizer.ggml.model", "llama");
        let pieces = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"];
        file.texts("tokenizer.ggml.tokens", pieces)
            .f32s("tokenizer.ggml.scores", (0..8).map(|i| -(i as f32)));
        file.i32s("tokenizer.ggml.token_type", [2, 3, 3, 1, 1, 1, 1, 1])
            .u32("tokenizer.ggml.eos_token_id", 2);
        file.text("tokenizer.chat_template", "{{ bos_token }}");
        // Bytes that are no ternary weights.
        let some = |rows: usize| (0..rows * 256 / weights * bytes).map(|i| (i * 7 % 61) as u8).collect();
        file.tensor("token_embd.weight", &[8, 256], gguf::F32, f32_bytes(&[0.25; 8 * 256]));
        for (part, rows) in [("attn_q", 256), ("attn_k", 128), ("attn_v", 128), ("attn_output", 256)] {
            file.tensor(&format!("blk.0.{part}.weight"), &[rows, 256], kind, some(rows));
        }
        for part in ["ffn_gate", "ffn_up", "ffn_down"] {
            file.tensor(&format!("blk.0.{part}.weight"), &[256, 256], kind, some(256));
        }
        for part in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
            file.tensor(&format!("{part}.weight"), &[256], gguf::F32, f32_bytes(&[1.0; 256]));
        }
        let (json, text) = told(&file);
        assert_eq!((&json["ternary"], &json["ternary_weights"]), (&Value::Null, &json!(0)), "{name}");
        assert_eq!(json["parameters"], 8 * 256 + (3 * 256 + 2 * 128 + 2 * 256) * 256 + 3 * 256, "{name}");
        let bits = 8.0 * bytes as f64 / weights as f64;
        says(
            &text,
            &[
                &format!(
                    "7 in {name} (393,216 weights, {bits:.4} bits each), 4 in F32 (2,816 weights, 32.0000 bits each)\n"
                ),
                "Tokenizer: 8 tokens, ends a text with 2, with a chat template\n",
                "GGUF: version 3, name Some model, vocabulary llama, cut as nothing\n",
                &format!("model.layers.*.mlp.down_proj.weight  [256, 256]  {name}\n"),
            ],
        );
    }
}

#[track_caller]
fn told(file: &File) -> (Value, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    fs::write(&path, file.bytes()).unwrap();
    info(&path)
}
