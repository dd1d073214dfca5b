//! An HTTP server that speaks OpenAI's API.
//!
//! One thread computes: the [engine](mod@engine) batches what runs. HTTP tasks read requests, hand them to a bounded
//! [queue](mod@queue) and write what comes back; they never compute. Only [`api`] knows the JSON of the API, only `http` the
//! protocol.

pub mod api;
mod engine;
mod http;
mod options;
mod queue;

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

pub use api::Served;
pub use http::Stop;
pub use options::Options;

use crate::error::{Error, Result};
use crate::model::Decoder;
use engine::Engine;
use queue::{Metrics, Queue};

/// Serves until `stop` is asked for and what runs has ended. The calling thread is the one that computes.
///
/// # Errors
/// Options that cannot be, a listener that the system refuses, more memory for keys and values than an address reaches.
pub fn serve(
    decoder: &Decoder,
    served: Served,
    options: &Options,
    listener: TcpListener,
    stop: Stop,
) -> Result<()> {
    options.validate()?;
    let metrics = Arc::new(Metrics::default());
    let queue = Arc::new(Queue::new(options.queue, metrics.clone()));
    let engine = Engine::new(decoder, &served.tokenizer.clone(), options, queue.clone(), metrics.clone());
    listener.set_nonblocking(true).map_err(Error::io("prepare", "the listener"))?;
    let here = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let server = http::Server::new(served, options.clone(), here, queue.clone(), metrics, stop);
    let http = thread::Builder::new().name("http".into()).spawn(move || {
        let _end = End(queue);
        server.run(listener)
    });
    let http = http.map_err(Error::io("start", "the thread of the HTTP server"))?;
    engine.run();
    http.join().unwrap_or_else(|_| Err(Error::usage("the thread of the HTTP server has failed")))
}

/// Ends the engine with the HTTP server, however that ends: without requests there is nothing to compute.
struct End(Arc<Queue>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end("the server has stopped");
    }
}
