//! What a model is and what a training does, as plain structs. `judge.rs` and [`ModelConfig::validate`] are the only places
//! where values are judged.

pub(crate) mod around;
mod idle;
mod judge;
mod model;
pub mod patterns;
mod recipe;
mod rope;
mod ternary;
pub mod toml_error;

pub use judge::judge_name;
pub use model::{Activation, KvFormat, ModelConfig};
pub use recipe::{
    DataConfig, Direction, DistillConfig, Join, MomentFormat, OF_THE_TEXT, OptimizerKind, Order, Precision,
    Recipe, ReportConfig, ScheduleKind, TOKEN_KEYS, Task, TrainConfig,
};
pub use rope::{RopeScaling, Rotation};
pub use ternary::{Inputs, Scale, Scope, StartConfig, TernaryConfig};

/// A value of an enum as recipes and files write it.
pub fn name(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_value(value).expect("an enum has a JSON form");
    json.as_str().expect("without fields, a text").to_string()
}

/// For what is written only when it is not the default.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
