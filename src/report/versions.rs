//! What a run is made with.

use serde::{Deserialize, Serialize};

use crate::kernels::Isa;
use crate::machine;

/// What a run was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub ternlm: String,
    #[serde(default)]
    pub rustc: Option<String>,
    /// Operating system and architecture.
    pub os: String,
    /// What the system calls its processor; empty where it does not say.
    pub cpu: String,
    /// Vector instructions in use.
    pub isa: String,
    pub threads: u64,
}

impl Versions {
    /// Those of this process.
    pub fn current() -> Self {
        Self {
            ternlm: env!("CARGO_PKG_VERSION").into(),
            rustc: option_env!("TERNLM_RUSTC").map(String::from),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: machine::processor(),
            isa: Isa::current().to_string(),
            threads: rayon::current_num_threads() as u64,
        }
    }
}
