//! `ternlm report`

use clap::Args;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::report;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm report runs/shakespeare
  ternlm report runs/shakespeare --json
  ternlm report runs/adamw runs/muon --out comparison.html
  ternlm report runs/adamw runs/muon --json

Of several runs, at most six, one page shows figures, curves, the settings that differ, trits by layer and samples side by
side. Runs that have not ended are compared as far as they have come.")]
pub struct ReportArgs {
    /// The folder of a run that has finished; several are compared
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Print report.json, or what differs between runs, instead of making a page
    #[arg(long)]
    json: bool,
    /// The page that compares several runs [default: comparison.html]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace what is at --out
    #[arg(long)]
    force: bool,
}

pub fn run(args: ReportArgs) -> Result<()> {
    let [run] = &args.runs[..] else {
        if args.json {
            super::say_json(&report::compare(&args.runs)?);
        } else {
            if let Some(out) = &args.out {
                super::export::refuse_existing(out, "--out", args.force)?;
            }
            let out = args.out.unwrap_or_else(|| "comparison.html".into());
            report::write_comparison(&args.runs, &out)?;
            say!("{}", out.display());
        }
        return Ok(());
    };
    if let Some(out) = args.out {
        let wanted = "several runs: the page of one is in its folder";
        return Err(Error::input(out, "--out", "one run", wanted));
    }
    if !run.join(report::JSON).is_file() {
        let found = if run.exists() { format!("no {}", report::JSON) } else { "nothing there".into() };
        return Err(Error::input(run, "report", found, "the folder of a run that has finished"));
    }
    if args.json {
        super::say_json(&report::read(run)?);
    } else {
        report::rewrite(run)?;
        say!("{}", run.join(report::HTML).display());
    }
    Ok(())
}
