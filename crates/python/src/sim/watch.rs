//! [`Watch`]: a Python function that hears of every action on a device, before it happens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

/// Who watches, if anybody does. While nobody does, an action costs one load.
#[derive(Default)]
pub(crate) struct Watch {
    on: AtomicBool,
    function: Mutex<Option<Py<PyAny>>>,
}

impl Watch {
    /// Has `function(kind, operation)` called from now on, or nothing.
    pub(crate) fn set(&self, function: Option<Py<PyAny>>) {
        self.on.store(function.is_some(), Ordering::Relaxed);
        let mut current = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, function);
        // Outside of the lock: what it drops may run Python.
        drop(current);
        drop(before);
    }

    /// Tells of an action of the calling thread.
    ///
    /// # Errors
    /// What the function raised: the action is not to happen.
    pub(crate) fn tell(&self, py: Python<'_>, kind: &str, operation: &str) -> PyResult<()> {
        if !self.on.load(Ordering::Relaxed) {
            return Ok(());
        }
        let function = {
            let function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
            function.as_ref().map(|function| function.clone_ref(py))
        };
        function.map_or(Ok(()), |function| function.call1(py, (kind, operation)).map(drop))
    }
}
