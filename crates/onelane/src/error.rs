//! Everything that can go wrong, as values: one small enum per operation. A refusal gives the
//! request back.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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
    /// The engine is gone: its process died, its device is poisoned. It is dropped and built again;
    /// then the requests of the batch run one by one, if the engine is idempotent.
    #[error("the engine was lost: {0}")]
    Lost(#[source] Source),
}

impl EngineError {
    /// A failure with any error, or a message, as its cause.
    pub fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::from(source.into()))
    }

    /// The engine is gone, with any error, or a message, as the cause.
    pub fn lost(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Lost(Arc::from(source.into()))
    }

    /// Out of memory, with any error, or a message, as its cause.
    pub fn out_of_memory(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::OutOfMemory(Arc::from(source.into()))
    }
}

/// Why a request has no response.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The engine said no.
    #[error(transparent)]
    Engine(EngineError),
    /// The engine, or the closure, panicked on this request.
    #[error("panicked on the worker: {0}")]
    Panicked(String),
    /// The engine panicked before and could not be rebuilt for this request; the next batch tries
    /// again.
    #[error("the engine could not be rebuilt after a panic: {0}")]
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
    /// Waiting here, on the worker, for this request would never end: its engine is already in use
    /// further up this worker's stack.
    #[error("waiting on the worker for its own engine would deadlock")]
    WouldDeadlock,
    /// The worker thread ended without an answer. This is a bug in this crate.
    #[error("the worker thread ended before the request was answered; please report this")]
    WorkerDied,
}

/// Why something was not accepted. What was submitted comes back: `R` is a
/// [`Request`](crate::Request), a `Vec` of them (a group is refused whole), or a closure.
#[non_exhaustive]
pub enum SubmitError<R> {
    /// There was no room, for as long as the call was ready to wait.
    Full(R),
    /// The queue or its executor has been closed.
    Closed(R),
    /// More than the queue may ever take.
    TooHeavy {
        /// What was submitted.
        refused: R,
        /// How much it is, in the unit of `limit`.
        amount: usize,
        /// The setting that it exceeds: `"capacity"`, `"capacity_cost"` or `"max_batch_cost"`.
        limit: &'static str,
        /// The value of that setting.
        max: usize,
    },
    /// The queue has given up on its engine; the text says why. Make a new queue.
    Failed(R, String),
    /// The queue is full, and this is the worker that would have to make room while its engine is
    /// in use further up the stack.
    WouldDeadlock(R),
}

impl<R> SubmitError<R> {
    /// What was submitted, to be submitted again or elsewhere.
    pub fn into_refused(self) -> R {
        match self {
            Self::Full(refused)
            | Self::Closed(refused)
            | Self::Failed(refused, _)
            | Self::WouldDeadlock(refused)
            | Self::TooHeavy { refused, .. } => refused,
        }
    }
}

impl<R> fmt::Display for SubmitError<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("the queue is full: try later, or raise its capacity"),
            Self::Closed(_) => f.write_str("the queue has been closed"),
            Self::TooHeavy { amount, limit, max, .. } => {
                write!(f, "{amount} is more than the queue may ever take: {limit} is {max}")
            }
            Self::Failed(_, why) => write!(f, "the queue has failed: {why}"),
            Self::WouldDeadlock(_) => {
                f.write_str("the queue is full and its engine is in use by this worker")
            }
        }
    }
}

impl<R> fmt::Debug for SubmitError<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubmitError({self})")
    }
}

impl<R> Error for SubmitError<R> {}

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
    /// The operating system did not give a thread.
    #[error("no worker thread could be started: {0}")]
    Thread(#[source] Arc<std::io::Error>),
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
