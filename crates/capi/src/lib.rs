//! The C ABI of onelane: opaque handles, a table of functions for each engine, statuses.
//!
//! `include/onelane.h` is made from this crate and documents each function; `onelane.hpp` and
//! `MPSBatchQueue.h` are C++ over it. Invariants:
//! - No export unwinds: `contain` makes a status of a panic.
//! - A handle is looked up, never followed: what C passes cannot be a dangling pointer.
//! - `done` is called exactly once for each accepted item (`submitted`).
//! - The functions by name go through the table that `api` resolves, so that a process has one owner
//!   of each device even if it has two copies of the core (`copies`).

#![warn(clippy::undocumented_unsafe_blocks)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("handles are 64 bits wide: onelane's C ABI needs a 64-bit target");

mod api;
mod contain;
mod copies;
mod engine;
mod error;
mod executor;
#[cfg(feature = "exports")]
mod exports;
mod handles;
mod queue;
mod sized;
mod stats;
mod status;
mod submitted;
mod table_engine;
mod ticket;

pub use api::{Api, ONELANE_API_VERSION, own_api};
pub use copies::other_owner;
pub use engine::{EngineTable, QueueSettings, RequestSpec};
pub use error::ErrorSlot;
pub use executor::{ClosureSpec, ExecutorSettings};
#[cfg(feature = "exports")]
pub use exports::*;
pub use handles::{Executor, Queue, Ticket};
pub use stats::{HealthReport, Statistics};
pub use status::*;
