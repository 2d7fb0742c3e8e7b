//! [`Front`]: how threads get to the device: directly, under one lock, or
//! through a queue with workers.

/// How threads get to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Front {
    /// Each thread calls it.
    Threads,
    /// Each thread calls it, and goes on to its next iteration without waiting for the others, as
    /// threads of a server do.
    Loop,
    /// Each thread calls it, and synchronises, under one lock.
    Lock,
    /// Threads hand requests to workers, in a first-in, first-out queue.
    Queue {
        /// The number of workers, each with its own model.
        workers: usize,
        /// What a worker answers with.
        answers: Answers,
    },
}

/// What a worker of a queue answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answers {
    /// A host copy, made after a synchronise.
    Host,
    /// A tensor on the device, after a synchronise.
    Device,
    /// A tensor on the device, before a synchronise: a mistake, to see that it shows.
    DeviceTooEarly,
}
