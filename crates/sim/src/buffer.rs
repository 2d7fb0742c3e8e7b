//! [`Buffer`]: a piece of the device's memory, from its allocation to its end. Dropping it frees its
//! block at once, whatever commands still refer to the block (rule R3).

use std::fmt;

use crate::command::Access;
use crate::device::SimDevice;
use crate::error::SimResult;
use crate::trace::ActionKind;

/// A piece of device memory. It owns its block until it is dropped; commands only refer to the block.
pub struct Buffer {
    pub(crate) device: SimDevice,
    pub(crate) block: u32,
    pub(crate) generation: u32,
    pub(crate) bytes: usize,
}

impl Buffer {
    /// Its length in bytes, as it was asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of its block. A freed block's number comes back with the block.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// The device that it is on.
    pub fn device(&self) -> &SimDevice {
        &self.device
    }

    pub(crate) fn access(&self) -> Access {
        Access { block: self.block, generation: self.generation, bytes: self.bytes }
    }
}

impl SimDevice {
    /// Allocates `bytes` bytes; dropping the buffer frees them. The contents are what the block held
    /// before.
    ///
    /// # Errors
    /// When the simulated process has failed, or the caller must own the device and does not.
    ///
    /// # Blocking
    /// Until it is the calling thread's turn. So do all calls on the device.
    pub fn alloc(&self, bytes: usize) -> SimResult<Buffer> {
        self.act(|thread| {
            let mut state = self.process.yield_point(thread)?;
            state.check_owner(thread, ActionKind::Alloc, "alloc")?;
            let (block, generation) = state.machine.alloc(thread, bytes);
            let stream = state.machine.stream_of(thread);
            state.record_on(thread, ActionKind::Alloc, |event| {
                event.stream = Some(stream);
                event.writes = vec![block];
                event.bytes = Some(bytes);
            });
            Ok(Buffer { device: self.clone(), block, generation, bytes })
        })
    }
}

impl Drop for Buffer {
    /// Frees the block. Its commands keep referring to it.
    fn drop(&mut self) {
        let device = &self.device;
        // An error means that the process is gone, and its memory with it.
        let _ = device.act(|thread| {
            let mut state = device.process.yield_point(thread)?;
            // A destructor cannot fail; an asserting check still records.
            let _ = state.check_owner(thread, ActionKind::Free, "free");
            let stream = state.machine.stream_of(thread);
            state.machine.free(thread, self.block);
            state.record_on(thread, ActionKind::Free, |event| {
                event.stream = Some(stream);
                event.writes = vec![self.block];
                event.bytes = Some(self.bytes);
            });
            Ok(())
        });
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("block", &self.block)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
