//! [`Observer`]: what sees the answers of one client.

use std::time::{Duration, Instant};

/// A request that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its client, from 0.
    pub client: usize,
    /// Which request it is.
    pub number: u64,
    /// When it was meant to be sent.
    pub due: Instant,
    /// When it was sent.
    pub sent: Instant,
}

/// Judges answers and counts them. Each client has one; they are merged when all have ended.
pub trait Observer: Send + 'static {
    /// What it sees.
    type Reply: Send + 'static;

    /// Whether it looks at the times of requests. In a closed loop without, nobody looks at the
    /// clock for each request, and `due` and `sent` are when the client began.
    const TIMED: bool = true;

    /// The answer to a client's first request, before time is taken; it is not counted.
    ///
    /// # Errors
    /// Why there is no use in going on.
    fn first(&mut self, asked: &Asked, reply: Self::Reply) -> Result<(), String>;

    /// An answer, and whether it came before time was over.
    fn note(&mut self, asked: &Asked, reply: Self::Reply, in_time: bool);

    /// A request that nobody had got to when time was over.
    fn missed(&mut self, asked: &Asked, over: Instant) {
        let _ = (asked, over);
    }

    /// Adds what another client's observer saw.
    fn merge(&mut self, other: Self);
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Ran<O> {
    /// What was seen, of all clients.
    pub observer: O,
    /// How long it took.
    pub took: Duration,
}
