//! `amate` with one worker, unbounded, never waiting for more: its results are the user's to
//! deliver, here through tokio's `oneshot`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use amate::{Batching, Config, Engine, Queued};
use tokio::sync::oneshot;

use super::peer::Peer;
use super::work::{MAX_BATCH, Work};
use crate::generator::{AsyncClient, Client, Target};

type Request = (u64, oneshot::Sender<u64>);

const RUNS: &str = "the engine runs as long as it has clients";

struct Batches(Work);

impl Batching for Batches {
    type Item = Request;

    fn weight(&self, _: &Request) -> usize {
        1
    }

    fn window(&self) -> Duration {
        Duration::ZERO
    }

    fn run(&self, batch: Vec<Queued<Request>>) {
        let outputs = self.0.run(batch.iter().map(|queued| queued.item.0));
        for (queued, output) in batch.into_iter().zip(outputs) {
            // Whoever has gone needs no answer.
            let _ = queued.item.1.send(output);
        }
    }
}

/// The engine, shared by its clients.
pub struct AmateEngine(Arc<Engine<Request>>);

/// A handle to the engine.
pub struct AmateClient(Arc<Engine<Request>>);

impl Peer for AmateEngine {
    fn start(work: Work, _clients: usize) -> Self {
        let config =
            Config { max_batch: MAX_BATCH, workers: 1, capacity: None, waits_unannounced: false };
        Self(Arc::new(Engine::start(Batches(work), config, |i| format!("amate {i}"))))
    }
}

impl Target for AmateEngine {
    type Client = AmateClient;

    fn client(&self) -> Result<AmateClient, String> {
        Ok(AmateClient(Arc::clone(&self.0)))
    }
}

impl AmateClient {
    fn submit(&self, value: u64) -> oneshot::Receiver<u64> {
        let (answer, handle) = oneshot::channel();
        self.0.submit(None, (value, answer)).expect(RUNS);
        handle
    }
}

impl Client for AmateClient {
    type Reply = u64;

    fn ask(&mut self, value: u64) -> u64 {
        self.submit(value).blocking_recv().expect(RUNS)
    }
}

impl AsyncClient for AmateClient {
    fn infer(&mut self, value: u64) -> impl Future<Output = u64> + Send {
        let handle = self.submit(value);
        async move { handle.await.expect(RUNS) }
    }
}
