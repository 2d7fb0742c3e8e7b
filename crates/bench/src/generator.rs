//! The load generator. Load is made of three parts:
//!
//! - a **target**, which answers requests: [`Target`] makes clients that ask and wait, [`Submit`]
//!   takes a request and gives back what waits for its answer. [`QueueTarget`] is onelane's queue.
//! - an **arrival process**: [`ClosedLoop`], where each client asks again when it has its answer;
//!   [`Arrivals`], where requests come when they come, to a queue ([`open_to_queue`]) or to threads
//!   ([`open_to_threads`]); and [`saturate`], which keeps a number of requests under way.
//! - an **observer** of each client, which judges and counts answers ([`Observer`]).
//!
//! A request is a number; the target makes of it what it answers. No two requests of one run have
//! the same number.

mod arrivals;
mod closed;
mod crew;
mod latency;
mod observer;
mod open;
mod queue_target;
mod saturate;
mod start;
mod target;

pub use arrivals::{Arrivals, Process, sleep_until};
pub use closed::{ClosedLoop, Limit, Ready};
pub use crew::{Crew, runtime};
pub use latency::Latencies;
pub use observer::{Asked, Observer, Ran};
pub use open::{Offered, Sent, open_to_queue, open_to_threads};
pub use queue_target::{PendingAnswer, QueueTarget};
pub use saturate::saturate;
pub use target::{AsyncClient, Client, Refused, Submit, Target};
