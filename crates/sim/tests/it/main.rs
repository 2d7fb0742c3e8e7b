//! The integration tests of the simulated device, in one binary. Everything here is
//! simulated.
//!
//! `cargo test -p onelane-sim --test it FILE::` runs one file of them.

mod random;
mod within_time;

mod determinism;
mod hazards;
mod numbers;
mod real_threads;
mod rules;
