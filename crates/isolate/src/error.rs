//! How a child was lost, and what its engine said, as values.

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

/// What a child was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// Its process was starting.
    Starting,
    /// It was building its engine.
    Building,
    /// It was warming its engine up.
    WarmingUp,
    /// It was waiting for work.
    Idle,
    /// It was running a batch.
    Batch {
        /// The number of requests in it.
        size: usize,
        /// Whether the process has answered none before: what an engine loads or compiles when it
        /// first runs counts as time of this batch.
        first: bool,
    },
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("while it started"),
            Self::Building => f.write_str("while it built its engine"),
            Self::WarmingUp => f.write_str("during its warm-up"),
            Self::Idle => f.write_str("while it was idle"),
            Self::Batch { size, first: false } => write!(f, "during a batch of {size}"),
            Self::Batch { size, first: true } => write!(f, "during a batch of {size}, its first"),
        }
    }
}

/// How an isolated worker was lost. It is the source of
/// [`EngineError::Lost`](onelane::EngineError::Lost): `source.downcast_ref::<ChildLost>()`.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChildLost {
    /// The process ended. The text names the signal or the exit status.
    #[error("the isolated worker crashed {activity} ({}){stderr}", StatusText(*status))]
    #[non_exhaustive]
    Crashed {
        /// How it ended; `None` if another part of this program has taken its status.
        status: Option<ExitStatus>,
        /// What it was doing.
        activity: Activity,
        /// The last of what it wrote.
        stderr: StderrTail,
    },
    /// It did not answer in time and was killed.
    #[error("the isolated worker hung {activity}: no answer after {after:?}{stderr}")]
    #[non_exhaustive]
    Hung {
        /// The limit that it passed: [`IsolationConfig::hang`](crate::IsolationConfig::hang) or
        /// [`IsolationConfig::start`](crate::IsolationConfig::start).
        after: Duration,
        /// What it was doing.
        activity: Activity,
        /// The last of what it wrote.
        stderr: StderrTail,
    },
    /// Its engine said that it cannot go on, for example because its device is poisoned.
    #[error("the isolated worker lost its engine {activity}: {error}")]
    #[non_exhaustive]
    EngineLost {
        /// What the engine said.
        error: RemoteError,
        /// What it was doing.
        activity: Activity,
        /// The last of what it wrote.
        stderr: StderrTail,
    },
    /// The factory or the warm-up of its engine failed.
    #[error("the engine could not be built in the isolated worker: {error}")]
    #[non_exhaustive]
    NotBuilt {
        /// What the factory or the warm-up said.
        error: RemoteError,
        /// The last of what it wrote.
        stderr: StderrTail,
    },
    /// It sent what cannot be understood.
    #[error("the isolated worker broke the protocol {activity}: {what}{stderr}")]
    #[non_exhaustive]
    Protocol {
        /// What was wrong.
        what: String,
        /// What it was doing.
        activity: Activity,
        /// The last of what it wrote.
        stderr: StderrTail,
    },
    /// The operating system could not start it.
    #[error("the isolated worker could not be started: {0}")]
    Spawn(#[source] Arc<io::Error>),
    /// The queue was closed while it started.
    #[error("the isolated worker was not needed any more while it started")]
    Cancelled,
}

impl ChildLost {
    /// The last of what the child wrote to stdout and stderr, at most 8 KiB.
    pub fn stderr(&self) -> &str {
        match self {
            Self::Crashed { stderr, .. }
            | Self::Hung { stderr, .. }
            | Self::EngineLost { stderr, .. }
            | Self::NotBuilt { stderr, .. }
            | Self::Protocol { stderr, .. } => stderr.as_str(),
            Self::Spawn(_) | Self::Cancelled => "",
        }
    }

    /// The signal that ended the child, if one did.
    pub fn signal(&self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        match self {
            Self::Crashed { status, .. } => status.and_then(|status| status.signal()),
            _ => None,
        }
    }
}

impl ChildLost {
    /// The exit status with which the child ended by itself, if it did.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Crashed { status, .. } => status.and_then(|status| status.code()),
            _ => None,
        }
    }
}

/// How a process ended, in words; names the signal.
struct StatusText(Option<ExitStatus>);

impl fmt::Display for StatusText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => status.fmt(f),
            None => f.write_str("its status is unknown"),
        }
    }
}

/// The last of what a child wrote to stdout and stderr, at most 8 KiB. Displays as its last line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StderrTail(Arc<str>);

impl StderrTail {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StderrTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.lines().map(str::trim).rfind(|line| !line.is_empty()) {
            Some(line) => write!(f, "; it last wrote: {line}"),
            None => Ok(()),
        }
    }
}

/// What an engine in a child said: the text of its error, or of its panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{text}", if *panicked { "panicked in the isolated worker: " } else { "" })]
#[non_exhaustive]
pub struct RemoteError {
    /// The text of the error.
    pub text: String,
    /// More about it, in a form that both sides know; empty if there is none. An engine whose
    /// error's source is a `RemoteError` sends its detail along.
    pub detail: Vec<u8>,
    /// Whether the engine panicked.
    pub panicked: bool,
}

impl RemoteError {
    /// An error with a text and a detail.
    pub fn new(text: impl Into<String>, detail: Vec<u8>) -> Self {
        Self { text: text.into(), detail, panicked: false }
    }
}

/// An item or an output could not cross between the processes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// There are fewer bytes than the value needs.
    #[error("a value needs {needed} bytes where {left} are left")]
    TooShort {
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// The values of a batch take more than
    /// [`IsolationConfig::max_payload`](crate::IsolationConfig::max_payload).
    #[error("{needed} bytes are more than max_payload = {limit}")]
    TooLarge {
        /// Bytes that they need.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The bytes are not a value of the type.
    #[error("{0}")]
    Invalid(String),
    /// The operating system gave no memory for them.
    #[error("no memory for {needed} bytes: {error}")]
    NoMemory {
        /// Bytes that were needed.
        needed: u64,
        /// What it said.
        error: String,
    },
}
