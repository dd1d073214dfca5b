//! Trainings under the MPI launchers of this machine. Where there is none, each test says that it was skipped.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const RECIPE: &str = r#"
name = "small"
task = "copy"
seed = 1
[model]
vocab_size = 64
hidden_size = 64
layers = 2
heads = 2
kv_heads = 2
head_dim = 32
intermediate_size = 128
activation = "gelu"
causal = false
max_positions = 16
[data]
sequence = 16
[train]
steps = 30
batch = 16
lr = 3e-3
log_every = 1
save_every = 10
"#;

/// Longer than anything here takes, on a machine that does other things as well.
const LIMIT: Duration = Duration::from_secs(300);

/// A launcher, by the name of its program.
#[derive(Clone, Copy, Debug)]
struct Launcher(&'static str);

/// The launchers that there are; `mpirun` alone where it is not one of those with a name of their own.
fn launchers() -> Vec<Launcher> {
    let there = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
    };
    let mut found: Vec<Launcher> =
        ["mpirun.openmpi", "mpirun.mpich"].into_iter().filter(|name| there(name)).map(Launcher).collect();
    if found.is_empty() && there("mpirun") {
        found.push(Launcher("mpirun"));
    }
    if found.is_empty() {
        println!("skipped: no mpirun (Debian: openmpi-bin, mpich)");
    }
    found
}

