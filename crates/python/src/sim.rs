//! The simulated MPS device under PyTorch: what Python needs of `onelane-sim`. Everything here is
//! simulated.
//!
//! Tensors, operators and shapes are Python's (the package `onelane.sim`). A command's arithmetic is a
//! Python function that is called **when the command is committed**, with the addresses of the bytes
//! that its blocks hold then.
//!
//! CORRECTNESS: a call on the device can wait for other threads, so every one is made detached from the
//! interpreter; what a command computes attaches again, on the thread that commits it.

mod block;
mod copy;
mod device;
mod failure;
mod settings;
mod threads;
mod watch;

pub(crate) use block::SimBlock;
pub(crate) use device::SimDevice;
pub(crate) use threads::{SimBarrier, SimLock, SimParty};

use pyo3::prelude::*;

/// The names of the profiles.
#[pyfunction]
pub(crate) fn sim_profiles() -> Vec<&'static str> {
    onelane_sim::Profile::NAMES.to_vec()
}
