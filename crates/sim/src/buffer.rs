//! [`Buffer`]: a piece of the device's memory. Dropping it frees its block at once, whatever commands
//! still refer to the block (rule R3).

use std::fmt;

use crate::command::Access;
use crate::device::SimDevice;

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

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.free(self);
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
