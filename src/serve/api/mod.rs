//! The JSON of OpenAI's API: what requests ask for, and what answers look like. Nothing here waits or computes more than
//! tokens of texts; [`read`] judges a body that a stranger sent.

mod answer;
mod chat;
mod completions;
mod constraint;
mod embeddings;
mod error;
mod fields;
mod messages;
mod prompts;
mod responses;
mod schema;
mod served;
mod settings;
mod tokens;
mod tools;
mod vocabulary;

use serde_json::{Value, json};

pub use crate::serve::queue::{Event, Piece, Reason};
pub use answer::{Answer, Form, Frame};
pub use error::ApiError;
pub use served::Served;
pub use tokens::info;

use crate::serve::queue::Generate;

/// What has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Completions,
    Chat,
    Responses,
    Embeddings,
    Tokenize,
    Detokenize,
}

impl Endpoint {
    pub const ALL: [Endpoint; 6] = [
        Endpoint::Completions,
        Endpoint::Chat,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Tokenize,
        Endpoint::Detokenize,
    ];

    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Completions => "/v1/completions",
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Responses => "/v1/responses",
            Endpoint::Embeddings => "/v1/embeddings",
            Endpoint::Tokenize => "/tokenize",
            Endpoint::Detokenize => "/detokenize",
        }
    }
}

/// What a request comes to.
pub enum Work {
    /// An answer that needs no model.
    Now(Value),
    Ask(Box<Ask>),
}

/// What the engine is to do, and the form that its answer takes.
pub struct Ask {
    pub prompts: Vec<Vec<u32>>,
    /// `None`: embeddings.
    pub generate: Option<Generate>,
    pub answer: Answer,
    pub form: Box<dyn Form>,
    pub stream: bool,
}

/// Reads the body of a request.
///
/// # Errors
/// What is wrong with it, by the field's name.
pub fn read(endpoint: Endpoint, body: &[u8], served: &Served) -> Result<Work, ApiError> {
    let body: Value =
        serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("the body is no JSON: {e}")))?;
    let fields = fields::Fields::of(&body)?;
    served.named(fields.text("model")?)?;
    match endpoint {
        Endpoint::Completions => completions::read(&fields, served),
        Endpoint::Chat => chat::read(&fields, served),
        Endpoint::Responses => responses::read(&fields, served),
        Endpoint::Embeddings => embeddings::read(&fields, served),
        Endpoint::Tokenize => tokens::tokenize(&fields, served),
        Endpoint::Detokenize => tokens::detokenize(&fields, served),
    }
}

/// `/v1/models`.
pub fn models(served: &Served) -> Value {
    json!({ "object": "list", "data": [model(served)] })
}

/// `/v1/models/NAME`.
pub fn model(served: &Served) -> Value {
    json!({
        "id": served.name, "object": "model", "created": served.created, "owned_by": "ternlm",
        "max_model_len": served.context, "chat": served.template.is_some(),
    })
}
