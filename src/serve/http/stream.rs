//! Answers as they come: server-sent events.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::log::Record;
use crate::serve::api::{Answer, Form, Frame};
use crate::serve::queue::Event;

/// The events of an answer. When it is dropped, because the client went away, the engine finds its channel closed.
pub struct Events {
    events: UnboundedReceiver<Event>,
    answer: Answer,
    form: Box<dyn Form>,
    record: Record,
    begun: bool,
    done: bool,
}

impl Events {
    pub fn new(
        events: UnboundedReceiver<Event>,
        answer: Answer,
        form: Box<dyn Form>,
        record: Record,
    ) -> Self {
        Self { events, answer, form, record, begun: false, done: false }
    }

    /// The text of what happened; `None`: the engine has gone.
    fn write(&mut self, event: Option<Event>) -> String {
        let mut out = String::new();
        if !self.begun {
            self.begun = true;
            write_frames(self.form.begin(&self.answer), &mut out);
        }
        let ended = match &event {
            Some(Event::Ended { choice, .. }) => Some(*choice),
            _ => None,
        };
        let gone = event.is_none();
        if let Some(event) = event
            && let Some(piece) = self.answer.take(event)
        {
            write_frames(self.form.piece(&self.answer, &piece), &mut out);
        }
        if let Some(choice) = ended {
            write_frames(self.form.ended(&self.answer, choice), &mut out);
        }
        self.record.saw(&self.answer);
        if gone || self.answer.failure.is_some() {
            let (error, how) = self.answer.failed();
            write_frames(self.form.failed(&self.answer, &error), &mut out);
            self.end(how, &mut out);
        } else if self.answer.is_done() {
            write_frames(self.form.finish(&self.answer), &mut out);
            self.end("done", &mut out);
        }
        out
    }

    fn end(&mut self, how: &'static str, out: &mut String) {
        if let Some(line) = self.form.last_line() {
            let _ = write!(out, "data: {line}\n\n");
        }
        self.record.ended(how);
        self.done = true;
    }
}

fn write_frames(frames: Vec<Frame>, out: &mut String) {
    for Frame { event, data } in frames {
        if let Some(event) = event {
            let _ = writeln!(out, "event: {event}");
        }
        // JSON has its line breaks escaped.
        let _ = write!(out, "data: {data}\n\n");
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.done {
            let event = ready!(self.events.poll_recv(cx));
            let text = self.write(event);
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(text.into())));
            }
        }
        Poll::Ready(None)
    }
}
