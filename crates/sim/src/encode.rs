//! Encoding on a [`SimDevice`]: the order of the steps, and where threads may change between them.
//!
//! Steps on a stream are made inside its serial queue, except those of operations that the profile
//! lists as off-queue (rule R4). Threads change inside of an encoding only under a profile where that
//! can matter.

use crate::baton::{Resource, Wait};
use crate::buffer::Buffer;
use crate::cache::{Cache, Lookup};
use crate::command::{Access, Command, Kind, Op, Work};
use crate::device::SimDevice;
use crate::error::{Fault, SimError, SimResult};
use crate::machine::Machine;
use crate::process::{ProcessGuard, ProcessState};
use crate::serial_queue::{Target, release};
use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

impl SimDevice {
    /// Encodes a command on the calling thread's stream. `work` runs when the command is committed; it
    /// gets the bytes that the buffers' blocks hold *then*.
    ///
    /// A kernel stays pending; a graph is committed at once (rule R2).
    ///
    /// # Errors
    /// [`SimError::Aborted`] when a state machine or a cache is violated (rules R4, R6, R7),
    /// [`SimError::Affinity`] when the caller must own the device and does not, and whatever failed
    /// the simulated process before.
    pub fn encode(
        &self,
        op: Op,
        reads: &[&Buffer],
        writes: &[&Buffer],
        work: impl FnOnce(&[&[u8]], &mut [&mut [u8]]) + Send + 'static,
    ) -> SimResult<()> {
        let accesses = |buffers: &[&Buffer]| buffers.iter().map(|b| b.access()).collect();
        let (reads, writes) = (accesses(reads), accesses(writes));
        let work: Work = Box::new(work);
        self.act(|thread| {
            self.lookup(thread, &op)?;
            let mut state = self.process.yield_point(thread)?;
            state.check_owner(thread, ActionKind::Encode, op.name())?;
            let command = Command { op, thread, reads, writes, work };
            let target = Target {
                stream: state.machine.stream_of(thread),
                off_queue: state.machine.profile.is_off_queue(command.op.name()),
            };
            state.check_streams(thread, &command)?;
            if target.off_queue {
                drop(self.encode_steps(state, thread, target, command)?);
            } else {
                let state = self.acquire(state, thread, target.stream)?;
                let state = self.encode_steps(state, thread, target, command)?;
                release(state, target.stream);
            }
            Ok(())
        })
    }

    /// Looks the shader or graph up, and compiles it when it is not there (rule R6).
    fn lookup(&self, thread: ThreadId, op: &Op) -> SimResult<()> {
        let key = op.cached_as();
        let mut state = self.process.yield_point(thread)?;
        state.check_owner(thread, ActionKind::Lookup, op.name())?;
        let locked = state.machine.profile.caches_locked;
        let per_thread = state.machine.profile.graph_cache_per_thread && op.kind == Kind::Graph;
        let owner = per_thread.then_some(thread);
        let found = state.machine.cache(op.kind).find(owner, thread, key);
        state.record_on(thread, ActionKind::Lookup, |event| {
            let how = if found == Lookup::Hit { "hit" } else { "miss" };
            event.name = format!("{key} ({how})");
        });
        if found == Lookup::Miss {
            if !locked {
                drop(state);
                state = self.process.yield_point(thread)?;
            }
            let inserted = state.machine.cache(op.kind).insert(owner, thread, (key, locked));
            inserted.map_err(|fault| state.abort(thread, op.name(), fault))?;
        }
        drop(state);
        self.process.yield_point(thread).map(drop)
    }

