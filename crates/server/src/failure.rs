//! Why a call has no answer, whatever protocol it came by. [`family`](crate::family) says how each
//! protocol tells it.

use std::time::Duration;

use onelane::{Refusal, RequestError};

/// What kind of failure it is: the row of the table of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The call makes no sense.
    Malformed,
    /// A text is longer than the model takes, and is not to be cut.
    TextTooLong,
    /// No key, or a wrong one.
    Unauthorised,
    /// No such model or route.
    NotFound,
    /// The client took too long to send its call.
    ClientTimeout,
    /// The body, or the call, is larger than the server takes.
    TooLarge,
    /// The body is not of a type that is understood.
    MediaType,
    /// No room in the queue.
    Full,
    /// The engine failed on a text.
    Engine,
    /// Loading, draining, stalled or failed.
    Unavailable,
    /// The deadline has passed.
    Deadline,
    /// A fault of this program.
    Internal,
}

impl Kind {
    /// Every kind that a call may meet.
    pub(crate) const ALL: [Self; 12] = [
        Self::Malformed,
        Self::TextTooLong,
        Self::Unauthorised,
        Self::NotFound,
        Self::ClientTimeout,
        Self::TooLarge,
        Self::MediaType,
        Self::Full,
        Self::Engine,
        Self::Unavailable,
        Self::Deadline,
        Self::Internal,
    ];
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    /// The part of the call at fault, such as `input[17]`.
    pub(crate) part: Option<String>,
    /// When to come again.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), part: None, retry_after: None }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// Names the part at fault, also at the head of the message.
    pub(crate) fn at(mut self, part: impl Into<String>) -> Self {
        let part = part.into();
        self.message = format!("{part}: {}", self.message);
        self.part = Some(part);
        self
    }

    /// What a refusal by the queue means for the call; `retry_after` is for a full one.
    pub(crate) fn refused(refusal: &Refusal, retry_after: Duration) -> Self {
        match refusal {
            Refusal::Full => Self {
                retry_after: Some(retry_after),
                ..Self::new(
                    Kind::Full,
                    format!(
                        "no room: what waits now takes about {} ms; try again then",
                        retry_after.as_millis()
                    ),
                )
            },
            Refusal::RequestTooLarge { .. } => Self::new(Kind::TooLarge, refusal.to_string()),
            _ => Self::unavailable(refusal.to_string()),
        }
    }

    /// What an accepted request's error means for the call; `part` names the request's text.
    pub(crate) fn failed(error: &RequestError, part: String) -> Self {
        match error {
            RequestError::Engine(_) | RequestError::Panicked(_) => {
                Self::new(Kind::Engine, error.to_string()).at(part)
            }
            RequestError::DeadlineExceeded => Self::new(Kind::Deadline, error.to_string()),
            RequestError::Rebuild(_)
            | RequestError::QueueFailed(_)
            | RequestError::Closed
            | RequestError::WorkerDied => Self::unavailable(error.to_string()),
            _ => Self::new(Kind::Internal, error.to_string()),
        }
    }
}
