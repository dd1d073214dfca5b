//! What lies beside the weights: shards, other formats, claims, small files, tokenizers.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use ternlm::config::{Scope, TernaryConfig};
use ternlm::files::Bundle;
use ternlm::formats::manifest::Manifest;
use ternlm::formats::tensors::{FILE_NAME, INDEX_NAME};
use ternlm::formats::{Form, ModelFiles, Stored, hf};
use ternlm::measure::verify;
use ternlm::model;
use ternlm::ternary::Grouping;
use ternlm::text::Tokenizer;

use super::common::{fixture, program};
use super::{EMBEDDING, Named, UNTIED, computes, copy, error, fixture_tensors, named, with, write};

/// The fixture in two shards, `extra` in the second and not in the index.
fn shards(dir: &Path, extra: Option<Named>) {
    let mut list = fixture_tensors();
    let mut second = list.split_off(12);
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = serde_json::Map::new();
    for (file, part) in files.into_iter().zip([&list, &second]) {
        map.extend(part.iter().map(|t| (t.name.clone(), json!(file))));
    }
    fs::write(dir.join(INDEX_NAME), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    second.extend(extra);
    write(dir.join(files[0]), &list);
    write(dir.join(files[1]), &second);
}

#[test]
fn weights_beside_the_weights_are_judged() {
    // In shards alone.
    let dir = copy(json!({}));
    shards(dir.path(), None);
    computes(dir.path(), UNTIED, &"shards that agree with the single file");
    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    computes(dir.path(), UNTIED, &"shards");
    fs::write(dir.path().join("model-00003-of-00003.safetensors"), "").unwrap();
    assert!(
        error(dir.path())
            .contains("model-00003-of-00003.safetensors: file: found a shard that no index lists")
    );

    // More in a shard than its index says.
    let dir = copy(json!({}));
    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    shards(dir.path(), Some(named("model.layers.1.mlp.up_proj.bias", &[40], 0.1)));
    assert!(error(dir.path()).contains("index.json: tensors: found \"model.layers.1.mlp.up_proj.bias\""));

    // Both, and they disagree: in a value, in a name.
    let dir = with(json!({}), |list| list[3].values[0] += 1.0);
    shards(dir.path(), None);
    let message = error(dir.path());
    assert!(
        message.contains("index.json: tensor \"model.layers.0.mlp.down_proj.weight\": found not what"),
        "{message}"
    );
    let dir = copy(json!({}));
    shards(dir.path(), Some(named("x", &[1], 0.0)));
    assert!(error(dir.path()).contains("index.json: tensor \"x\": found not what model.safetensors holds"));

    // An index whose shards are gone, and formats that the reference implementation passes over, too.
    let dir = copy(json!({}));
    shards(dir.path(), None);
    for i in 1..3 {
        fs::remove_file(dir.path().join(format!("model-0000{i}-of-00002.safetensors"))).unwrap();
    }
    for name in ["pytorch_model.bin", "consolidated.safetensors", "optimizer.safetensors", "tf_model.h5"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    computes(dir.path(), UNTIED, &"other formats");
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), "").unwrap();
    assert!(error(dir.path()).contains("model-00001-of-00002.safetensors"));

    for name in ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"] {
        let dir = copy(json!({}));
        fs::write(dir.path().join(name), "{}").unwrap();
        let message = error(dir.path());
        assert!(
            message.contains(&format!("{name}: file: found an adapter")) && message.contains("merge"),
            "{message}"
        );
    }
    for (name, part) in [("pytorch_model.bin", "save_pretrained"), ("model.gguf", "wanted model.safetensors")]
    {
        let dir = copy(json!({}));
        fs::rename(dir.path().join(FILE_NAME), dir.path().join(name)).unwrap();
        let message = error(dir.path());
        assert!(message.contains(&format!("weights: found {name:?}")) && message.contains(part), "{message}");
    }
}

