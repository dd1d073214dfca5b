//! `ternlm verify`

use clap::Args;
use std::path::PathBuf;

use super::{printable, thousands};
use crate::error::{Error, Result};
use crate::measure;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm verify runs/copy
  ternlm verify runs/copy/checkpoints/step-00000500
  ternlm verify MODEL --json")]
pub struct VerifyArgs {
    /// A model directory, a packed or GGUF file, or the folder of a run
    model: PathBuf,
    /// Print the proof as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: VerifyArgs) -> Result<()> {
    let dir = super::model_dir(&args.model)?;
    let proof = measure::verify(&dir, &mut |t| {
        if !args.json {
            let s = &t.stats;
            let share = |n: u64| 100.0 * n as f64 / s.weights().max(1) as f64;
            say!(
                "{}  {:?}  -1 {:.1} %  0 {:.1} %  +1 {:.1} %  {} groups, {} dead  scales {:.3e} to {:.3e}: {}{}",
                printable(&t.name),
                t.shape,
                share(s.minus),
                share(s.zero),
                share(s.plus),
                thousands(s.groups),
                s.dead_groups,
                s.scale_min,
                s.scale_max,
                if t.pass { "PASS" } else { "FAIL: " },
                printable(&t.reasons.join("; "))
            );
        }
    })?;
    if args.json {
        super::say_json(&proof);
    } else {
        for (name, shape) in &proof.not_ternary {
            say!("{}  {shape:?}  not ternary", printable(name));
        }
        proof.reasons.iter().for_each(|reason| say!("{}", printable(reason)));
        if let Some(said) = &proof.recognised {
            say!("No note of ternlm's: {said}. There is no ternary.json to compare with.");
        }
        let total = proof.total();
        say!(
            "{}: {} weights in {} tensors, each -1, 0 or +1 times one f16 scale for each group of {}; {} groups, {} dead",
            if proof.pass { "PASS" } else { "FAIL" },
            thousands(total.weights()),
            proof.tensors.len(),
            proof.group,
            thousands(total.groups),
            total.dead_groups
        );
    }
    if proof.tensors.is_empty() && proof.pass {
        return Err(Error::CheckFailed(format!(
            "{}: no tensor claims to be ternary (scope none)",
            dir.display()
        )));
    }
    match proof.pass {
        true => Ok(()),
        false => {
            Err(Error::CheckFailed(format!("{} is not the ternary model it claims to be", dir.display())))
        }
    }
}
