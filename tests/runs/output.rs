//! Output that cannot be written, and what a log file must not hold.
#![cfg(unix)]

use super::{Lab, said};
use std::fs::File;
use std::process::Stdio;

/// Every way in which the program says something.
const SPEAKING: [&[&str]; 22] = [
    &["--help"],
    &["--version"],
    &["help", "train"],
    &["train", "--help"],
    &["tokenizer", "encode", "--help"],
    &["info"],
    &["info", "--json"],
    &["info", "--recipe", "copy"],
    &["info", "run"],
    &["info", "run", "--json"],
    &["verify", "run"],
    &["verify", "run", "--json"],
    &["report", "run"],
    &["report", "run", "--json"],
    &["eval", "run", "--data", "text.txt", "--tokens", "60"],
    &["eval", "run", "--data", "text.txt", "--tokens", "60", "--json"],
    &["generate", "run", "--prompt", "The", "-n", "3"],
    &["generate", "run", "--prompt", "The", "-n", "3", "--json"],
    &["chat", "run", "--template", "chat.jinja", "--message", "Hi", "-n", "3"],
    &["chat", "run", "--template", "chat.jinja", "--message", "Hi", "-n", "3", "--json"],
    &["tokenizer", "encode", "bytes", "--text", "hi"],
    &["tokenizer", "decode", "bytes", "72"],
];

fn lab() -> Lab {
    let lab = Lab::trained(&[]);
    lab.write("chat.jinja", "{% for m in messages %}{{ m.content }}\n{% endfor %}");
    lab
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_everywhere() {
    let lab = lab();
    let train = |out| ["train", "tiny.toml", "--out", out, "--set", "train.steps=2"];
    let (fresh, again) = (train("fresh"), ["train", "tiny.toml", "--out", "run", "--resume"]);
    let tokenizer = ["tokenizer", "train", "text.txt", "--vocab-size", "260", "--out", "tok"];
    let bench = ["bench", "train", "--recipe", "tiny.toml", "--warmup", "0", "--steps", "1"];
    let more = [&fresh[..], &again, &tokenizer, &["tokenizer", "info", "tok"], &bench];
    for args in SPEAKING.iter().copied().chain(more) {
        let out = lab.command(args).stdout(full()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
        assert!(
            said.lines().last().unwrap_or_default().starts_with("error: cannot write standard output: "),
            "{args:?}: {said}"
        );
    }
    // The work was done all the same.
    assert!(lab.path("fresh/report.json").exists() && lab.path("tok/tokenizer.json").exists());
    // A conversation ends there.
    let mut chat = lab.command(&["chat", "run", "--template", "chat.jinja", "-n", "3"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(full()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"Hi\n").unwrap();
    let out = child.wait_with_output().unwrap();
    drop(input);
    assert!(out.status.code() == Some(1) && said(&out).contains("standard output"), "{}", said(&out));
}

#[test]
fn a_reader_that_goes_away_is_none() {
    let lab = lab();
    for args in SPEAKING {
        let mut child = lab.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && !said.contains("error"), "{args:?}: {said}");
    }
}

/// Where an error cannot be said, the exit code still says it.
#[test]
#[cfg(target_os = "linux")]
fn standard_error_may_be_full_too() {
    let lab = lab();
    for (args, code) in [
        (&["verify", "nowhere"][..], 1),
        (&["-v", "info"], 0),
        (&["generate", "run", "--prompt", "The", "-n", "3"], 0),
        (&["-v", "train", "tiny.toml", "--out", "run", "--resume"], 0),
        (&["train", "tiny.toml", "--out", "run", "--resume", "--set", "model.layers=1"], 1),
        (&["fly"], 2),
    ] {
        let out = lab.command(args).stderr(full()).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_log_file_holds_no_colours() {
    let lab = Lab::new();
    for variables in [&[][..], &[("NO_COLOR", "1")], &[("NO_COLOR", "")]] {
        let mut command =
            lab.command(&["-v", "train", "tiny.toml", "--out", "run", "--set", "train.steps=2"]);
        let out = command.envs(variables.iter().copied()).env("TERM", "xterm-256color").output().unwrap();
        let log = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success() && log.contains("saved run/checkpoints"), "{log}");
        assert!(!log.contains('\x1b') && !out.stdout.contains(&0x1b), "{log:?}");
        std::fs::remove_dir_all(lab.path("run")).unwrap();
    }
}

/// The less a text is the more it may be learnt: losses of other texts are not ranked.
#[test]
fn a_best_figure_is_one_of_the_same_text() {
    let lab = Lab::trained(&[]);
    lab.ok(&["train", "tiny.toml", "--out", "seed", "--seed", "5"]);
    lab.ok(&["train", "tiny.toml", "--out", "half", "--set", "data.val_fraction=0.5"]);
    let best = |other: &str| {
        lab.ok(&["report", "run", other, "--force"]);
        let page = lab.read("comparison.html");
        let row = page.lines().find(|line| line.contains("<td>Validation perplexity</td>")).unwrap();
        row.contains("class=\"best\"")
    };
    assert!(best("seed") && !best("half"));
}
