//! [`Strategy`]: the ways in which many clients may use one engine.

use std::fmt;

/// A way to use an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// Every client thread has an engine of its own.
    Direct,
    /// All share one engine, under a mutex.
    Lock,
    /// A batch queue that runs requests one by one.
    #[value(name = "queue-1")]
    QueueOne,
    /// A batch queue that runs together what waits.
    Queue,
    /// One thread, no clients, whole batches made before: the limit.
    Offline,
}

impl Strategy {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 5] =
        [Self::Direct, Self::Lock, Self::QueueOne, Self::Queue, Self::Offline];

    /// Its name, as it is given.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Lock => "lock",
            Self::QueueOne => "queue-1",
            Self::Queue => "queue",
            Self::Offline => "offline",
        }
    }

    /// Whether there is a queue, so that a client waits without blocking its thread.
    pub fn has_queue(self) -> bool {
        matches!(self, Self::QueueOne | Self::Queue)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
