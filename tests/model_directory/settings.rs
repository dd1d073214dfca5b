//! Settings of `config.json`.

use serde_json::json;
use ternlm::files::Bundle;
use ternlm::formats::hf;
use ternlm::formats::tensors::Dtype;

use super::{UNTIED, computes, copy, error};

#[test]
fn settings_that_do_nothing_are_let_through() {
    let per_layer = json!({"rope_type": "default", "rope_theta": 10000});
    for changes in [
        json!({}),
        json!({"architectures": null, "auto_map": null, "text_config": null, "quantization_config": null}),
        json!({"architectures": [], "auto_map": {"AutoTokenizer": ["a.B", null], "AutoModel": null}, "text_config": {}}),
        json!({"final_logit_softcapping": null, "attn_logit_softcapping": 0, "logit_soft_cap": 0.0, "clip_qkv": null}),
        json!({"logit_scale": 1, "logits_scaling": 1.0, "embedding_multiplier": 1, "scale_emb": 1, "residual_multiplier": 1.0}),
        json!({"attention_multiplier": 0.25, "query_pre_attn_scalar": 16, "mlp_multipliers": [1, 1.0], "dim_model_base": 24}),
        json!({"partial_rotary_factor": 1.0, "rotary_pct": 1, "rotary_dim": 16, "rotary_emb_base": 10000, "use_rope": true}),
        json!({"num_experts": 0, "num_local_experts": 1, "n_routed_experts": null, "num_experts_per_tok": 2}),
        json!({"no_rope_layers": [1, 1], "no_rope_layer_interval": 2, "use_mrope": false}),
        json!({"no_rope_layers": null, "no_rope_layer_interval": 3, "rope_interleaved": false}),
        json!({"mlp_bias": false, "attention_out_bias": false, "qkv_bias": false, "use_bias": null, "use_qk_norm": true}),
        json!({"hidden_activation": "silu", "hidden_act": "swish", "activation_function": null, "is_causal": true}),
        json!({"use_sliding_window": true, "sliding_window": "absent", "max_position_embeddings": 8192}),
        json!({"sliding_window": 8, "attention_chunk_size": 64, "window_size": [-1, -1], "max_window_layers": 0}),
        json!({"layer_types": null, "pretraining_tp": 4, "attention_dropout": 0.1, "ffn_dim_multiplier": 1.3}),
        json!({"tie_word_embeddings": "absent", "rms_norm_eps": "absent", "norm_eps": 1e-6, "europe": {"x": 1}}),
        json!({"original_max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "is_decoder": true}),
        json!({"rope_theta": 10000.0, "rope_scaling": {}, "rope_parameters": {"partial_rotary_factor": 1}}),
        json!({"rope_scaling": {"type": "default", "factor": 8, "low_freq_factor": 1, "rope_theta": 10000}}),
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "beta_fast": 32, "truncate": null, "x": null}}),
        json!({"rope_parameters": {"full_attention": per_layer, "sliding_attention": null}}),
        json!({"rope_parameters": {"full_attention": per_layer, "rope_theta": 1e4}, "rope_theta": 1e4}),
    ] {
        let dir = copy(changes.clone());
        computes(dir.path(), UNTIED, &changes);
        // And what is written of it says the same.
        let read = hf::read_config(&Bundle::folder(dir.path())).unwrap();
        hf::write_config(dir.path(), &read, Dtype::F32).unwrap();
        assert_eq!(hf::read_config(&Bundle::folder(dir.path())).unwrap().model, read.model, "{changes}");
    }
}

