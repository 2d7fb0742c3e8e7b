//! [`Start`]: where clients stand until all are ready, and begin together.
//!
//! Invariant: a client that fails, panics or cannot be started keeps nobody waiting. Ready is
//! whoever has let go of its sender, and clients whose starter is gone are told not to begin.

use std::sync::mpsc;
use std::time::Instant;

use tokio::sync::watch;

/// One client's end.
#[derive(Clone)]
pub struct Start {
    /// Never sent through: its drop says that the client is ready, or has failed.
    ready: mpsc::Sender<()>,
    begin: watch::Receiver<bool>,
}

/// The end of whoever lets them begin.
pub struct Starter {
    ready: mpsc::Receiver<()>,
    begin: watch::Sender<bool>,
}

/// A start for any number of clients; each has a clone of the first half.
pub fn start() -> (Start, Starter) {
    let (sender, receiver) = mpsc::channel();
    let (begin, begun) = watch::channel(false);
    (Start { ready: sender, begin: begun }, Starter { ready: receiver, begin })
}

impl Start {
    /// Waits until all may begin, and gives the time; none when they are not to begin at all.
    pub async fn wait(self) -> Option<Instant> {
        let Self { ready, mut begin } = self;
        drop(ready);
        begin.wait_for(|begun| *begun).await.ok()?;
        Some(Instant::now())
    }
}

impl Starter {
    /// Waits until every client is ready or has failed.
    ///
    /// # Blocking
    /// Until then.
    pub fn all_ready(&self) {
        // Nothing is ever sent; this ends with the last sender.
        while self.ready.recv().is_ok() {}
    }

    /// Lets all begin.
    pub fn begin(self) {
        // Whoever has failed does not listen.
        let _ = self.begin.send(true);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn clients_begin_when_all_are_ready_and_who_fails_keeps_nobody() {
        let (start, starter) = start();
        let failing = start.clone();
        let client = std::thread::spawn(move || block_on(start.wait()));
        drop(failing);
        starter.all_ready();
        assert!(!client.is_finished(), "it waits for the word");
        starter.begin();
        assert!(client.join().unwrap().is_some());
    }

    #[test]
    fn clients_do_not_begin_without_a_starter() {
        let (start, starter) = start();
        drop(starter);
        assert!(block_on(start.wait()).is_none());
    }
}
