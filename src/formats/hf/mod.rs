//! `config.json` and `generation_config.json` of a Hugging Face directory, and [`ModelConfig`].
//!
//! Architectures: Qwen3, Qwen2, LLaMA, Mistral without its sliding window, and `ternlm`, our own name for what the
//! others cannot say (a two-matrix feed-forward network, a model that is not causal): keys `ffn`, `causal`, `qk_norm`,
//! `qkv_bias`. A setting that would change the function and is not supported is an error, never ignored.

mod read;
mod refuse;
mod write;

pub use read::read_config;
pub use write::{config_files, write_config};

use crate::config::{Activation, ModelConfig};

/// The configuration's name in a model directory.
pub const FILE_NAME: &str = "config.json";
/// The generation settings' name in a model directory.
pub const GENERATION_NAME: &str = "generation_config.json";
/// The embedding's name among the tensors.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head's name among the tensors, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

/// The values of `model_type` that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Architecture {
    Qwen3,
    Qwen2,
    Llama,
    Mistral,
    Ternlm,
}

impl Architecture {
    const NAMES: &str = "\"qwen3\", \"qwen2\", \"llama\", \"mistral\" or \"ternlm\"";

    fn from_name(name: &str) -> Option<Self> {
        use Architecture::*;
        [Qwen3, Qwen2, Llama, Mistral, Ternlm].into_iter().find(|a| a.name() == name)
    }

    /// The architecture to write: the one that was read where it can say the model, otherwise the one that can.
    fn of(model: &ModelConfig, read: Option<Self>) -> Self {
        let plain = model.activation == Activation::SwiGlu && model.causal;
        match (plain, model.qk_norm, model.qkv_bias) {
            _ if read == Some(Self::Ternlm) => Self::Ternlm,
            (true, true, false) => Self::Qwen3,
            (true, false, true) => Self::Qwen2,
            (true, false, false) if read == Some(Self::Mistral) => Self::Mistral,
            (true, false, false) => Self::Llama,
            _ => Self::Ternlm,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Qwen3 => "qwen3",
            Self::Qwen2 => "qwen2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Ternlm => "ternlm",
        }
    }

