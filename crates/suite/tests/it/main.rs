//! The integration tests of the suite, in one binary.
//!
//! `cargo test -p onelane-suite --test it FILE::` runs one file of them.

mod faulty;

mod can_fail;
mod cases;
mod faults;
mod sim;
