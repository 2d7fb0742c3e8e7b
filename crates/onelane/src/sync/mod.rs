//! Locks, parking, time and threads. Everything else in the crate goes through these, so that the
//! model checker sees each step that the real code takes.
//!
//! There is one way to wait: store a [`Waker`](std::task::Waker) where the other side will find it,
//! release the lock, then sleep. A thread is woken by the same type as an async task: it sleeps by
//! itself in [`park`], or in company in a [`WaiterGroup`].

mod catch_panic;
mod clock;
mod deferred;
mod oneshot;
mod per_process;
#[cfg(not(all(test, loom)))]
mod primitives;
#[cfg(all(test, loom))]
#[path = "model.rs"]
mod primitives;
mod reentry;
#[cfg(not(all(test, loom)))]
mod timer;
#[cfg(any(test, feature = "test-util"))]
mod virtual_clock;
mod waiter_group;

pub(crate) use catch_panic::catch_panic;
pub(crate) use clock::Clock;
pub(crate) use deferred::Deferred;
pub(crate) use oneshot::{Answer, Receiver, Sender};
pub use per_process::PerProcess;
pub(crate) use primitives::*;
pub(crate) use reentry::{forbid_locking, may_lock};
#[cfg(any(test, feature = "test-util"))]
pub use virtual_clock::VirtualClock;
pub(crate) use waiter_group::{MAX_SHARERS, WaiterGroup};
