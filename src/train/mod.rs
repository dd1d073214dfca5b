//! Training and what it writes down.

pub(crate) mod atomic;
mod metrics;
mod muon;
mod optimizer;
mod schedule;
mod tensorboard;

pub(crate) use metrics::nan_as_null;
pub use metrics::{MetricsLog, Record, TensorPoint, read as read_metrics};
pub use muon::orthogonalise;
pub use optimizer::Optimizer;
pub use schedule::schedule;
pub use tensorboard::EventWriter;
