//! Connections, requests, streams: one thread, whose tasks wait and never compute.

mod guard;
mod log;
mod patience;
mod routes;
mod stream;

use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::api::Served;
use super::options::Options;
use super::queue::{Metrics, Queue};
use crate::error::{Error, Result};
use patience::Patient;
use routes::App;

/// Threads that read bodies and tokenize prompts.
const READERS: usize = 2;
/// Bytes of a request's headers.
const HEADERS: usize = 64 << 10;
/// After the grace time: until streams have said why they end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Asks a server to stop: it takes no more requests, and ends when those that run have ended or the grace time is over.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::channel(false).0))
    }
}

impl Stop {
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    async fn asked(self) {
        let _ = self.0.subscribe().wait_for(|stop| *stop).await.map(drop);
    }
}

pub struct Server {
    app: App,
    stop: Stop,
}

impl Server {
    /// `here`: it listens to this machine alone.
    pub fn new(
        served: Served,
        options: Options,
        here: bool,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
        stop: Stop,
    ) -> Self {
        Self { app: App { served, options: Arc::new(options), here, queue, metrics }, stop }
    }

    /// Serves until it is asked to stop.
    pub fn run(self, listener: TcpListener) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS)
            .build()
            .map_err(Error::io("start", "the threads of the HTTP server"))?;
        let done = runtime.block_on(self.serve(listener));
        runtime.shutdown_timeout(LAST_WORDS);
        done
    }

    async fn serve(self, listener: TcpListener) -> Result<()> {
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(Error::io("prepare", "the listener"))?;
        let Self { app, stop } = self;
        let (options, queue) = (app.options.clone(), app.queue.clone());
        let places = Arc::new(Semaphore::new(options.connections));
        let router = routes::router(app.clone());
        let mut stopped = pin!(stop.clone().asked());
        loop {
            // No more than there are places for: others wait where the system keeps them.
            let place = tokio::select! {
                () = stopped.as_mut() => break,
                place = places.clone().acquire_owned() => place.expect("never closed"),
            };
            let accepted = tokio::select! {
                () = stopped.as_mut() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((io, _)) => {
                    let (router, stop, metrics) = (router.clone(), stop.clone(), app.metrics.clone());
                    let patience = options.patience;
                    tokio::spawn(async move {
                        metrics.connections.up();
                        connection(io, router, stop, patience).await;
                        metrics.connections.down();
                        drop(place);
                    });
                }
                // Out of file descriptors, or a client that left: others may do better a little later.
                Err(error) => {
                    tracing::debug!("a connection was not accepted: {error}");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
        drop(listener);
        queue.close();
        tracing::info!("stopping: what runs has {} s", options.grace.as_secs());
        let all = places.acquire_many(options.connections as u32);
        let mut all = pin!(all);
        if timeout(options.grace, &mut all).await.is_err() {
            queue.end("the server is shutting down");
            let _ = timeout(LAST_WORDS, &mut all).await;
        }
        Ok(())
    }
}

/// Serves one connection to its end.
async fn connection(io: TcpStream, router: Router, stop: Stop, patience: Duration) {
    let _ = io.set_nodelay(true);
    let io = TokioIo::new(Patient::new(io, patience));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(64)
        .max_buf_size(HEADERS)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let mut stopped = pin!(stop.asked());
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = stopped.as_mut() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = done {
        tracing::debug!("a connection ended: {error}");
    }
}
