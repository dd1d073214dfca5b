//! Configurations, indexes and manifests.

use serde_json::{Value, json};
use ternlm::formats::tensors::INDEX_NAME;

use super::{config, manifest, refused};

#[test]
fn configs() {
    let with = |key: &str, value: Value| {
        let mut config = config();
        config[key] = value;
        config.to_string().into_bytes()
    };
    let sizes = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "max_position_embeddings",
    ];
    let impossible = [
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e30),
        json!(u64::MAX),
        json!(1 << 25),
        json!("8"),
        json!([8]),
        json!({}),
    ];
    for key in sizes {
        for value in &impossible {
            refused("config.json", &with(key, value.clone()), &format!("{key}: found"));
        }
    }
    for key in sizes
        .into_iter()
        .filter(|key| !matches!(*key, "num_key_value_heads" | "head_dim"))
        .chain(["model_type"])
    {
        refused("config.json", &with(key, Value::Null), &format!("{key}: found nothing"));
        let mut config = config();
        config.as_object_mut().unwrap().shift_remove(key);
        refused("config.json", config.to_string().as_bytes(), &format!("{key}: found nothing"));
    }
    for (key, value) in [
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(15)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-1e4)),
        ("rope_theta", json!(1e39)),
        ("rms_norm_eps", json!(-1e-6)),
        ("rms_norm_eps", json!("1e-6")),
        ("tie_word_embeddings", json!("yes")),
        ("eos_token_id", json!(64)),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([1, [2]])),
        ("bos_token_id", json!(4_294_967_297_u64)),
        ("rope_scaling", json!(8)),
        ("rope_parameters", json!("default")),
        ("sliding_window", json!("wide")),
        ("layer_types", json!({"a": 1})),
        ("model_type", json!("x".repeat(1 << 20))),
        ("hidden_act", json!("x".repeat(1 << 20))),
        ("ternlm", json!([])),
    ] {
        refused("config.json", &with(key, value), &format!("{key}: found"));
    }
    for (key, value) in [
        ("format", json!(2)),
        ("form", json!("rounded")),
        ("scope", json!(7)),
        ("group", json!(0)),
        ("group", json!("row")),
        ("tensors", json!("a")),
        ("tensors", json!([1])),
        ("tensors", Value::Null),
    ] {
        let mut note = config()["ternlm"].clone();
        note[key] = value;
        refused("config.json", &with("ternlm", note), &format!("ternlm.{key}: found"));
    }
    let mut note = config()["ternlm"].clone();
    note["x\u{1b}".repeat(1 << 19)] = json!(1);
    refused("config.json", &with("ternlm", note), "ternlm.x\\u{1b}x");
    let map = json!({format!("AutoModel{}", "x".repeat(1 << 20)): "x".repeat(1 << 20)});
    refused("config.json", &with("auto_map", map), "auto_map.AutoModelxx");
    let big = json!({"vocab_size": 1 << 24, "hidden_size": 1 << 24});
    let mut huge = config();
    huge.as_object_mut().unwrap().extend(big.as_object().unwrap().clone());
    refused("config.json", huge.to_string().as_bytes(), "sizes: found");
    refused("generation_config.json", br#"{"eos_token_id":"</s>"}"#, "eos_token_id: found");
}

#[test]
fn any_json() {
    for name in ["config.json", "generation_config.json", "ternary.json", INDEX_NAME] {
        for text in [
            "",
            "[]",
            "null",
            "NaN",
            r#"{"a":NaN}"#,
            r#"{"a":1e999}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":[{"c":1,"c":2}]}}"#,
            &"[".repeat(1 << 20),
            &format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)),
            &format!("{{\"a\":[{}0]}}", "0,".repeat(1 << 20)),
        ] {
            refused(name, text.as_bytes(), "JSON: found");
        }
        refused(name, b"{\"a\":\"\xff\"}", "JSON: found");
        refused(name, &vec![b' '; (16 << 20) + 1], "file size: found 16777217");
    }
    refused(INDEX_NAME, b"{}", "weight_map: found nothing");
    refused(INDEX_NAME, br#"{"weight_map":["s.safetensors"]}"#, "weight_map: found a list of 1");
    refused(INDEX_NAME, br#"{"weight_map":{"a":"s.safetensors\u0000"}}"#, "weight_map.a: found");
}

#[test]
fn manifests() {
    for (pointer, value, field) in [
        ("/format", json!(2), "format: found 2, wanted 1"),
        ("/form", json!(null), "form: found nothing"),
        ("/group", json!(-128), "group: found -128"),
        ("/tensors", json!([]), "tensors: found a list"),
        ("/tensors/a", json!(null), "tensors.a: found nothing"),
        ("/tensors/a/shape", json!([2, -3]), "tensors.a.shape"),
        ("/tensors/a/shape", json!([1u64 << 63, 2]), "tensors.a.shape"),
        (
            "/tensors/a/shape",
            json!([2, 4]),
            "tensors.a.ternary.minus + zero + plus: found 1 + 2 + 3, wanted the shape's 8",
        ),
        ("/tensors/a/stored_sha256", json!("abc"), "tensors.a.stored_sha256: found \"abc\""),
        ("/tensors/b/stored_sha256", json!("A".repeat(64)), "tensors.b.stored_sha256"),
        ("/tensors/a/ternary/digest", json!("é".repeat(32)), "tensors.a.ternary.digest"),
        ("/tensors/a/ternary/group_size", json!(0), "tensors.a.ternary.group_size: found 0"),
        ("/tensors/a/ternary/groups", json!(7), "tensors.a.ternary.groups: found 7"),
        ("/tensors/a/ternary/dead_groups", json!(3), "tensors.a.ternary.dead_groups: found 3"),
        ("/tensors/a/ternary/plus", json!(u64::MAX), "tensors.a.ternary.minus + zero + plus"),
        ("/tensors/a/ternary/zero", json!(2.0), "tensors.a.ternary.zero: found 2.0"),
        ("/tensors/a/ternary/zero", json!(null), "tensors.a.ternary.zero: found nothing"),
    ] {
        let mut manifest = manifest();
        *manifest.pointer_mut(pointer).unwrap() = value;
        refused("ternary.json", manifest.to_string().as_bytes(), field);
    }
    let mut unknown = manifest();
    unknown["tensors"]["a"]["ternary"]["\u{1b}x"] = json!(1);
    refused(
        "ternary.json",
        unknown.to_string().as_bytes(),
        "tensors.a.ternary.\\u{1b}x: found an unknown field",
    );
}
