//! What clients, workers and handles of one executor share: its name, its clock and, behind the one
//! lock, its state.
//!
//! Lock order: this lock, then a queue's inbox's, then a response slot's. No user code runs under any of
//! them, save a key's `Eq`, contained, when its request is filed; what else has to run is collected in
//! [`After`] and done when [`Locked`] is dropped.

use std::ops::{Deref, DerefMut};

use crate::after::After;
use crate::clock::Clock;
use crate::policy::QueueId;
use crate::state::State;
use crate::stats::QueueStats;
use crate::sync::{Mutex, MutexGuard};

/// What clients, workers and handles of one executor share.
pub(crate) struct Shared {
    pub(crate) device: String,
    pub(crate) workers: usize,
    pub(crate) clock: Clock,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(device: String, workers: usize, clock: Clock) -> Self {
        Self { device, workers, clock, state: Mutex::new(State::new(workers)) }
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked { guard: Some(self.state.lock()), after: After::default() }
    }

    /// The statistics of a queue; none of one that has never been.
    pub(crate) fn stats(&self, queue: QueueId) -> QueueStats {
        let stats = {
            let mut locked = self.lock();
            let (state, after) = locked.parts();
            state.stats(queue, after)
        };
        stats.map(|stats| stats.summary()).unwrap_or_default()
    }
}

/// The locked state. Dropping it releases the lock first and then does what was put in `after`.
pub(crate) struct Locked<'a> {
    guard: Option<MutexGuard<'a, State>>,
    after: After,
}

impl Locked<'_> {
    pub(crate) fn parts(&mut self) -> (&mut State, &mut After) {
        (self.guard.as_mut().expect(HELD), &mut self.after)
    }
}

const HELD: &str = "the guard is taken in drop alone";

impl Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        self.guard.as_ref().expect(HELD)
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.guard.as_mut().expect(HELD)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.after.run();
    }
}
