//! The program, as a user runs it.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

/// A word of a command line, or a path.
pub type Arg<'a> = &'a dyn AsRef<OsStr>;

/// Nothing of what surrounds the tests changes what it says, and it has nothing to read.
pub fn command(args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ternlm"));
    command.args(args).env_remove("TERNLM_LOG").env_remove("TERNLM_ISA").env_remove("NO_COLOR");
    command.stdin(Stdio::null());
    command
}

pub fn ternlm(args: &[Arg]) -> Output {
    command(args).output().unwrap()
}

/// What a run that must succeed prints.
#[track_caller]
pub fn ok(args: &[Arg]) -> String {
    let out = ternlm(args);
    let args: Vec<&OsStr> = args.iter().map(|arg| arg.as_ref()).collect();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A run that must end with one sentence that names `parts`, and the exit code 1.
#[track_caller]
pub fn fails(command: &mut Command, parts: &[&str]) {
    let out = command.output().unwrap();
    let (args, said) = (command.get_args(), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.starts_with("error: ") && said.ends_with('\n'), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}: wanted {parts:?}");
}
