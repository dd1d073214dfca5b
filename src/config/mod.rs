//! What a model is and what a training does, as plain structs. [`Recipe::validate`] and [`ModelConfig::validate`] are
//! the only places where values are judged.

mod model;
pub mod patterns;
mod recipe;
mod rope;

pub use model::{Activation, KvFormat, ModelConfig};
pub use recipe::{
    DataConfig, Direction, DistillConfig, Inputs, Join, MomentFormat, OptimizerKind, Order, Precision,
    Recipe, ReportConfig, ScheduleKind, Scope, Task, TernaryConfig, TrainConfig,
};
pub use rope::{RopeScaling, Rotation};
