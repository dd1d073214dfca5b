//! The program as people and scripts run it: exit codes, what is said where, and the files that appear.

mod common;

use common::edit_json;
use common::program::Place;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::process::Stdio;
use ternlm::config::{ModelConfig, Scope};
use ternlm::formats::Description;
use ternlm::model::{self, Decoder, Latents};
use ternlm::ternary::Grouping;
use ternlm::text::Tokenizer;

/// What a run prints that must succeed, as JSON.
#[track_caller]
fn json(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&place.ok(args)).unwrap()
}

/// A causal model of random weights with the tokenizer of bytes.
fn random_model(place: &Place, name: &str, vocab_size: usize) {
    let config = ModelConfig {
        vocab_size,
        hidden_size: 32,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        intermediate_size: 48,
        qk_norm: true,
        tie_embeddings: true,
        max_positions: 256,
        ..ModelConfig::default()
    };
    let mut decoder = Decoder::new(&config, Scope::All, Grouping::Size(16));
    Latents::random(decoder.weights_mut(), 1, None).unwrap();
    let dir = place.path(name);
    fs::create_dir_all(&dir).unwrap();
    model::save(&dir, &decoder, &Description::new(config), None).unwrap();
    Tokenizer::bytes().save(&dir).unwrap();
}

const TINY: &str = r#"
name = "tiny"
task = "copy"
[model]
vocab_size = 16
hidden_size = 32
layers = 1
heads = 2
kv_heads = 2
head_dim = 16
intermediate_size = 64
activation = "gelu"
causal = false
max_positions = 16
[data]
sequence = 8
[train]
steps = 3
batch = 4
log_every = 1
"#;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

/// The names under "Commands:" of a help text.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let named = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    named.filter(|name| *name != "help").map(String::from).collect()
}

