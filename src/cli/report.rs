//! `ternlm report`

use clap::Args;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::report;
use crate::train::checkpoint;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm report runs/shakespeare
  ternlm report runs/shakespeare --json
  ternlm report runs/adamw runs/muon --out comparison.html
  ternlm report runs/adamw runs/muon --json

Of several runs, at most six, one page shows figures, curves, the settings that differ, trits by layer and samples side by \
side. Runs that have not ended are compared as far as they have come.")]
pub struct ReportArgs {
    /// The folder of a run that has finished; several are compared
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Print report.json, or what differs between runs, instead of making a page
    #[arg(long)]
    json: bool,
    /// The page that compares several runs [default: comparison.html]
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// Replace what is at --out
    #[arg(long)]
    force: bool,
}

/// Whether a page that compares runs stands there.
fn is_comparison(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1024).read_to_end(&mut start));
    read.is_ok() && String::from_utf8_lossy(&start).contains(" runs · ternlm report</title>")
}

pub fn run(args: ReportArgs) -> Result<()> {
    for run in &args.runs {
        super::tell_of_later(run, checkpoint::list(run).pop().as_deref());
    }
    let [run] = &args.runs[..] else {
        if args.json {
            super::say_json(&report::compare(&args.runs)?);
        } else {
            let asked = args.out.is_some();
            let out = args.out.unwrap_or_else(|| "comparison.html".into());
            // Of pages that nobody named, one of ours may go.
            let force = args.force || !asked && is_comparison(&out);
            super::export::refuse_existing(&out, "--out", force)?;
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
