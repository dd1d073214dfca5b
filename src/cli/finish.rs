//! What is said when a training has ended: figures against their bars, the proof, where things lie.

use std::path::Path;

use super::thousands;
use crate::error::{Error, Result};
use crate::finish::{self, Finished, HELD_OUT};
use crate::report::{self, Goal};
use crate::train::Trainer;

/// Finishes the run in the folder `run` and says what came of it.
///
/// # Errors
/// A check that failed, as well.
pub fn finish(trainer: &mut Trainer, run: &Path) -> Result<()> {
    let bar = super::count_bar("Test text", 0);
    let finished = finish::finish(trainer, run, &mut |read, all| {
        bar.set_length(all);
        bar.set_position(read);
        if read == all {
            bar.finish_and_clear();
        }
    });
    bar.finish_and_clear();
    let finished = finished?;
    say(&finished, run);
    match finished.passed() {
        true => Ok(()),
        false => Err(Error::CheckFailed(format!("{}: a check failed, see above", finished.summary.name))),
    }
}

fn say(finished: &Finished, run: &Path) {
    let Finished { summary, proof, model } = finished;
    let verdict = |pass: bool| if pass { "PASS" } else { "FAIL" };
    for check in summary.checks.iter().filter(|c| c.goal == Goal::TrainLoss) {
        say!("Train loss: {:.4}: {} (bar {})", check.value, verdict(check.pass), check.bar);
    }
    if let Some(t) = &summary.ternary {
        let exact = proof.tensors.iter().all(|t| t.max_error == 0.0);
        say!(
            "Ternary check: all weights in {{-1, 0, +1}}: {} ({} weights in {} tensors, {:.1} % zeros)",
            verdict(exact),
            thousands(t.weights),
            t.tensors,
            100.0 * t.zero as f64 / t.weights as f64
        );
        say!(
            "Group scales: one f16 scale for each group of {}: {} ({} groups, {} dead)",
            proof.group,
            verdict(proof.pass),
            thousands(t.groups),
            t.dead_groups
        );
        for reason in proof.reasons.iter().chain(proof.tensors.iter().flat_map(|t| &t.reasons)) {
            say!("  {reason}");
        }
    }
    for check in summary.checks.iter().filter(|c| c.goal == Goal::Accuracy) {
        let task = if summary.task == "copy" { "Copy" } else { "Recall" };
        say!(
            "{task} accuracy: {:.2}%: {} (bar {}%, {HELD_OUT} held-out sequences)",
            100.0 * check.value,
            verdict(check.pass),
            100.0 * check.bar
        );
    }
    if let Some(v) = &summary.val {
        say!(
            "Validation: {:.4} nats/token, perplexity {:.2} over {} tokens{}",
            v.nll,
            v.ppl,
            thousands(v.tokens),
            bits_per_byte(v.bits_per_byte)
        );
    } else if summary.task == "lm" {
        say!("Validation: none, nothing is held out");
    }
    if let Some(t) = &summary.test {
        say!(
            "Test ({}): {:.4} nats/token, perplexity {:.2} (context {}, stride {}){}",
            t.file,
            t.result.nll,
            t.result.ppl,
            t.result.context,
            t.result.stride,
            bits_per_byte(t.result.bits_per_byte)
        );
    }
    say!("Trained in {:.1} s at {:.0} tokens/s", summary.wall_seconds, summary.tok_per_s);
    say!("Model: {}   Report: {}", model.display(), run.join(report::HTML).display());
}

/// What is said of a loss beside nats per token, where it is known.
pub fn bits_per_byte(bits: Option<f64>) -> String {
    bits.map_or_else(String::new, |bits| format!(", {bits:.4} bits/byte"))
}
