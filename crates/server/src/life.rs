//! The life of a server: loading, serving, draining, and what tells it to stop.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Where in its life a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Models are being loaded and checked.
    Loading,
    Serving,
    /// It has been told to stop: what comes is still answered, but `/ready` fails.
    Draining,
    /// Nothing more is accepted.
    Closing,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Closing => "closing",
        }
    }
}

/// What tells a server to stop: the first signal drains it, the second aborts.
#[derive(Debug)]
pub struct Signals(mpsc::UnboundedReceiver<()>);

/// Stops a server from within the program; see [`Signals::manual`].
#[derive(Clone, Debug)]
pub struct Stop(mpsc::UnboundedSender<()>);

impl Stop {
    /// Sends a signal.
    pub fn signal(&self) {
        // A server that has ended needs none.
        let _ = self.0.send(());
    }
}

impl Signals {
    /// SIGTERM and SIGINT of this process. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn of_process() -> io::Result<Self> {
        let (send, receive) = mpsc::unbounded_channel();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = send.closed() => return,
                }
                if send.send(()).is_err() {
                    return;
                }
            }
        });
        Ok(Self(receive))
    }

    /// Signals that the program gives itself. When every [`Stop`] has been dropped none comes any
    /// more, and the server goes on.
    pub fn manual() -> (Stop, Self) {
        let (send, receive) = mpsc::unbounded_channel();
        (Stop(send), Self(receive))
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
