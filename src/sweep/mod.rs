//! Many runs of one recipe: every combination of some settings, each with several seeds, and what can be said of them.
//!
//! A difference between two settings counts only where it is larger than what seeds alone make: settings inside of that
//! noise are not ranked.

mod page;
mod plan;
mod results;
mod statistics;

pub use page::{HTML, write as write_page};
pub use plan::{FILE, Plan, Run};
pub use results::{CSV, FAILED, Figure, JSONL, Outcome, Results, Row, judge_texts};
pub use statistics::{Noise, Sample};
