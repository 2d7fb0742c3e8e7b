//! Python threads as simulated ones: parties, locks, barriers, and going outside.
//!
//! CORRECTNESS: an attachment belongs to its real thread, so it is kept in that thread's storage, by
//! the number of its device.

use std::cell::RefCell;

use onelane_sim::sync;
use onelane_sim::{Attachment, Party, SimError};
use pyo3::exceptions::{PyIndexError, PyRuntimeError};
use pyo3::prelude::*;

use super::failure::from_sim;

thread_local! {
    static ATTACHED: RefCell<Vec<(u64, Attachment)>> = const { RefCell::new(Vec::new()) };
}

/// Calls the device detached.
///
/// # Errors
/// The device's, as an exception.
pub(crate) fn detached<R: Send>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<R, SimError> + Send,
) -> PyResult<R> {
    py.detach(call).map_err(|error| from_sim(py, &error))
}

/// Runs `f` with the calling thread's attachment to a device.
fn with_attachment<R: Send>(
    py: Python<'_>,
    device: u64,
    f: impl FnOnce(&Attachment) -> Result<R, SimError> + Send,
) -> PyResult<R> {
    let ran = py.detach(|| {
        ATTACHED.with(|attached| {
            let attached = attached.borrow();
            let own = attached.iter().rev().find(|(id, _)| *id == device);
            own.map(|(_, attachment)| f(attachment))
        })
    });
    match ran {
        Some(result) => result.map_err(|error| from_sim(py, &error)),
        None => Err(PyRuntimeError::new_err("this thread is no member of a party of the device")),
    }
}

/// The calling thread stops waiting its turn: others go on.
pub(crate) fn go_outside(py: Python<'_>, device: u64) -> PyResult<()> {
    with_attachment(py, device, |attachment| {
        attachment.leave();
        Ok(())
    })
}

/// The calling thread comes back from outside.
pub(crate) fn come_back(py: Python<'_>, device: u64) -> PyResult<()> {
    with_attachment(py, device, Attachment::enter)
}

/// Threads that begin together.
#[pyclass(frozen, module = "onelane._onelane")]
pub(crate) struct SimParty {
    party: Party,
    members: usize,
    device: u64,
}

impl SimParty {
    pub(crate) fn new(party: Party, members: usize, device: u64) -> Self {
        Self { party, members, device }
    }
}

#[pymethods]
impl SimParty {
    /// The calling thread is member `index` from now on. Waits until all have come.
    fn join(&self, py: Python<'_>, index: usize) -> PyResult<()> {
        if index >= self.members {
            let text = format!("there is no member {index} in a party of {}", self.members);
            return Err(PyIndexError::new_err(text));
        }
        detached(py, || {
            let attachment = self.party.join(index)?;
            ATTACHED.with(|attached| attached.borrow_mut().push((self.device, attachment)));
            Ok(())
        })
    }

    /// The calling thread's life as a member ends.
    fn leave(&self, py: Python<'_>) {
        let device = self.device;
        py.detach(|| {
            ATTACHED.with(|attached| {
                let mut attached = attached.borrow_mut();
                let own = attached.iter().rposition(|(id, _)| *id == device);
                own.map(|place| attached.remove(place))
            });
        });
    }
}

/// A simulated lock.
#[pyclass(frozen, module = "onelane._onelane")]
pub(crate) struct SimLock(pub(crate) sync::SimLock);

#[pymethods]
impl SimLock {
    /// Calls `function()` with the lock held.
    fn run(&self, py: Python<'_>, function: Py<PyAny>) -> PyResult<Py<PyAny>> {
        detached(py, || self.0.with(|| Python::attach(|py| function.call0(py))))?
    }
}

/// A simulated barrier.
#[pyclass(frozen, module = "onelane._onelane")]
pub(crate) struct SimBarrier(pub(crate) sync::SimBarrier);

#[pymethods]
impl SimBarrier {
    /// Waits for the others.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || self.0.wait())
    }
}
