//! What a user of the core implements: [`Engine`], which runs a batch, and [`BatchItem`], which
//! says what may share one.

use std::hash::Hash;

use crate::error::EngineError;

/// The input of one request.
///
/// `key` and `cost` are called on the submitting thread, outside every lock; `cost` again on the
/// worker, for the padding figure.
pub trait BatchItem: Send + 'static {
    /// What two requests must have equal to share a batch: a shape bucket, a dtype, parameters.
    ///
    /// `Eq` runs under the executor's lock: it must be quick and must not call this crate.
    type Key: Eq + Hash + Send + 'static;

    /// The batch key of this request.
    fn key(&self) -> Self::Key;

    /// What this request weighs, in the unit of the queue's `max_batch_cost` and `capacity_cost`:
    /// rows, tokens or bytes.
    fn cost(&self) -> usize {
        1
    }
}

/// Runs batches on a device.
///
/// An engine is built by its factory, warmed up, used and dropped on the worker thread that owns
/// the device, so it need not be `Send`. A panic in any of its methods is contained: the requests
/// concerned get an error and the engine is rebuilt by its factory.
pub trait Engine: 'static {
    /// The input of one request.
    type Item: BatchItem;
    /// The response to one request. It leaves the worker, so it should be host data: synchronise
    /// the device before returning it.
    type Output: Send + 'static;

    /// Runs one batch of requests with equal keys and returns one output for each item, in order.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] splits the batch and remembers a ceiling for its key;
    /// [`EngineError::Failed`] on more than one item runs the halves apart, so that only the
    /// requests at fault fail. A wrong number of outputs counts as a failure. [`EngineError::Lost`]
    /// drops the engine, builds it again and runs the requests one by one.
    fn infer(&mut self, batch: &[Self::Item]) -> Result<Vec<Self::Output>, EngineError>;

    /// Called once after the factory, before the first batch: compile kernels, touch memory.
    ///
    /// # Errors
    /// An error here is an error of the factory.
    fn warmup(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Called on the worker after it has handed over the answers of a batch and woken whoever waited
    /// for them: the place to tell another runtime of all of them at once. Not called for a batch
    /// that a delivery thread has handed over; [`Delivery::Worker`](crate::Delivery::Worker) is
    /// for who needs it for each.
    fn delivered(&mut self) {}

    /// Whether a failed batch may be run again in parts. Say `false` when `infer` has effects that
    /// must not happen twice; then an error on a batch is the answer to all of its requests.
    fn idempotent(&self) -> bool {
        true
    }

    /// The cost of the batch as computed, padding included; feeds the padding-waste figure in
    /// [`QueueStats`](crate::QueueStats). The default is the sum of the items' costs: no padding.
    fn padded_cost(&self, batch: &[Self::Item]) -> usize {
        batch.iter().map(BatchItem::cost).sum()
    }
}
