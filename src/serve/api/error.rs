//! What is wrong with a request, in OpenAI's shape.

use serde_json::{Value, json};
use std::fmt::Display;

/// Characters that a client is shown at most of what is wrong with a constraint.
pub const REASON: usize = 400;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    pub kind: &'static str,
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds after which to ask again.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: u16, kind: &'static str, message: impl Display) -> Self {
        Self { status, kind, message: message.to_string(), param: None, code: None, retry_after: None }
    }

    /// A request that cannot be served as it is.
    pub fn invalid(message: impl Display) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// A field that holds `found` where `wanted` was expected.
    pub fn field(param: impl Into<String>, found: impl Display, wanted: impl Display) -> Self {
        let param = param.into();
        let message = format!("{param}: found {found}, wanted {wanted}");
        Self { param: Some(param), ..Self::invalid(message) }
    }

    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}
