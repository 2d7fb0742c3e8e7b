//! The hazards as scenarios on the simulated device, and what cures each. Everything here is simulated.
//!
//! - [`Trial::cell`]: a cell of the hazard table, [`Row`] by [`Column`] (H1).
//! - [`CrashTrial`]: operations off the queue, unlocked caches, a kernel shared by streams (H2, H3, H4).
//! - [`growth`]: the graph cache per shape, with and without buckets (H13).
//! - [`in_flight`]: command buffers in flight (H14). [`affinity`]: streams that belong to a thread (H15).
//! - [`Hazard`]: all of these with their cures, as a list of [`Finding`]s.
//! - [`counterexample`]: H1 by two threads and one order of their steps.
//! - [`Prediction`]: what anybody with a Mac can refute.

mod affinity;
mod cell;
mod counterexample;
mod crash;
mod data;
mod expectation;
mod finding;
mod front;
mod growth;
mod in_flight;
mod prediction;
mod run;
mod samples;
mod table;
mod trial;
mod workload;

pub use affinity::{Use, affinity};
pub use cell::Cell;
pub use counterexample::{Counterexample, Program, Step, counterexample, script};
pub use crash::{Crash, CrashTrial, Rounds};
pub use expectation::Expectation;
pub use finding::{Finding, Hazard};
pub use front::{Answers, Front};
pub use growth::{Buckets, Growth, growth};
pub use in_flight::in_flight;
pub use prediction::Prediction;
pub use samples::Samples;
pub use table::{Column, Job};
pub use trial::Trial;
pub use workload::{Row, Workload};
