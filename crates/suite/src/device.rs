//! [`Device`]: what threads attach to, and how they meet before they run at once.

use std::fmt;
use std::sync::{Arc, Barrier};

use crate::ops::{OpResult, Ops};

/// Whether numbers were computed by hardware or by a model of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Hardware.
    Real,
    /// A simulated device. Reports always say so.
    Simulated,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceKind::Real => "real",
            DeviceKind::Simulated => "simulated",
        })
    }
}

/// Which thread attaches to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The thread that computes the golden results, alone.
    Golden,
    /// One of the threads that run at once, counted from 0.
    Thread(usize),
    /// A worker of a device executor.
    Worker,
}

/// A device that any number of threads can attach to.
///
/// # Example
/// ```
/// use onelane_suite::{Caller, Device, HostTensor, Ops, Reference};
///
/// let ops = Reference.attach(Caller::Golden)?;
/// let x = ops.upload(&HostTensor::new([2, 2], vec![-1.0, 2.0, -3.0, 4.0]))?;
/// assert_eq!(ops.download(&ops.relu(&x)?)?.data(), [0.0, 2.0, 0.0, 4.0]);
/// # Ok::<(), onelane_suite::OpError>(())
/// ```
pub trait Device: Send + Sync + 'static {
    /// A thread's view of the device. It stays on its thread and need not be `Send`.
    type Ops: Ops + 'static;

    /// The device's name, for example `cpu` or `metal:0`.
    fn name(&self) -> String;

    /// Whether this is hardware or a simulation.
    fn kind(&self) -> DeviceKind {
        DeviceKind::Real
    }

    /// The seed of a simulated device's schedule; `None` for hardware.
    fn seed(&self) -> Option<u64> {
        None
    }

    /// Makes the calling thread's view. It is dropped on the same thread, at the latest when the
    /// thread ends.
    ///
    /// # Errors
    /// When the device cannot be used from this thread.
    fn attach(&self, caller: Caller) -> OpResult<Self::Ops>;

    /// The meeting point of `threads` threads. A device that schedules its threads itself gives its
    /// own; the threads of the suite are attached when they come, and have not paused.
    fn rendezvous(&self, threads: usize) -> Arc<dyn Rendezvous> {
        Arc::new(Barrier::new(threads))
    }

    /// The device that the next test runs on: by default the same one. A simulated device gives a
    /// new one, so that one test's faults do not reach the next.
    ///
    /// # Errors
    /// When a new device cannot be made.
    fn fresh(self: &Arc<Self>) -> OpResult<Arc<Self>> {
        Ok(Arc::clone(self))
    }
}

/// A reusable meeting point: nobody leaves before everybody has come.
pub trait Rendezvous: Send + Sync {
    /// Waits until all threads have come.
    ///
    /// # Blocking
    /// Until the last thread has come.
    fn meet(&self);
}

impl Rendezvous for Barrier {
    fn meet(&self) {
        // CORRECTNESS: every thread of a crew meets once per iteration whatever happened to it
        // before (direct.rs), so that no thread waits for one that gave up.
        self.wait();
    }
}
