//! Training and what it writes down.

pub(crate) mod atomic;
mod metrics;
mod tensorboard;

pub(crate) use metrics::nan_as_null;
pub use metrics::{MetricsLog, Record, TensorPoint, read as read_metrics};
pub use tensorboard::EventWriter;
