//! The promises of the core (lib.rs, "What is promised"), as tests of its public interface.

mod around;
mod backpressure;
mod cancel;
mod circles;
mod closures;
mod common;
mod deadline;
mod delivery;
mod device_lost;
mod failure;
mod foreign;
mod inbox;
mod ordering;
mod parsing;
mod reentrancy;
mod shutdown;
mod simulation;
mod truth;
mod waiters;