#[test]
fn a_claim_names_the_matrices_of_its_scope() {
    let ternary =
        TernaryConfig { scope: Scope::Blocks, group: Grouping::Size(8), ..TernaryConfig::default() };
    let (made, latents) = model::load_to_train(&fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    for (form, edit, found) in [
        (Form::Unpacked, "model.layers.9.mlp.up_proj.weight", "\"model.layers.9.mlp.up_proj.weight\""),
        (Form::Latent, "model.norm.weight", "\"model.norm.weight\""),
        (Form::Unpacked, EMBEDDING, "\"model.embed_tokens.weight\""),
        (Form::Unpacked, "", "no \"model.layers.1.mlp.down_proj.weight\""),
        (Form::Latent, "twice", "\"model.layers.0.self_attn.q_proj.weight\" twice"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let stored = (form == Form::Latent).then_some(&latents);
        model::save(dir.path(), &made.decoder, &made.description, stored).unwrap();
        assert!(verify(dir.path(), &mut |_| {}).unwrap().pass);
        let file = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let claimed = config["ternlm"]["tensors"].as_array_mut().unwrap();
        match edit {
            "" => drop(claimed.pop()),
            "twice" => claimed.push(claimed[0].clone()),
            name => claimed.push(json!(name)),
        }
        fs::write(&file, config.to_string()).unwrap();
        let message = error(dir.path());
        assert!(message.contains(&format!("config.json: ternlm.tensors: found {found}")), "{message}");
        config["ternlm"]["rounding"] = json!("up");
        fs::write(&file, config.to_string()).unwrap();
        assert!(error(dir.path()).contains("config.json: ternlm.rounding: found an unknown field"));
    }
}

#[test]
fn the_proof_names_tensors_that_the_model_does_not_use() {
    let ternary = TernaryConfig { group: Grouping::Size(8), ..TernaryConfig::default() };
    let (made, latents) = model::load_to_train(&fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model::save(dir.path(), &made.decoder, &made.description, Some(&latents)).unwrap();
    let file = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    // Files, manifest and claim agree about a layer that the configuration leaves out.
    config["num_hidden_layers"] = json!(1);
    config["layer_types"] = json!(null);
    fs::write(&file, config.to_string()).unwrap();
    let proof = verify(dir.path(), &mut |_| {}).unwrap();
    let reason = "model.layers.1.mlp.up_proj.weight is in the file but not in the model";
    assert!(!proof.pass && proof.reasons.iter().any(|r| r == reason), "{:?}", proof.reasons);
    assert!(proof.tensors.iter().all(|t| t.pass));
    config["num_hidden_layers"] = json!(3);
    fs::write(&file, config.to_string()).unwrap();
    let proof = verify(dir.path(), &mut |_| {}).unwrap();
    assert!(!proof.pass && proof.reasons[0].contains("model.layers.2."), "{:?}", proof.reasons);
}

/// Configuration, manifest and tokenizer do not depend on where the small files lie.
#[test]
fn small_files_embedded_in_one_file_say_the_same() {
    let ternary = TernaryConfig { group: Grouping::Size(8), ..TernaryConfig::default() };
    let made = model::load(&fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model::save(dir.path(), &made.decoder, &made.description, None).unwrap();
    Tokenizer::bytes().save(dir.path()).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let folder = Bundle::folder(dir.path());
    let read = |name: &str| (name.to_string(), folder.need(name, 1 << 20).unwrap());
    let small = [
        "config.json",
        "generation_config.json",
        "ternary.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    let embedded = |names: &[&str]| Bundle::within("x/model.tern", names.iter().map(|n| read(n)).collect());

    let one = embedded(&small);
    assert_eq!(hf::read_config(&one).unwrap(), hf::read_config(&folder).unwrap());
    assert_eq!(Manifest::read(&one).unwrap(), Manifest::read(&folder).unwrap());
    let [a, b] = [&one, &folder].map(|files| Tokenizer::of(files).unwrap());
    assert_eq!((a.fingerprint(), a.stop_ids(), a.config()), (b.fingerprint(), b.stop_ids(), b.config()));
    let template = Some(("{{ messages }}", Path::new("x/model.tern: chat_template.jinja")));
    assert_eq!((a.name(), a.chat_template_file()), ("x/model.tern: tokenizer.json".into(), template));

    let none = embedded(&[]);
    let errors = [
        hf::read_config(&none).map(drop).unwrap_err(),
        Manifest::read(&none).map(drop).unwrap_err(),
        Tokenizer::of(&none).map(drop).unwrap_err(),
    ];
    for (error, name) in errors.iter().zip(["config.json", "ternary.json", "tokenizer.json"]) {
        let message = error.to_string();
        assert!(message.starts_with(&format!("cannot read x/model.tern: {name}: ")), "{message}");
    }
}

/// Trits arrive as trits, and as weights where these are asked for.
#[test]
fn what_is_ternary_is_handed_over_so() {
    let ternary =
        TernaryConfig { scope: Scope::Blocks, group: Grouping::Size(8), ..TernaryConfig::default() };
    let (made, latents) = model::load_to_train(&fixture("qwen3-tiny"), Some(&ternary)).unwrap();
    for form in [Form::Unpacked, Form::Latent] {
        let dir = tempfile::tempdir().unwrap();
        let stored = (form == Form::Latent).then_some(&latents);
        model::save(dir.path(), &made.decoder, &made.description, stored).unwrap();
        let files = ModelFiles::open(dir.path()).unwrap();
        for weight in made.decoder.weights() {
            match (files.tensor(&weight.name).unwrap(), weight.ternary()) {
                (Stored::Trits(trits), Some(matrix)) => {
                    assert_eq!((form, trits.grouping), (Form::Unpacked, Grouping::Size(8)));
                    assert_eq!(&trits.matrix(matrix.rows(), matrix.cols()).unwrap(), matrix);
                    let (mut row, mut all) = (vec![0.0; matrix.cols()], vec![1.0; weight.len()]);
                    Stored::Trits(trits).read_f32_into(&weight.shape, &mut all).unwrap();
                    for (at, values) in all.chunks(matrix.cols()).enumerate() {
                        matrix.unpack_row(at, &mut row);
                        assert_eq!(values, row);
                    }
                }
                (Stored::Values(_), matrix) => assert!(form == Form::Latent || matrix.is_none()),
                (Stored::Trits(_), None) => panic!("{} is no claim", weight.name),
                (Stored::Blocks(_), _) => panic!("{} is in no GGUF file", weight.name),
            }
        }
    }
}

#[test]
fn a_tokenizer_in_another_form_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Tokenizer::open(dir.path().to_str().unwrap()).map_err(|error| error.to_string());
    assert!(open().unwrap_err().contains("cannot read"));
    fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    let message = open().unwrap_err();
    let parts =
        ["tokenizer.json: found only tokenizer.model (SentencePiece)", "AutoTokenizer", "save_pretrained"];
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    Tokenizer::bytes().save(dir.path()).unwrap();
    open().unwrap();
}

#[test]
fn the_program_says_what_it_found() {
    let run = |args: &[&str]| {
        let out = program::command(args).output().unwrap();
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let dir = with(json!({}), |list| list.push(named("score.weight", &[2, 24], 1.0)));
    let path = dir.path().to_str().unwrap();
    let info: Value = serde_json::from_str(&run(&["info", path, "--json"]).0).unwrap();
    assert_eq!(info["model"]["unused"], json!(["score.weight"]));
    assert!(run(&["info", path]).0.contains("\nNot used by the model: score.weight\n"));

    // The model has fewer rows than there are bytes, which is judged after its weights.
    let dir = copy(json!({"tie_word_embeddings": true}));
    let path = dir.path().to_str().unwrap();
    let generate = ["generate", path, "--prompt", "x", "--max-tokens", "1"];
    assert!(run(&generate).1.contains("tokenizer.json: found nothing"));
    fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    assert!(run(&generate).1.contains("tokenizer.json: found only tokenizer.model"));
    Tokenizer::bytes().save(dir.path()).unwrap();
    let said = run(&generate).1;
    assert_eq!(said.matches("tie_word_embeddings is true, but lm_head.weight").count(), 1, "{said}");

    // A training that starts from it records what it trains.
    let (text, out) = (dir.path().join("signs.txt"), dir.path().join("run"));
    fs::write(&text, "! \" # $ % & + , - . ".repeat(40)).unwrap();
    let [text, out] = [&text, &out].map(|path| path.to_str().unwrap());
    let short = ["--set", "train.seq=8", "--set", "train.steps=1", "--set", "report.prompts=[]"];
    let train =
        [&["train", "qwen3-0.6b-blocks", "--init", path, "--data", text, "--out", out], &short[..]].concat();
    let said = run(&train);
    let recorded = fs::read_to_string(dir.path().join("run/recipe.toml")).unwrap_or_default();
    assert!(recorded.contains("tie_embeddings = false"), "{said:?}");
}
