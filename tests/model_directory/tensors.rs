//! Tensors: those that the configuration asks for, more, and fewer.

use serde_json::json;
use std::path::Path;
use ternlm::files::Bundle;
use ternlm::formats::tensors::Dtype;
use ternlm::formats::{ModelFiles, hf};
use ternlm::model;

use super::{EMBEDDING, HEAD, Named, TIED, UNTIED, computes, copy, error, named, remove, with};

#[test]
fn a_head_that_differs_from_the_embedding_is_used() {
    let tie = json!({"tie_word_embeddings": true});
    let dir = copy(tie.clone());
    computes(dir.path(), UNTIED, &"tied by the configuration, untied by the file");
    let (loaded, latents) = model::load_to_train(dir.path(), None).unwrap();
    assert!(!loaded.decoder.config.tie_embeddings && !loaded.description.model.tie_embeddings);
    let out = tempfile::tempdir().unwrap();
    model::save(out.path(), &loaded.decoder, &loaded.description, Some(&latents)).unwrap();
    assert!(!hf::read_config(&Bundle::folder(out.path())).unwrap().model.tie_embeddings);
    computes(out.path(), UNTIED, &"saved again");

    // Equal to the embedding it says nothing new, in whatever type it is stored; a little less equal, it does.
    let tied = |edit: fn(&mut Named)| {
        with(tie.clone(), |list| {
            let values = list.iter().find(|t| t.name == EMBEDDING).unwrap().values.clone();
            let head = list.iter_mut().find(|t| t.name == HEAD).unwrap();
            head.values = values;
            edit(head);
        })
    };
    let is_tied = |dir: &Path| ModelFiles::open(dir).unwrap().description.model.tie_embeddings;
    for dir in [
        tied(|_| {}),
        tied(|head| head.dtype = Dtype::F32),
        with(tie.clone(), |list| drop(remove(list, HEAD))),
    ] {
        assert!(is_tied(dir.path()));
        computes(dir.path(), TIED, &"a head equal to the embedding, or none");
    }
    let nearly = tied(|head| {
        head.dtype = Dtype::F32;
        head.values[7] *= 1.001;
    });
    assert!(!is_tied(nearly.path()));

    let message = error(with(json!({}), |list| drop(remove(list, HEAD))).path());
    assert!(message.contains("model.safetensors: tensor \"lm_head.weight\": found nothing"), "{message}");
    let message = error(
        with(tie, |list| list.iter_mut().find(|t| t.name == HEAD).unwrap().shape = vec![24, 48]).path(),
    );
    assert!(message.contains("lm_head.weight") && message.contains("[24, 48]"), "{message}");
}

#[test]
fn tensors_without_a_use_are_named() {
    let layer = "model.layers.1";
    for extra in [
        named(&format!("{layer}.self_attn.q_proj.bias"), &[32], 0.0),
        named(&format!("{layer}.self_attn.bias"), &[24], 0.1),
        named(&format!("{layer}.mlp.down_proj.bias"), &[24], 0.1),
        named("model.layers.2.input_layernorm.weight", &[24], 1.0),
        named("model.layers.01.input_layernorm.weight", &[24], 1.0),
        named(&format!("{layer}.self_attn.q_proj.lora_A.weight"), &[4, 24], 0.1),
        named("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[4, 24], 0.1),
        named(&format!("{layer}.self_attn.q_proj.scales"), &[32, 1], 0.1),
        named(&format!("{layer}.mlp.ffn_sub_norm.weight"), &[40], 1.0),
        named("model.language_model.norm.weight", &[24], 1.0),
        named("score.weight", &[2, 24], 1.0),
        named("lm_head.bias", &[48], 0.1),
        named("v_head.summary.weight", &[1, 24], 1.0),
    ] {
        let name = extra.name.clone();
        let dir = with(json!({}), |list| list.push(extra));
        let message = error(dir.path());
        assert!(
            message.contains(&format!("model.safetensors: tensors: found {name:?}, wanted")),
            "{message}"
        );
        let stored = ModelFiles::open(dir.path()).unwrap();
        assert_eq!(model::unused(&stored).unwrap(), [name]);
    }
    let dir = with(json!({}), |list| list.push(named(&"x".repeat(1 << 20), &[1], 1.0)));
    assert!(error(dir.path()).len() < 800);
    // q and k norms under an architecture that has none, and a layer more than the configuration says.
    let llama = json!({"model_type": "llama", "architectures": null});
    let message = error(copy(llama).path());
    assert!(message.contains("k_norm.weight") && message.contains("and 1 more"), "{message}");
    let message = error(copy(json!({"num_hidden_layers": 1, "layer_types": null})).path());
    assert!(
        message.contains("\"model.layers.1.input_layernorm.weight\"") && message.contains("more"),
        "{message}"
    );
}

#[test]
fn tables_that_follow_from_the_configuration_are_let_through() {
    let names = [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", &[8][..]),
        ("model.rotary_emb.inv_freq", &[8]),
        ("model.layers.1.self_attn.rotary_emb.cos_cached", &[1, 1, 64, 16]),
        ("model.layers.1.self_attn.rotary_emb.sin_cached", &[1, 1, 64, 16]),
        ("model.layers.0.self_attn.bias", &[1, 1, 64, 64]),
        ("model.layers.0.attn.masked_bias", &[]),
    ];
    let dir = with(json!({}), |list| list.extend(names.map(|(name, shape)| named(name, shape, 0.5))));
    computes(dir.path(), UNTIED, &names);
}

#[test]
fn tensors_that_are_missing_are_named_with_what_is_there_instead() {
    let rename = |from: &'static str, to: &'static str| {
        with(json!({}), |list| {
            for t in list {
                t.name = t.name.replacen(from, to, 1);
            }
        })
    };
    for (dir, parts) in [
        (
            rename("model.", "model.language_model."),
            [EMBEDDING, "only \"model.language_model.embed_tokens.weight\""],
        ),
        (rename("model.", ""), [EMBEDDING, "only \"embed_tokens.weight\""]),
        (
            rename("0.mlp.up_proj.weight", "0.mlp.up_proj.qweight"),
            ["\"model.layers.0.mlp.up_proj.weight\"", "only \"model.layers.0.mlp.up_proj.qweight\""],
        ),
        (
            copy(json!({"num_hidden_layers": 3, "layer_types": null})),
            ["\"model.layers.2.input_layernorm.weight\"", "nothing"],
        ),
        (
            copy(json!({"model_type": "qwen2", "architectures": null})),
            ["\"model.layers.0.self_attn.q_proj.bias\"", "only \"model.layers.0.self_attn.q_proj.weight\""],
        ),
    ] {
        let message = error(dir.path());
        assert!(parts.iter().all(|part| message.contains(part)), "{message}: wanted {parts:?}");
    }
}
