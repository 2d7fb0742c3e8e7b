//! The handing over of a batch: wakers that the core calls on the worker meanwhile only note here whom
//! they would wake, and all of them are told together when the core says that every answer is there.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use pyo3::prelude::*;

use crate::target::{Outcome, Target, resolution, resolve, tell_loop};

/// A request whose answer goes into a future.
pub(crate) trait Deliver: Send + Sync {
    /// The answer, if it is there, and where it goes, if anybody wants it.
    fn take(self: Arc<Self>) -> Option<(Option<Target>, Outcome)>;
}

thread_local! {
    /// Whether a batch of this worker has run whose answers are still to be delivered.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
    static DELIVERED: RefCell<Vec<Arc<dyn Deliver>>> = const { RefCell::new(Vec::new()) };
}

/// From here to [`take_delivered`], wakers called on this thread are collected.
pub(crate) fn expect_delivery() {
    EXPECTED.set(true);
}

/// A model may run now, and what it waits for must not be collected.
pub(crate) fn no_delivery() {
    EXPECTED.set(false);
}

/// Whether wakers called on this thread are collected now.
pub(crate) fn is_expected() -> bool {
    EXPECTED.get()
}

/// What was collected.
pub(crate) fn take_delivered() -> Vec<Arc<dyn Deliver>> {
    EXPECTED.set(false);
    DELIVERED.take()
}

/// Collects a request for the delivery that [`is_expected`].
pub(crate) fn push_delivery(request: Arc<dyn Deliver>) {
    DELIVERED.with_borrow_mut(|delivered| delivered.push(request));
}

/// Resolves the futures of a whole batch; those of one event loop with one call to it.
pub(crate) fn resolve_all(py: Python<'_>, delivered: Vec<Arc<dyn Deliver>>) {
    let mut loops: Vec<(Py<PyAny>, Vec<Py<PyAny>>)> = Vec::new();
    for request in delivered {
        let Some((target, outcome)) = request.take() else {
            continue;
        };
        match target {
            Some(Target::Loop(event_loop, future)) => {
                let Ok(resolved) = resolution(py, future, outcome) else {
                    continue;
                };
                match loops.iter_mut().find(|(other, _)| other.is(&event_loop)) {
                    Some((_, futures)) => futures.push(resolved),
                    None => loops.push((event_loop, vec![resolved])),
                }
            }
            target => resolve(py, target, outcome),
        }
    }
    for (event_loop, futures) in loops {
        tell_loop(py, &event_loop, futures);
    }
}
