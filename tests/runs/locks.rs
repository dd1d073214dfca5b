//! One process a run.

use super::{Lab, said};
use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;
use ternlm::files::FolderLock;

const REFUSED: &str = "another process is at work in this run";

/// A training in `run` that goes on until it is killed, at work.
fn endless(lab: &Lab) -> Child {
    let args = ["train", "tiny.toml", "--out", "run", "--set", "train.steps=1000000"];
    let mut child = lab.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !lab.path("run/checkpoints/step-00000004/trainer.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn a_run_that_goes_on_is_left_alone_and_a_dead_one_is_free() {
    let lab = Lab::new();
    let mut child = endless(&lab);
    lab.fails(&["train", "tiny.toml", "--out", "run", "--resume"], &["run: ", REFUSED, "--out"]);
    lab.fails(&["train", "tiny.toml", "--out", "run"], &["run: ", REFUSED]);
    for command in [&["info", "run"][..], &["info", "run", "--json"]] {
        lab.ok(command);
    }
    assert!(child.try_wait().unwrap().is_none());
    // SIGKILL: nothing of the process can tidy up.
    child.kill().unwrap();
    child.wait().unwrap();
    let done = lab.newest().rsplit('-').next().unwrap().parse::<u64>().unwrap();
    lab.resumes(&["--set", &format!("train.steps={}", done + 3)]);
    // Nothing is there twice, nothing is missing.
    let steps: Vec<u64> = lab.records("train").iter().map(|r| r["step"].as_u64().unwrap()).collect();
    assert!(steps == (1..=done + 3).collect::<Vec<_>>(), "{} records, {done} + 3 steps", steps.len());
    assert!(points_in_tensorboard(&lab) == steps);
}

/// The steps of `train/loss` that TensorBoard shows: a START takes away what earlier files have from its step on. That
/// TensorBoard does so was seen with `EventAccumulator` of the package tensorboard 2.21.0 on such a folder.
fn points_in_tensorboard(lab: &Lab) -> Vec<u64> {
    let mut files: Vec<_> =
        fs::read_dir(lab.path("run/tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 1);
    let (mut shown, mut lost) = (Vec::new(), 0);
    for file in files {
        let bytes = fs::read(file).unwrap();
        let mut rest = &bytes[..];
        // The last record of a killed process may be torn.
        while rest.len() > 12 {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let Some(event) = rest.get(12..12 + length) else { break };
            rest = rest.get(16 + length..).unwrap_or_default();
            if event[9] != 0x10 {
                continue;
            }
            let digits = event[10..].iter().position(|b| b & 0x80 == 0).unwrap() + 1;
            let step = (0..digits).map(|i| u64::from(event[10 + i] & 0x7f) << (7 * i)).sum();
            let body = &event[10 + digits..];
            if body == b"\x3a\x02\x08\x01" {
                let before = shown.len();
                shown.retain(|s| *s < step);
                lost += before - shown.len();
            } else if body.windows(10).any(|w| w == b"train/loss") {
                shown.push(step);
            }
        }
    }
    println!("{lost} steps were taken back");
    shown
}

#[test]
fn of_two_that_start_at_once_one_is_refused() {
    let lab = Lab::new();
    for round in 0..3 {
        let out = format!("runs/{round}");
        let args =
            ["train", "tiny.toml", "--out", &out, "--set", "train.steps=60", "--set", "train.save_every=0"];
        let spawn = || lab.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let children = [spawn(), spawn(), spawn()];
        let ends: Vec<_> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
        assert_eq!(ends.iter().filter(|out| out.status.success()).count(), 1);
        for out in ends.iter().filter(|out| !out.status.success()) {
            let said = said(out);
            assert!(said.contains(REFUSED) || said.contains("already holds a run"), "{said}");
        }
        let records = lab.read(&format!("{out}/metrics.jsonl"));
        assert_eq!(records.lines().filter(|line| line.contains("\"train\"")).count(), 60);
    }
}

#[test]
fn readers_need_no_lock() {
    let lab = Lab::trained(&[]);
    let lock = FolderLock::acquire(&lab.path("run")).unwrap();
    lab.fails(&["train", "tiny.toml", "--out", "run", "--resume"], &[REFUSED]);
    for args in [
        &["eval", "run", "--data", "text.txt", "--tokens", "100"][..],
        &["generate", "run", "--prompt", "The", "-n", "3"],
        &["info", "run"],
        &["verify", "run"],
        &["report", "run"],
        &["report", "run", "--json"],
    ] {
        lab.ok(args);
    }
    drop(lock);
    lab.resumes(&[]);
}

#[test]
fn a_refused_start_leaves_nothing_behind() {
    let lab = Lab::new();
    lab.fails(&["train", "tiny.toml", "--data", "none.txt", "--out", "a/b/c"], &["none.txt"]);
    assert!(!lab.path("a").exists());
    fs::create_dir(lab.path("a")).unwrap();
    lab.fails(&["train", "tiny.toml", "--data", "none.txt", "--out", "a/b/c"], &["none.txt"]);
    assert_eq!(fs::read_dir(lab.path("a")).unwrap().count(), 0, "but what was there stays");
}
