//! The native half of the Python package `onelane`: queueing, batching, priorities, deadlines,
//! bisection and statistics are the core's; collating and splitting tensors is Python's.
//!
//! Nothing here is a public interface: the package `onelane` is.

mod engine;
mod executor;
mod failure;
mod front;
mod interpreter;
mod item;
mod pending;
mod plain;
mod pool;
mod queue;
mod sim;
mod stats;
mod turnstile;

use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// The native module.
#[pymodule(gil_used = false)]
mod _onelane {
    #[pymodule_export]
    use super::executor::{Executor, shutdown_all};
    #[pymodule_export]
    use super::front::{Front, held};
    #[pymodule_export]
    use super::item::Failure;
    #[pymodule_export]
    use super::pending::{Ticket, resolving};
    #[pymodule_export]
    use super::queue::Queue;
    #[pymodule_export]
    use super::sim::{SimBarrier, SimBlock, SimDevice, SimLock, SimParty, sim_profiles};
    #[pymodule_export]
    use super::{after_fork_in_child, wait_for_waiters};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Tells the module that this process is the child of a fork.
#[pyfunction]
fn after_fork_in_child() {
    interpreter::forked();
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