#[test]
fn a_setting_that_changes_the_function_is_named() {
    let scaled = json!({"rope_type": "longrope", "factor": 8.0, "rope_theta": 10000});
    for (changes, field) in [
        (json!({"architectures": ["Qwen3ForSequenceClassification"]}), "architectures"),
        (json!({"architectures": ["Qwen3Model"]}), "architectures"),
        (json!({"architectures": ["Qwen3ForCausalLM", "BitnetForCausalLM"]}), "architectures"),
        (json!({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}), "auto_map.AutoModelForCausalLM"),
        (json!({"text_config": {"model_type": "qwen3"}}), "text_config"),
        (json!({"compression_config": {"format": "int-quantized"}}), "compression_config"),
        (json!({"quantization_config": {"quant_method": "fp8"}}), "quantization_config.quant_method"),
        (json!({"weight_bits": 1}), "weight_bits"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"attn_logit_softcapping": 50}), "attn_logit_softcapping"),
        (json!({"logits_soft_cap": 30}), "logits_soft_cap"),
        (json!({"logit_scale": 0.0625}), "logit_scale"),
        (json!({"logits_scaling": 8}), "logits_scaling"),
        (json!({"embedding_multiplier": 12}), "embedding_multiplier"),
        (json!({"scale_emb": 12}), "scale_emb"),
        (json!({"scale_depth": 1.4}), "scale_depth"),
        (json!({"residual_multiplier": 0.22}), "residual_multiplier"),
        (json!({"attention_multiplier": 1.0}), "attention_multiplier"),
        (json!({"mlp_multipliers": [1, 0.5]}), "mlp_multipliers"),
        (json!({"query_pre_attn_scalar": 256}), "query_pre_attn_scalar"),
        (json!({"clip_qkv": 8.0}), "clip_qkv"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"rotary_pct": 0.25}), "rotary_pct"),
        (json!({"rotary_emb_base": 500000}), "rotary_emb_base"),
        (json!({"rope_interleaved": true}), "rope_interleaved"),
        (json!({"use_rope": false}), "use_rope"),
        (json!({"alibi": true}), "alibi"),
        (json!({"use_mrope": true}), "use_mrope"),
        (json!({"rope_config": {"type": "yarn"}}), "rope_config"),
        (json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
        (json!({"no_rope_layer_interval": 2}), "no_rope_layer_interval"),
        (json!({"num_experts": 8}), "num_experts"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (json!({"n_routed_experts": 64}), "n_routed_experts"),
        (json!({"mlp_layer_types": ["dense", "sparse"]}), "mlp_layer_types"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"attention_out_bias": true}), "attention_out_bias"),
        (json!({"qkv_bias": true}), "qkv_bias"),
        (json!({"model_type": "llama", "architectures": null, "qk_norm": true}), "qk_norm"),
        (json!({"hidden_activation": "gelu_pytorch_tanh"}), "hidden_activation"),
        (json!({"hidden_act": "relu2"}), "hidden_act"),
        (json!({"ffn": "gelu"}), "ffn"),
        (json!({"model_type": "ternlm", "architectures": null, "ffn": "gelu"}), "hidden_act"),
        (json!({"is_causal": false}), "is_causal"),
        (json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        (json!({"is_encoder_decoder": true}), "is_encoder_decoder"),
        (json!({"layer_types": ["full_attention"]}), "layer_types"),
        (json!({"layer_types": ["full_attention", "linear_attention"]}), "layer_types"),
        (json!({"attention_chunk_size": 32}), "attention_chunk_size"),
        (
            json!({"use_sliding_window": true, "sliding_window": "absent", "max_position_embeddings": 8192,
                   "max_window_layers": 1, "layer_types": null}),
            "sliding_window",
        ),
        (json!({"rms_norm_eps": null, "norm_eps": 1e-5}), "norm_eps"),
        (json!({"norm_type": "layernorm"}), "norm_type"),
        (json!({"rope_scaling": scaled}), "rope_scaling.rope_type"),
        (json!({"rope_parameters": scaled}), "rope_parameters.rope_type"),
        (json!({"rope_parameters": {"full_attention": scaled}}), "rope_parameters.full_attention.rope_type"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "sliding_attention": scaled}}),
            "rope_parameters.sliding_attention.rope_type",
        ),
        (
            json!({"rope_theta": 1e4, "rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
            "rope_parameters.full_attention.rope_theta",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"full_attention": scaled}}}),
            "rope_parameters.full_attention.full_attention",
        ),
        (
            json!({"rope_theta": 1e4, "rope_parameters": {"rope_scaling": scaled}}),
            "rope_parameters.rope_scaling",
        ),
        (json!({"rope_parameters": {"default": scaled, "rope_theta": 1e4}}), "rope_parameters.default"),
        (
            json!({"rope_scaling": {"type": "default", "full_attention": {"type": "linear", "factor": 2}}, "rope_theta": 1e4}),
            "rope_scaling.full_attention.rope_type",
        ),
        (json!({"rope_scaling": {"rope_scaling": scaled, "type": "default"}}), "rope_scaling.rope_scaling"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "factor": 4}}), "rope_parameters.factor"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}),
            "rope_parameters.mrope_section",
        ),
        (json!({"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}}), "rope_parameters.rope_theta"),
    ] {
        let message = error(copy(changes.clone()).path());
        assert!(message.contains(&format!("config.json: {field}: found ")), "{changes}: {message}");
    }
}
