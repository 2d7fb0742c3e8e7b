//! Which simulated thread the calling real thread is.
//!
//! A real thread is known to a simulated process in one of two ways:
//! - *attached*: it runs as a simulated thread until it detaches, and between its calls on the device
//!   it keeps the baton ([`crate::Thread`], [`crate::Attachment`]);
//! - *unattached*: it enters for each call and leaves after it.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use crate::error::SimResult;
use crate::naming;
use crate::process::Process;
use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

struct Registration {
    process: Weak<Process>,
    id: u64,
    thread: ThreadId,
    attached: bool,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.attached
            && let Some(process) = self.process.upgrade()
        {
            process.end(self.thread);
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Vec<Registration>> = const { RefCell::new(Vec::new()) };
}

fn find(id: u64) -> Option<ThreadId> {
    CURRENT
        .try_with(|current| current.borrow().iter().rev().find(|r| r.id == id).map(|r| r.thread))
        .ok()
        .flatten()
}

/// The calling thread is attached as `thread` from now on.
pub(crate) fn attach(process: &Arc<Process>, thread: ThreadId) {
    CURRENT.with(|current| {
        current.borrow_mut().push(Registration {
            process: Arc::downgrade(process),
            id: process.id,
            thread,
            attached: true,
        });
    });
}

/// The calling thread is no longer attached as `thread`.
pub(crate) fn detach(process: &Process, thread: ThreadId) {
    // At the end of a real thread its registrations may be gone before its values are.
    let _ = CURRENT.try_with(|current| {
        current.borrow_mut().retain(|r| r.id != process.id || r.thread != thread);
    });
}

/// Runs `f` as the calling thread's simulated thread, entering the device for it when needed.
pub(crate) fn with_turn<R>(
    process: &Arc<Process>,
    f: impl FnOnce(ThreadId) -> SimResult<R>,
) -> SimResult<R> {
    let (thread, _until_then) = match find(process.id) {
        Some(thread) => (thread, None),
        None => register(process),
    };
    if !process.lock_running()?.baton.is_outside(thread) {
        return f(thread);
    }
    // An attached thread that is outside said so, and comes in for this one call.
    drop(process.enter(thread)?);
    let _leaves = Leaves { process, thread };
    f(thread)
}

/// Gives the baton away at the end of a call, also when the call panics.
struct Leaves<'a> {
    process: &'a Process,
    thread: ThreadId,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.process.leave(self.thread);
    }
}

/// Makes the calling thread known, unattached, under its own name: until it ends or, in a real thread's
/// last moments, when nothing can be stored any more, for as long as the registration is kept.
fn register(process: &Arc<Process>) -> (ThreadId, Option<Registration>) {
    let thread = {
        let mut state = process.lock();
        let thread = state.baton.add_outside(&naming::name());
        state.record(thread, ActionKind::Start, "");
        thread
    };
    let registration =
        Registration { process: Arc::downgrade(process), id: process.id, thread, attached: false };
    let mut kept = Some(registration);
    let _ = CURRENT.try_with(|current| {
        let mut current = current.borrow_mut();
        current.retain(|r| r.process.strong_count() > 0);
        current.extend(kept.take());
    });
    (thread, kept)
}
