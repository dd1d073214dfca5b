//! The training loop and what it writes down.

mod advice;
pub mod checkpoint;
pub mod cost;
mod diary;
pub mod group;
mod meet;
mod metrics;
mod muon;
mod optimizer;
mod resume;
mod run;
mod schedule;
mod setup;
mod shards;
mod source;
mod teacher;
mod tensorboard;
mod together;
mod trainer;
mod watch;

pub use advice::Advisor;
pub use meet::meet;
pub(crate) use metrics::nan_as_null;
pub use metrics::{METRICS, MetricsLog, Record, TensorPoint, read as read_metrics};
pub use muon::orthogonalise;
pub use optimizer::{At, Optimizer, Trained};
pub use resume::{Difference, Resume, differences};
pub use run::{Observer, Outcome, run};
pub use schedule::{residual, schedule};
pub use setup::{setup, setup_random};
pub use source::{Source, Synthetic};
pub use teacher::Taught;
pub use tensorboard::EventWriter;
pub use together::Together;
pub use trainer::{Progress, StepReport, Trainer};
pub use watch::{NEAR, Watch};
