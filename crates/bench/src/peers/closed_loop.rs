//! Closed-loop clients of a peer: what is measured is the queue alone.

use std::sync::Arc;
use std::time::Duration;

use super::peer::Peer;
use super::process::cpu_seconds;
use super::work::Work;
use crate::generator::{Asked, ClosedLoop, Limit, Observer, Ready, runtime};

/// What a closed loop came to.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// Requests answered in time.
    pub answered: u64,
    /// How long that took.
    pub took: Duration,
    /// Processor time of the whole process meanwhile, in seconds.
    pub cpu_s: f64,
}

impl Closed {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64()
    }

    /// Processor time for each request, in nanoseconds.
    pub fn cpu_ns(&self) -> f64 {
        self.cpu_s / self.answered as f64 * 1e9
    }
}

/// Counts answers; a wrong one is a panic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echoes {
    answered: u64,
}

impl Observer for Echoes {
    type Reply = u64;

    const TIMED: bool = false;

    fn first(&mut self, asked: &Asked, reply: u64) -> Result<(), String> {
        assert_eq!(reply, asked.number);
        Ok(())
    }

    fn note(&mut self, asked: &Asked, reply: u64, in_time: bool) {
        assert_eq!(reply, asked.number);
        self.answered += u64::from(in_time);
    }

    fn merge(&mut self, other: Self) {
        self.answered += other.answered;
    }
}

/// Client threads on a new queue.
///
/// # Panics
/// When there are too few threads, or an answer is wrong.
///
/// # Blocking
/// Until the limit.
pub fn threads<P: Peer>(count: usize, limit: Limit) -> Closed {
    threads_on(&Arc::new(P::start(Work::default(), count)), count, limit)
}

/// Client threads on a queue that is there.
///
/// # Panics
/// As [`threads`].
///
/// # Blocking
/// Until the limit.
pub fn threads_on<P: Peer>(peer: &Arc<P>, count: usize, limit: Limit) -> Closed {
    let clients = ClosedLoop { clients: count, limit, warm_up: true };
    measure(clients.threads(peer, Echoes::default).expect("threads can be had"))
}

/// Client tasks on a new queue, on a tokio runtime with so many threads.
///
/// # Panics
/// As [`threads`].
///
/// # Blocking
/// Until the limit.
pub fn tasks<P: Peer>(count: usize, on_threads: usize, limit: Limit) -> Closed {
    let runtime = runtime(on_threads).expect("threads can be had");
    // What a peer runs as a task runs among its clients.
    let within = runtime.enter();
    let peer = Arc::new(P::start(Work::default(), count));
    let clients = ClosedLoop { clients: count, limit, warm_up: true };
    let ready = clients.tasks(&runtime, &peer, Echoes::default).expect("tasks can be had");
    drop(within);
    measure(ready)
}

fn measure(ready: Ready<Echoes>) -> Closed {
    let before = cpu_seconds();
    let ran = ready.run().expect("answers are right");
    let cpu_s = cpu_seconds() - before;
    Closed { answered: ran.observer.answered, took: ran.took, cpu_s }
}
