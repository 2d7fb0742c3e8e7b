//! The workers, as their executor sees them: what each has to do by itself, and whether it sleeps.

use std::collections::VecDeque;
use std::task::Waker;

use crate::scheduler::id::QueueId;
use crate::sync::Deferred;
use crate::worker::engines::Engines;

/// Something that has to run on one certain worker.
pub(crate) enum WorkerCommand {
    /// Anything with its engines: build one.
    Run(Box<dyn FnOnce(&Engines) + Send>),
    /// Build the engine of a queue again, and say whether it is there.
    Rebuild(QueueId, Box<dyn FnOnce(&Engines) -> bool + Send>),
    /// Drop the engine of a closed queue.
    Retire(QueueId),
    /// End out of turn, as no user's code can bring about.
    #[cfg(test)]
    Die,
}

/// One worker.
#[derive(Default)]
struct WorkerState {
    commands: VecDeque<WorkerCommand>,
    /// Set while the worker sleeps; whoever takes it must wake it.
    asleep: Option<Waker>,
}

/// The workers of an executor.
#[derive(Default)]
pub(crate) struct Workers(Vec<WorkerState>);

impl Workers {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| WorkerState::default()).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn any_asleep(&self) -> bool {
        self.0.iter().any(|worker| worker.asleep.is_some())
    }

    /// Notes that a worker is about to sleep, until its waker is taken.
    pub(crate) fn sleeps(&mut self, worker: usize, waker: Waker) {
        self.0[worker].asleep = Some(waker);
    }

    pub(crate) fn is_up(&mut self, worker: usize) {
        self.0[worker].asleep = None;
    }

    /// Wakes one sleeping worker, if there is one.
    pub(crate) fn wake_one(&mut self, deferred: &mut Deferred) {
        if let Some(waker) = self.0.iter_mut().find_map(|worker| worker.asleep.take()) {
            deferred.wake(waker);
        }
    }

    pub(crate) fn wake_all(&mut self, deferred: &mut Deferred) {
        deferred.wake_all(self.0.iter_mut().filter_map(|worker| worker.asleep.take()));
    }

    /// Leaves a command for one worker, to be run before anything else.
    pub(crate) fn send(&mut self, worker: usize, command: WorkerCommand, deferred: &mut Deferred) {
        self.0[worker].commands.push_back(command);
        if let Some(waker) = self.0[worker].asleep.take() {
            deferred.wake(waker);
        }
    }

    /// Takes what was left for a worker first.
    pub(crate) fn next_command(&mut self, worker: usize) -> Option<WorkerCommand> {
        self.0[worker].commands.pop_front()
    }
}
