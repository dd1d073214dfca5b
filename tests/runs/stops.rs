//! Ctrl-C: what is promised in each phase of a training, and that it is so.

use super::Lab;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use ternlm::files::Turn;

/// A training in `run`, which does not outlive the test.
struct Training {
    process: Child,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Training {
    fn start(lab: &Lab, sets: &[&str]) -> Self {
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let args: Vec<&str> = ["train", "tiny.toml", "--out", "run"].into_iter().chain(sets).collect();
        let mut command = lab.command(&args);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        Self { process, out: BufReader::new(out), err: BufReader::new(err) }
    }

    /// Interrupts it, which it must answer with `answer`.
    fn interrupt(&mut self, answer: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        wait_for(&mut self.err, &format!("{answer} (Ctrl-C again to leave at once)"));
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads up to a line with `wanted`.
fn wait_for(from: &mut impl BufRead, wanted: &str) {
    let mut said = String::new();
    while !said.lines().any(|line| line.contains(wanted)) {
        assert!(from.read_line(&mut said).unwrap() > 0, "it ended without {wanted:?}: {said}");
    }
}

#[test]
fn before_its_steps_a_training_stops_after_the_first() {
    let lab = Lab::trained(&[]);
    // It waits for its text, whose turn is ours.
    let cached = fs::read_dir(lab.path(".cache")).unwrap().next().unwrap().unwrap().path();
    fs::remove_dir_all(&cached).unwrap();
    fs::rename(lab.path("run"), lab.path("before")).unwrap();
    let turn = Turn::wait(&cached).unwrap();
    let mut training = Training::start(&lab, &[]);
    wait_for(&mut training.err, "waiting for another process");
    training.interrupt(
        "training has not begun: it stops after its next step, if one is left; a checkpoint will be saved",
    );
    drop(turn);
    assert!(training.process.wait().unwrap().success());
    assert!(lab.newest().ends_with("step-00000001") && !lab.path("run/report.json").exists());
}

#[test]
fn among_its_steps_a_training_stops_after_the_one_at_hand() {
    let lab = Lab::new();
    let sets = ["train.steps=1000000", "train.log_every=1000000", "train.save_every=0"];
    let mut training = Training::start(&lab, &sets);
    wait_for(&mut training.out, "Step 0:");
    training.interrupt("training stops after this step, unless it is the last; a checkpoint will be saved");
    wait_for(&mut training.out, "Stopped at step ");
    wait_for(&mut training.out, "--resume");
    assert!(training.process.wait().unwrap().success());
    assert_eq!(fs::read_dir(lab.path("run/checkpoints")).unwrap().count(), 1);
    assert!(!lab.path("run/report.json").exists());
}

/// Nothing makes a run wait for us behind its last step: what it opens there are its own files, and no pipe is taken for a text.
/// So it reads all that is held out, in 900,000 passes of 200 layers each, which this test ends and never waits for.
#[test]
fn behind_its_steps_a_run_goes_on_to_its_end() {
    let lab = Lab::new();
    lab.write("long.txt", "ternary weights are minus one, zero or plus one\n".repeat(300_000));
    let sets = ["train.steps=1", "train.batch=1", "model.layers=200", "data.val=['long.txt']"];
    let mut training = Training::start(&lab, &sets);
    wait_for(&mut training.out, "Step 0:");
    training.interrupt("every step is taken; what is left of the run goes on to its end");
}
