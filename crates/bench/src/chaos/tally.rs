//! What became of every request, as its client sees it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use onelane::{Refusal, RequestError};
use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Live counters.
        #[derive(Debug, Default)]
        pub(super) struct Tally {
            $($(#[$doc])* pub(super) $name: AtomicU64,)*
            /// The first few faults, in words.
            faults: Mutex<Vec<String>>,
        }

        /// The counters at one moment.
        #[derive(Clone, Debug, Default, Serialize)]
        pub(super) struct Counts {
            $(pub(super) $name: u64,)*
            pub(super) faults: Vec<String>,
        }

        impl Tally {
            pub(super) fn counts(&self) -> Counts {
                let faults = self.faults.lock().map(|faults| faults.clone()).unwrap_or_default();
                Counts { $($name: self.$name.load(Relaxed),)* faults }
            }
        }

        impl Counts {
            pub(super) fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Requests that clients tried to submit.
    offered,
    /// Accepted ones.
    accepted,
    /// Answered with the right response.
    completed,
    /// Answered with an engine's error, a panic, or a failed rebuild.
    errors,
    /// Handles that their client dropped.
    cancelled,
    /// Answered `DeadlineExceeded`.
    expired,
    /// Answered because their queue was aborted or had failed.
    closed,
    /// Not accepted: full.
    refused_full,
    /// Not accepted: closed.
    refused_closed,
    /// Not accepted: the queue had failed.
    refused_failed,
    /// Not accepted: too heavy.
    refused_heavy,
    /// Responses that belong to another request, or to none.
    misrouted,
    /// Requests that were computed twice.
    duplicated,
    /// Errors that this request cannot have had.
    wrong_errors,
    /// Executors whose counts and their clients' differ.
    unbalanced,
}

impl Tally {
    pub(super) fn add(&self, counter: impl Fn(&Self) -> &AtomicU64, count: usize) {
        counter(self).fetch_add(count as u64, Relaxed);
    }

    /// Notes a fault; the first few in words.
    pub(super) fn fault(
        &self,
        counter: impl Fn(&Self) -> &AtomicU64,
        text: impl FnOnce() -> String,
    ) {
        self.add(counter, 1);
        if let Ok(mut faults) = self.faults.lock()
            && faults.len() < 10
        {
            faults.push(text());
        }
    }

    pub(super) fn refused(&self, reason: &Refusal, requests: usize) {
        match reason {
            Refusal::Full => self.add(|t| &t.refused_full, requests),
            Refusal::Closed => self.add(|t| &t.refused_closed, requests),
            Refusal::Failed(_) => self.add(|t| &t.refused_failed, requests),
            Refusal::RequestTooLarge { .. } => self.add(|t| &t.refused_heavy, requests),
            other => {
                self.fault(|t| &t.wrong_errors, || format!("refused: {other}"));
                self.add(|t| &t.refused_failed, requests);
            }
        }
    }

    pub(super) fn failed(&self, error: &RequestError) {
        match error {
            RequestError::DeadlineExceeded => self.add(|t| &t.expired, 1),
            RequestError::Cancelled => self.add(|t| &t.cancelled, 1),
            RequestError::Closed | RequestError::QueueFailed(_) => self.add(|t| &t.closed, 1),
            _ => self.add(|t| &t.errors, 1),
        }
    }
}

impl Counts {
    fn refused(&self) -> u64 {
        self.refused_full + self.refused_closed + self.refused_failed + self.refused_heavy
    }

    /// Accepted requests whose client knows of no end.
    pub(super) fn lost(&self) -> i128 {
        let ends = self.completed + self.errors + self.cancelled + self.expired + self.closed;
        i128::from(self.accepted) - i128::from(ends)
    }

    /// Nothing lost, nothing doubled, nothing misrouted, nothing wrong.
    pub(super) fn is_sound(&self) -> bool {
        self.lost() == 0
            && self.offered == self.accepted + self.refused()
            && self.completed > 0
            && self.misrouted + self.duplicated + self.wrong_errors + self.unbalanced == 0
    }
}
