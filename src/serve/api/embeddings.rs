//! `/v1/embeddings`: the mean of a text's last hidden states (after the final norm, one a token), scaled to length 1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::answer::{Answer, Form};
use super::error::ApiError;
use super::fields::Fields;
use super::served::Served;
use super::{Ask, Work, prompts};

pub fn read(fields: &Fields<'_>, served: &Served) -> Result<Work, ApiError> {
    let base64 = match fields.text("encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(fields.wrong("encoding_format", "float or base64")),
    };
    let width = served.width as u64;
    fields.whole("dimensions", width..=width)?;
    let prompts: Vec<_> = prompts::read(fields, "input", served)?.into_iter().map(|p| p.ids).collect();
    let answer = Answer::new("embd", served, &prompts, 0);
    let form = Box::new(Embeddings { base64 });
    Ok(Work::Ask(Box::new(Ask { prompts, generate: None, answer, form, stream: false })))
}

struct Embeddings {
    base64: bool,
}

impl Form for Embeddings {
    fn whole(&self, answer: &Answer) -> Value {
        let one = |(index, values): (usize, &Vec<f32>)| {
            let embedding = if self.base64 {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            } else {
                json!(values)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        };
        let data: Value = answer.embedded.iter().enumerate().map(one).collect();
        let tokens = answer.prompt_tokens;
        json!({
            "object": "list", "data": data, "model": answer.model,
            "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
        })
    }
}
