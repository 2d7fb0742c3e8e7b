//! What can go wrong on a simulated device, as values.
//!
//! An [`Abort`] stands for the death of a whole process: after one, every further call on the device
//! by any thread fails with the same error.

use std::fmt;

use crate::ownership::Violation;

/// Why a call on the simulated device failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The simulated process was aborted. Every thread gets this error from then on.
    #[error("{0}")]
    Aborted(Abort),
    /// No simulated thread can go on. Every thread gets this error from then on.
    #[error("{0}")]
    Hang(Hang),
    /// A thread that does not own the device acted on it, and the check asserts (rule R10).
    #[error("{0}")]
    Affinity(Violation),
    /// A stream, or a buffer that still depends on one, was used from a thread that did not make it.
    /// The text is MLX's.
    #[error("There is no Stream(gpu, {stream}) in current thread (simulated; thread `{thread}`).")]
    NoStream {
        /// The stream's number.
        stream: u32,
        /// The thread that used it.
        thread: String,
    },
    /// A simulated thread panicked.
    #[error("simulated thread `{thread}` panicked: {message}")]
    Panicked {
        /// The thread.
        thread: String,
        /// The panic's message.
        message: String,
    },
    /// A scripted schedule does not fit the program that it was given.
    #[error("the schedule's script does not fit the program: {0}")]
    Script(String),
    /// The shapes of an operation do not fit.
    #[error("{operation}: {problem}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// What does not fit, with the shapes.
        problem: String,
    },
}

/// The result of a call on the simulated device.
pub type SimResult<T> = Result<T, SimError>;

impl SimError {
    /// The abort, when this is one.
    pub fn abort(&self) -> Option<&Abort> {
        match self {
            SimError::Aborted(abort) => Some(abort),
            _ => None,
        }
    }

    /// The hang, when this is one.
    pub fn hang(&self) -> Option<&Hang> {
        match self {
            SimError::Hang(hang) => Some(hang),
            _ => None,
        }
    }
}

/// A fault that kills a process on real hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// An encoder was begun while another one was active on the same command buffer (rule R4).
    EncoderActive,
    /// A command buffer was encoded to after its commit (rule R4).
    EncodeAfterCommit,
    /// A command buffer was committed twice (rule R4).
    CommitTwice,
    /// A command buffer was committed while an encoder was active on it (rule R4).
    CommitWithEncoder,
    /// A completion handler was added after the commit (rule R4).
    HandlerAfterCommit,
    /// A command was encoded by an encoder that had ended (rule R4).
    EncoderEnded,
    /// Two threads were in an unlocked cache at once, at least one of them to insert (rule R6).
    CacheRace {
        /// The cache: `shader` or `graph`.
        cache: &'static str,
        /// What was looked up.
        key: String,
    },
    /// Two streams encoded one cached kernel object at once (rule R7).
    KernelRace {
        /// The kernel.
        kernel: String,
    },
}

impl Fault {
    /// The text of the failed assertion. For the first five it is Apple's; the others end in a
    /// segmentation fault, which has no text, so a description stands here.
    pub fn text(&self) -> &'static str {
        match self {
            Fault::EncoderActive => "A command encoder is already encoding to this command buffer",
            Fault::EncodeAfterCommit => "_status < MTLCommandBufferStatusCommitted",
            Fault::CommitTwice => "commit an already committed command buffer",
            Fault::CommitWithEncoder => "commit command buffer with uncommitted encoder",
            Fault::HandlerAfterCommit => "Completed handler provided after commit call",
            Fault::EncoderEnded => "Segmentation fault: encoding by an encoder that has ended",
            Fault::CacheRace { .. } => "Segmentation fault: unlocked cache used by two threads",
            Fault::KernelRace { .. } => {
                "Segmentation fault: cached kernel encoded by two streams at once"
            }
        }
    }

    /// Whether the text is a Metal assertion, and not a description of a segmentation fault.
    pub fn is_assertion(&self) -> bool {
        !self.text().starts_with("Segmentation fault")
    }
}

/// The abort of a simulated process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The thread that hit the fault.
    pub thread: String,
    /// The operation in which it hit it.
    pub operation: String,
    /// The simulated time step.
    pub step: u64,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fault.is_assertion() {
            write!(f, "failed assertion `{}'", self.fault.text())?;
        } else {
            f.write_str(self.fault.text())?;
        }
        match &self.fault {
            Fault::CacheRace { cache, key } => write!(f, " ({cache} cache, `{key}`)")?,
            Fault::KernelRace { kernel } => write!(f, " (`{kernel}`)")?,
            _ => {}
        }
        write!(
            f,
            " (simulated; thread `{}` in `{}`, step {})",
            self.thread, self.operation, self.step
        )
    }
}

/// No simulated thread can go on: what each one waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hang {
    /// The threads that wait, in the order of their creation.
    pub waiting: Vec<Waiting>,
    /// The simulated time step.
    pub step: u64,
}

/// One thread of a [`Hang`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The thread.
    pub thread: String,
    /// What it waits for, and who has it.
    pub waits_for: String,
}

impl fmt::Display for Hang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "hang: no simulated thread can go on at step {}", self.step)?;
        for waiting in self.waiting.iter().take(SHOWN) {
            write!(f, "; `{}` waits for {}", waiting.thread, waiting.waits_for)?;
        }
        match self.waiting.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
