//! Requests whose answer goes into a Python future, of `concurrent.futures` or of asyncio.
//!
//! A pending request holds its response handle and is the handle's waker. While a batch is being
//! handed over, wakers on the worker only push to a list; when the core says that all answers have
//! been delivered, the whole list is resolved under one attachment to the interpreter, with one
//! `call_soon_threadsafe` for each event loop. A waker called anywhere else, by the timer for a
//! deadline that has passed, say, resolves by itself.
//!
//! Looking for an answer runs nothing, not on a worker either: who gave a request and got a future has
//! not said that he waits. [`Pending::help`] is for who does.
//!
//! Lock order: nothing attaches, and no Python code runs, under `stage` or `target`.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use onelane::{Infer, InferError, RequestError, ResponseHandle};
use pyo3::intern;
use pyo3::prelude::*;

use crate::delivery::{self, Deliver};
use crate::engine::PyEngine;
use crate::failure::from_submit;
use crate::interpreter::{drop_attached, generation, is_any_worker};
use crate::item::{Answer, Start};
use crate::target::{Outcome, Target, resolve};
use crate::waiting::wait_parked;

/// What is waited for.
enum Waiting {
    /// An accepted request.
    Accepted(ResponseHandle<Answer>),
    /// A request that may still wait for room.
    Entering(Infer<PyEngine>),
}

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const CANCELLED: u8 = 2;

/// What is waited for, or who is looking at it. A look takes it out: a waker that is called in the
/// middle of a look, by the same thread even, finds a note to leave instead of a lock.
enum Stage {
    /// Nothing, not yet or not any more.
    Empty,
    Held(Waiting),
    /// Somebody looks; `woken` sends them round again, `given_up` ends it.
    Looking {
        woken: bool,
        given_up: bool,
    },
}

/// A request whose answer goes into a Python future.
pub(crate) struct Pending {
    state: AtomicU8,
    stage: Mutex<Stage>,
    target: Mutex<Option<Target>>,
    generation: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    const LOOKING: Self = Self::Looking { woken: false, given_up: false };
}