    /// The value in `architectures`.
    fn class(self) -> &'static str {
        match self {
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Ternlm => "TernlmForCausalLM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, Scope};
    use crate::files::Bundle;
    use crate::formats::{Description, Form, NOTE_FORMAT, TernaryNote};
    use crate::ternary::Grouping;
    use safetensors::Dtype;
    use serde_json::{Value, json};
    use std::path::Path;

    fn put(folder: &Path, name: &str, value: Value) {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
    }

    fn read(folder: &Path) -> crate::Result<Description> {
        read_config(&Bundle::folder(folder))
    }

    /// A small config of `kind` with `changes` merged in; a change to `"absent"` removes the key.
    fn parse(kind: &str, changes: Value) -> Result<Description, String> {
        let mut config = json!({
            "model_type": kind, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": null, "unheard_of": [1, {"x": null}],
        });
        for (key, value) in changes.as_object().unwrap() {
            match value == "absent" {
                true => drop(config.as_object_mut().unwrap().shift_remove(key)),
                false => config[key] = value.clone(),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), FILE_NAME, config);
        read(dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn architectures_and_defaults() {
        let model = |kind, changes| parse(kind, changes).unwrap().model;
        let qwen3 = model("qwen3", json!({}));
        let wanted = ModelConfig {
            vocab_size: 64,
            hidden_size: 32,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate_size: 48,
            activation: Activation::SwiGlu,
            qk_norm: true,
            qkv_bias: false,
            causal: true,
            tie_embeddings: false,
            rope_theta: 5e5,
            rms_norm_eps: 1e-5,
            max_positions: 128,
        };
        assert_eq!(qwen3, wanted);
        for (kind, qk_norm, qkv_bias) in
            [("llama", false, false), ("mistral", false, false), ("qwen2", false, true)]
        {
            assert_eq!(model(kind, json!({})), ModelConfig { qk_norm, qkv_bias, ..wanted.clone() });
        }
        let bare = json!({"head_dim": "absent", "num_key_value_heads": null, "rms_norm_eps": "absent", "rope_theta": "absent"});
        let llama = model("llama", bare);
        assert_eq!((llama.head_dim, llama.kv_heads, llama.rms_norm_eps, llama.rope_theta), (8, 4, 1e-6, 1e4));
        assert_eq!(model("qwen3", json!({"head_dim": "absent"})).head_dim, 128);
        let nested =
            json!({"rope_theta": "absent", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        assert_eq!(model("qwen3", nested), wanted);
        // Settings that are named but not in use.
        for idle in [
            json!({"use_sliding_window": false, "sliding_window": 32}),
            json!({"use_sliding_window": true, "sliding_window": 128}),
            json!({"rope_scaling": {"type": "default"}}),
            json!({"hidden_act": "swish", "attention_bias": false, "mlp_bias": null}),
            json!({"layer_types": ["full_attention", "full_attention"]}),
        ] {
            assert_eq!(model("qwen3", idle), wanted);
        }
        let own = json!({"ffn": "relu2", "causal": false, "hidden_act": "relu2", "qk_norm": true, "qkv_bias": true});
        let own = model("ternlm", own);
        let activation = Activation::Relu2;
        assert_eq!(own, ModelConfig { activation, causal: false, qkv_bias: true, ..wanted });
    }

    #[test]
    fn a_setting_that_changes_the_function_is_never_ignored() {
        for (kind, changes, wanted) in [
            ("gpt2", json!({}), "model_type: found \"gpt2\", wanted \"qwen3\""),
            (
                "llama",
                json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}}),
                "rope_scaling.rope_type: found \"yarn\"",
            ),
            ("llama", json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.type: found \"linear\""),
            ("llama", json!({"rope_scaling": {"factor": 2}}), "rope_scaling: found"),
            (
                "llama",
                json!({"rope_parameters": {"rope_type": "llama3"}}),
                "rope_parameters.rope_type: found \"llama3\"",
            ),
            (
                "llama",
                json!({"rope_parameters": {"rope_theta": 1e4}}),
                "rope_parameters.rope_theta: found 10000, wanted",
            ),
            (
                "llama",
                json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
                "rope_parameters.partial_rotary_factor",
            ),
            ("qwen3", json!({"rope_theta": "absent"}), "rope_theta: found nothing"),
            ("llama", json!({"attention_bias": true}), "attention_bias: found true"),
            ("llama", json!({"mlp_bias": true}), "mlp_bias: found true"),
            ("qwen3", json!({"hidden_act": "gelu"}), "hidden_act: found \"gelu\", wanted \"silu\""),
            ("qwen3", json!({"use_sliding_window": true, "sliding_window": 32}), "sliding_window: found 32"),
            ("qwen3", json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types: found"),
            ("mistral", json!({"sliding_window": 64}), "sliding_window: found 64"),
            (
                "mistral",
                json!({"sliding_window": "absent", "max_position_embeddings": 8192}),
                "sliding_window: found 4096",
            ),
            (
                "llama",
                json!({"quantization_config": {"quant_method": "bitnet"}}),
                "quantization_config: found",
            ),
            ("llama", json!({"head_dim": null, "hidden_size": 30}), "head_dim: found nothing"),
            ("ternlm", json!({"ffn": "moe"}), "ffn: found \"moe\""),
        ] {
            let message = parse(kind, changes).unwrap_err();
            assert!(message.contains(&format!("config.json: {wanted}")), "{message}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_unknown_keys_stay() {
        let dir = tempfile::tempdir().unwrap();
        let note = TernaryNote {
            format: NOTE_FORMAT,
            form: Form::Unpacked,
            scope: Scope::Blocks,
            group: Grouping::Tensor,
            activations: Inputs::Int8,
            tensors: vec!["model.a".into(), "b\"".into()],
        };
        let cases = [
            ("qwen3", "qwen3", json!({"eos_token_id": 2, "bos_token_id": 1, "sliding_window": 5})),
            ("qwen2", "qwen2", json!({"eos_token_id": [3, 2], "dtype": "float32"})),
            ("llama", "llama", json!({"rope_theta": null, "rope_parameters": {"rope_theta": 12345.678}})),
            ("mistral", "mistral", json!({"sliding_window": "absent"})),
            ("ternlm", "ternlm", json!({"ffn": "gelu", "causal": false, "qkv_bias": true})),
        ];
        for (kind, written, changes) in cases {
            let mut config = parse(kind, changes).unwrap();
            config.ternary = Some(note.clone());
            write_config(dir.path(), &config, Dtype::BF16).unwrap();
            let back = read(dir.path()).unwrap();
            assert_eq!((&back.model, &back.eos, back.bos), (&config.model, &config.eos, config.bos));
            assert_eq!(back.ternary, config.ternary);
            assert_eq!(
                (&back.kept.config["model_type"], &back.kept.config["torch_dtype"]),
                (&json!(written), &json!("bfloat16"))
            );
            assert_eq!(back.kept.config["unheard_of"], json!([1, {"x": null}]));
            assert!(
                !back.kept.config.contains_key("rope_parameters") && !back.kept.config.contains_key("dtype")
            );
            // A second round changes nothing more; without a note, none is left over.
            let unmarked = Description { ternary: None, ..back.clone() };
            write_config(dir.path(), &back, Dtype::BF16).unwrap();
            assert_eq!(read(dir.path()).unwrap(), back);
            write_config(dir.path(), &unmarked, Dtype::F32).unwrap();
            assert_eq!(read(dir.path()).unwrap().ternary, None);
        }
        // A model that its old architecture cannot say.
        let mut config = parse("qwen3", json!({})).unwrap();
        config.model.activation = Activation::Relu2;
        write_config(dir.path(), &config, Dtype::F16).unwrap();
        let back = read(dir.path()).unwrap();
        assert_eq!((&back.kept.config["model_type"], &back.model), (&json!("ternlm"), &config.model));
        // A new one, with numbers as people write them.
        let new = Description::new(ModelConfig { rms_norm_eps: 1e-6, rope_theta: 1e6, ..back.model });
        write_config(dir.path(), &new, Dtype::F32).unwrap();
        let back = read(dir.path()).unwrap();
        assert_eq!(back.model, new.model);
        assert_eq!(
            (&back.kept.config["rms_norm_eps"], &back.kept.config["rope_theta"]),
            (&json!(1e-6), &json!(1e6))
        );
        assert_eq!((&back.kept.config["eos_token_id"], back.eos.len()), (&Value::Null, 0));
    }

    #[test]
    fn generation_settings_add_tokens_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let config = parse("qwen3", json!({"eos_token_id": 5})).unwrap();
        put(dir.path(), FILE_NAME, Value::Object(config.kept.config));
        put(dir.path(), GENERATION_NAME, json!({"eos_token_id": [7, 5], "bos_token_id": 3, "top_k": 20}));
        let config = read(dir.path()).unwrap();
        assert_eq!((&config.eos[..], config.bos), (&[5, 7][..], Some(3)));
        write_config(dir.path(), &config, Dtype::F32).unwrap();
        let back = read(dir.path()).unwrap();
        assert_eq!(
            (&back.eos[..], back.bos, &back.kept.generation["top_k"]),
            (&[5, 7][..], Some(3), &json!(20))
        );
        put(dir.path(), GENERATION_NAME, json!({"eos_token_id": 64}));
        let message = read(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains("generation_config.json: eos_token_id: found 64, wanted token ids below 64"),
            "{message}"
        );
    }
}
