//! `ternlm report`

use clap::Args;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::report;

#[derive(Args)]
#[command(after_help = "\
Examples:
  ternlm report runs/shakespeare
  ternlm report runs/shakespeare --json")]
pub struct ReportArgs {
    /// The folder of a run that has finished
    run: PathBuf,
    /// Print report.json instead of making report.html again
    #[arg(long)]
    json: bool,
}

pub fn run(args: ReportArgs) -> Result<()> {
    if !args.run.join(report::JSON).is_file() {
        let found = if args.run.exists() { format!("no {}", report::JSON) } else { "nothing there".into() };
        return Err(Error::input(&args.run, "report", found, "the folder of a run that has finished"));
    }
    if args.json {
        super::say_json(&report::read(&args.run)?);
    } else {
        report::rewrite(&args.run)?;
        say!("{}", args.run.join(report::HTML).display());
    }
    Ok(())
}
