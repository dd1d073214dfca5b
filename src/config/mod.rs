//! What a model is and what a training does, as plain structs. [`Recipe::validate`] and [`ModelConfig::validate`] are
//! the only places where values are judged.

mod idle;
mod model;
pub mod patterns;
mod recipe;
mod rope;
mod ternary;
pub mod toml_error;

pub use model::{Activation, KvFormat, ModelConfig};
pub use recipe::{
    DataConfig, Direction, DistillConfig, Join, MomentFormat, OF_THE_TEXT, OptimizerKind, Order, Precision,
    Recipe, ReportConfig, ScheduleKind, TOKEN_KEYS, Task, TrainConfig, judge_name,
};
pub use rope::{RopeScaling, Rotation};
pub use ternary::{Inputs, Scale, Scope, StartConfig, TernaryConfig};
