//! Other Rust queues and onelane behind one interface, so that the same clients ask all of them the
//! same: [`Peer`] is a queue, [`threads`] and [`tasks`] are closed-loop clients, [`Paired`] turns
//! neighbouring measurements into a ratio.
//!
//! Every queue runs [`Work`], which gives each value back: what is measured is the queue alone.
//! Each peer is set up as it does best in a closed loop, and its file says how.

mod amate_engine;
mod batched_fn_macro;
mod clients;
mod crossbeam_loop;
mod lane;
mod paired;
mod peer;
mod process;
mod tokio_loop;
mod tower_batch;
mod work;

pub use amate_engine::AmateEngine;
pub use batched_fn_macro::BatchedFnMacro;
pub use clients::{Closed, tasks, threads};
pub use crossbeam_loop::CrossbeamLoop;
pub use lane::{Echo, Lane, Value};
pub use paired::{Paired, median};
pub use peer::{BoxedClient, Client, Kind, Peer, PeerVisitor};
pub use process::{cpu_seconds, voluntary_switches};
pub use tokio_loop::TokioLoop;
pub use tower_batch::TowerBatch;
pub use work::{MAX_BATCH, Work};
