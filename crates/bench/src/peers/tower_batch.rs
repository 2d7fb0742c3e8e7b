//! `tower-batch-control`: requests go to an inner service one by one, and a flush runs them.
//!
//! It flushes when the weight is reached or its time is over. In a closed loop it does best when a
//! batch is full as soon as every client has asked, so the weight is the number of clients, and the
//! time is 1 ms. With clients on threads its worker is a task on a runtime with one thread, where
//! no other task runs; with clients as tasks it runs among them.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tower_batch_control::{Batch, BatchControl, RequestWeight};
use tower_service::Service;

use super::peer::Peer;
use super::work::{MAX_BATCH, Work};
use crate::generator::{AsyncClient, Client, Target};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const RUNS: &str = "the worker runs as long as it has clients";

/// A request's input.
pub struct Row(u64);

impl RequestWeight for Row {}

/// The inner service: collects rows and runs them when told to flush.
pub struct Rows {
    work: Work,
    waiting: Vec<(u64, oneshot::Sender<u64>)>,
}

/// What the inner service answers with.
pub enum Answer {
    /// To a row: its output, after the flush.
    Row(oneshot::Receiver<u64>),
    /// To a flush.
    Flushed,
}

impl Future for Answer {
    type Output = Result<u64, BoxError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Row(handle) => Pin::new(handle).poll(context).map_err(Into::into),
            Self::Flushed => Poll::Ready(Ok(0)),
        }
    }
}

impl Service<BatchControl<Row>> for Rows {
    type Response = u64;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: BatchControl<Row>) -> Answer {
        match request {
            BatchControl::Item(Row(value)) => {
                let (answer, handle) = oneshot::channel();
                self.waiting.push((value, answer));
                Answer::Row(handle)
            }
            BatchControl::Flush => {
                let outputs = self.work.run(self.waiting.iter().map(|row| row.0));
                for ((_, answer), output) in self.waiting.drain(..).zip(outputs) {
                    // Whoever has gone needs no answer.
                    let _ = answer.send(output);
                }
                Answer::Flushed
            }
        }
    }
}

/// The middleware, and the runtime of its worker.
pub struct TowerBatch {
    batch: Batch<Rows, Row>,
    /// Ends with the last client; none when the clients' runtime runs the worker.
    runtime: Option<Arc<Runtime>>,
}

/// A clone of the middleware.
pub struct TowerClient {
    batch: Batch<Rows, Row>,
    _runtime: Option<Arc<Runtime>>,
}

impl Peer for TowerBatch {
    fn start(work: Work, clients: usize) -> Self {
        let rows = Rows { work, waiting: Vec::new() };
        let (mut batch, worker) =
            Batch::pair(rows, clients.min(MAX_BATCH), 2, Duration::from_millis(1));
        // Within a runtime the worker runs there.
        let (handle, runtime) = match Handle::try_current() {
            Ok(handle) => (handle, None),
            Err(_) => {
                let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build();
                let runtime = runtime.expect("a thread can be had");
                (runtime.handle().clone(), Some(Arc::new(runtime)))
            }
        };
        batch.register_worker(handle.spawn(worker.run()));
        Self { batch, runtime }
    }
}

impl Target for TowerBatch {
    type Client = TowerClient;

    fn client(&self) -> Result<TowerClient, String> {
        Ok(TowerClient { batch: self.batch.clone(), _runtime: self.runtime.clone() })
    }
}

impl Client for TowerClient {
    type Reply = u64;

    fn ask(&mut self, value: u64) -> u64 {
        futures_executor::block_on(self.infer(value))
    }
}

impl AsyncClient for TowerClient {
    fn infer(&mut self, value: u64) -> impl Future<Output = u64> + Send {
        let batch = &mut self.batch;
        async move {
            poll_fn(|context| batch.poll_ready(context)).await.expect(RUNS);
            batch.call(Row(value)).await.expect(RUNS)
        }
    }
}
