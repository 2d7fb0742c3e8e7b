//! The simulated process: everything under one lock, and how a real thread waits for its turn.
//!
//! CORRECTNESS: the state's mutex is held only between two waits, never while a kernel or a caller's
//! closure runs. Exclusion between simulated threads comes from the baton, not from the mutex, so a
//! real lock (Python's interpreter lock, say) that a kernel takes cannot deadlock with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::baton::{Baton, Resource, Wait};
use crate::error::{Abort, Fault, SimError, SimResult};
use crate::machine::Machine;
use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

/// Baton and device.
#[derive(Debug)]
pub(crate) struct ProcessState {
    pub(crate) baton: Baton,
    pub(crate) machine: Machine,
}

/// A simulated process with its device.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: u64,
    state: Mutex<ProcessState>,
    /// How long blocked threads wait for one that is outside of the device.
    hang_after: Duration,
    resources: AtomicU64,
}

pub(crate) type ProcessGuard<'a> = MutexGuard<'a, ProcessState>;

impl Process {
    pub(crate) fn new(baton: Baton, machine: Machine, hang_after: Duration) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            state: Mutex::new(ProcessState { baton, machine }),
            hang_after,
            resources: AtomicU64::new(0),
        })
    }

    /// A number for a lock, barrier or channel.
    pub(crate) fn new_resource(&self) -> Resource {
        Resource::Sync(self.resources.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn lock(&self) -> ProcessGuard<'_> {
        // A panic in a thread that held the lock was a bug of ours or a failed assertion of a test;
        // the others still get the state, and with it the recorded error.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks for the thread that runs.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub(crate) fn lock_running(&self) -> SimResult<ProcessGuard<'_>> {
        let state = self.lock();
        match &state.baton.fatal {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }

    /// A yield point of the running thread.
    pub(crate) fn yield_point(&self, thread: ThreadId) -> SimResult<ProcessGuard<'_>> {
        let mut state = self.lock_running()?;
        state.baton.yield_point();
        self.wait_turn(state, thread)
    }

    /// The running thread waits until somebody wakes the resource.
    pub(crate) fn block<'a>(
        &'a self,
        mut state: ProcessGuard<'a>,
        thread: ThreadId,
        wait: Wait,
    ) -> SimResult<ProcessGuard<'a>> {
        let words = wait.words.clone();
        state.record(thread, ActionKind::Wait, &words);
        state.baton.block(thread, wait);
        self.wait_turn(state, thread)
    }

    /// A thread from outside waits for its turn.
    pub(crate) fn enter(&self, thread: ThreadId) -> SimResult<ProcessGuard<'_>> {
        let mut state = self.lock_running()?;
        state.baton.enter(thread);
        self.wait_turn(state, thread)
    }

    /// Threads from outside enter in one step. Each still has to wait for its turn.
    pub(crate) fn enter_together(&self, threads: &[ThreadId]) -> SimResult<()> {
        let mut state = self.lock_running()?;
        state.baton.enter_together(threads);
        Ok(())
    }

    /// The running thread gives its baton away and goes outside.
    pub(crate) fn leave(&self, thread: ThreadId) {
        let mut state = self.lock();
        if state.baton.fatal.is_none() && !state.baton.is_outside(thread) {
            state.baton.leave(thread);
        }
    }

    /// A thread ends: its cached blocks go back, and those who wait for its end wake.
    pub(crate) fn end(&self, thread: ThreadId) {
        let mut state = self.lock();
        if !state.baton.has_ended(thread) {
            state.machine.thread_ended(thread);
            state.record(thread, ActionKind::End, "");
            state.baton.end(thread);
        }
    }

    /// Waits until `thread` is the one that runs.
    pub(crate) fn wait_turn<'a>(
        &'a self,
        mut state: ProcessGuard<'a>,
        thread: ThreadId,
    ) -> SimResult<ProcessGuard<'a>> {
        if state.baton.running != Some(thread) {
            // CORRECTNESS: `hand_on` sets `running` and signals this thread's own condition under the
            // lock that we hold until we wait, so no hand-over is missed; `fail` signals everybody.
            let signal = state.baton.signal(thread);
            while state.baton.running != Some(thread) && state.baton.fatal.is_none() {
                let (again, timeout) = signal
                    .wait_timeout(state, self.hang_after)
                    .unwrap_or_else(PoisonError::into_inner);
                state = again;
                // Only threads outside could wake us, and they had their time.
                if timeout.timed_out() && state.baton.waits_for_outside() {
                    let hang = SimError::Hang(state.baton.hang());
                    state.baton.fail(hang);
                }
            }
        }
        match &state.baton.fatal {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }
}

impl ProcessState {
    /// Ends the simulated process by a fault.
    pub(crate) fn abort(&mut self, thread: ThreadId, operation: &str, fault: Fault) -> SimError {
        let abort = Abort {
            thread: self.baton.name(thread).to_string(),
            operation: operation.to_owned(),
            step: self.baton.step,
            fault,
        };
        self.record(thread, ActionKind::Abort, &abort.to_string());
        let error = SimError::Aborted(abort);
        self.baton.fail(error.clone());
        error
    }

    /// Records an event without a stream, and tells a scripted schedule of it.
    pub(crate) fn record(&mut self, thread: ThreadId, kind: ActionKind, name: &str) {
        let ProcessState { baton, machine } = self;
        baton.note(kind);
        machine.record(baton.step, baton.name(thread), kind, name);
    }
}
