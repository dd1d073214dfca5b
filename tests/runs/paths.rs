//! Paths that are not UTF-8.
#![cfg(target_os = "linux")]

use super::{Lab, text};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use ternlm::files::path_text;
use ternlm::text::Tokenizer;

/// `caf?STEM`, the question mark a byte that is no UTF-8.
fn odd(stem: &str) -> OsString {
    [OsStr::from_bytes(b"caf\xe9"), OsStr::new(stem)].iter().copied().collect()
}

fn args(parts: &[&OsStr]) -> Vec<OsString> {
    parts.iter().map(|part| part.to_os_string()).collect()
}

#[test]
fn a_training_records_and_finds_them_again() {
    let lab = Lab::new();
    let [data, val, test, recipe, out] =
        ["-data.txt", "-val.txt", "-test.txt", "-recipe.toml", "-run"].map(odd);
    lab.write(&data, text(0));
    lab.write(&val, text(1));
    lab.write(&test, text(2));
    let at = |name: &OsStr| path_text::write(&lab.path(name));
    assert!(at(&val).starts_with("file:/") && at(&val).ends_with("caf%E9-val.txt"));
    // A recipe names such paths as they are recorded.
    let more = format!("test = {:?}\n", at(&test));
    lab.write(&recipe, super::RECIPE.replace("[train]", &format!("val = [{:?}]\n[train]", at(&val))) + &more);
    let train = args(&["train".as_ref(), &recipe, "--data".as_ref(), &data, "--out".as_ref(), &out]);
    lab.ok(&train);
    let run = |name: &str| [out.as_bytes(), b"/", name.as_bytes()].concat();
    let read = |name: &str| fs::read_to_string(lab.path(OsStr::from_bytes(&run(name)))).unwrap();
    let recorded: toml::Table = read("recipe.toml").parse().unwrap();
    assert_eq!(recorded["data"]["train"][0].as_str().unwrap(), at(&data));
    let report: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(report["recipe"]["data"]["val"][0], at(&val).as_str());
    assert_eq!(report["test"]["file"], at(&test).as_str());
    lab.ok(&[&train[..], &args(&["--resume".as_ref(), "--set".as_ref(), "train.steps=8".as_ref()])].concat());
    // The recorded recipe names them, too.
    let saved = OsString::from(OsStr::from_bytes(&run("recipe.toml")));
    let resume = args(&["train".as_ref(), &saved, "--out".as_ref(), &out, "--resume".as_ref()]);
    lab.ok(&resume);
    lab.fails(&[&resume[..], &args(&["--data".as_ref(), &test])].concat(), &["--other-data"]);

    // Others read the run, and start from its model.
    for command in ["verify", "info", "report"] {
        lab.ok(&args(&[command.as_ref(), &out]));
        let json = lab.run(&args(&[command.as_ref(), &out, "--json".as_ref()]));
        assert!(json.status.success());
        serde_json::from_slice::<serde_json::Value>(&json.stdout).unwrap();
    }
    lab.ok(&args(&[
        "generate".as_ref(),
        &out,
        "--prompt".as_ref(),
        "The".as_ref(),
        "-n".as_ref(),
        "2".as_ref(),
    ]));
    lab.ok(&args(&["eval".as_ref(), &out, "--data".as_ref(), &data, "--json".as_ref()]));
    let checkpoint = OsString::from(OsStr::from_bytes(&run("checkpoints/step-00000008")));
    let init = args(&[
        "train".as_ref(),
        "tiny.toml".as_ref(),
        "--init".as_ref(),
        &checkpoint,
        "--set".as_ref(),
        "data.tokenizer=".as_ref(),
    ]);
    lab.ok(&init);
    lab.ok(&[&init[..], &args(&["--resume".as_ref()])].concat());
}

/// In a folder of such a name, relative paths become absolute ones that are not UTF-8.
#[test]
fn a_folder_to_work_in() {
    let lab = Lab::new();
    let here = odd("-here");
    fs::create_dir(lab.path(&here)).unwrap();
    for file in ["tiny.toml", "text.txt"] {
        fs::rename(lab.path(file), lab.path(&here).join(file)).unwrap();
    }
    Tokenizer::bytes().save(lab.path(&here).join("tok")).unwrap();
    // Named like a tokenizer that is built in.
    let train = ["train", "tiny.toml", "--set", "data.tokenizer=tok", "--out", "bytes"];
    let run = |args: &[&str]| {
        let out = lab.command(args).current_dir(lab.path(&here)).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", super::said(&out));
    };
    run(&train);
    let recorded: toml::Table =
        fs::read_to_string(lab.path(&here).join("bytes/recipe.toml")).unwrap().parse().unwrap();
    let tokenizer = path_text::read(recorded["data"]["tokenizer"].as_str().unwrap()).unwrap();
    assert_eq!(tokenizer, lab.path(&here).join("tok").canonicalize().unwrap());
    run(&[&train[..], &["--resume", "--set", "train.steps=8"]].concat());
    let tok = lab.path(&here).join("tok");
    let eval = args(&[
        "eval".as_ref(),
        lab.path(&here).join("bytes").as_ref(),
        "--data".as_ref(),
        lab.path("other.txt").as_ref(),
        "--tokenizer".as_ref(),
        tok.as_ref(),
    ]);
    lab.ok(&eval);
    lab.ok(&args(&["tokenizer".as_ref(), "encode".as_ref(), tok.as_ref(), "--text".as_ref(), "x".as_ref()]));
}

#[test]
fn a_text_that_stands_for_no_path_is_named() {
    let lab = Lab::new();
    for key in ["init=file:%", "report.test=file:a%0", "data.train=[\"file:%zz\"]", "data.tokenizer=file:%"] {
        lab.fails(&["train", "tiny.toml", "--set", key], &["wanted two hexadecimal digits after each %"]);
    }
}
