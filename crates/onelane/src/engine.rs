//! What a user of the core implements: [`Engine`], which runs a batch, and [`BatchItem`], which says
//! what may share one.

use std::hash::Hash;

use crate::EngineError;

/// The input of one request.
///
/// `key` and `cost` are called on the submitting thread, outside every lock; `cost` again on the
/// worker, for the padding figure. For a type of somebody else's, or where every request may share
/// a batch with every other, there is [`Uniform`].
///
/// ```
/// use onelane::BatchItem;
///
/// /// Texts of the same length class may share a batch; what counts is their tokens.
/// struct Text(Vec<u32>);
///
/// impl BatchItem for Text {
///     type Key = usize;
///     fn key(&self) -> usize {
///         self.0.len().next_power_of_two()
///     }
///     fn cost(&self) -> usize {
///         self.0.len()
///     }
/// }
/// assert_eq!(Text(vec![7; 100]).key(), 128);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say which requests may share a batch",
    label = "not a `BatchItem`",
    note = "implement `onelane::BatchItem` for a type of your own (its `key` is what must be equal)",
    note = "or use `onelane::Uniform<{Self}>` if all requests may share a batch"
)]
pub trait BatchItem: Send + 'static {
    /// What two requests must have equal to share a batch: a shape bucket, a dtype, parameters.
    ///
    /// `Eq` runs under the executor's lock: it must be quick. If it panics, or uses this crate, its
    /// request fails alone.
    type Key: Eq + Hash + Send + 'static;

    /// The batch key of this request.
    fn key(&self) -> Self::Key;

    /// What this request weighs, in the unit of the queue's `max_batch_cost` and `capacity_cost`:
    /// rows, tokens or bytes.
    fn cost(&self) -> usize {
        1
    }
}

/// An input that may share a batch with every other of its queue, and weighs 1.
///
/// ```
/// use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, EngineError, Uniform};
///
/// struct Upper;
/// impl Engine for Upper {
///     type Item = Uniform<String>;
///     type Output = String;
///     fn infer(&mut self, batch: &[Uniform<String>]) -> Result<Vec<String>, EngineError> {
///         Ok(batch.iter().map(|text| text.0.to_uppercase()).collect())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceExecutor::shared("doc-uniform")?;
/// let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(Upper))?;
/// assert_eq!(queue.submit(Uniform("text".to_owned()))?.wait()?, "TEXT");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uniform<T>(pub T);

impl<T: Send + 'static> BatchItem for Uniform<T> {
    type Key = ();
    fn key(&self) {}
}

/// Runs batches on a device.
///
/// An engine is built by its factory, warmed up, used and dropped on the worker thread that owns
/// the device, so it need not be `Send`. A panic in any of its methods is contained: the requests
/// concerned get an error and the engine is rebuilt by its factory.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an engine",
    note = "implement `onelane::Engine`: `infer` takes a batch and returns an output for each item"
)]
pub trait Engine: 'static {
    /// The input of one request.
    type Item: BatchItem;
    /// The response to one request. It leaves the worker, so it should be host data: synchronise
    /// the device before returning it.
    type Output: Send + 'static;

    /// Runs one batch of requests with equal keys and returns one output for each item, in order.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] splits the batch and remembers a ceiling for its key, for a while;
    /// [`EngineError::Failed`] on more than one item runs the halves apart, so that only the requests
    /// at fault fail. [`EngineError::Lost`]: the engine is dropped and built again, and then the
    /// requests run one by one, since each loss costs a restart. A wrong number of outputs counts as
    /// a failure. Errors of I/O and texts convert by `?`; for others there is [`EngineError::failed`].
    ///
    /// ```
    /// # use onelane::{Engine, EngineError, Uniform};
    /// struct Reader;
    /// impl Engine for Reader {
    ///     type Item = Uniform<std::path::PathBuf>;
    ///     type Output = Vec<u8>;
    ///     fn infer(&mut self, batch: &[Self::Item]) -> Result<Vec<Vec<u8>>, EngineError> {
    ///         let mut files = Vec::new();
    ///         for path in batch {
    ///             files.push(std::fs::read(&path.0)?);
    ///         }
    ///         Ok(files)
    ///     }
    /// }
    /// ```
    fn infer(&mut self, batch: &[Self::Item]) -> Result<Vec<Self::Output>, EngineError>;

    /// Called once after the factory, before the first batch: compile kernels, touch memory.
    ///
    /// # Errors
    /// An error here is an error of the factory.
    fn warmup(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Called on the worker after it has handed over the answers of a batch and woken whoever waited
    /// for them. Not called for a batch that a delivery thread has handed over.
    #[doc(hidden)]
    fn delivered(&mut self) {}

    /// Whether it is as good as before after a panic in `infer`, and need not be built again.
    #[doc(hidden)]
    fn survives_panic(&self) -> bool {
        false
    }

    /// Whether a failed batch may be run again in parts. Say `false` when `infer` has effects that
    /// must not happen twice; then an error on a batch is the answer to all of its requests.
    fn idempotent(&self) -> bool {
        true
    }

    /// The cost of the batch as computed, padding included; feeds the padding-waste figure in
    /// [`QueueStats`](crate::QueueStats). The default is the sum of the items' costs: no padding.
    fn padded_cost(&self, batch: &[Self::Item]) -> usize {
        batch.iter().fold(0, |sum: usize, item| sum.saturating_add(item.cost()))
    }
}
