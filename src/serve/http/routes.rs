//! Which request goes where, and what its answer looks like on the wire.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::guard;
use super::log::Record;
use super::stream::Events;
use crate::serve::api::{self, ApiError, Ask, Endpoint, Served, Work};
use crate::serve::options::Options;
use crate::serve::queue::{Event, Job, Metrics, Queue, Refused, Task};

/// The page at `/`: one file, which asks nobody but this server.
const PAGE: &str = include_str!("page.html");
/// What the page may do: run its own script and style, and talk with this server.
const PAGE_MAY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                        img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every request sees.
#[derive(Clone)]
pub struct App {
    pub served: Served,
    pub options: Arc<Options>,
    /// It listens to this machine alone.
    pub here: bool,
    pub queue: Arc<Queue>,
    pub metrics: Arc<Metrics>,
}

pub fn router(app: App) -> Router {
    let mut guarded = Router::new()
        .route("/v1/models", get(async |State(app): State<App>| json_of(200, &api::models(&app.served))))
        .route("/v1/models/{*name}", get(model))
        .route("/tokenizer_info", get(async |State(app): State<App>| json_of(200, &api::info(&app.served))))
        .route("/metrics", get(metrics));
    for endpoint in Endpoint::ALL {
        let handler =
            async move |State(app): State<App>, request: Request| answer(app, endpoint, request).await;
        guarded = guarded.route(endpoint.path(), post(handler));
    }
    guarded
        .layer(middleware::from_fn_with_state(app.clone(), judge))
        .route("/", get(page))
        .route("/health", get(health))
        .fallback(async || {
            error(&ApiError::new(404, "invalid_request_error", "there is nothing at this path"))
        })
        .method_not_allowed_fallback(async || {
            error(&ApiError::new(405, "invalid_request_error", "this path takes another method"))
        })
        .with_state(app)
}

async fn judge(State(app): State<App>, request: Request, next: Next) -> Response {
    let (headers, key) = (request.headers(), app.options.api_key.as_deref());
    let host = if app.here && key.is_none() { guard::host(headers) } else { Ok(()) };
    match host.and_then(|()| guard::origin(headers)).and_then(|()| guard::key(headers, key)) {
        Ok(()) => next.run(request).await,
        Err(wrong) => {
            let mut record = Record::new("-", app.metrics.clone());
            record.status(wrong.status);
            record.ended("refused");
            error(&wrong)
        }
    }
}

async fn page() -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, PAGE_MAY)];
    (headers, PAGE).into_response()
}

async fn health(State(app): State<App>) -> Response {
    match app.queue.is_closed() {
        false => json_of(200, &json!({ "status": "ok" })),
        true => json_of(503, &json!({ "status": "stopping" })),
    }
}

async fn metrics(State(app): State<App>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, app.metrics.text()).into_response()
}

async fn model(name: Result<Path<String>, PathRejection>, State(app): State<App>) -> Response {
    // What is no text is no model's name.
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    match app.served.named(Some(&name)) {
        Ok(()) => json_of(200, &api::model(&app.served)),
        Err(wrong) => error(&wrong),
    }
}

/// An answer to a body: read, queued, and waited for or streamed. A handler whose client goes away is dropped, and the
/// engine with the next step finds the channel closed.
async fn answer(app: App, endpoint: Endpoint, request: Request) -> Response {
    let mut record = Record::new(endpoint.path(), app.metrics.clone());
    match begin(&app, endpoint, request, &mut record).await {
        Ok(Begun::Now(value)) => {
            record.status(200);
            record.ended("done");
            json_of(200, &value)
        }
        Ok(Begun::Asked(ask, events)) if ask.stream => {
            record.status(200);
            let stream = Events::new(events, ask.answer, ask.form, record);
            let headers = [
                (header::CONTENT_TYPE, "text/event-stream"),
                (header::CACHE_CONTROL, "no-cache"),
                (header::HeaderName::from_static("x-accel-buffering"), "no"),
            ];
            (headers, Body::from_stream(stream)).into_response()
        }
        Ok(Begun::Asked(ask, events)) => {
            let (status, text) = whole(*ask, events, &mut record).await;
            record.status(status);
            json_text(status, text)
        }
        Err(wrong) => {
            record.status(wrong.status);
            record.ended("refused");
            error(&wrong)
        }
    }
}

