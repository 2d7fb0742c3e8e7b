//! The loop that one would write by hand: a thread takes one request from a `crossbeam-channel`,
//! then whatever else is there, and answers each through a `oneshot`.

use std::future::Future;

use crossbeam_channel::{Sender, unbounded};

use super::peer::Peer;
use super::work::{MAX_BATCH, Work};
use crate::generator::{AsyncClient, Client, Target};

type Request = (u64, oneshot::Sender<u64>);

const RUNS: &str = "the loop runs as long as it has clients";

/// The loop, on a thread of its own.
pub struct CrossbeamLoop(Sender<Request>);

/// A sender to the loop.
pub struct CrossbeamClient(Sender<Request>);

impl Peer for CrossbeamLoop {
    fn start(work: Work, _clients: usize) -> Self {
        let (sender, receiver) = unbounded::<Request>();
        std::thread::spawn(move || {
            let mut batch = Vec::new();
            while let Ok(first) = receiver.recv() {
                batch.push(first);
                while batch.len() < MAX_BATCH
                    && let Ok(next) = receiver.try_recv()
                {
                    batch.push(next);
                }
                let outputs = work.run(batch.iter().map(|request| request.0));
                for ((_, answer), output) in batch.drain(..).zip(outputs) {
                    // Whoever has gone needs no answer.
                    let _ = answer.send(output);
                }
            }
        });
        Self(sender)
    }
}

impl Target for CrossbeamLoop {
    type Client = CrossbeamClient;

    fn client(&self) -> Result<CrossbeamClient, String> {
        Ok(CrossbeamClient(self.0.clone()))
    }
}

impl Client for CrossbeamClient {
    type Reply = u64;

    fn ask(&mut self, value: u64) -> u64 {
        let (answer, handle) = oneshot::channel();
        self.0.send((value, answer)).expect(RUNS);
        handle.recv().expect(RUNS)
    }
}

impl AsyncClient for CrossbeamClient {
    fn infer(&mut self, value: u64) -> impl Future<Output = u64> + Send {
        let (answer, handle) = oneshot::async_channel();
        self.0.send((value, answer)).expect(RUNS);
        async move { handle.await.expect(RUNS) }
    }
}
