//! Everything that can go wrong, as values: one small enum per operation. A refusal gives the
//! request back.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sync_wrapper::SyncWrapper;

use crate::Request;

/// The cause of an engine's error; shared, because one failure can answer several requests.
pub type Source = Arc<dyn Error + Send + Sync>;

/// Why an engine could not run a batch.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The device ran out of memory: the batch is split, and a ceiling remembered for its key.
    #[error("the device ran out of memory: {0}")]
    OutOfMemory(#[source] Source),
    /// The batch failed.
    #[error("{0}")]
    Failed(#[source] Source),
    /// The engine is gone: its process died, its device answers nothing but errors. It is dropped
    /// and built again; then the requests of the batch run one by one.
    #[error("the engine was lost: {0}")]
    Lost(#[source] Source),
    /// The device answers nothing but errors until this process ends, so an engine that is built
    /// again would too: the queue fails.
    #[error(
        "the device is lost to this process: {0}; start the process again, or run the engine in \
         an isolated worker, which is replaced when this happens"
    )]
    DeviceLost(#[source] Source),
}

impl EngineError {
    /// A failure with any error, or a message, as its cause.
    pub fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::from(source.into()))
    }

    /// Out of memory, with any error, or a message, as its cause.
    pub fn out_of_memory(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::OutOfMemory(Arc::from(source.into()))
    }

    /// The engine is gone, with any error, or a message, as the cause.
    ///
    /// ```
    /// use onelane::EngineError;
    ///
    /// let error = EngineError::lost("CUDA error: device-side assert triggered");
    /// assert!(matches!(error, EngineError::Lost(_)));
    /// ```
    pub fn lost(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Lost(Arc::from(source.into()))
    }

    /// The device is lost to this process, with any error, or a message, as the cause.
    pub fn device_lost(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::DeviceLost(Arc::from(source.into()))
    }

    /// What caused it, to be downcast.
    pub fn cause(&self) -> &Source {
        match self {
            Self::OutOfMemory(source)
            | Self::Failed(source)
            | Self::Lost(source)
            | Self::DeviceLost(source) => source,
        }
    }
}

macro_rules! failed_from {
    ($($source:ty),*) => {
        $(impl From<$source> for EngineError {
            fn from(source: $source) -> Self {
                Self::failed(source)
            }
        })*
    };
}

failed_from!(io::Error, Box<dyn Error + Send + Sync>, String, &str);

/// Why a request has no response.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The engine said no.
    #[error(transparent)]
    Engine(EngineError),
    /// The engine, the closure or the batch key panicked on this request.
    #[error("panicked on the worker: {0}")]
    Panicked(String),
    /// The engine was lost before and could not be rebuilt for this request; the next batch tries
    /// again.
    #[error("the engine could not be rebuilt: {0}")]
    Rebuild(#[source] EngineError),
    /// The engine was lost too often in a row; the queue has given up. Make a new one.
    #[error("the queue has failed: {0}")]
    QueueFailed(String),
    /// The deadline passed before the request could start.
    #[error("the deadline passed before the request was started")]
    DeadlineExceeded,
    /// The request was cancelled before it could start.
    #[error("the request was cancelled")]
    Cancelled,
    /// The queue was aborted before the request could start.
    #[error("the queue was shut down before the request was started")]
    Closed,
    /// Waiting here, on a worker, for this request would never end: its engine is in use further up
    /// this worker's stack, or the worker that would run it waits for this one.
    #[error("waiting on a worker for what only this worker can run would deadlock")]
    WouldDeadlock,
    /// The worker thread ended without an answer. This is a bug in this crate.
    #[error("the worker thread ended before the request was answered; please report this")]
    WorkerDied,
}

