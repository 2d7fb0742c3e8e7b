//! Closures: what a device executor runs beside the batches of its queues. They are the requests of
//! a queue of its own, whose engine calls them, one a batch.

use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::error::EngineError;

/// A closure that waits for the worker. It is called once.
pub(crate) struct Closure(pub(crate) Box<dyn Fn() + Send>);

impl BatchItem for Closure {
    type Key = ();
    fn key(&self) {}
}

/// The engine that calls closures.
pub(crate) struct RunClosures;

impl RunClosures {
    /// The settings of its queue, in which so many closures may wait.
    pub(crate) fn config(capacity: usize) -> BatchConfig {
        BatchConfig::default().name("closures").max_batch_size(1).capacity(capacity)
    }
}

impl Engine for RunClosures {
    type Item = Closure;
    type Output = ();

    fn infer(&mut self, batch: &[Closure]) -> Result<Vec<()>, EngineError> {
        batch.iter().for_each(|closure| (closure.0)());
        Ok(vec![(); batch.len()])
    }

    fn idempotent(&self) -> bool {
        false
    }

    fn survives_panic(&self) -> bool {
        true
    }
}