enum Begun {
    Now(Value),
    Asked(Box<Ask>, UnboundedReceiver<Event>),
}

async fn begin(
    app: &App,
    endpoint: Endpoint,
    request: Request,
    record: &mut Record,
) -> Result<Begun, ApiError> {
    if app.queue.is_closed() {
        return Err(stopping());
    }
    let body = body(app, request).await?;
    let served = app.served.clone();
    // Tokenizing takes a while, and a panic there is one request's.
    let work = spawn_blocking(move || api::read(endpoint, &body, &served)).await;
    let work =
        work.map_err(|_| ApiError::new(500, "server_error", "a fault while the request was read"))??;
    let mut ask = match work {
        Work::Now(value) => return Ok(Begun::Now(value)),
        Work::Ask(ask) => ask,
    };
    let (to, events) = unbounded_channel();
    let prompts = std::mem::take(&mut ask.prompts);
    let jobs = prompts.into_iter().enumerate().map(|(place, prompt)| Job {
        prompt,
        place,
        task: ask.generate.clone().map_or(Task::Embed, |generate| Task::Generate(Box::new(generate))),
        events: to.clone(),
        arrived: record.arrived(),
        deadline: record.arrived() + app.options.time,
    });
    app.queue.push(jobs.collect()).map_err(|refused| match refused {
        Refused::Full(waiting) => {
            app.metrics.refused.add(1);
            let why = format!(
                "{waiting} prompts wait, and no more than {} may: ask again later",
                app.queue.limit()
            );
            let full = ApiError::new(429, "rate_limit_error", why).with_code("queue_full");
            ApiError { retry_after: Some(app.metrics.wait_for(waiting, app.options.parallel)), ..full }
        }
        Refused::Closed => stopping(),
    })?;
    record.asked(&ask.answer);
    Ok(Begun::Asked(ask, events))
}

async fn body(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let limit = app.options.body;
    let too_long = || {
        let why = format!("the body is longer than {limit} bytes");
        ApiError::new(413, "invalid_request_error", why)
    };
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    match timeout(app.options.patience, to_bytes(request.into_body(), limit)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => {
            // As it comes from `to_bytes`, with the reason inside.
            let reason = std::error::Error::source(&error);
            if reason.is_some_and(|why| why.is::<http_body_util::LengthLimitError>()) {
                return Err(too_long());
            }
            let why = reason.map_or_else(|| error.to_string(), ToString::to_string);
            Err(ApiError::new(400, "invalid_request_error", format!("the body did not come whole: {why}")))
        }
        Err(_) => {
            let why = format!("the body did not come within {} s", app.options.patience.as_secs());
            Err(ApiError::new(408, "invalid_request_error", why))
        }
    }
}

/// Waits for all of an answer.
async fn whole(ask: Ask, mut events: UnboundedReceiver<Event>, record: &mut Record) -> (u16, String) {
    let Ask { mut answer, form, .. } = ask;
    while !answer.is_done() {
        let event = events.recv().await;
        let gone = event.is_none();
        event.map(|event| answer.take(event));
        record.saw(&answer);
        if gone || answer.failure.is_some() {
            let (wrong, how) = answer.failed();
            record.ended(how);
            return (wrong.status, wrong.json().to_string());
        }
    }
    record.ended("done");
    if !answer.has_scores() {
        return (200, form.whole(&answer).to_string());
    }
    // It may be megabytes, which other requests do not wait for.
    let made = spawn_blocking(move || form.whole(&answer).to_string()).await;
    let broken = || ApiError::new(500, "server_error", "the answer could not be written").json();
    made.map_or_else(|_| (500, broken().to_string()), |whole| (200, whole))
}

fn stopping() -> ApiError {
    ApiError { retry_after: Some(30), ..ApiError::new(503, "server_error", "the server is shutting down") }
}

fn error(wrong: &ApiError) -> Response {
    let mut response = json_of(wrong.status, &wrong.json());
    let headers: &mut HeaderMap = response.headers_mut();
    if let Some(seconds) = wrong.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if wrong.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn json_of(status: u16, value: &Value) -> Response {
    json_text(status, value.to_string())
}

fn json_text(status: u16, text: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}
