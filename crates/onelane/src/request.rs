//! A request: an input with its priority and deadline.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How urgent a request is. A waiting request is lifted one class for each `ageing` interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody is waiting at a screen.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Work that may wait: indexing, nightly jobs.
    Bulk,
}

impl Priority {
    /// All classes, most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Normal, Self::Bulk];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interactive => "interactive",
            Self::Normal => "normal",
            Self::Bulk => "bulk",
        })
    }
}

/// The text is not a priority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown priority {0:?}: use interactive, normal or bulk")]
pub struct ParsePriorityError(String);

impl FromStr for Priority {
    type Err = ParsePriorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|class| text.eq_ignore_ascii_case(&class.to_string()))
            .ok_or_else(|| ParsePriorityError(text.to_owned()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deadline {
    At(Instant),
    After(Duration),
}

/// An input with its priority and deadline; anything converts into one with the defaults.
///
/// ```
/// use std::time::Duration;
/// use onelane::{Priority, Request};
///
/// let request = Request::new("text")
///     .priority(Priority::Interactive)
///     .deadline_after(Duration::from_millis(50));
/// assert_eq!(request.into_input(), "text");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<I> {
    pub(crate) input: I,
    pub(crate) priority: Priority,
    deadline: Option<Deadline>,
}

impl<I> Request<I> {
    /// A request of normal priority without a deadline.
    pub fn new(input: I) -> Self {
        Self { input, priority: Priority::default(), deadline: None }
    }

    /// Sets the priority class.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the instant after which the request must no longer start. A request that is still
    /// waiting then resolves to [`RequestError::DeadlineExceeded`](crate::RequestError) without
    /// having been computed; one that is running is delivered. One that still waits for room in a
    /// full queue resolves to it as soon as there is room.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(Deadline::At(deadline));
        self
    }

    /// Like [`deadline`](Self::deadline), counted from the call of submit, or from the first
    /// poll of [`infer`](crate::BatchQueue::infer).
    #[must_use]
    pub fn deadline_after(mut self, after: Duration) -> Self {
        self.deadline = Some(Deadline::After(after));
        self
    }

    /// The input, as it was given.
    pub fn into_input(self) -> I {
        self.input
    }

    pub(crate) fn deadline_from(&self, now: Instant) -> Option<Instant> {
        match self.deadline? {
            Deadline::At(instant) => Some(instant),
            // A deadline past the end of time is none.
            Deadline::After(after) => now.checked_add(after),
        }
    }
}

impl<I> From<I> for Request<I> {
    fn from(input: I) -> Self {
        Self::new(input)
    }
}
