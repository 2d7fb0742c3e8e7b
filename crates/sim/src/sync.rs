//! Locks, barriers and channels for simulated threads. Waiting for one is known to the scheduler and to
//! the hang detector, and the order of hand-over is the schedule's.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::baton::{Resource, Wait};
use crate::device::SimDevice;
use crate::error::SimResult;
use crate::process::Process;
use crate::registration::with_turn;
use crate::thread_id::ThreadId;

fn inner<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // CORRECTNESS: only the thread with the baton gets here, so this never waits.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock. It is not fair, and a thread that dies with it leaves it locked.
#[derive(Clone, Debug)]
pub struct SimLock {
    process: Arc<Process>,
    resource: Resource,
    name: Arc<str>,
    holder: Arc<Mutex<Option<ThreadId>>>,
}

impl SimLock {
    /// A free lock.
    pub fn new(device: &SimDevice, name: &str) -> Self {
        Self {
            process: Arc::clone(&device.process),
            resource: device.process.new_resource(),
            name: Arc::from(name),
            holder: Arc::default(),
        }
    }

    /// Runs `f` with the lock held.
    ///
    /// # Errors
    /// When the simulated process has failed.
    ///
    /// # Blocking
    /// Until the lock is free.
    pub fn with<R>(&self, f: impl FnOnce() -> R) -> SimResult<R> {
        with_turn(&self.process, |thread| {
            let mut state = self.process.yield_point(thread)?;
            loop {
                let holder = *inner(&self.holder);
                let Some(holder) = holder else { break };
                let wait = Wait {
                    resource: self.resource,
                    words: format!(
                        "the lock `{}`, which `{}` holds",
                        self.name,
                        state.baton.name(holder)
                    ),
                };
                state = self.process.block(state, thread, wait)?;
            }
            *inner(&self.holder) = Some(thread);
            drop(state);
            let result = f();
            let mut state = self.process.yield_point(thread)?;
            *inner(&self.holder) = None;
            state.baton.wake(self.resource);
            Ok(result)
        })
    }
}

/// A reusable barrier.
#[derive(Clone, Debug)]
pub struct SimBarrier {
    process: Arc<Process>,
    resource: Resource,
    threads: usize,
    /// Threads that wait, and how often the barrier has opened.
    waiting: Arc<Mutex<(usize, u64)>>,
}

impl SimBarrier {
    /// A barrier for `threads` threads.
    pub fn new(device: &SimDevice, threads: usize) -> Self {
        Self {
            process: Arc::clone(&device.process),
            resource: device.process.new_resource(),
            threads,
            waiting: Arc::default(),
        }
    }

    /// Waits for the others.
    ///
    /// # Errors
    /// When the simulated process has failed.
    ///
    /// # Blocking
    /// Until all threads have come.
    pub fn wait(&self) -> SimResult<()> {
        with_turn(&self.process, |thread| {
            let mut state = self.process.lock_running()?;
            let opened = {
                let mut waiting = inner(&self.waiting);
                waiting.0 += 1;
                if waiting.0 == self.threads {
                    *waiting = (0, waiting.1 + 1);
                    state.baton.wake(self.resource);
                    // The last one goes on by the schedule, like the others.
                    drop(waiting);
                    drop(state);
                    return self.process.yield_point(thread).map(drop);
                }
                waiting.1
            };
            while inner(&self.waiting).1 == opened {
                let wait = Wait {
                    resource: self.resource,
                    words: format!("a barrier of {} threads", self.threads),
                };
                state = self.process.block(state, thread, wait)?;
            }
            Ok(())
        })
    }
}

/// An unbounded first-in, first-out channel that can be closed. A clone is another end of it.
pub struct SimChannel<T> {
    process: Arc<Process>,
    resource: Resource,
    name: Arc<str>,
    queue: Arc<Mutex<Queue<T>>>,
}

struct Queue<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> SimChannel<T> {
    /// An empty channel.
    pub fn new(device: &SimDevice, name: &str) -> Self {
        Self {
            process: Arc::clone(&device.process),
            resource: device.process.new_resource(),
            name: Arc::from(name),
            queue: Arc::new(Mutex::new(Queue { items: VecDeque::new(), closed: false })),
        }
    }

    /// Appends an item.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn send(&self, item: T) -> SimResult<()> {
        with_turn(&self.process, |thread| {
            let mut state = self.process.yield_point(thread)?;
            inner(&self.queue).items.push_back(item);
            state.baton.wake(self.resource);
            Ok(())
        })
    }

    /// Takes the oldest item; `None` when the channel is closed and empty.
    ///
    /// # Errors
    /// When the simulated process has failed.
    ///
    /// # Blocking
    /// Until there is an item, or the channel is closed.
    pub fn receive(&self) -> SimResult<Option<T>> {
        with_turn(&self.process, |thread| {
            let mut state = self.process.yield_point(thread)?;
            loop {
                {
                    let mut queue = inner(&self.queue);
                    if let Some(item) = queue.items.pop_front() {
                        return Ok(Some(item));
                    }
                    if queue.closed {
                        return Ok(None);
                    }
                }
                let wait = Wait {
                    resource: self.resource,
                    words: format!("something in the channel `{}`", self.name),
                };
                state = self.process.block(state, thread, wait)?;
            }
        })
    }

    /// Closes the channel: receivers get what is in it, and then nothing.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn close(&self) -> SimResult<()> {
        with_turn(&self.process, |thread| {
            let mut state = self.process.yield_point(thread)?;
            inner(&self.queue).closed = true;
            state.baton.wake(self.resource);
            Ok(())
        })
    }
}

impl<T> Clone for SimChannel<T> {
    fn clone(&self) -> Self {
        Self {
            process: Arc::clone(&self.process),
            resource: self.resource,
            name: Arc::clone(&self.name),
            queue: Arc::clone(&self.queue),
        }
    }
}

impl<T> fmt::Debug for SimChannel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimChannel").field("name", &self.name).finish_non_exhaustive()
    }
}