impl Pending {
    pub(crate) fn new(target: Target) -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU8::new(WAITING),
            stage: Mutex::new(Stage::Empty),
            target: Mutex::new(Some(target)),
            generation: generation(),
        })
    }

    /// Waits for an accepted request. If it has been answered already, the future is resolved here.
    pub(crate) fn accepted(self: &Arc<Self>, py: Python<'_>, handle: ResponseHandle<Answer>) {
        *lock(&self.stage) = Stage::Held(Waiting::Accepted(handle));
        self.advance(py);
        // A cancel between the submission and here found no handle to drop.
        if self.state.load(Ordering::Acquire) == CANCELLED {
            self.give_up(py);
        }
    }

    /// Hands a request over, which waits for room by itself if need be.
    ///
    /// # Errors
    /// Why it was refused.
    pub(crate) fn enter(self: &Arc<Self>, py: Python<'_>, infer: Infer<PyEngine>) -> PyResult<()> {
        *lock(&self.stage) = Stage::Held(Waiting::Entering(infer));
        match self.poll() {
            Some(Err(InferError::Refused(error))) => Err(from_submit(py, &error)),
            Some(outcome) => {
                resolve(py, self.claim_target(), outcome);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Resolves the future with what came of a request that ran inline.
    pub(crate) fn answered(&self, py: Python<'_>, answer: Result<Answer, RequestError>) {
        resolve(py, self.claim_target(), answer.map_err(InferError::Failed));
    }

    /// Looks for the answer and, if it has come, resolves the future.
    pub(crate) fn advance(self: &Arc<Self>, py: Python<'_>) {
        if let Some(outcome) = self.poll() {
            resolve(py, self.claim_target(), outcome);
        }
    }

    fn poll(self: &Arc<Self>) -> Option<Outcome> {
        let waker = Waker::from(Arc::clone(self));
        let mut context = Context::from_waker(&waker);
        let mut waiting = self.begin_look()?;
        loop {
            let polled = match &mut waiting {
                Waiting::Accepted(handle) => {
                    handle.poll_no_inline(&mut context).map_err(InferError::Failed)
                }
                Waiting::Entering(infer) => infer.poll_no_inline(&mut context),
            };
            let mut stage = lock(&self.stage);
            match (polled, &*stage) {
                (Poll::Ready(outcome), _) => {
                    *stage = Stage::Empty;
                    return Some(outcome);
                }
                (Poll::Pending, Stage::Looking { given_up: true, .. }) => {
                    *stage = Stage::Empty;
                    drop(stage);
                    return None;
                }
                (Poll::Pending, Stage::Looking { woken: true, .. }) => {
                    *stage = Stage::LOOKING;
                }
                (Poll::Pending, _) => {
                    *stage = Stage::Held(waiting);
                    return None;
                }
            }
        }
    }

    /// Does on a worker, inline, what the answer needs, and waits for it, for at most `patience`; then
    /// resolves the future. Elsewhere, and when somebody else is looking, it does nothing.
    fn help(self: &Arc<Self>, py: Python<'_>, patience: Option<Duration>) {
        let Some(waiting) = self.begin_look() else { return };
        let answered = py.detach(|| match waiting {
            Waiting::Accepted(handle) => {
                let answered = match patience {
                    None => Ok(handle.wait()),
                    Some(patience) => handle.wait_timeout(patience),
                };
                match answered {
                    Ok(answer) => Ok(answer.map_err(InferError::Failed)),
                    Err(handle) => Err(Waiting::Accepted(handle)),
                }
            }
            Waiting::Entering(infer) => {
                let until = patience.and_then(|patience| Instant::now().checked_add(patience));
                wait_parked(infer, until).map_err(Waiting::Entering)
            }
        });
        let outcome = match answered {
            Ok(outcome) => {
                *lock(&self.stage) = Stage::Empty;
                outcome
            }
            Err(waiting) => {
                let given_up = {
                    let mut stage = lock(&self.stage);
                    let given_up = matches!(&*stage, Stage::Looking { given_up: true, .. });
                    *stage = Stage::Empty;
                    given_up
                };
                if given_up {
                    drop(waiting);
                    return;
                }
                // With its own waker again.
                *lock(&self.stage) = Stage::Held(waiting);
                return self.advance(py);
            }
        };
        resolve(py, self.claim_target(), outcome);
    }

    /// Takes out what is waited for; leaves a note when somebody else is looking at it.
    fn begin_look(&self) -> Option<Waiting> {
        let mut stage = lock(&self.stage);
        match std::mem::replace(&mut *stage, Stage::LOOKING) {
            Stage::Held(waiting) => Some(waiting),
            Stage::Empty => {
                *stage = Stage::Empty;
                None
            }
            Stage::Looking { given_up, .. } => {
                *stage = Stage::Looking { woken: true, given_up };
                None
            }
        }
    }

    fn take_target(&self) -> Option<Target> {
        lock(&self.target).take()
    }

    /// Where the answer goes; `None` when the request has been cancelled. From here on it cannot be:
    /// what expired, or was given up, is answered without ever having started.
    fn claim_target(&self) -> Option<Target> {
        let claim =
            self.state.compare_exchange(WAITING, STARTED, Ordering::AcqRel, Ordering::Acquire);
        if claim == Err(CANCELLED) { None } else { self.take_target() }
    }

    /// Cancels the request if it has not started: it leaves its queue.
    fn cancel(&self, py: Python<'_>) -> bool {
        let claim =
            self.state.compare_exchange(WAITING, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        if claim.is_ok() {
            self.give_up(py);
        }
        claim.is_ok()
    }

    /// Stops waiting, whether the request runs or not.
    fn give_up(&self, _py: Python<'_>) {
        let left = {
            let mut stage = lock(&self.stage);
            match &mut *stage {
                Stage::Looking { given_up, .. } => {
                    *given_up = true;
                    None
                }
                other => Some(std::mem::replace(other, Stage::Empty)),
            }
        };
        // Outside the lock: dropping a handle cancels its request.
        drop(left);
        let target = self.take_target();
        drop(target);
    }

    fn is_stale(&self) -> bool {
        self.generation != generation()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_stale() {
            // The locks of the core may have been held by another thread when the process forked.
            let stage = self.stage.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::replace(stage, Stage::Empty));
        }
        let target = self.target.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(target) = target {
            drop_attached(target);
        }
    }
}

impl Start for Pending {
    fn start(&self, py: Python<'_>) -> bool {
        let claim =
            self.state.compare_exchange(WAITING, STARTED, Ordering::AcqRel, Ordering::Acquire);
        if claim.is_ok() {
            let future = match &*lock(&self.target) {
                Some(Target::Thread(future)) => Some(future.clone_ref(py)),
                _ => None,
            };
            if let Some(future) = future {
                // A future of ours: nobody else changes its state once it is claimed.
                let _ = future.setattr(py, intern!(py, "_state"), intern!(py, "RUNNING"));
            }
        }
        claim != Err(CANCELLED)
    }
}

impl Deliver for Pending {
    fn take(self: Arc<Self>) -> Option<(Option<Target>, Outcome)> {
        let outcome = self.poll()?;
        Some((self.claim_target(), outcome))
    }
}

impl Wake for Pending {
    fn wake(self: Arc<Self>) {
        if delivery::is_expected() {
            delivery::push_delivery(self);
        } else {
            Python::try_attach(|py| self.advance(py));
        }
    }
}

/// A submitted request, as its future knows it.
#[pyclass(frozen, module = "onelane._onelane", name = "Ticket")]
pub(crate) struct Ticket(pub(crate) Arc<Pending>);

#[pymethods]
impl Ticket {
    /// Cancels the request if it has not started. Says whether this call has cancelled it.
    fn cancel(&self, py: Python<'_>) -> bool {
        if self.0.is_stale() {
            return false;
        }
        self.0.cancel(py)
    }

    /// Stops waiting for the request: one that has not started is cancelled, the result of one that
    /// runs is dropped. The future is left as it is.
    fn abandon(&self, py: Python<'_>) {
        if !self.0.is_stale() && !self.0.cancel(py) {
            self.0.give_up(py);
        }
    }

    /// Looks for the answer and, if it has come, resolves the future. A deadline that has passed is
    /// an answer.
    fn advance(&self, py: Python<'_>) {
        if !self.0.is_stale() {
            self.0.advance(py);
        }
    }

    /// On a worker, does inline what the answer needs and waits for it, for at most `timeout` seconds.
    /// Elsewhere it does nothing.
    fn help(&self, py: Python<'_>, timeout: Option<f64>) {
        if !self.0.is_stale() && is_any_worker() {
            let patience = timeout.map(|timeout| {
                Duration::try_from_secs_f64(timeout.clamp(0.0, 1e9)).unwrap_or_default()
            });
            self.0.help(py, patience);
        }
    }

    /// Whether a fork has left this request to the parent process.
    #[getter]
    fn stale(&self) -> bool {
        self.0.is_stale()
    }
}