impl Launcher {
    /// So many processes of `program` on however few cores.
    fn command(self, dir: &Path, size: usize, program: &[&str]) -> Command {
        let mut command = Command::new(self.0);
        command.current_dir(dir).stdin(Stdio::null());
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("OMPI_MCA_rmaps_base_oversubscribe", "1");
        command.args(["-n", &size.to_string()]).args(program);
        command
    }
}

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("small.toml"), RECIPE).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ternlm train small.toml --out OUT`, and more.
    fn train<'a>(&self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let train = [env!("CARGO_BIN_EXE_ternlm"), "train", "small.toml", "--threads", "1", "--out", out];
        [&train, more].concat()
    }

    fn run(&self, launcher: Launcher, size: usize, program: &[&str]) -> Output {
        let mut command = launcher.command(self.dir.path(), size, program);
        finished(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }
}

/// Its output, if it ends.
fn finished(mut child: Child) -> Output {
    // Read beside it, so that it never waits for a reader.
    let read = |from: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.map(|mut from| from.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|out| Box::new(out) as _));
    let stderr = read(child.stderr.take().map(|out| Box::new(out) as _));
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > LIMIT => {
                let _ = child.kill();
                panic!("still running after {LIMIT:?}");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// The losses of the log lines.
fn losses(said: &str) -> Vec<f64> {
    let number = |line: &str| line.split("loss=").nth(1)?.split_whitespace().next()?.parse().ok();
    said.lines().filter(|line| line.starts_with("Step ")).filter_map(number).collect()
}

fn model(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoints/step-00000030/model.safetensors")).unwrap()
}

#[test]
fn processes_train_what_one_trains() {
    for launcher in launchers() {
        let lab = Lab::new();
        let alone = Command::new(env!("CARGO_BIN_EXE_ternlm"))
            .current_dir(lab.dir.path())
            .args(&lab.train("one", &[])[1..])
            .output()
            .unwrap();
        let wanted = losses(&text(&alone));
        assert_eq!(wanted.len(), 30, "{}", text(&alone));
        for (size, more) in [
            (2, &[][..]),
            (3, &["--deterministic"]),
            (2, &["--reduce", "bf16"]),
            (2, &["--shard-optimizer"]),
            (4, &["--shard-optimizer", "--deterministic"]),
        ] {
            let out = format!("{size}{}", more.concat());
            let said = lab.run(launcher, size, &lab.train(&out, more));
            let found = losses(&text(&said));
            assert!(said.status.success() && found.len() == 30, "{launcher:?}, {out}: {}", text(&said));
            let off = common::apart(&found, &wanted);
            println!("{launcher:?}, {out}: losses differ by at most {off:.4}");
            assert!(off < if out.contains("bf16") { 0.05 } else { 0.005 }, "{launcher:?}, {out}: {off}");
            assert!(text(&said).contains(&format!("{size} processes: ")), "{}", text(&said));
        }
        // The same bits again, and of another library.
        let again = lab.run(launcher, 3, &lab.train("again", &["--deterministic"]));
        assert!(again.status.success(), "{}", text(&again));
        assert!(model(&lab.path("3--deterministic")) == model(&lab.path("again")), "{launcher:?}");
        // On with another number of processes.
        let more = ["--resume", "--set", "train.steps=40"];
        let on = lab.run(launcher, 2, &lab.train("again", &more));
        assert!(on.status.success() && losses(&text(&on)).len() == 10, "{}", text(&on));
    }
}

#[test]
fn what_cannot_be_is_said_once_and_ends_all() {
    for launcher in launchers() {
        let lab = Lab::new();
        let other = lab.train("mixed", &["--set", "train.lr=0.5"]);
        let mixed = [&lab.train("mixed", &[])[..], &[":", "-n", "1"], &other].concat();
        let said = lab.run(launcher, 1, &mixed);
        let wanted = "error: process 1 of 2: train.lr: found 0.5, wanted 0.003, as process 0 has it";
        assert!(!said.status.success() && text(&said).contains(wanted), "{launcher:?}: {}", text(&said));
        assert!(!lab.path("mixed/recipe.toml").exists(), "nothing was begun");

        let said = lab.run(launcher, 2, &lab.train("bad", &["--set", "train.lr=-1"]));
        assert!(!said.status.success(), "{}", text(&said));
        assert_eq!(text(&said).matches("train.lr: found -1").count(), 1, "{launcher:?}: {}", text(&said));
    }
}

/// The program that kills process 1, or asks it to stop, after a while.
#[cfg(unix)]
fn signalled<'a>(lab: &Lab, script: &'a str, out: &'a str) -> Vec<&'a str> {
    let endless = ["--set", "train.steps=10000000", "--set", "train.log_every=1000"];
    let train = lab.train(out, &endless);
    [&["sh", "-c", script, "sh"], &train[..]].concat()
}

#[cfg(unix)]
#[test]
fn a_process_that_is_killed_ends_the_job_and_the_checkpoint_is_whole() {
    for launcher in launchers() {
        let lab = Lab::new();
        let script = r#"
            if [ "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}" = 1 ]; then
                (while ! ls killed/checkpoints/step-* > /dev/null 2>&1; do sleep 0.1; done; sleep 0.3; kill -9 $$) &
            fi
            exec "$@""#;
        let said = lab.run(launcher, 2, &signalled(&lab, script, "killed"));
        assert!(!said.status.success(), "{}", text(&said));
        // Open MPI names the rank; MPICH a process that was killed, which may be one that it has killed itself then.
        let out = text(&said);
        let pid = out.rsplit("   PID ").next().unwrap().split_whitespace().next().unwrap();
        let named = ["rank 1", "RANK 1"].iter().any(|name| out.contains(name));
        let ours = |l: &str| l.starts_with("Processes: 0 (") && l.contains(&format!("PID {pid})"));
        let killed = out.contains("signal 9") && out.lines().any(ours);
        assert!(named || killed, "{launcher:?} names it: {out}");
        let checkpoints = ternlm::train::checkpoint::list(&lab.path("killed"));
        let newest = checkpoints.last().expect("a checkpoint");
        let proof = Command::new(env!("CARGO_BIN_EXE_ternlm")).arg("verify").arg(newest).output().unwrap();
        assert!(proof.status.success(), "{}", text(&proof));
        let from = ternlm::train::checkpoint::progress(newest).unwrap().step + 5;
        let steps = format!("train.steps={from}");
        let on = lab.run(launcher, 2, &lab.train("killed", &["--resume", "--set", &steps]));
        // It may miss the recipe's bars, of which there are none.
        assert!(on.status.success(), "{launcher:?}: {}", text(&on));
    }
}

#[cfg(unix)]
#[test]
fn one_that_is_asked_to_stop_stops_all_after_a_checkpoint() {
    for launcher in launchers() {
        let lab = Lab::new();
        let script = r#"
            if [ "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}" = 1 ]; then
                (while ! ls asked/checkpoints/step-* > /dev/null 2>&1; do sleep 0.1; done; kill -TERM $$) &
            fi
            exec "$@""#;
        let said = lab.run(launcher, 2, &signalled(&lab, script, "asked"));
        assert!(
            said.status.success() && text(&said).contains("Stopped at step "),
            "{launcher:?}: {}",
            text(&said)
        );
    }
}
