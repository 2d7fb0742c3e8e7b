//! An inference engine in a child process: what crashes, hangs, poisons its device or only grows
//! costs the requests at fault, and nobody else.
//!
//! The queue, its deadlines and its batches stay in the parent. A batch goes to the child as one
//! frame on a socket pair; its payload goes through an arena, one file without a name that both
//! have mapped. A child that is lost is started again, the requests that were in it run one by one,
//! and the one that takes its child along gets [`ChildLost`], with the signal and the last that it
//! wrote.
//!
//! ```no_run
//! use onelane::{BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError};
//! use onelane_isolate::{IsolationConfig, Isolated, Supervisor, serve, this_program};
//! # use onelane_isolate::{Reader, Wire, WireError, Writer};
//!
//! struct Row(Vec<f32>);
//! # impl BatchItem for Row {
//! #     type Key = usize;
//! #     fn key(&self) -> usize {
//! #         self.0.len()
//! #     }
//! # }
//! # impl Wire for Row {
//! #     fn write(&self, to: &mut Writer<'_>) {
//! #         self.0.write(to);
//! #     }
//! #     fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
//! #         Vec::read(from).map(Self)
//! #     }
//! # }
//! # struct Mean;
//! # impl Mean {
//! #     fn load() -> Result<Self, EngineError> {
//! #         Ok(Self)
//! #     }
//! # }
//! # impl Engine for Mean {
//! #     type Item = Row;
//! #     type Output = f32;
//! #     fn infer(&mut self, batch: &[Row]) -> Result<Vec<f32>, EngineError> {
//! #         Ok(batch.iter().map(|row| row.0.iter().sum::<f32>() / row.0.len() as f32).collect())
//! #     }
//! # }
//! // `Row` implements `BatchItem` and `Wire`, and `Mean` is an `Engine` of them.
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     serve::<Mean>(Mean::load); // in a child, this never returns
//!     let supervisor = Supervisor::new(this_program, IsolationConfig::default())?;
//!     let device = DeviceExecutor::shared("metal:0")?;
//!     let factory = Isolated::<Mean>::factory(&supervisor);
//!     let queue = BatchQueue::new(&device, BatchConfig::default(), factory)?;
//!     println!("{}", queue.submit(Row(vec![1.0; 4])).expect("open").wait()?);
//!     Ok(())
//! }
//! ```
//!
//! # What is promised
//! A child never outlives its parent; no name is left in `/dev/shm` or `/tmp`, whoever is killed.
//! No request fails because a child is replaced. Nothing that a child sends can make the parent
//! panic or read out of bounds.
//!
//! # What is not
//! The parent trusts the child's program: it is a wall against accidents, not against malice. On
//! systems other than Linux a child that makes the arena shorter takes its parent along.

#![cfg(unix)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![warn(clippy::undocumented_unsafe_blocks)]

mod arena;
mod channel;
mod child;
mod children;
mod config;
mod error;
mod footprint;
pub mod frame;
mod isolated;
#[cfg(all(test, loom))]
mod models;
mod oom;
mod pool;
mod process;
mod serve;
mod serving;
mod socket;
mod stats;
mod stderr;
mod sticky;
mod supervisor;
mod sync;
mod wire;
mod worker;

pub use arena::{Reader, Writer};
pub use channel::{Channel, ChildBatch, OutputsError};
pub use config::{IsolationConfig, LineCallback};
pub use error::{Activity, ChildLost, RemoteError, StderrTail, WireError};
pub use isolated::Isolated;
pub use serve::{serve, serve_channel, this_program};
pub use stats::IsolationStats;
pub use sticky::sticky;
pub use supervisor::Supervisor;
pub use wire::Wire;
#[cfg(feature = "serde")]
pub use wire::{read_serde, write_serde};
