//! What is served: a model's tokenizer, template and name, and the bounds that requests are judged by.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use llguidance::ParserFactory;

use super::error::ApiError;
use super::tools::CallForm;
use super::vocabulary;
use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::serve::Options;
use crate::text::{Encoded, Tokenizer};

/// A model as requests see it. Cloning is cheap.
#[derive(Clone)]
pub struct Served(Arc<Inner>);

pub struct Inner {
    /// By which requests may name it.
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    pub vocab: usize,
    /// Of hidden states.
    pub width: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Answers to one prompt.
    pub choices: usize,
    /// Prompts of one request.
    pub prompts: usize,
    /// Made when it is first needed.
    grammars: OnceLock<Result<ParserFactory, String>>,
    calls: OnceLock<Option<CallForm>>,
}

impl std::ops::Deref for Served {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Served {
    pub fn new(
        name: String,
        config: &ModelConfig,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        options: &Options,
    ) -> Self {
        Self(Arc::new(Inner {
            name,
            created: seconds_now(),
            tokenizer,
            template,
            vocab: config.vocab_size,
            width: config.hidden_size,
            context: options.context.min(config.max_positions),
            choices: options.parallel,
            prompts: options.queue,
            grammars: OnceLock::new(),
            calls: OnceLock::new(),
        }))
    }
}

impl Inner {
    /// What makes constraints for this tokenizer.
    pub fn grammars(&self) -> Result<&ParserFactory, ApiError> {
        let made =
            self.grammars.get_or_init(|| vocabulary::factory(&self.tokenizer, self.vocab, self.calls()));
        made.as_ref().map_err(|why| ApiError::new(500, "server_error", format!("constraints: {why}")))
    }

    /// How the template writes a call of a tool, if it knows tools.
    pub fn calls(&self) -> Option<&CallForm> {
        self.calls
            .get_or_init(|| self.template.as_ref().and_then(|t| CallForm::of(t, &self.tokenizer)))
            .as_ref()
    }

    /// The tokens of a text, on this thread alone; what the tokenizer puts in front stands for none of it.
    pub fn encode(&self, field: &str, text: &str, prefix: bool) -> Result<Encoded, ApiError> {
        // A token stands for a byte at least in most vocabularies; what is far too long is not tokenized at all.
        if text.len() > self.context.saturating_mul(256) {
            let wanted = format!("no more than {} tokens", self.context);
            return Err(too_long(field, format!("{} bytes", text.len()), wanted));
        }
        let Encoded { ids, bytes } =
            self.tokenizer.encode_here(text).map_err(|e| ApiError::field(field, e, "a text"))?;
        let front = if prefix { self.tokenizer.prefix() } else { &[] };
        let ids = self.judge(field, [front, &ids].concat())?;
        Ok(Encoded { ids, bytes: [vec![0; front.len()], bytes].concat() })
    }

    /// Whether the model has rows and positions for a prompt.
    pub fn judge(&self, field: &str, ids: Vec<u32>) -> Result<Vec<u32>, ApiError> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(ApiError::field(
                field,
                format!("token {id}"),
                format!("tokens below {}", self.vocab),
            ));
        }
        if ids.is_empty() {
            return Err(ApiError::field(field, "no token", "one at least"));
        }
        if ids.len() >= self.context {
            let wanted = format!("fewer than the {} of the context", self.context);
            return Err(too_long(field, format!("{} tokens", ids.len()), wanted));
        }
        Ok(ids)
    }

    /// Whether a request may name this model so.
    pub fn named(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(other) if other != self.name => {
                let found = other.chars().take(80).collect::<String>();
                let error = ApiError::field("model", format!("{found:?}"), format!("{:?}", self.name));
                Err(ApiError { status: 404, ..error.with_code("model_not_found") })
            }
            _ => Ok(()),
        }
    }
}

fn too_long(field: &str, found: String, wanted: String) -> ApiError {
    ApiError::field(field, found, wanted).with_code("context_length_exceeded")
}

pub fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
