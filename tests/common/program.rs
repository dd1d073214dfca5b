//! The program, as a user runs it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
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

/// A folder to run the program in, with a cache of its own.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: impl AsRef<Path>, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = command(args);
        command.current_dir(self.0.path()).env("TERNLM_CACHE", self.path(".cache"));
        command
    }

    pub fn run(&self, args: &[impl AsRef<OsStr>]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a run that must succeed prints.
    #[track_caller]
    pub fn ok(&self, args: &[impl AsRef<OsStr>]) -> String {
        let mut command = self.command(args);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// [`fails`], here.
    #[track_caller]
    pub fn fails(&self, args: &[impl AsRef<OsStr>], parts: &[&str]) {
        fails(&mut self.command(args), parts);
    }
}
