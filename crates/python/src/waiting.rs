//! Waits for the core: detached, with signals seen, until a time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use onelane::{RequestError, ResponseHandle, ShutdownError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::failure::{from_request, raise};
use crate::interpreter::{Step, wait};

pub(crate) fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|error| PyValueError::new_err(format!("{name} = {value}: {error}")))
}

pub(crate) fn until(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(timeout) = timeout else {
        return Ok(None);
    };
    // A time that has passed is now; one past the end of time is never.
    let timeout = seconds("timeout", timeout.clamp(0.0, 1e9))?;
    Ok(Instant::now().checked_add(timeout))
}

/// Waits for an answer, with signals seen on the main thread.
pub(crate) fn wait_for<T: Send + 'static>(
    py: Python<'_>,
    handle: ResponseHandle<T>,
    until: Option<Instant>,
) -> PyResult<T> {
    let answer = wait(py, handle, |handle, slice| {
        let Some(patience) = patience(until, slice) else {
            return Step::Done(Some(handle.wait()));
        };
        match handle.wait_timeout(patience) {
            Ok(answer) => Step::Done(Some(answer)),
            Err(handle) if !is_over(until) => Step::Again(handle),
            // Dropped: the request runs, and its response has no reader.
            Err(_) => Step::Done(None),
        }
    })?;
    outcome(py, answer)
}

struct ThreadWaker(std::thread::Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on the calling thread for a future of the core's, until a time; gives it back then.
pub(crate) fn wait_parked<F: Future + Unpin>(
    mut future: F,
    until: Option<Instant>,
) -> Result<F::Output, F> {
    let waker = Waker::from(Arc::new(ThreadWaker(std::thread::current())));
    loop {
        if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            return Ok(output);
        }
        match patience(until, None) {
            None => std::thread::park(),
            Some(left) if left.is_zero() => return Err(future),
            Some(left) => std::thread::park_timeout(left),
        }
    }
}

/// Waits detached for a future of the core's, with signals seen on the main thread.
pub(crate) fn wait_future<F>(py: Python<'_>, future: F) -> PyResult<F::Output>
where
    F: Future<Output: Send> + Send + Unpin,
{
    wait(py, future, |future, slice| {
        let end = slice.and_then(|slice| Instant::now().checked_add(slice));
        match wait_parked(future, end) {
            Ok(output) => Step::Done(output),
            Err(future) => Step::Again(future),
        }
    })
}

/// What came of a wait; `None`: the time was over first.
pub(crate) fn outcome<T>(py: Python<'_>, answer: Option<Result<T, RequestError>>) -> PyResult<T> {
    match answer {
        Some(answer) => answer.map_err(|error| from_request(py, &error)),
        None => Err(raise(
            py,
            "DeadlineExceeded",
            "the deadline passed while the request was running".to_owned(),
        )),
    }
}

/// Repeats a shutdown in slices until it has ended. `false` when the time was over first, or on a
/// worker, which cannot wait for itself.
pub(crate) fn wait_shutdown(
    py: Python<'_>,
    until: Option<Instant>,
    shutdown: impl Fn(Duration) -> Result<(), ShutdownError> + Sync,
) -> PyResult<bool> {
    const LONG: Duration = Duration::from_secs(3600);
    wait(py, (), |(), slice| match shutdown(patience(until, slice).unwrap_or(LONG)) {
        Ok(()) => Step::Done(true),
        Err(ShutdownError::Timeout(_)) if !is_over(until) => Step::Again(()),
        Err(_) => Step::Done(false),
    })
}

pub(crate) fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until <= Instant::now())
}

/// How long one step may take.
pub(crate) fn patience(until: Option<Instant>, slice: Option<Duration>) -> Option<Duration> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    [left, slice].into_iter().flatten().min()
}
