//! onelane: one executor, one queue, an engine that gives values back.

use std::future::Future;

use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig,
};

use super::peer::Peer;
use super::work::{MAX_BATCH, Work};
use crate::generator::{AsyncClient, Client, Target};

/// A request's input.
#[derive(Clone, Copy, Debug)]
pub struct Value(pub u64);

impl BatchItem for Value {
    type Key = ();

    fn key(&self) {}
}

/// Gives values back.
pub struct Echo(pub Work);

impl Engine for Echo {
    type Item = Value;
    type Output = u64;

    fn infer(&mut self, batch: &[Value]) -> Result<Vec<u64>, EngineError> {
        Ok(self.0.run(batch.iter().map(|value| value.0)))
    }
}

/// A batch queue on an executor of its own, with room for every client.
pub struct Lane(BatchQueue<Echo>);

/// A handle to the queue.
pub struct LaneClient(BatchQueue<Echo>);

impl Peer for Lane {
    fn start(work: Work, clients: usize) -> Self {
        let device = DeviceExecutor::new(ExecutorConfig::new("bench")).expect("the name is valid");
        // The other queues are unbounded.
        let config =
            BatchConfig::default().max_batch_size(MAX_BATCH).capacity(clients.max(1 << 17));
        let queue = BatchQueue::new(&device, config, move || Ok(Echo(work.clone())));
        Self(queue.expect("the engine has nothing to fail at"))
    }
}

impl Target for Lane {
    type Client = LaneClient;

    fn client(&self) -> Result<LaneClient, String> {
        Ok(LaneClient(self.0.clone()))
    }
}

impl Client for LaneClient {
    type Reply = u64;

    fn ask(&mut self, value: u64) -> u64 {
        let handle = self.0.submit(Value(value)).expect("the queue is open");
        handle.wait().expect("the engine does not fail")
    }
}

impl AsyncClient for LaneClient {
    fn infer(&mut self, value: u64) -> impl Future<Output = u64> + Send {
        let queue = &self.0;
        async move { queue.infer(Value(value)).await.expect("the engine does not fail") }
    }
}
