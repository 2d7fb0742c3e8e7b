//! Other Rust queues and onelane behind one interface, so that the same clients ask all of them the
//! same: [`Peer`] is a queue, [`Kind`] names those that there are, [`threads`] and [`tasks`] are
//! closed-loop clients.
//!
//! Every queue runs [`Work`], which gives each value back: what is measured is the queue alone.
//! Each peer is set up as it does best in a closed loop, and its file says how.

mod amate_engine;
mod batched_fn_macro;
mod closed_loop;
mod crossbeam_loop;
mod kind;
mod lane;
mod peer;
mod process;
mod tokio_loop;
mod tower_batch;
mod work;

pub use closed_loop::{Closed, tasks, threads, threads_on};
pub use kind::Kind;
pub use lane::{Echo, Lane, Value};
pub use peer::{Peer, PeerVisitor};
pub use process::{cpu_seconds, voluntary_switches};
pub use work::{MAX_BATCH, Work};
