//! [`Child`]: what the supervisor and an engine need of a child. [`Worker`](crate::worker::Worker)
//! is the real one; models bring one that dies at every step.

use std::sync::Arc;

use onelane::EngineError;

use crate::children::{Children, RecycleCause};
use crate::error::{ChildLost, RemoteError, WireError};
use crate::frame::Kind;
use crate::sync::AtomicBool;

/// A child that is ready for batches.
pub(crate) trait Child: Send + Sized + 'static {
    /// Starts one and waits until its engine is built and warm.
    fn start(children: &Arc<Children>, cancel: &AtomicBool) -> Result<Self, ChildLost>;

    /// Whether it waits for work, as it should. One that has ended, or says something unasked, is
    /// of no use.
    fn idle(&self) -> Result<(), Interruption>;

    /// Ends one that is lost, and says how; also whether the kernel has killed it for want of
    /// memory.
    fn lose(self, interruption: Interruption) -> (ChildLost, bool);

    /// Lets one that is no longer needed drop its engine and end.
    fn retire(self);

    /// Whether its engine may be asked twice.
    fn idempotent(&self) -> bool;

    /// Memory in bytes after the last batch; 0: unknown.
    fn memory(&self) -> u64;

    /// The limit that it has passed, if it has passed one.
    fn recycle_cause(&self) -> Option<RecycleCause>;
}

/// What a child answered to a batch.
pub(crate) enum Answer<R> {
    /// The outputs as they were read, and the cost of the batch as computed.
    Outputs {
        outputs: R,
        cost: u64,
    },
    Error(Kind, RemoteError),
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Interruption {
    /// The child has closed its end, or has ended.
    Ended,
    /// It had ended before it was sent anything of this batch.
    EndedBefore,
    TimedOut(std::time::Duration),
    Garbage(String),
    EngineLost(RemoteError),
    NotBuilt(RemoteError),
    Cancelled,
}

/// Why a batch was not run.
pub(crate) enum RunError {
    /// The items could not be written; the child is as it was.
    NotWritten(WireError),
    /// The child is lost: call [`Child::lose`].
    Interrupted(Interruption),
}

impl From<Interruption> for RunError {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}

impl From<WireError> for RunError {
    fn from(error: WireError) -> Self {
        Self::NotWritten(error)
    }
}

/// What a batch that could not be written is to the core: one of fewer requests may fit.
pub(crate) fn not_written(error: WireError) -> EngineError {
    match error {
        WireError::TooLarge { .. } | WireError::NoMemory { .. } => {
            EngineError::out_of_memory(error)
        }
        _ => EngineError::failed(error),
    }
}
