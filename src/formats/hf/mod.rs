//! `config.json` and `generation_config.json` of a Hugging Face directory, and [`ModelConfig`].
//!
//! Architectures: Qwen3, Qwen2, LLaMA, Mistral without its sliding window, BitNet, and `ternlm`, our own name for what the
//! others cannot say (a two-matrix feed-forward network, a model that is not causal): keys `ffn`, `causal`, `qk_norm`,
//! `qkv_bias`, `o_bias`, `mlp_bias`, `sub_norm`. A setting that would change the function and is not supported is an error, never ignored.

mod packing;
mod read;
mod refuse;
mod rope;
mod write;

pub use read::read_config;
pub use rope::rope_scaling;
pub use write::{config_files, write_config};

use std::path::Path;

use super::{Description, any_of};
use crate::config::{Activation, ModelConfig};
use crate::error::{Error, Result};

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
    Bitnet,
    Ternlm,
}

impl Architecture {
    /// In the order of the type: the name in `model_type`, the class in `architectures`.
    const ALL: [(Self, &str, &str); 6] = [
        (Self::Qwen3, "qwen3", "Qwen3ForCausalLM"),
        (Self::Qwen2, "qwen2", "Qwen2ForCausalLM"),
        (Self::Llama, "llama", "LlamaForCausalLM"),
        (Self::Mistral, "mistral", "MistralForCausalLM"),
        (Self::Bitnet, "bitnet", "BitNetForCausalLM"),
        (Self::Ternlm, "ternlm", "TernlmForCausalLM"),
    ];

    /// All names, for error messages.
    fn names() -> String {
        any_of(Self::ALL.map(|(_, name, _)| name))
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known, _)| *known == name).map(|(this, ..)| this)
    }

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    fn class(self) -> &'static str {
        Self::ALL[self as usize].2
    }

    /// The architecture to write: the one that was read where it can say the model, otherwise the one that can.
    fn of(model: &ModelConfig, read: Option<Self>) -> Self {
        let m = model;
        let no_bias = !(m.qkv_bias || m.o_bias || m.mlp_bias);
        let even_bias = m.qkv_bias == m.o_bias && !m.mlp_bias;
        match (m.activation, m.sub_norm, m.qk_norm) {
            _ if !m.causal || read == Some(Self::Ternlm) => Self::Ternlm,
            (Activation::Relu2Glu, true, false) if even_bias && m.heads * m.head_dim == m.hidden_size => {
                Self::Bitnet
            }
            (Activation::SwiGlu, false, true) if even_bias => Self::Qwen3,
            (Activation::SwiGlu, false, false) if no_bias && read == Some(Self::Mistral) => Self::Mistral,
            (Activation::SwiGlu, false, false) if m.qkv_bias && !m.o_bias && !m.mlp_bias => Self::Qwen2,
            (Activation::SwiGlu, false, false) if m.qkv_bias == m.o_bias => Self::Llama,
            _ => Self::Ternlm,
        }
    }

    /// Whether other tools than Hugging Face's have it with these biases.
    fn is_common(self, m: &ModelConfig) -> bool {
        match self {
            Self::Ternlm | Self::Bitnet => false,
            Self::Qwen3 => !m.qkv_bias && !m.o_bias,
            Self::Qwen2 | Self::Llama | Self::Mistral => true,
        }
    }
}

/// The `model_type` that [`write_config`] gives a model; an error where other tools have none that can say it.
pub fn common_architecture(description: &Description, file: &Path) -> Result<&'static str> {
    let read = Architecture::from_name(description.architecture);
    let architecture = Architecture::of(&description.model, read);
    match architecture.is_common(&description.model) {
        true => Ok(architecture.name()),
        false => {
            let wanted =
                "\"qwen3\", \"qwen2\", \"llama\" or \"mistral\", the last three with their own biases only";
            Err(Error::input(file, "model_type", architecture.name(), wanted))
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
            o_bias: false,
            mlp_bias: false,
            sub_norm: false,
            causal: true,
            tie_embeddings: false,
            rope_theta: 5e5,
            rms_norm_eps: 1e-5,
            max_positions: 128,
            rope_scaling: None,
        };
        assert_eq!(qwen3, wanted);
        for (kind, qk_norm, qkv_bias) in
            [("llama", false, false), ("mistral", false, false), ("qwen2", false, true)]
        {
            assert_eq!(model(kind, json!({})), ModelConfig { qk_norm, qkv_bias, ..wanted.clone() });
        }
        for (kind, mlp_bias) in [("llama", true), ("qwen3", false)] {
            let biased = model(kind, json!({"attention_bias": true, "mlp_bias": mlp_bias}));
            let qk_norm = kind == "qwen3";
            let (qkv_bias, o_bias) = (true, true);
            assert_eq!(biased, ModelConfig { qk_norm, qkv_bias, o_bias, mlp_bias, ..wanted.clone() });
        }
        // The published one names code that it does not carry.
        let released = json!({"AutoConfig": "configuration_bitnet.BitNetConfig",
            "AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM"});
        let bitnet = model("bitnet", json!({"head_dim": 8, "hidden_act": "relu2", "auto_map": released}));
        let activation = Activation::Relu2Glu;
        let like = ModelConfig { activation, head_dim: 8, qk_norm: false, sub_norm: true, ..wanted.clone() };
        assert_eq!(bitnet, like);
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
            json!({"use_sliding_window": true, "sliding_window": 128, "max_window_layers": 0}),
            // By Hugging Face's default the first 28 layers have none.
            json!({"use_sliding_window": true, "sliding_window": 32}),
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
            ("llama", json!({"rope_scaling": {"type": "longrope"}}), "rope_scaling.type: found \"longrope\""),
            ("llama", json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor: found nothing"),
            ("llama", json!({"rope_scaling": {"factor": 2}}), "rope_scaling: found"),
            (
                "llama",
                json!({"rope_parameters": {"rope_type": "llama3"}}),
                "rope_parameters.factor: found nothing",
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
            ("qwen2", json!({"attention_bias": true}), "attention_bias: found true"),
            ("mistral", json!({"attention_bias": true}), "attention_bias: found true"),
            ("qwen3", json!({"mlp_bias": true}), "mlp_bias: found true"),
            (
                "bitnet",
                json!({"head_dim": 8, "hidden_act": "silu"}),
                "hidden_act: found \"silu\", wanted \"relu2\"",
            ),
            ("bitnet", json!({"hidden_size": 48}), "head_dim: found 16, wanted hidden_size 48 over 4 heads"),
            ("qwen3", json!({"hidden_act": "gelu"}), "hidden_act: found \"gelu\", wanted \"silu\""),
            (
                "qwen3",
                json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 1}),
                "sliding_window: found 32",
            ),
            ("qwen3", json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types: found"),
            ("mistral", json!({"sliding_window": 64}), "sliding_window: found 64"),
            (
                "mistral",
                json!({"sliding_window": "absent", "max_position_embeddings": 8192}),
                "sliding_window: found 4096",
            ),
            (
                "llama",
                json!({"quantization_config": {"quant_method": "fp8"}}),
                "quantization_config.quant_method: found \"fp8\"",
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
            (
                "ternlm",
                "ternlm",
                json!({"ffn": "relu2glu", "sub_norm": true, "o_bias": true, "mlp_bias": true}),
            ),
            ("llama", "llama", json!({"attention_bias": true, "mlp_bias": true})),
            ("qwen3", "qwen3", json!({"attention_bias": true})),
            ("bitnet", "bitnet", json!({"head_dim": 8, "attention_bias": true})),
            ("qwen2", "qwen2", json!({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 0.7}})),
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
