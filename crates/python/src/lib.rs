//! The native half of the Python package `onelane`: queueing, batching, priorities, deadlines,
//! bisection and statistics are the core's; collating and splitting tensors is Python's.
//!
//! Nothing here is a public interface: the package `onelane` is.

mod child;
mod delivery;
mod engine;
mod executor;
mod exported;
mod failure;
mod front;
mod interpreter;
mod isolation;
mod item;
mod parcel;
mod pending;
mod plain;
mod pool;
mod queue;
mod remote;
mod serving;
mod sim;
mod stats;
mod target;
mod turnstile;
mod waiting;

use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// The native module.
#[pymodule(gil_used = false)]
mod _onelane {
    #[pymodule_export]
    use super::child::{is_sticky_error, serve_parent};
    #[pymodule_export]
    use super::executor::{Executor, shutdown_all};
    #[pymodule_export]
    use super::front::{Front, Reading, held};
    #[pymodule_export]
    use super::interpreter::{end, interrupt_workers};
    #[pymodule_export]
    use super::isolation::Supervisor;
    #[pymodule_export]
    use super::item::Failure;
    #[pymodule_export]
    use super::pending::Ticket;
    #[pymodule_export]
    use super::queue::Queue;
    #[pymodule_export]
    use super::serving::Server;
    #[pymodule_export]
    use super::sim::{SimBarrier, SimBlock, SimDevice, SimLock, SimParty, sim_profiles};
    #[pymodule_export]
    use super::stats::Elements;
    #[pymodule_export]
    use super::target::resolving;
    #[pymodule_export]
    use super::{after_fork_in_child, wait_for_waiters, worker_device};
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;
    use pyo3::types::PyCapsule;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        if onelane_capi::other_owner() {
            return Err(PyImportError::new_err(
                "libonelane has been used in this process before the package onelane, which would \
                 be a second owner of its devices: import onelane first, or take its functions in \
                 C++ with onelane_python.hpp",
            ));
        }
        // A pointer to the table, which outlives the module.
        let api = onelane_capi::own_api();
        let name = c"onelane._onelane._C_API";
        module.add("_C_API", PyCapsule::new_with_value(module.py(), api, name)?)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Tells the module that this process is the child of a fork.
#[pyfunction]
fn after_fork_in_child() {
    interpreter::forked();
}

/// The name of the device that the calling thread is a worker of; `None`: it is no worker.
#[pyfunction]
fn worker_device() -> Option<String> {
    onelane::DeviceExecutor::of_this_worker()
}

/// Waits until no thread waits in a call of this module, for at most `timeout` seconds: at exit,
/// after everything has been answered, such threads must come back before the interpreter ends.
#[pyfunction]
fn wait_for_waiters(py: Python<'_>, timeout: f64) -> bool {
    let timeout = Duration::try_from_secs_f64(timeout.max(0.0)).unwrap_or_default();
    let until = Instant::now() + timeout;
    py.detach(|| {
        while interpreter::waiting() > 0 {
            if Instant::now() >= until {
                return false;
            }
            // At exit only, and for milliseconds.
            std::thread::park_timeout(Duration::from_millis(1));
        }
        true
    })
}
