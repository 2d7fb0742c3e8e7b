//! What measures onelane, not what ships.
//!
//! [`generator`] makes load: closed loops of threads or tasks, open load, a queue that is never
//! empty, on anything that answers requests. [`peers`] has other Rust queues behind one interface.
//! The binary `onelane-bench` and the benches of this package are made of both.

pub mod generator;
mod paired;
pub mod peers;

pub use paired::{Paired, median, median_ratio};
