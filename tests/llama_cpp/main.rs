//! What llama.cpp makes of the files that are written here. `TERNLM_LLAMA_PROBE` is what `probe.cpp` was compiled to; it says
//! how. Without it these tests pass and say so. `TERNLM_LLAMA_PERPLEXITY` is that program, a second witness of perplexities.

#[path = "../common/mod.rs"]
mod common;
mod models;
mod vocabularies;

use common::program::{Arg, ok};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What `probe.cpp` prints.
fn probe(what: &str, file: &Path, args: &[String], input: &[u8]) -> Option<Vec<u8>> {
    let Some(program) = std::env::var_os("TERNLM_LLAMA_PROBE") else {
        eprintln!("SKIPPED: TERNLM_LLAMA_PROBE names no program made of tests/llama_cpp/probe.cpp");
        return None;
    };
    let mut run = Command::new(program)
        .arg(what)
        .arg(file)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin.take().unwrap().write_all(input).unwrap();
    let out = run.wait_with_output().unwrap();
    assert!(out.status.success(), "{what} of {}", file.display());
    Some(out.stdout)
}

#[track_caller]
fn export(from: &Path, kind: &str, to: &Path) -> String {
    let mut args: Vec<Arg> = vec![&"export", &from, &"--format", &"gguf", &"--type", &kind, &"--out", &to];
    if kind.starts_with("tq") {
        // What has one scale where there were two.
        args.push(&"--lossy");
    }
    ok(&args)
}
