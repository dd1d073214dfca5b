//! `/v1/completions`: texts that go on.

use serde_json::{Map, Value, json};

use super::answer::{Answer, Choice, Form, Frame, finish_reason, finite, token_text};
use super::error::ApiError;
use super::fields::Fields;
use super::prompts::Prompt;
use super::served::{Inner, Served};
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
    let echoed: Vec<Echo> = prompts.iter().filter(|_| echo).map(|prompt| Echo::of(prompt, served)).collect();
    let prompts: Vec<Vec<u32>> = prompts.into_iter().map(|prompt| prompt.ids).collect();
    let scores = fields.whole("logprobs", 0..=TOP)?;
    if fields.get("suffix").is_some() {
        return Err(fields.wrong("suffix", "null: this model does not fill gaps"));
    }
    if fields.get("best_of").is_some_and(|best| best.as_u64() != Some(settings.choices as u64)) {
        return Err(fields.wrong("best_of", format!("{}, as n says", settings.choices)));
    }
    if echo && settings.stream && scores.is_some() {
        return Err(ApiError::field("echo", "true", "false where logprobs are streamed"));
    }
    let limit = limit(fields, &["max_tokens", "max_completion_tokens"], LIMIT)?;
    if let Some(top) = scores {
        let echoed: usize = prompts.iter().filter(|_| echo).map(Vec::len).sum();
        settings.judge_scores("logprobs", top, echoed + prompts.len() * limit.min(served.context))?;
    }
    let constraint = match schema::read(fields, "response_format")? {
        None => None,
        Some(schema) => Some(constraint::compile(served, "response_format", schema::json_grammar(schema))?),
    };
    let answer = Answer::new("cmpl", served, &prompts, settings.choices);
    let form = Completions {
        served: served.clone(),
        usage: settings.stream_usage,
        echoed,
        scored: scores.is_some(),
        ends: vec![End::default(); answer.choices.len()],
    };
    let (form, stream) = (Box::new(form), settings.stream);
    let prompt_scores = scores.filter(|_| echo);
    let generate = Some(Generate { scores, prompt_scores, constraint, ..settings.generate(limit) });
    Ok(Work::Ask(Box::new(Ask { prompts, generate, answer, form, stream })))
}

/// A prompt that stands before its answers.
struct Echo {
    text: String,
    /// Each with the part of the text that it stands for.
    tokens: Vec<(u32, Vec<u8>)>,
}

impl Echo {
    /// A text as it was sent, not in another normal form nor with a token in front; of ids what they say.
    fn of(prompt: &Prompt, served: &Inner) -> Self {
        let tokenizer = &served.tokenizer;
        let Some((text, lengths)) = &prompt.sent else {
            let token = |id: &u32| (*id, tokenizer.token_bytes(*id));
            return Self {
                text: tokenizer.decode(&prompt.ids),
                tokens: prompt.ids.iter().map(token).collect(),
            };
        };
        let mut rest = text.as_bytes();
        let token = |(id, length): (&u32, &u32)| {
            let (part, others) = rest.split_at(*length as usize);
            rest = others;
            (*id, part.to_vec())
        };
        Self { tokens: prompt.ids.iter().zip(lengths).map(token).collect(), text: text.clone() }
    }
}

/// How far the tokens of a text have come.
#[derive(Clone, Default)]
struct End {
    characters: usize,
    /// Of a character that no token finishes alone, the last one has it.
    unfinished: Vec<u8>,
}

struct Completions {
    served: Served,
    usage: bool,
    echoed: Vec<Echo>,
    scored: bool,
    /// Of the tokens of each answer that were streamed.
    ends: Vec<End>,
}

impl Completions {
    fn chunk(&self, answer: &Answer, choices: Value) -> Value {
        json!({
            "id": answer.id, "object": "text_completion", "created": answer.created, "model": answer.model,
            "choices": choices,
        })
    }

    /// The text of the prompt of a choice, if it is to be there.
    fn echo(&self, answer: &Answer, choice: usize) -> Option<&Echo> {
        let each = answer.choices.len() / answer.prompt_scores.len().max(1);
        self.echoed.get(choice / each.max(1))
    }

    fn logprobs(&self, prompt: Option<(&Echo, &[Scored])>, scores: &[Scored], end: &mut End) -> Value {
        let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        let tokenizer = &self.served.tokenizer;
        let mut add = |token: u32, bytes: &[u8], scored: Option<&Scored>| {
            offsets.push(end.characters);
            end.unfinished.extend(bytes);
            end.characters += take_whole(&mut end.unfinished).chars().count();
            tokens.push(token_text(tokenizer, token));
            values.push(scored.map(|s| finite(s.log_probability)));
            tops.push(scored.map(|s| {
                let one = |(id, p): &(u32, f32)| (token_text(tokenizer, *id), json!(finite(*p)));
                s.top.iter().map(one).collect::<Map<String, Value>>()
            }));
        };
        if let Some((Echo { tokens, .. }, scores)) = prompt {
            // Of the first there is no probability.
            let scores = std::iter::once(None).chain(scores.iter().map(Some));
            tokens.iter().zip(scores).for_each(|((id, bytes), scored)| add(*id, bytes, scored));
        }
        scores
            .iter()
            .for_each(|scored| add(scored.token, &tokenizer.token_bytes(scored.token), Some(scored)));
        json!({ "tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets })
    }

    fn choice(&self, answer: &Answer, index: usize, choice: &Choice) -> Value {
        let echo = self.echo(answer, index);
        let before = echo.map(|echo| echo.text.clone()).unwrap_or_default();
        let each = answer.choices.len() / answer.prompt_scores.len().max(1);
        let scores = answer.prompt_scores.get(index / each.max(1)).map_or(&[][..], |scores| scores);
        let prompt = echo.map(|echo| (echo, scores));
        let logprobs = self.scored.then(|| self.logprobs(prompt, &choice.scores, &mut End::default()));
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
        let frame = |(index, echo): (usize, &Echo)| {
            let choice =
                json!({ "index": index, "text": echo.text, "logprobs": null, "finish_reason": null });
            self.chunk(answer, json!([choice])).into()
        };
        echoed.map(frame).collect()
    }

    fn piece(&mut self, answer: &Answer, piece: &Piece) -> Vec<Frame> {
        let mut end = std::mem::take(&mut self.ends[piece.choice]);
        let logprobs = self.scored.then(|| self.logprobs(None, &piece.scores, &mut end));
        self.ends[piece.choice] = end;
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
