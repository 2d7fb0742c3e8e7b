//! The same by hand with tokio's channels: `recv_many` takes whatever is there.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

use super::peer::Peer;
use super::work::{MAX_BATCH, Work};
use crate::generator::{AsyncClient, Client, Target};

type Request = (u64, oneshot::Sender<u64>);

const RUNS: &str = "the loop runs as long as it has clients";

/// The loop, on a thread of its own.
pub struct TokioLoop(mpsc::UnboundedSender<Request>);

/// A sender to the loop.
pub struct TokioClient(mpsc::UnboundedSender<Request>);

impl Peer for TokioLoop {
    fn start(work: Work, _clients: usize) -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Request>();
        std::thread::spawn(move || {
            futures_executor::block_on(async {
                let mut batch = Vec::new();
                while receiver.recv_many(&mut batch, MAX_BATCH).await > 0 {
                    let outputs = work.run(batch.iter().map(|request| request.0));
                    for ((_, answer), output) in batch.drain(..).zip(outputs) {
                        // Whoever has gone needs no answer.
                        let _ = answer.send(output);
                    }
                }
            });
        });
        Self(sender)
    }
}

impl Target for TokioLoop {
    type Client = TokioClient;

    fn client(&self) -> Result<TokioClient, String> {
        Ok(TokioClient(self.0.clone()))
    }
}

impl Client for TokioClient {
    type Reply = u64;

    fn ask(&mut self, value: u64) -> u64 {
        let (answer, handle) = oneshot::channel();
        self.0.send((value, answer)).expect(RUNS);
        handle.blocking_recv().expect(RUNS)
    }
}

impl AsyncClient for TokioClient {
    fn infer(&mut self, value: u64) -> impl Future<Output = u64> + Send {
        let (answer, handle) = oneshot::channel();
        self.0.send((value, answer)).expect(RUNS);
        async move { handle.await.expect(RUNS) }
    }
}