    /// The steps of one encoding.
    fn encode_steps<'a>(
        &'a self,
        state: ProcessGuard<'a>,
        thread: ThreadId,
        target: Target,
        command: Command,
    ) -> SimResult<ProcessGuard<'a>> {
        let stream = target.stream;
        let switching = state.machine.profile.yields_inside_encoding();
        let name = command.op.name().to_owned();
        let kind = command.op.kind;
        let (mut state, buffer) = self.fetch_buffer(state, thread, stream)?;
        state.begin_kernel(thread, stream, &command)?;
        let accesses: Vec<Access> = command.reads.iter().chain(&command.writes).copied().collect();
        if state.machine.is_traced() {
            let blocks = |accesses: &[Access]| accesses.iter().map(|a| a.block).collect();
            let (reads, writes) = (blocks(&command.reads), blocks(&command.writes));
            state.record_on(thread, ActionKind::Encode, |event| {
                event.name.clone_from(&name);
                event.stream = Some(stream);
                event.command_buffer = Some(buffer);
                event.reads = reads;
                event.writes = writes;
            });
        } else {
            state.baton.note(ActionKind::Encode);
        }
        let cached_as = command.op.cached_as().to_owned();
        match kind {
            Kind::Kernel => {
                let encoder = match state.machine.streams.stream(stream).encoder {
                    Some(encoder) => encoder,
                    None => {
                        if switching {
                            drop(state);
                            state = self.process.yield_point(thread)?;
                        }
                        let begun = state.machine.streams.begin_encoder(stream, buffer);
                        begun.map_err(|fault| state.abort(thread, &name, fault))?
                    }
                };
                if switching {
                    drop(state);
                    state = self.process.yield_point(thread)?;
                }
                let encoded = state.machine.streams.dispatch((buffer, encoder), command);
                encoded.map_err(|fault| state.abort(thread, &name, fault))?;
            }
            Kind::Graph => {
                state.machine.streams.end_encoder(stream);
                if switching {
                    drop(state);
                    state = self.process.yield_point(thread)?;
                }
                let encoded = state.machine.streams.encode_graph(buffer, command);
                encoded.map_err(|fault| state.abort(thread, &name, fault))?;
            }
        }
        state.machine.encoded(stream, accesses.into_iter());
        state.machine.encoding.retain(|e| *e != (stream, cached_as.clone()));
        if kind == Kind::Graph {
            drop(state);
            state = self.process.yield_point(thread)?;
            state = self.commit_buffer(state, thread, target, &name)?;
        }
        Ok(state)
    }

    /// The stream's open command buffer; a new one when it has none (rule R8).
    pub(crate) fn fetch_buffer<'a>(
        &'a self,
        mut state: ProcessGuard<'a>,
        thread: ThreadId,
        stream: u32,
    ) -> SimResult<(ProcessGuard<'a>, u64)> {
        if let Some(buffer) = state.machine.streams.stream(stream).buffer {
            return Ok((state, buffer));
        }
        let queue = state.machine.streams.stream(stream).queue;
        let cap = state.machine.profile.command_buffers;
        while state.machine.streams.is_exhausted(queue, cap) {
            let wait = Wait {
                resource: Resource::CommandBuffer(queue),
                words: format!(
                    "a command buffer of queue {queue}, all {cap} of which are open or running"
                ),
            };
            state = self.process.block(state, thread, wait)?;
        }
        if state.machine.profile.yields_inside_encoding() {
            drop(state);
            state = self.process.yield_point(thread)?;
        }
        let buffer = state.machine.streams.make_buffer(stream);
        Ok((state, buffer))
    }

    /// Adds a completion handler to the stream's open command buffer, on its serial queue. Only that
    /// it can be added is simulated.
    ///
    /// # Errors
    /// As [`SimDevice::encode`]; [`Fault::HandlerAfterCommit`] when the buffer was committed in between.
    pub fn add_completed_handler(&self) -> SimResult<()> {
        self.act(|thread| {
            let mut state = self.process.yield_point(thread)?;
            let stream = state.machine.stream_of(thread);
            let state = self.acquire(state, thread, stream)?;
            let (mut state, buffer) = self.fetch_buffer(state, thread, stream)?;
            if state.machine.profile.yields_inside_encoding() {
                drop(state);
                state = self.process.yield_point(thread)?;
            }
            let added = state.machine.streams.add_handler(buffer);
            added.map_err(|fault| state.abort(thread, "completed handler", fault))?;
            release(state, stream);
            Ok(())
        })
    }
}

impl Machine {
    fn cache(&mut self, kind: Kind) -> &mut Cache {
        match kind {
            Kind::Kernel => &mut self.shaders,
            Kind::Graph => &mut self.graphs,
        }
    }
}

impl ProcessState {
    /// Checks that the thread may use the streams that the command's buffers depend on.
    fn check_streams(&self, thread: ThreadId, command: &Command) -> SimResult<()> {
        if !self.machine.profile.thread_affine {
            return Ok(());
        }
        for access in command.reads.iter().chain(&command.writes) {
            let stream = self.machine.memory.block(access.block).stream;
            if self.machine.streams.stream(stream).maker != thread {
                return Err(SimError::NoStream {
                    stream,
                    thread: self.baton.name(thread).to_string(),
                });
            }
        }
        Ok(())
    }

    /// A stream starts to encode a cached kernel object (rule R7).
    fn begin_kernel(&mut self, thread: ThreadId, stream: u32, command: &Command) -> SimResult<()> {
        let key = command.op.cached_as();
        if self.machine.profile.kernels_locked {
            return Ok(());
        }
        let encoding = &self.machine.encoding;
        if encoding.iter().any(|(other, kernel)| *other != stream && kernel == key) {
            let fault = Fault::KernelRace { kernel: key.to_owned() };
            return Err(self.abort(thread, command.op.name(), fault));
        }
        self.machine.encoding.push((stream, key.to_owned()));
        Ok(())
    }
}
