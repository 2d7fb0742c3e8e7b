//! A request: an input with its priority and deadline.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How urgent a request is; the greatest goes first. A waiting request is lifted one class for each
/// `ageing` interval.
///
/// ```
/// use onelane::Priority;
///
/// assert!(Priority::Interactive > Priority::Normal && Priority::Normal > Priority::Bulk);
/// assert_eq!("bulk".parse(), Ok(Priority::Bulk));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Work that may wait: indexing, nightly jobs.
    Bulk,
    /// The default.
    #[default]
    Normal,
    /// Somebody is waiting at a screen.
    Interactive,
}

impl Priority {
    /// All classes, most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Normal, Self::Bulk];

    /// Its place in [`ALL`](Self::ALL): 0 is the most urgent.
    pub(crate) const fn index(self) -> usize {
        Self::Interactive as usize - self as usize
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

    /// Sets the instant after which the request must no longer start. A request that still waits
    /// then, in the queue or for room in it, resolves to
    /// [`RequestError::DeadlineExceeded`](crate::RequestError) at that time, without having been
    /// computed, and its room is free again; one that is running is delivered.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(Deadline::At(deadline));
        self
    }

    /// Like [`deadline`](Self::deadline), counted from the call of submit, or from the first poll of
    /// [`infer`](crate::BatchQueue::infer). A request that is refused comes back with the instant.
    #[must_use]
    pub fn deadline_after(mut self, after: Duration) -> Self {
        self.deadline = Some(Deadline::After(after));
        self
    }

    /// The input, as it was given.
    pub fn into_input(self) -> I {
        self.input
    }

    /// The same request with another input.
    pub(crate) fn map<J>(self, of: impl FnOnce(I) -> J) -> Request<J> {
        Request { input: of(self.input), priority: self.priority, deadline: self.deadline }
    }

    /// A request as it comes back from a queue: its deadline is an instant by then.
    pub(crate) fn returned(input: I, priority: Priority, deadline: Option<Instant>) -> Self {
        Self { input, priority, deadline: deadline.map(Deadline::At) }
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
