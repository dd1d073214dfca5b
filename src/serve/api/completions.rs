//! `/v1/completions`: texts that go on.

use serde_json::{Map, Value, json};

use super::answer::{Answer, Choice, Form, Frame, finish_reason, finite, token_text};
use super::error::ApiError;
use super::fields::Fields;
use super::served::Served;
use super::settings::{Settings, TOP, limit};
use super::{Ask, Work, constraint, prompts, schema};
use crate::generate::Scored;
use crate::serve::queue::{Generate, Piece};
use crate::text::take_whole;

/// Tokens of an answer where a request does not say; that of OpenAI's API.
const LIMIT: usize = 16;

pub fn read(fields: &Fields<'_>, served: &Served) -> Result<Work, ApiError> {
    let settings = Settings::read(fields, served)?;
    let prompts = prompts::read(fields, "prompt", served)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let scores = fields.whole("logprobs", 0..=TOP)?;
    if fields.get("suffix").is_some() {
        return Err(fields.wrong("suffix", "null: this model does not fill gaps"));
    }
    if let Some(best_of) = fields.get("best_of").filter(|best| best.as_u64() != Some(settings.choices as u64))
    {
        return Err(ApiError::field("best_of", best_of, format!("{}, as n says", settings.choices)));
    }
    if echo && settings.stream && scores.is_some() {
        return Err(ApiError::field("echo", "true", "false where logprobs are streamed"));
    }
    let constraint = match schema::read(fields, "response_format")? {
        None => None,
        Some(schema) => Some(constraint::compile(served, "response_format", schema::json_grammar(schema))?),
    };
    let answer = Answer::new("cmpl", served, &prompts, settings.choices);
    let form = Completions {
        served: served.clone(),
        usage: settings.stream_usage,
        echoed: if echo { prompts.clone() } else { Vec::new() },
        scored: scores.is_some(),
        offsets: vec![0; answer.choices.len()],
    };
    let generate = Generate {
        choices: settings.choices,
        sampling: settings.sampling,
        bias: settings.bias,
        limit: limit(fields, &["max_tokens", "max_completion_tokens"], LIMIT)?,
        stop: settings.stop,
        scores,
        prompt_scores: scores.filter(|_| echo),
        constraint,
    };
    let (form, stream) = (Box::new(form), settings.stream);
    Ok(Work::Ask(Box::new(Ask { prompts, generate: Some(generate), answer, form, stream })))
}

struct Completions {
    served: Served,
    usage: bool,
    /// Prompts that stand before their answers.
    echoed: Vec<Vec<u32>>,
    scored: bool,
    /// Characters of each answer that were said.
    offsets: Vec<usize>,
}

impl Completions {
    fn chunk(&self, answer: &Answer, choices: Value) -> Value {
        json!({
            "id": answer.id, "object": "text_completion", "created": answer.created, "model": answer.model,
            "choices": choices,
        })
    }

    /// The text of the prompt of a choice, if it is to be there.
    fn echo(&self, answer: &Answer, choice: usize) -> Option<&[u32]> {
        let each = answer.choices.len() / answer.prompt_scores.len().max(1);
        self.echoed.get(choice / each.max(1)).map(|ids| &ids[..])
    }

    fn logprobs(&self, prompt: Option<(&[u32], &[Scored])>, scores: &[Scored], mut offset: usize) -> Value {
        let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        let tokenizer = &self.served.tokenizer;
        // Of a character that no token finishes alone, the last one has it.
        let mut unfinished = Vec::new();
        let mut add = |token: u32, scored: Option<&Scored>| {
            offsets.push(offset);
            unfinished.extend(tokenizer.token_bytes(token));
            offset += take_whole(&mut unfinished).chars().count();
            tokens.push(token_text(tokenizer, token));
            values.push(scored.map(|s| finite(s.log_probability)));
            tops.push(scored.map(|s| {
                let one = |(id, p): &(u32, f32)| (token_text(tokenizer, *id), json!(finite(*p)));
                s.top.iter().map(one).collect::<Map<String, Value>>()
            }));
        };
        if let Some((ids, scores)) = prompt {
            add(ids[0], None);
            ids[1..].iter().zip(scores).for_each(|(id, scored)| add(*id, Some(scored)));
        }
        scores.iter().for_each(|scored| add(scored.token, Some(scored)));
        json!({ "tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets })
    }

    fn choice(&self, answer: &Answer, index: usize, choice: &Choice) -> Value {
        let echo = self.echo(answer, index);
        let before = echo.map(|ids| self.served.tokenizer.decode(ids)).unwrap_or_default();
        let each = answer.choices.len() / answer.prompt_scores.len().max(1);
        let scores = answer.prompt_scores.get(index / each.max(1)).map_or(&[][..], |scores| scores);
        let logprobs = self.scored.then(|| self.logprobs(echo.map(|ids| (ids, scores)), &choice.scores, 0));
        json!({
            "index": index, "text": before + &choice.text, "logprobs": logprobs,
            "finish_reason": finish_reason(choice.reason),
        })
    }
}

impl Form for Completions {
    fn whole(&self, answer: &Answer) -> Value {
        let choices = answer.choices.iter().enumerate();
        let choices = choices.map(|(i, choice)| self.choice(answer, i, choice)).collect();
        let mut whole = self.chunk(answer, choices);
        whole["usage"] = answer.usage();
        whole
    }

    fn begin(&mut self, answer: &Answer) -> Vec<Frame> {
        let echoed = (0..answer.choices.len()).filter_map(|i| Some((i, self.echo(answer, i)?)));
        let frame = |(index, ids): (usize, &[u32])| {
            let text = self.served.tokenizer.decode(ids);
            let choice = json!({ "index": index, "text": text, "logprobs": null, "finish_reason": null });
            self.chunk(answer, json!([choice])).into()
        };
        echoed.map(frame).collect()
    }

    fn piece(&mut self, answer: &Answer, piece: &Piece) -> Vec<Frame> {
        let offset = self.offsets[piece.choice];
        let logprobs = self.scored.then(|| self.logprobs(None, &piece.scores, offset));
        self.offsets[piece.choice] += piece.text.chars().count();
        let choice = json!({
            "index": piece.choice, "text": piece.text, "logprobs": logprobs, "finish_reason": null,
        });
        vec![self.chunk(answer, json!([choice])).into()]
    }

    fn ended(&mut self, answer: &Answer, choice: usize) -> Vec<Frame> {
        let reason = finish_reason(answer.choices[choice].reason);
        let choice = json!({ "index": choice, "text": "", "logprobs": null, "finish_reason": reason });
        vec![self.chunk(answer, json!([choice])).into()]
    }

    fn finish(&mut self, answer: &Answer) -> Vec<Frame> {
        let mut last = self.chunk(answer, json!([]));
        last["usage"] = answer.usage();
        if self.usage { vec![last.into()] } else { Vec::new() }
    }
}