/// Why something was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There was no room, for as long as the call was ready to wait.
    #[error("the queue is full: try later, or raise its capacity")]
    Full,
    /// The queue or its executor has been closed.
    #[error("the queue has been closed")]
    Closed,
    /// More than the queue may ever take.
    #[error("{amount} is more than the queue may ever take: {limit} is {max}")]
    RequestTooLarge {
        /// How much it is, in the unit of `limit`.
        amount: usize,
        /// The setting that it exceeds: `"capacity"`, `"capacity_cost"` or `"max_batch_cost"`.
        limit: &'static str,
        /// The value of that setting.
        max: usize,
    },
    /// The queue has given up on its engine; the text says why. Make a new queue.
    #[error("the queue has failed: {0}")]
    Failed(String),
    /// The queue is full, and this is a worker that would have to make room while its engine is in
    /// use further up the stack, or that the one who could make room waits for.
    #[error("the queue is full, and only this worker could make room in it")]
    WouldDeadlock,
}

/// Something was not accepted. What was submitted comes back: `R` is a [`Request`], a `Vec` of them
/// (a group is refused whole), or a closure.
///
/// ```
/// use onelane::testing::{FakeEngine, FakeItem};
/// use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Refusal};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceExecutor::shared("doc-refusal")?;
/// let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))?;
/// queue.close();
/// let refused = queue.try_submit(FakeItem::new(7)).unwrap_err();
/// assert_eq!(refused.reason(), &Refusal::Closed);
/// assert_eq!(refused.into_refused().into_input(), FakeItem::new(7));
/// # Ok(())
/// # }
/// ```
#[derive(thiserror::Error)]
#[error("{reason}")]
pub struct SubmitError<R> {
    reason: Refusal,
    refused: SyncWrapper<R>,
}

impl<R> SubmitError<R> {
    pub(crate) fn new(reason: Refusal, refused: R) -> Self {
        Self { reason, refused: SyncWrapper::new(refused) }
    }

    pub(crate) fn map<S>(self, of: impl FnOnce(R) -> S) -> SubmitError<S> {
        SubmitError::new(self.reason, of(self.refused.into_inner()))
    }

    /// Why it was refused.
    pub fn reason(&self) -> &Refusal {
        &self.reason
    }

    /// What was submitted, to be submitted again or elsewhere.
    pub fn into_refused(self) -> R {
        self.refused.into_inner()
    }
}

impl<R> fmt::Debug for SubmitError<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubmitError({:?})", self.reason)
    }
}

/// Why [`BatchQueue::infer`](crate::BatchQueue::infer) has no response.
///
/// It is `Send` and `Sync` whatever the input is.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum InferError<I> {
    /// The request was not accepted; it comes back.
    #[error(transparent)]
    Refused(SubmitError<Request<I>>),
    /// The request was accepted and has no response.
    #[error(transparent)]
    Failed(RequestError),
}

impl<I> fmt::Debug for InferError<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InferError({self})")
    }
}

/// A configuration value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value}: {expected}")]
pub struct ConfigError {
    /// The name of the setting.
    pub name: &'static str,
    /// The value that it had.
    pub value: String,
    /// What it has to be.
    pub expected: &'static str,
}

/// Why an executor or a queue could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The factory or the warm-up of the engine returned an error.
    #[error("the engine could not be built: {0}")]
    Engine(#[source] EngineError),
    /// The factory or the warm-up of the engine panicked.
    #[error("the engine could not be built: its factory or warm-up panicked: {0}")]
    Panicked(String),
    /// The executor is shut down.
    #[error("the device executor {0:?} has been shut down")]
    Closed(String),
    /// Called on a worker that the build would have to wait for.
    #[error("building an engine on {0:?} from a worker that it waits for would deadlock")]
    WouldDeadlock(String),
    /// The operating system did not give a thread.
    #[error("no worker thread could be started: {0}")]
    Thread(#[source] Arc<io::Error>),
}

/// A shutdown did not finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// What was running did not end in time. The shutdown goes on by itself.
    #[error("the worker was still busy after {0:?}; the shutdown goes on in the background")]
    Timeout(Duration),
    /// Called on a worker of the executor, which cannot wait for itself. The shutdown goes on by
    /// itself when the present batch ends.
    #[error("a worker cannot wait for its own shutdown; it goes on when the present batch ends")]
    WouldDeadlock,
}
