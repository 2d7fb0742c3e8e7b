//! A stream's serial queue, as Grand Central Dispatch has them: one thread at a time is on it.
//!
//! Steps on a stream are made on its queue, except those of operations that the profile lists as
//! off-queue (rule R4).

use crate::baton::{Resource, Wait};
use crate::device::SimDevice;
use crate::error::SimResult;
use crate::process::ProcessGuard;
use crate::thread_id::ThreadId;

/// A stream, and whether its steps are made off its serial queue.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) stream: u32,
    pub(crate) off_queue: bool,
}

impl SimDevice {
    /// Enters a stream's serial queue.
    pub(crate) fn acquire<'a>(
        &'a self,
        mut state: ProcessGuard<'a>,
        thread: ThreadId,
        stream: u32,
    ) -> SimResult<ProcessGuard<'a>> {
        let serial = state.machine.streams.stream(stream).serial;
        while let Some(holder) = state.machine.streams.holders.get(&serial) {
            let wait = Wait {
                resource: Resource::SerialQueue(serial),
                words: format!(
                    "the serial queue of stream {serial}, which `{}` is on",
                    state.baton.name(*holder)
                ),
            };
            state = self.process.block(state, thread, wait)?;
        }
        state.machine.streams.holders.insert(serial, thread);
        Ok(state)
    }

    /// Runs `f` on the serial queue of the calling thread's stream, as `dispatch_sync` does. A thread
    /// that dies in `f` (it panics) stays the queue's owner (rule R5). Calling the device inside of
    /// `f` waits for the queue that the caller is on, which is a hang.
    ///
    /// # Errors
    /// As [`SimDevice::encode`].
    pub fn on_queue<R>(&self, f: impl FnOnce() -> R) -> SimResult<R> {
        self.turn(|thread| {
            let mut state = self.process.yield_point(thread)?;
            let stream = state.machine.stream_of(thread);
            drop(self.acquire(state, thread, stream)?);
            let result = f();
            release(self.process.lock_running()?, stream);
            Ok(result)
        })
    }
}

/// Leaves a stream's serial queue.
pub(crate) fn release(mut state: ProcessGuard<'_>, stream: u32) {
    let serial = state.machine.streams.stream(stream).serial;
    state.machine.streams.holders.remove(&serial);
    state.baton.wake(Resource::SerialQueue(serial));
}
