//! Errors of the simulated device as exceptions of `onelane.sim.errors`.

use onelane_sim::SimError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// The exception of an error of the device.
pub(crate) fn from_sim(py: Python<'_>, error: &SimError) -> PyErr {
    let name = match error {
        SimError::Aborted(_) => "DeviceAborted",
        SimError::Hang(_) => "DeviceHung",
        SimError::Affinity(_) => "AffinityViolation",
        SimError::NoStream { .. } => "NoStream",
        _ => "SimError",
    };
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let kind = ERRORS
        .get_or_try_init(py, || Ok(py.import("onelane.sim.errors")?.unbind()))
        .and_then(|module: &Py<PyModule>| module.bind(py).getattr(name))
        .and_then(|kind| Ok(kind.cast_into::<PyType>()?));
    match kind {
        Ok(kind) => PyErr::from_type(kind, error.to_string()),
        Err(error) => error,
    }
}
