//! onelane lets any number of threads and async tasks run inference on a device whose runtime is
//! not thread-safe.
//!
//! **One worker thread per device owns it. Everything that touches the device is built, run and
//! dropped there. Requests that wait together run together, as one batch.**
//!
//! ```
//! use onelane::{BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError};
//!
//! /// A request: one row. Rows of equal length may share a batch.
//! struct Row(Vec<f32>);
//!
//! impl BatchItem for Row {
//!     type Key = usize;
//!     fn key(&self) -> usize {
//!         self.0.len()
//!     }
//! }
//!
//! /// The engine lives on the worker; here an `Rc` stands for a handle that must not leave it.
//! struct Mean(std::rc::Rc<()>);
//!
//! impl Engine for Mean {
//!     type Item = Row;
//!     type Output = f32;
//!     fn infer(&mut self, batch: &[Row]) -> Result<Vec<f32>, EngineError> {
//!         Ok(batch.iter().map(|row| row.0.iter().sum::<f32>() / row.0.len() as f32).collect())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = DeviceExecutor::shared("metal:0")?; // one worker thread owns it
//! let config = BatchConfig::default().max_batch_size(32);
//! let queue = BatchQueue::new(&device, config, || Ok(Mean(std::rc::Rc::new(()))))?;
//!
//! // From any thread; from async code, `queue.infer(row).await`.
//! let means: Vec<f32> = std::thread::scope(|scope| {
//!     let ask = |value| queue.submit(Row(vec![value; 4])).expect("open").wait().expect("a mean");
//!     let threads: Vec<_> = [1.0, 2.0].map(|value| scope.spawn(move || ask(value))).into();
//!     threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
//! });
//! assert_eq!(means, [1.0, 2.0]);
//!
//! // Any closure, on the worker; inline when already there.
//! assert_eq!(device.submit(|| 6 * 7)?.wait()?, 42);
//! # Ok(())
//! # }
//! ```
//!
//! An async service (tokio, axum, errors to statuses, shutdown from async code) is in the
//! repository's `examples/service`.
//!
//! # What is promised
//! Every accepted request is answered exactly once, whatever panics, stops or dies. An engine need
//! not be `Send`. An idle worker never waits while something is runnable, unless `max_wait` says
//! so, and is not woken while nothing is. A request that makes its batch fail fails alone. What
//! waits is bounded, and whoever stops asking keeps nobody out. A deadline is told when it passes.
//! No code of others runs under a lock, save the `Eq` of a batch key.
//!
//! # What is not
//! A crash inside a driver (a segmentation fault, a failed Metal assertion) ends the process and
//! cannot be caught in it. Code that touches the device outside its executor is not protected. A
//! batch that waits for a thread of its own making, which waits for the same device, hangs: that
//! circle cannot be seen. Circles of workers that wait for each other are told.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![warn(clippy::disallowed_types, clippy::disallowed_methods)]
#![allow(clippy::type_complexity, reason = "results are spelled out, so that a reader sees them")]

mod admission;
mod config;
mod engine;
mod error;
mod executor;
mod handle;
mod infer;
#[cfg(all(test, loom))]
mod loom_tests;
mod owner;
mod queue;
mod request;
mod scheduler;
#[cfg(feature = "tower")]
mod service;
mod stats;
mod sync;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod worker;

#[doc(hidden)]
pub use config::Delivery;
pub use config::{Around, BatchConfig, ExecutorConfig};
pub use engine::{BatchItem, Engine, Uniform};
pub use error::{
    BuildError, ConfigError, EngineError, InferError, Refusal, RequestError, ShutdownError, Source,
    SubmitError,
};
pub use executor::{DeviceExecutor, Shutdown};
pub use handle::ResponseHandle;
pub use infer::{Infer, SubmitClosure, SubmitGroup};
pub use queue::BatchQueue;
pub use request::{ParsePriorityError, Priority, Request};
pub use stats::{ClassStats, Health, Histogram, QueueHistograms, QueueStats, Summary};
#[doc(hidden)]
pub use sync::PerProcess;
