//! What was submitted, from acceptance to `done`.
//!
//! Who holds one: the core, inside the request until it has run or was given up, and the side that
//! hears the answer, a ticket or a waker. `done` is called by that side when the answer comes, and the
//! item is not in use any more then. If that side has left before, the last one to let go calls it. So
//! it is called exactly once, and never while `run` has the item.

use std::ffi::{c_char, c_void};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use onelane::{EngineError, RequestError, ResponseHandle, SubmitError};

use crate::contain::contain_quietly;
use crate::engine::EngineSpec;
use crate::error::{Failure, failure};
use crate::status::{ONELANE_CANCELLED, ONELANE_OK, ONELANE_WOULD_DEADLOCK, Status};

/// Hears of the end of a closure.
pub(crate) type ClosureDone = Option<
    unsafe extern "C" fn(
        arg: *mut c_void,
        status: Status,
        message: *const c_char,
        payload: *mut c_void,
    ),
>;

/// Who hears that the item is the caller's again.
pub(crate) enum Done {
    Engine(Arc<EngineSpec>),
    Closure(ClosureDone),
}

/// A response handle, of a queue or of the executor itself.
pub(crate) enum AnyHandle {
    Request(ResponseHandle<()>),
    Closure(ResponseHandle<Result<(), EngineError>>),
}

fn flat(answer: Result<Result<(), EngineError>, RequestError>) -> Result<(), RequestError> {
    answer?.map_err(RequestError::Engine)
}

impl AnyHandle {
    fn poll_no_inline(&mut self, context: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        match self {
            Self::Request(handle) => handle.poll_no_inline(context),
            Self::Closure(handle) => handle.poll_no_inline(context).map(flat),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        match self {
            Self::Request(handle) => Pin::new(handle).poll(context),
            Self::Closure(handle) => Pin::new(handle).poll(context).map(flat),
        }
    }

    /// The handle comes back when the time is over.
    pub(crate) fn wait(self, timeout: Option<Duration>) -> Result<Result<(), RequestError>, Self> {
        match (self, timeout) {
            (Self::Request(handle), None) => Ok(handle.wait()),
            (Self::Closure(handle), None) => Ok(flat(handle.wait())),
            (Self::Request(handle), Some(timeout)) => {
                handle.wait_timeout(timeout).map_err(Self::Request)
            }
            (Self::Closure(handle), Some(timeout)) => {
                handle.wait_timeout(timeout).map(flat).map_err(Self::Closure)
            }
        }
    }

    /// The answer, if it is there.
    pub(crate) fn look(&mut self) -> Option<Result<(), RequestError>> {
        match self.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }
}

/// Where a request is whose end goes to `done` without anybody waiting.
#[derive(Default)]
enum Following {
    #[default]
    Nobody,
    Waiting(AnyHandle),
    /// Somebody looks for the answer; `true`: it was woken meanwhile, and has to look again.
    Looking(bool),
}

pub(crate) struct Submitted {
    item: *mut c_void,
    done: Done,
    /// `done` was called, or is not to be.
    is_over: AtomicBool,
    /// What `done` is told if nobody hears the answer.
    unheard: AtomicI32,
    following: Mutex<Following>,
}

// SAFETY: the item is a pointer that is passed on and never followed here; onelane.h asks for items,
// and for a `done`, that any thread may use.
unsafe impl Send for Submitted {}
// SAFETY: as above; everything else in it is atomic or behind a lock.
unsafe impl Sync for Submitted {}

impl Submitted {
    pub(crate) fn new(item: *mut c_void, done: Done) -> Arc<Self> {
        Arc::new(Self {
            item,
            done,
            is_over: AtomicBool::new(false),
            unheard: AtomicI32::new(ONELANE_CANCELLED),
            following: Mutex::default(),
        })
    }

    pub(crate) fn item(&self) -> *mut c_void {
        self.item
    }

    /// It was not accepted: the item stays the caller's, and `done` is not called.
    pub(crate) fn refuse(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// The answer has come. Returns it as the caller is told.
    pub(crate) fn finish(&self, answer: Result<(), RequestError>) -> Result<(), Failure> {
        let answer = answer.map_err(Failure::from);
        match &answer {
            // The request was cancelled, but the item may be in use, up this stack or elsewhere:
            // whoever lets go of it last says that it is over.
            Err(failure) if failure.status == ONELANE_WOULD_DEADLOCK => {
                self.unheard.store(ONELANE_WOULD_DEADLOCK, Ordering::Release);
            }
            Err(failure) => self.call_done(failure.status, Some(failure)),
            Ok(()) => self.call_done(ONELANE_OK, None),
        }
        answer
    }

    fn call_done(&self, status: Status, failure: Option<&Failure>) {
        if self.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        let message = failure.map(Failure::message);
        let message = message.as_ref().map_or(std::ptr::null(), |message| message.as_ptr());
        let payload = failure.map_or(std::ptr::null_mut(), Failure::payload);
        match &self.done {
            Done::Engine(engine) => engine.done(self.item, status, message, payload),
            Done::Closure(Some(done)) => {
                // SAFETY: `arg` and `done` came together in a closure that was accepted.
                unsafe { done(self.item, status, message, payload) }
            }
            Done::Closure(None) => {}
        }
    }

    /// Has `done` called when the answer comes, which may be at once.
    pub(crate) fn follow(self: &Arc<Self>, handle: AnyHandle) {
        *self.following() = Following::Looking(false);
        self.look(handle);
    }

    fn following(&self) -> MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for the answer, leaving a waker.
    ///
    /// CORRECTNESS: the lock is not held meanwhile, because a look may tell a deadline, and so call
    /// the waker on this very thread.
    fn look(self: &Arc<Self>, mut handle: AnyHandle) {
        let waker = Waker::from(Arc::clone(self));
        loop {
            if let Poll::Ready(answer) = handle.poll_no_inline(&mut Context::from_waker(&waker)) {
                *self.following() = Following::Nobody;
                drop(handle);
                let _ = self.finish(answer);
                return;
            }
            let mut following = self.following();
            if let Following::Looking(true) = *following {
                *following = Following::Looking(false);
                continue;
            }
            *following = Following::Waiting(handle);
            return;
        }
    }
}

impl Wake for Submitted {
    fn wake(self: Arc<Self>) {
        let handle = {
            let mut following = self.following();
            match std::mem::take(&mut *following) {
                Following::Waiting(handle) => {
                    *following = Following::Looking(false);
                    handle
                }
                Following::Looking(_) => {
                    *following = Following::Looking(true);
                    return;
                }
                Following::Nobody => return,
            }
        };
        contain_quietly(|| self.look(handle));
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        let status = *self.unheard.get_mut();
        if !*self.is_over.get_mut() {
            self.call_done(status, Some(&failure(status, "the request was cancelled")));
        }
    }
}

/// The caller has its item again, and hears why.
pub(crate) fn refuse<R>(submitted: &Submitted, refused: SubmitError<R>) -> Failure {
    submitted.refuse();
    Failure::from(refused.reason())
}
