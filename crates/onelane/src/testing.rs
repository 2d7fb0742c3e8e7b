//! For tests: a virtual clock, an engine to be told what to do, a gate, and a hard timeout.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "tests are not modelled")]

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::engine::{BatchItem, Engine};
use crate::error::EngineError;
pub use crate::sync::VirtualClock;

/// The input of a [`FakeEngine`]: a value, the key that it may share a batch with, and a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeItem {
    /// What the engine sees and, unless told otherwise, returns.
    pub value: u64,
    /// The batch key.
    pub key: u64,
    /// The cost.
    pub cost: usize,
}

impl FakeItem {
    /// An item of key 0 and cost 1.
    pub fn new(value: u64) -> Self {
        Self { value, key: 0, cost: 1 }
    }

    /// Sets the batch key.
    #[must_use]
    pub fn key(mut self, key: u64) -> Self {
        self.key = key;
        self
    }

    /// Sets the cost.
    #[must_use]
    pub fn cost(mut self, cost: usize) -> Self {
        self.cost = cost;
        self
    }
}

impl BatchItem for FakeItem {
    type Key = u64;

    fn key(&self) -> u64 {
        self.key
    }

    fn cost(&self) -> usize {
        self.cost
    }
}

type Script = Box<dyn FnMut(&[FakeItem]) -> Result<Vec<u64>, EngineError>>;

/// An engine that does what a closure says.
pub struct FakeEngine {
    script: Script,
    idempotent: bool,
}

impl FakeEngine {
    /// An engine whose `infer` is `script`.
    pub fn new(script: impl FnMut(&[FakeItem]) -> Result<Vec<u64>, EngineError> + 'static) -> Self {
        Self { script: Box::new(script), idempotent: true }
    }

    /// An engine that returns each item's value.
    pub fn echo() -> Self {
        Self::new(|batch| Ok(batch.iter().map(|item| item.value).collect()))
    }

    /// Says that a failed batch must not be run again in parts.
    #[must_use]
    pub fn not_idempotent(mut self) -> Self {
        self.idempotent = false;
        self
    }
}

impl Engine for FakeEngine {
    type Item = FakeItem;
    type Output = u64;

    fn infer(&mut self, batch: &[FakeItem]) -> Result<Vec<u64>, EngineError> {
        (self.script)(batch)
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }
}

/// A gate that an engine waits at until a test lets it pass, and at which a test waits for the
/// engine to arrive.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    arrived: usize,
    allowed: usize,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Arrives at the gate and waits to be let through.
    ///
    /// # Blocking
    /// Blocks until [`open`](Self::open) has been called once more than there were passages.
    pub fn pass(&self) {
        let mut state = self.state();
        state.arrived += 1;
        self.0.1.notify_all();
        while state.allowed == 0 {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.allowed = state.allowed.saturating_sub(1);
    }

    /// Waits until `count` passages in all have been asked for.
    ///
    /// # Blocking
    /// Blocks until then.
    pub fn wait_for_arrivals(&self, count: usize) {
        let mut state = self.state();
        while state.arrived < count {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How many passages have been asked for.
    pub fn arrivals(&self) -> usize {
        self.state().arrived
    }

    /// Lets `count` more passages through.
    pub fn open(&self, count: usize) {
        let mut state = self.state();
        state.allowed = state.allowed.saturating_add(count);
        self.0.1.notify_all();
    }

    /// Lets everything through from now on.
    pub fn open_for_good(&self) {
        self.open(usize::MAX / 2);
    }
}

/// Runs `body` on a thread of its own and panics if it has not ended in 60 s: a hang is a failure.
///
/// # Panics
/// When the time is over, or with the panic of `body`.
pub fn within_a_minute<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = body();
        let _ = done.send(());
        result
    });
    let timed_out = std::sync::mpsc::RecvTimeoutError::Timeout;
    // An interpreter takes minutes for what takes milliseconds.
    let limit = Duration::from_secs(if cfg!(miri) { 3600 } else { 60 });
    if waiting.recv_timeout(limit) == Err(timed_out) {
        panic!("the test hangs: it has not ended in {limit:?}");
    }
    match thread.join() {
        Ok(result) => result,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}
