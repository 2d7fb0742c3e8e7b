//! Copies between host and device on a [`SimDevice`]. As in PyTorch, each is a blit on the calling
//! thread's stream that commits it and waits.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use crate::buffer::Buffer;
use crate::device::SimDevice;
use crate::error::SimResult;
use crate::memory::{Words, words};
use crate::process::ProcessGuard;
use crate::profile::StreamPolicy;
use crate::serial_queue::{Target, release};
use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

impl SimDevice {
    /// Copies a buffer to the host: a blit on the calling thread's stream, which commits it.
    ///
    /// # Errors
    /// As [`SimDevice::encode`].
    pub fn read(&self, buffer: &Buffer) -> SimResult<Vec<u8>> {
        let words = self.read_words(buffer)?;
        Ok(bytemuck::cast_slice::<f32, u8>(&words)[..buffer.bytes].to_vec())
    }

    /// As [`SimDevice::read`], without a copy.
    pub(crate) fn read_words(&self, buffer: &Buffer) -> SimResult<Words> {
        self.act(|thread| {
            let mut state = self.process.yield_point(thread)?;
            state.check_owner(thread, ActionKind::Read, "read")?;
            let stream = state.machine.stream_of(thread);
            self.drain(state, thread, stream, "read")?;
            let mut state = self.process.lock_running()?;
            state.record_on(thread, ActionKind::Read, |event| {
                event.stream = Some(stream);
                event.reads = vec![buffer.block];
                event.bytes = Some(buffer.bytes);
            });
            Ok(state.machine.memory.read(buffer.block, buffer.bytes))
        })
    }

    /// Copies host bytes to a buffer: a blit on the calling thread's stream, which commits it.
    ///
    /// # Errors
    /// As [`SimDevice::encode`].
    ///
    /// # Panics
    /// When `bytes` is not as long as the buffer.
    pub fn write(&self, buffer: &Buffer, bytes: &[u8]) -> SimResult<()> {
        assert_eq!(bytes.len(), buffer.bytes, "an upload fills the whole buffer");
        let mut own = vec![0.0; words(bytes.len())];
        bytemuck::cast_slice_mut::<f32, u8>(&mut own)[..bytes.len()].copy_from_slice(bytes);
        self.write_words(buffer, &Arc::new(own), xxh3_128(bytes))
    }

    /// Copies `data`, of the given hash, to a buffer.
    pub(crate) fn write_words(&self, buffer: &Buffer, data: &Words, hash: u128) -> SimResult<()> {
        self.act(|thread| {
            let mut state = self.process.yield_point(thread)?;
            state.check_owner(thread, ActionKind::Write, "write")?;
            let stream = state.machine.stream_of(thread);
            // candle writes to new buffers directly, without a command.
            if state.machine.profile.streams == StreamPolicy::BufferPerThread {
                drop(state);
            } else {
                self.blit(state, thread, stream)?;
            }
            let mut state = self.process.lock_running()?;
            state.record_on(thread, ActionKind::Write, |event| {
                event.stream = Some(stream);
                event.writes = vec![buffer.block];
                event.bytes = Some(buffer.bytes);
            });
            let memory = &mut state.machine.memory;
            memory.overwrite(buffer.block, data, (buffer.bytes, hash));
            state.mark_written(stream, &[buffer.access()]);
            Ok(())
        })
    }

    /// Encodes the blit of an upload into the stream's command buffer, and commits it.
    fn blit(&self, state: ProcessGuard<'_>, thread: ThreadId, stream: u32) -> SimResult<()> {
        let state = self.acquire(state, thread, stream)?;
        let (mut state, buffer) = self.fetch_buffer(state, thread, stream)?;
        state.machine.streams.end_encoder(stream);
        let begun = state.machine.streams.begin_encoder(stream, buffer);
        begun.map_err(|fault| state.abort(thread, "write", fault))?;
        state.machine.streams.end_encoder(stream);
        let target = Target { stream, off_queue: false };
        release(self.commit_buffer(state, thread, target, "write")?, stream);
        Ok(())
    }
}
