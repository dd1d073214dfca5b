//! Chat templates against Hugging Face's renderer. `tests/chat_templates/README.md` says where the templates are from
//! and how the expected texts were made.

use serde_json::{Map, Value as Json};
use std::fs;
use std::path::{Path, PathBuf};
use ternlm::chat::{ChatTemplate, RenderOptions};
use ternlm::text::{BpeTrainer, Tokenizer};

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_templates").join(name)
}

fn json(path: &Path) -> Json {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A tokenizer with the special tokens of `make.py`.
fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let special = ["<s>", "</s>", "<unk>"].map(String::from).into();
    let trained = BpeTrainer { vocab_size: 260, special }.train([Ok("a text".into())].into_iter(), |_, _| {});
    trained.unwrap().save(dir.path()).unwrap();
    let tokens = r#"{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}"#;
    fs::write(dir.path().join("tokenizer_config.json"), tokens).unwrap();
    Tokenizer::at(dir.path()).unwrap()
}

fn list(case: &Json, name: &str) -> Vec<Json> {
    case[name].as_array().cloned().unwrap_or_default()
}

/// The text, or what went wrong.
fn render(template: &ChatTemplate, case: &Json) -> Result<String, String> {
    let options = RenderOptions {
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
        tools: list(case, "tools"),
        documents: list(case, "documents"),
        variables: case["variables"].as_object().cloned().unwrap_or_else(Map::new),
        // 26 July 2024, 09:05:03
        now: Some(1_721_984_703),
    };
    template.render(&list(case, "messages"), options).map_err(|e| e.to_string())
}

/// What differs, and how many conversations were compared.
fn compare(template: &Path, expected: &Path, tokenizer: &Tokenizer) -> (Vec<String>, usize) {
    let expected = json(expected);
    let cases = json(&here("conversations.json"));
    let name = template.file_stem().unwrap().to_string_lossy();
    let template = match ChatTemplate::from_file(template, tokenizer) {
        Ok(template) => template,
        Err(e) => return (vec![format!("{name}: {e}")], 0),
    };
    let mut different = Vec::new();
    for case in cases.as_array().unwrap() {
        let made = render(&template, case);
        let case = case["name"].as_str().unwrap();
        match (expected[case].as_str(), &made) {
            (Some(wanted), Ok(made)) if wanted == made => {}
            (None, Err(_)) => {}
            (wanted, made) => {
                different.push(format!("{name}, {case}:\n  wanted {wanted:?}\n  made   {made:?}"))
            }
        }
    }
    (different, cases.as_array().unwrap().len())
}

/// Compares every expected file of `expected` whose template is in one of `templates`; how many prompts that were.
fn all(expected: &Path, templates: &[PathBuf]) -> usize {
    let tokenizer = tokenizer();
    let (mut different, mut compared) = (Vec::new(), 0);
    let mut files: Vec<PathBuf> = fs::read_dir(expected).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "json")) {
        let name = format!("{}.jinja", file.file_stem().unwrap().to_string_lossy());
        let Some(template) = templates.iter().map(|dir| dir.join(&name)).find(|path| path.exists()) else {
            println!("skipped: no {name} (TERNLM_TEMPLATES names a folder with it)");
            continue;
        };
        let (found, count) = compare(&template, file, &tokenizer);
        different.extend(found);
        compared += count;
    }
    println!("{compared} prompts compared, {} differ", different.len());
    assert!(different.is_empty(), "{} of {compared} differ:\n{}", different.len(), different.join("\n"));
    compared
}

#[test]
fn templates_of_models() {
    let mut templates = vec![here("templates")];
    templates.extend(std::env::var_os("TERNLM_TEMPLATES").map(PathBuf::from));
    assert!(all(&here("expected"), &templates) >= 8 * 29);
}

/// With what the templates of LLaMA 3 and Gemma are made of: a date, tools in the first message, errors on purpose.
#[test]
fn templates_of_our_own() {
    assert_eq!(all(&here("own"), &[here("own")]), 2 * 29);
}

/// A comparison that cannot fail would be none.
#[test]
#[should_panic(expected = "differ")]
fn a_difference_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let template = fs::read_to_string(here("own/alternating.jinja")).unwrap().replace("| trim", "");
    fs::write(dir.path().join("alternating.jinja"), template).unwrap();
    fs::copy(here("own/alternating.json"), dir.path().join("alternating.json")).unwrap();
    all(dir.path(), &[dir.path().to_path_buf()]);
}