#[test]
fn every_subcommand_has_help_with_examples() {
    let place = Place::new();
    let top = commands(&place.ok(&["--help"]));
    for name in
        ["train", "teach", "verify", "eval", "generate", "chat", "tokenizer", "info", "report", "bench"]
    {
        assert!(top.iter().any(|n| n == name), "{name} in {top:?}");
    }
    let mut all: Vec<Vec<String>> = top.into_iter().map(|name| vec![name]).collect();
    while let Some(path) = all.pop() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let help = place.ok(&args);
        assert!(help.contains("Examples:\n  "), "{path:?}: {help}");
        all.extend(commands(&help).into_iter().map(|name| [&path[..], &[name]].concat()));
    }
    assert_eq!(place.ok(&["--version"]), format!("ternlm {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let place = Place::new();
    for args in [
        &[][..],
        &["fly"],
        &["train"],
        &["generate", "m", "--prompt", "x", "--max-tokens", "many"],
        &["tokenizer", "encode", "bytes"],
        &["tokenizer", "encode", "bytes", "--text", "x", "--file", "y"],
        &["tokenizer", "decode", "bytes", "x"],
        &["chat", "m", "--json"],
        &["info", "m", "--recipe", "copy"],
    ] {
        let out = place.run(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty() && !out.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn recipes_that_cannot_be_used_are_named() {
    let place = Place::new();
    place.write("broken.toml", "name = ");
    place.write("binary.toml", b"name = \"\xff\"");
    place.write("tiny.toml", TINY);
    place.fails(&["train", "no-such-recipe"], &["no-such-recipe", "wiki-75m"]);
    place.fails(&["train", "broken.toml"], &["broken.toml", "TOML"]);
    place.fails(&["train", "binary.toml"], &["binary.toml", "byte 8"]);
    for (assignment, part) in [
        ("train.lrr=1", "lrr"),
        ("train.lr=fast", "fast"),
        ("train.lr=-1", "train.lr: found -1"),
        ("train.steps=0", "train.steps: found 0"),
        ("model.head_dim=15", "head_dim: found 15"),
        ("train.lr", "--set train.lr"),
        ("data.sequence=99", "found 99"),
    ] {
        place.fails(&["train", "tiny.toml", "--set", assignment], &[part]);
    }
    let nothing =
        ["nothing holds no recipe.toml", "nothing to resume there", "ternlm train copy --out nothing"];
    place.fails(&["train", "copy", "--resume", "--out", "nothing"], &nothing);
    place.fails(&["train", "copy", "--threads", "0"], &["--threads 0"]);
    place.fails(&["train", "shakespeare"], &["data.train"]);
    place.fails(&["train", "shakespeare", "--data", "none.txt"], &["none.txt"]);
    place.fails(&["train", "qwen3-0.6b-all", "--data", "none.txt"], &["--init"]);
    place.fails(&["train", "qwen3-0.6b-all", "--data", "tiny.toml", "--init", "none"], &["none"]);
    place.fails(&["info", "--recipe", "no-such-recipe"], &["no-such-recipe"]);
    assert!(!place.path("runs").exists(), "a refused recipe leaves nothing behind");
    assert!(place.ok(&["info", "--recipe", "copy"]).starts_with("# "));
}

#[test]
fn a_training_leaves_its_files_and_is_not_overwritten() {
    let place = Place::new();
    place.write("tiny.toml", TINY);
    let said = place.ok(&["train", "tiny.toml"]);
    assert!(said.contains("Ternary check: all weights in {-1, 0, +1}: PASS"), "{said}");
    for file in [
        "recipe.toml",
        "metrics.jsonl",
        "tensorboard",
        "report.json",
        "report.html",
        "model/config.json",
        "model/model.safetensors",
        "model/ternary.json",
        "checkpoints/step-00000003/trainer.json",
        "checkpoints/step-00000003/model.safetensors",
        "checkpoints/step-00000003/optimizer.safetensors",
    ] {
        assert!(place.path("runs/tiny").join(file).exists(), "{file}");
    }
    place.fails(&["train", "tiny.toml"], &["runs/tiny", "--resume"]);
    place.fails(&["train", "copy", "--out", "runs/tiny"], &["runs/tiny", "--resume"]);

    assert!(place.ok(&["verify", "runs/tiny"]).contains("PASS: "));
    let proof = json(&place, &["verify", "runs/tiny/checkpoints/step-00000003", "--json"]);
    assert_eq!((&proof["pass"], &proof["form"]), (&true.into(), &"latent".into()));

    let info = json(&place, &["info", "runs/tiny", "--json"]);
    assert_eq!((&info["run"]["progress"]["step"], &info["run"]["steps"]), (&3.into(), &3.into()));
    assert_eq!((&info["run"]["recipe"], &info["run"]["train"]["step"]), (&"tiny".into(), &3.into()));
    assert_eq!(info["model"]["architecture"], "ternlm");
    assert_eq!(info["model"]["tokenizer"], Value::Null);
    let text = place.ok(&["info", "runs/tiny"]);
    assert!(text.contains("recipe tiny") && text.contains("Step: 3 of 3"), "{text}");

    fs::remove_file(place.path("runs/tiny/report.html")).unwrap();
    assert_eq!(place.ok(&["report", "runs/tiny"]).trim(), "runs/tiny/report.html");
    assert!(place.path("runs/tiny/report.html").exists());
    assert_eq!(json(&place, &["report", "runs/tiny", "--json"])["name"], "tiny");

    // Its model sees the whole sequence, and has no tokenizer.
    place.fails(&["generate", "runs/tiny", "--prompt", "x"], &["tokenizer.json"]);
    Tokenizer::bytes().save(place.path("runs/tiny/model")).unwrap();
    place.fails(&["generate", "runs/tiny", "--prompt", "x"], &["causal"]);
    // Another resume finds nothing left to do.
    assert!(place.ok(&["train", "tiny.toml", "--resume"]).contains("Resumed at step 3"));
}

#[test]
fn models_that_cannot_be_used_are_named() {
    let place = Place::new();
    random_model(&place, "model", 256);
    random_model(&place, "small", 64);
    place.write("empty/readme", "");
    place.write("text.txt", "some text\n".repeat(50));
    place.write("bad.txt", b"ab\xff");
    place.fails(&["verify", "nowhere"], &["nowhere"]);
    for command in ["verify", "info"] {
        place.fails(&[command, "empty"], &["empty", "config.json"]);
    }
    place.fails(&["report", "empty"], &["empty", "report.json"]);
    place.fails(&["report", "nowhere"], &["nowhere"]);
    let generate = |model| ["generate", model, "--prompt", "x"];
    place.fails(&generate("empty"), &["empty", "config.json"]);
    // Its tokenizer has more tokens than the model: a text that uses none of them is welcome.
    place.fails(&generate("small"), &["small", "prompt", "token 120", "64"]);
    place.fails(&["eval", "small", "--data", "text.txt"], &["text.txt", "token 115", "64"]);
    assert!(place.ok(&["generate", "small", "--prompt", "1", "-n", "2"]).starts_with('1'));
    place.fails(&["eval", "model", "--data", "none.txt"], &["none.txt"]);
    place.fails(&["eval", "model", "--data", "bad.txt"], &["bad.txt", "byte 2"]);
    place.fails(&["eval", "model", "--data", "text.txt", "--context", "999"], &["--context 999"]);
    place.fails(&["generate", "model", "--prompt", ""], &["prompt"]);
    place.fails(&["generate", "model", "--prompt", &"x".repeat(300)], &["300", "256 positions"]);
    place.fails(&["generate", "model", "--prompt", "x", "--temperature=-1"], &["temperature"]);
    place.fails(&["generate", "model", "--prompt", "x", "--top-p", "2"], &["top_p"]);

    let weights = place.path("model/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for len in [0, 5, 100, whole.len() - 1] {
        fs::write(&weights, &whole[..len]).unwrap();
        for args in [&["verify", "model"][..], &["info", "model"], &generate("model")] {
            place.fails(args, &["model.safetensors"]);
        }
    }
    fs::write(&weights, &whole).unwrap();
    place.write("model/config.json", "{}");
    place.fails(&generate("model"), &["config.json", "model_type"]);
    place.write("model/config.json", "{\"a\n");
    place.fails(&generate("model"), &["config.json"]);
}

#[test]
fn a_model_is_described_measured_and_continued() {
    let place = Place::new();
    random_model(&place, "model", 256);
    place.write("text.txt", "some text\n".repeat(50));
    let info = json(&place, &["info", "model", "--json"]);
    let model = &info["model"];
    assert!(info.get("run").is_none());
    assert_eq!((&model["architecture"], &model["config"]["hidden_size"]), (&"qwen3".into(), &32.into()));
    assert_eq!((&model["ternary"]["group"], &model["ternary"]["form"]), (&16.into(), &"unpacked".into()));
    // Every matrix is a whole number of groups of 16 wide.
    assert_eq!(model["ternary"]["ideal_bits_per_weight"], 3f64.log2() + 1.0);
    assert_eq!(model["tokenizer"]["vocab_size"], 256);
    let bytes = fs::metadata(place.path("model/model.safetensors")).unwrap().len();
    assert_eq!(model["files"]["model.safetensors"], bytes);
    let ternary = model["tensors"].as_array().unwrap().iter().filter(|t| t["ternary"] == true);
    assert_eq!(ternary.count(), 15);
    let text = place.ok(&["info", "model"]);
    assert!(text.contains("model.layers.*.mlp.up_proj.weight  2 x [48, 32]  ternary, in F16"), "{text}");

    let machine = json(&place, &["info", "--json", "--threads", "3"]);
    assert_eq!((&machine["threads"], &machine["recipes"][0]), (&3.into(), &"copy".into()));
    assert!(machine["isa_available"].as_array().unwrap().contains(&machine["isa"]));
    assert!(place.ok(&["info"]).contains("wiki-75m"));

    let measured = json(&place, &["eval", "model", "--data", "text.txt", "--json"]);
    assert_eq!((&measured["bytes"], &measured["tokens"]), (&499.into(), &499.into()));
    let made = json(&place, &["generate", "model", "--prompt", "some", "-n", "5", "--json"]);
    assert_eq!((&made["prompt"], &made["prompt_tokens"]), (&"some".into(), &4.into()));
    assert_eq!(made["tokens"].as_array().unwrap().len(), 5);
    let text = place.ok(&["generate", "model", "--prompt", "some", "-n", "5"]);
    assert_eq!(text, format!("some{}\n", made["text"].as_str().unwrap()));
}

#[test]
fn a_random_model_is_written_and_used() {
    let place = Place::new();
    let said = place.ok(&["bench", "run", "--shape", "75m", "--write", "75m.tern"]);
    // Counted by hand: 5,630,464 bytes of embedding and of head each, 634,880 a layer.
    assert!(
        said.starts_with("75m.tern: 74,662,912 ternary weights in 16,339,968 bytes, 1.751 bits"),
        "{said}"
    );
    place.fails(
        &["bench", "run", "--shape", "75m", "--write", "75m.tern"],
        &["--write", "75m.tern", "--force"],
    );
    let again = ["bench", "run", "--shape", "75m", "--write", "75m.tern", "--force", "--density", "base3"];
    let before = fs::read(place.path("75m.tern")).unwrap();
    place.ok(&again);
    assert!(before == fs::read(place.path("75m.tern")).unwrap(), "the same bytes");

    assert!(place.ok(&["verify", "75m.tern"]).contains("PASS"));
    let made =
        json(&place, &["generate", "75m.tern", "--prompt", "some", "-n", "2", "--ignore-eos", "--json"]);
    assert_eq!(made["tokens"].as_array().unwrap().len(), 2);
    let info = json(&place, &["info", "75m.tern", "--context", "200", "--json"]);
    let needs = &info["model"]["needs"];
    assert_eq!(
        (&needs["weights"][0]["bytes"], &needs["weights"][1]["bytes"]),
        (&16_339_968.into(), &38_912.into())
    );
    let run = ["bench", "run", "75m.tern", "--prompt", "3", "--gen", "2", "--rounds", "1", "--json"];
    let measured = json(&place, &run);
    assert_eq!(
        (&measured["bytes_per_token"], &needs["bytes_per_token"]),
        (&10_748_416.into(), &10_748_416.into())
    );
    let text = place.ok(&["info", "75m.tern", "--estimate"]);
    assert!(text.contains("Decode: at most") && text.contains("up to 1,024 positions"), "{text}");
    place.fails(&["info", "75m.tern", "--context", "1025"], &["--context 1025", "1024"]);
}

/// One reader: the validation of a run, its report's test and `eval` give one figure for one text, whatever its line ends.
#[test]
fn a_text_has_the_same_figure_everywhere() {
    let place = Place::new();
    let code = "def f(x):\n    return x\n\n\ndef g(x):\n    return f(x)\n\n\n".repeat(30);
    place.write("code.txt", &code);
    place.write("crlf.txt", format!("\u{feff}{}", code.replace('\n', "\r\n")));
    let records: String =
        [&code, &code].map(|text| format!("{}\n", serde_json::json!({"body": text}))).concat();
    place.write("code.jsonl", records);
    let recipe = TINY
        .replace("\"copy\"", "\"lm\"")
        .replace("vocab_size = 16", "vocab_size = 256")
        .replace("causal = false", "causal = true")
        .replace("max_positions = 16", "max_positions = 64")
        .replace("sequence = 8", "tokenizer = \"bytes\"\nfield = \"body\"\nval = [\"code.txt\"]")
        .replace("batch = 4", "batch = 4\nseq = 48");
    place.write("tiny.toml", recipe);
    let said = place.ok(&["train", "tiny.toml", "--data", "code.txt", "--set", "report.test=crlf.txt"]);
    let bytes = code.len();
    let sizes = "Text: 1,590 tokens (1,590 bytes) to train on; 1,590 tokens (1,590 bytes) held out";
    assert!(bytes == 1590 && said.contains(sizes), "{said}");
    let report = json(&place, &["report", "runs/tiny", "--json"]);
    let eval = |file: &str| json(&place, &["eval", "runs/tiny", "--data", file, "--context", "48", "--json"]);
    let of = |value: &Value| ["nll", "bits_per_byte"].map(|key| value[key].as_f64().unwrap());
    let wanted = of(&report["val"]);
    assert_eq!(report["val"]["tokens"], bytes - 1);
    for measured in [&report["test"], &eval("code.txt"), &eval("crlf.txt")] {
        let close = of(measured).iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close, "{measured}, wanted {wanted:?}");
    }
    // The field is that of the run's recipe; two records stand a blank line apart, which the text ends with already.
    let records = eval("code.jsonl");
    assert_eq!((&records["bytes"], &records["tokens"]), (&(2 * bytes - 1).into(), &(2 * bytes - 1).into()));
    place.fails(
        &["eval", "runs/tiny", "--data", "code.jsonl", "--field", "text"],
        &["line 1", "no such field"],
    );
}

#[test]
fn a_piped_prompt_loses_the_newline_of_echo() {
    let place = Place::new();
    random_model(&place, "model", 256);
    for (piped, prompt) in
        [("some\n", "some"), ("some\r\n", "some"), ("some\n\n", "some\n"), ("some", "some")]
    {
        let args = ["generate", "model", "--prompt", "-", "-n", "3"];
        let mut child = place.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(piped.as_bytes()).unwrap();
        let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(out, place.ok(&["generate", "model", "--prompt", prompt, "-n", "3"]), "{piped:?}");
    }
}

#[test]
fn a_validation_that_cannot_be_made_is_no_secret() {
    let place = Place::new();
    let recipe = TINY.replace("\"copy\"", "\"lm\"").replace("vocab_size = 16", "vocab_size = 256");
    let recipe =
        recipe.replace("causal = false", "causal = true").replace("sequence = 8", "tokenizer = \"bytes\"");
    place.write("tiny.toml", recipe.replace("batch = 4", "batch = 4\nseq = 8"));
    place.write("text.txt", "0123456789012345678901234567890123456789");
    place.write("one.txt", "x");
    let args = ["train", "tiny.toml", "--data", "text.txt", "--set", "data.val_fraction=0.01"];
    let out = place.run(&args);
    assert!(out.status.success());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("warning: there will be no validation") && said.contains("0.01"), "{said}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("Validation: none"));
    let other = ["train", "tiny.toml", "--data", "text.txt", "--out", "b", "--set", "data.val=[\"one.txt\"]"];
    place.fails(&other, &["data.val", "1 tokens"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let mut child =
        place.command(&["info", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_tokenizer_is_trained_and_used() {
    let place = Place::new();
    place.write("text.txt", "the cat sat on the mat, the cat sat on the hat\n".repeat(20));
    place.write("records.jsonl", "{\"body\": \"the cat\"}\n{\"body\": \"the mat\"}\n");
    place.write("junk.json", "{\"model\": 3}");
    place.write("image.png", "");
    let train = ["tokenizer", "train", "text.txt", "--vocab-size", "270", "--out", "tok"];
    let special = ["--special", "<|end|>", "--special", "<|user|>"];
    let said = place.ok(&[&train[..], &special].concat());
    assert!(said.contains("270 tokens") && said.contains("tokenizer.json"), "{said}");
    let before = fs::read(place.path("tok/tokenizer.json")).unwrap();
    place.fails(&train, &["tokenizer.json", "--force"]);
    assert_eq!(fs::read(place.path("tok/tokenizer.json")).unwrap(), before);

    let text = "the cat<|end|>\u{e9} hat";
    let ids = place.ok(&["tokenizer", "encode", "tok", "--text", text]);
    let list: Vec<&str> = ids.split_whitespace().collect();
    assert!(list.contains(&"0") && list.len() < text.len() - 6, "{ids}");
    assert_eq!(place.ok(&[&["tokenizer", "decode", "tok"], &list[..]].concat()), format!("{text}\n"));
    place.write("one.txt", text);
    let encoded = json(&place, &["tokenizer", "encode", "tok", "--file", "one.txt", "--json"]);
    assert_eq!(encoded["count"], list.len());
    assert!(encoded["tokens"].as_array().unwrap().contains(&"<|end|>".into()));
    let info = json(&place, &["tokenizer", "info", "tok", "--json"]);
    assert_eq!((&info["vocab_size"], &info["eos"]), (&270.into(), &0.into()));
    assert_eq!(info["special"][1]["token"], "<|user|>");
    assert!(place.ok(&["tokenizer", "info", "tok"]).contains("Ends a text: 0 (<|end|>)"));

    let records = ["tokenizer", "train", "records.jsonl", "--vocab-size", "400", "--out", "tok", "--force"];
    place.fails(&records, &["records.jsonl", "line 1", "text"]);
    assert_eq!(fs::read(place.path("tok/tokenizer.json")).unwrap(), before, "a failure replaces nothing");
    assert!(place.ok(&[&records[..], &["--field", "body"]].concat()).contains("Fewer than the 400 wanted"));

    let train = |file, size| ["tokenizer", "train", file, "--vocab-size", size, "--out", "other"];
    place.fails(&train("none.txt", "300"), &["none.txt"]);
    place.fails(&train("image.png", "300"), &["image.png"]);
    place.fails(&train("text.txt", "10"), &["10", "256"]);
    assert!(!place.path("other").exists());
    place.fails(&["tokenizer", "info", "none.json"], &["none.json"]);
    place.fails(&["tokenizer", "info", "junk.json"], &["junk.json"]);
    place.fails(&["tokenizer", "decode", "bytes", "72", "256"], &["256"]);
}

#[test]
fn guesses_change_no_text() {
    let place = Place::new();
    random_model(&place, "model", 256);
    random_model(&place, "small", 64);
    let generate = ["generate", "model", "--prompt", "to be or not to be or", "-n", "60"];
    let with = |more: &[&str]| json(&place, &[&generate[..], more, &["--json"]].concat());
    let plain = with(&[]);
    assert_eq!((&plain["proposed"], &plain["accepted"]), (&0.into(), &0.into()));
    for more in [&["--lookup"][..], &["--lookup=3"], &["--draft", "model", "--draft-tokens", "6"]] {
        let made = with(more);
        assert_eq!((&made["tokens"], &made["text"]), (&plain["tokens"], &plain["text"]), "{more:?}");
        assert!(made["proposed"].as_u64() > Some(0), "{made}");
    }
    // A model guesses for itself without fail.
    let out = place.run(&[&generate[..], &["--draft", "model"]].concat());
    let said = String::from_utf8(out.stderr).unwrap();
    let words: Vec<&str> = said.split(' ').collect();
    let of = words.iter().position(|word| *word == "of").unwrap();
    assert!(words[of - 1] == words[of + 1] && said.ends_with(" proposed tokens accepted]\n"), "{said}");

    place.write("model/chat_template.jinja", TEMPLATE);
    let chat = ["chat", "model", "-n", "20", "--message", "Hi", "--message", "More", "--json"];
    let messages = |more: &[&str]| json(&place, &[&chat[..], more].concat())["messages"].take();
    let plain = messages(&[]);
    for more in [&["--lookup"][..], &["--draft", "model"]] {
        assert_eq!(messages(more), plain, "{more:?}");
    }

    place.fails(&[&generate[..], &["--draft", "none"]].concat(), &["none", "model directory"]);
    place.fails(&[&generate[..], &["--draft", "small"]].concat(), &["draft model", "64 tokens", "256"]);
    // The same size, but two tokens have changed places.
    random_model(&place, "other", 256);
    edit_json(&place.path("other/tokenizer.json"), |json| {
        let vocab = &mut json["model"]["vocab"];
        (vocab["a"], vocab["b"]) = (vocab["b"].take(), vocab["a"].take());
    });
    place
        .fails(&[&generate[..], &["--draft", "other"]].concat(), &["other", "draft model", "\"a\"", "\"b\""]);
    for wrong in [&["--lookup", "--draft", "model"][..], &["--lookup=0"], &["--draft-tokens", "3"]] {
        assert_eq!(place.run(&[&generate[..], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_conversation() {
    let place = Place::new();
    random_model(&place, "model", 256);
    let say = |texts: &[&str], more: &[&str]| {
        let mut args = vec!["chat", "model", "-n", "8"];
        texts.iter().for_each(|text| args.extend(["--message", text]));
        json(&place, &[&args[..], more, &["--json"]].concat())
    };
    place.fails(&["chat", "model", "--message", "Hi"], &["chat template", "ternlm generate", "--template"]);
    place.write("other.jinja", TEMPLATE);
    place.write("broken.jinja", "{% if");
    place.fails(&["chat", "model", "--template", "broken.jinja"], &["broken.jinja"]);
    place.fails(&["chat", "model", "--template", "none.jinja"], &["none.jinja"]);
    let other = say(&["Hi"], &["--template", "other.jinja"]);

    place.write("model/chat_template.jinja", TEMPLATE);
    let one = say(&["Hi"], &[]);
    assert_eq!(one["messages"], other["messages"]);
    let two = say(&["Hi", "More"], &["--system", "Be brief."]);
    let messages = two["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    // The second turn, with the cache of the first, is what the whole text alone gives.
    let content = |i: usize| messages[i]["content"].as_str().unwrap();
    let whole = format!("system: Be brief.\nuser: Hi\nassistant: {}\nuser: More\nassistant:", content(2));
    let fresh = json(&place, &["generate", "model", "--prompt", &whole, "-n", "8", "--json"]);
    assert_eq!(two["turns"][1]["prompt_tokens"], whole.len());
    assert_eq!(two["turns"][1]["tokens"], fresh["tokens"]);

    let mut child = place
        .command(&["chat", "model", "-n", "8"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Hi\n\n/reset\n Hi \n/exit\nnever\n").unwrap();
    let out = child.wait_with_output().unwrap();
    let answer = one["messages"][1]["content"].as_str().unwrap();
    assert!(out.status.success());
    assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{answer}\n{answer}\n"));

    place.fails(&["chat", "model", "--message", &"x".repeat(300)], &["256 positions"]);
    place.write("model/chat_template.jinja", "{{ raise_exception('no\nsystem') }}");
    place.fails(&["chat", "model", "--message", "Hi"], &["rejects", "no system"]);
    random_model(&place, "small", 64);
    place.write("small/chat_template.jinja", TEMPLATE);
    place.fails(&["chat", "small", "--message", "Hi"], &["small", "vocabulary"]);
}
