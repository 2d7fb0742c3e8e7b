//! Committing on a [`SimDevice`]: commands run here, on the bytes that their blocks hold at that time
//! (rule R1).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::baton::Resource;
use crate::command::{Access, Command, Work};
use crate::device::SimDevice;
use crate::error::SimResult;
use crate::memo::hash;
use crate::memory::{Words, Written, words};
use crate::process::{ProcessGuard, ProcessState};
use crate::profile::StreamPolicy;
use crate::serial_queue::{Target, release};
use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

impl SimDevice {
    /// Commits what is pending on the calling thread's stream.
    ///
    /// # Errors
    /// As [`SimDevice::encode`].
    ///
    /// # Panics
    /// When a command's work panics: in whoever commits it.
    pub fn commit(&self) -> SimResult<()> {
        self.act(|thread| {
            let mut state = self.process.yield_point(thread)?;
            state.check_owner(thread, ActionKind::Commit, "commit")?;
            let stream = state.machine.stream_of(thread);
            self.drain(state, thread, stream, "commit")
        })
    }

    /// Commits what is pending, on all streams where the profile says so, and waits for it.
    ///
    /// # Errors
    /// As [`SimDevice::encode`].
    pub fn synchronise(&self) -> SimResult<()> {
        self.act(|thread| {
            let mut state = self.process.yield_point(thread)?;
            state.check_owner(thread, ActionKind::Synchronise, "synchronise")?;
            let own = state.machine.stream_of(thread);
            state.record_on(thread, ActionKind::Synchronise, |event| {
                event.stream = Some(own);
            });
            let streams = if state.machine.profile.synchronise_all {
                0..state.machine.streams.streams.len() as u32
            } else {
                own..own + 1
            };
            let off_queue = state.machine.profile.is_off_queue("synchronise");
            drop(state);
            for stream in streams {
                let mut state = self.process.yield_point(thread)?;
                if off_queue {
                    state.machine.streams.end_encoder(stream);
                    drop(state);
                    let state = self.process.yield_point(thread)?;
                    let target = Target { stream, off_queue };
                    drop(self.commit_buffer(state, thread, target, "synchronise")?);
                } else {
                    self.drain(state, thread, stream, "synchronise")?;
                }
            }
            Ok(())
        })
    }

    /// Commits what is pending on a stream, on its serial queue.
    pub(crate) fn drain(
        &self,
        state: ProcessGuard<'_>,
        thread: ThreadId,
        stream: u32,
        operation: &str,
    ) -> SimResult<()> {
        let mut state = self.acquire(state, thread, stream)?;
        state.machine.streams.end_encoder(stream);
        let target = Target { stream, off_queue: false };
        let state = self.commit_buffer(state, thread, target, operation)?;
        release(state, stream);
        Ok(())
    }

    /// Commits the stream's open command buffer, and runs what is in it.
    pub(crate) fn commit_buffer<'a>(
        &'a self,
        mut state: ProcessGuard<'a>,
        thread: ThreadId,
        target: Target,
        operation: &str,
    ) -> SimResult<ProcessGuard<'a>> {
        let stream = target.stream;
        let Some(buffer) = state.machine.streams.stream(stream).buffer else {
            return Ok(state);
        };
        let committed = state.machine.streams.commit(buffer);
        let commands = committed.map_err(|fault| state.abort(thread, operation, fault))?;
        state.machine.stats.commits += 1;
        state.record_on(thread, ActionKind::Commit, |event| {
            event.name = operation.to_owned();
            event.stream = Some(stream);
            event.command_buffer = Some(buffer);
        });
        drop(state);
        let mut panic = None;
        for command in commands {
            let ran = self.execute(thread, (stream, buffer), command);
            panic = panic.or(ran.err());
        }
        let mut state = if target.off_queue {
            // The buffer has run, and the stream still names it as the open one.
            self.process.yield_point(thread)?
        } else {
            self.process.lock_running()?
        };
        let queue = state.machine.streams.stream(stream).queue;
        state.machine.streams.complete(buffer);
        if state.machine.streams.stream(stream).buffer == Some(buffer) {
            state.machine.streams.stream_mut(stream).buffer = None;
        }
        let machine = &mut state.machine;
        machine.allocator.release(&machine.profile, &machine.memory);
        if machine.profile.streams == StreamPolicy::BufferPerThread {
            machine.streams.make_buffer(stream);
        }
        state.baton.wake(Resource::CommandBuffer(queue));
        if let Some(panic) = panic {
            // A kernel's panic is the caller's mistake, not a death on the queue: it leaves it first.
            if !target.off_queue {
                release(state, stream);
            }
            resume_unwind(panic);
        }
        Ok(state)
    }

    /// Runs one command on the bytes that its blocks hold now (rule R1). `Err` is its panic.
    fn execute(
        &self,
        thread: ThreadId,
        (stream, buffer): (u32, u64),
        command: Command,
    ) -> std::thread::Result<()> {
        let mut state = self.process.lock();
        state.note_execution(thread, (stream, buffer), &command);
        if command.op.identity {
            let (from, to) = (command.reads[0], command.writes[0]);
            let memory = &mut state.machine.memory;
            let hash = memory.hash(from.block, from.bytes);
            let data = memory.read(from.block, from.bytes);
            if data.len() == words(to.bytes) {
                memory.overwrite(to.block, &data, (to.bytes, hash));
                state.finish_execution(stream, &command.reads, &command.writes);
                return Ok(());
            }
        }
        let memory = &mut state.machine.memory;
        let key = command.op.pure_key.map(|own| {
            let mut parts = vec![own];
            parts.extend(command.reads.iter().map(|a| memory.hash(a.block, a.bytes)));
            parts.extend(command.writes.iter().map(|a| a.bytes as u128));
            hash(&parts)
        });
        let memo = match state.machine.memo.clone() {
            Some(memo) if command.op.remember => key.map(|key| (memo, key)),
            _ => None,
        };
        let known = memo.as_ref().and_then(|(memo, key)| memo.get(*key));
        let hash_of = |place: usize| key.map(|key| hash(&[key, place as u128]));
        if let (Some(results), Some(_)) = (&known, key) {
            for (place, (access, words)) in command.writes.iter().zip(results).enumerate() {
                let hash = hash_of(place).expect("the key is known");
                let memory = &mut state.machine.memory;
                memory.overwrite(access.block, words, (access.bytes, hash));
            }
            state.finish_execution(stream, &command.reads, &command.writes);
            return Ok(());
        }
        let memory = &mut state.machine.memory;
        let overwrites = command.op.overwrites;
        let inputs: Vec<Words> =
            command.reads.iter().map(|a| memory.read(a.block, a.bytes)).collect();
        let mut outputs: Vec<Vec<f32>> =
            command.writes.iter().map(|a| memory.take(a.block, a.bytes, overwrites)).collect();
        drop(state);
        let ran = run(command.work, (&command.reads, &inputs), (&command.writes, &mut outputs));
        drop(inputs);
        let mut state = self.process.lock();
        let mut results = Vec::new();
        for (place, (access, output)) in command.writes.iter().zip(outputs).enumerate() {
            let output = Arc::new(output);
            if memo.is_some() {
                results.push(prefix(&output, words(access.bytes)));
            }
            let hash = hash_of(place).map(|hash| (access.bytes, hash));
            state.machine.memory.put(access.block, output, hash);
        }
        if let (Some((memo, key)), Ok(())) = (memo, &ran) {
            memo.put(key, results);
        }
        state.finish_execution(stream, &command.reads, &command.writes);
        ran
    }
}

/// Runs a command's work on its blocks' bytes.
fn run(
    work: Work,
    (reads, inputs): (&[Access], &[Words]),
    (writes, outputs): (&[Access], &mut [Vec<f32>]),
) -> std::thread::Result<()> {
    let sources: Vec<&[u8]> = reads
        .iter()
        .zip(inputs)
        .map(|(access, words)| &bytemuck::cast_slice::<f32, u8>(words)[..access.bytes])
        .collect();
    let mut targets: Vec<&mut [u8]> = writes
        .iter()
        .zip(outputs)
        .map(|(access, words)| &mut bytemuck::cast_slice_mut::<f32, u8>(words)[..access.bytes])
        .collect();
    catch_unwind(AssertUnwindSafe(|| work(&sources, &mut targets)))
}

/// The first words of an output, to keep.
fn prefix(output: &Words, words: usize) -> Words {
    if output.len() == words { Arc::clone(output) } else { Arc::new(output[..words].to_vec()) }
}

impl ProcessState {
    /// Records that a command runs, and whether it is stale.
    fn note_execution(
        &mut self,
        thread: ThreadId,
        (stream, buffer): (u32, u64),
        command: &Command,
    ) {
        let (reads, writes) = self.machine.stale(stream, command);
        self.machine.stats.stale_reads += u64::from(!reads.is_empty());
        self.machine.stats.stale_writes += u64::from(!writes.is_empty());
        if !self.machine.is_traced() {
            return;
        }
        let blocks = |accesses: &[Access]| accesses.iter().map(|a| a.block).collect::<Vec<u32>>();
        let mut events = Vec::new();
        if !reads.is_empty() {
            events.push((ActionKind::StaleRead, reads, Vec::new()));
        }
        if !writes.is_empty() {
            events.push((ActionKind::StaleWrite, Vec::new(), writes));
        }
        events.push((ActionKind::Execute, blocks(&command.reads), blocks(&command.writes)));
        for (kind, reads, writes) in events {
            // A stale command is its encoder's, whoever commits it.
            let who = if kind == ActionKind::Execute { thread } else { command.thread };
            self.record_on(who, kind, |event| {
                event.name = command.op.name().to_owned();
                event.stream = Some(stream);
                event.command_buffer = Some(buffer);
                event.reads = reads;
                event.writes = writes;
            });
        }
    }

    fn finish_execution(&mut self, stream: u32, reads: &[Access], writes: &[Access]) {
        self.machine.executed(stream, reads);
        self.machine.executed(stream, writes);
        self.mark_written(stream, writes);
    }

    pub(crate) fn mark_written(&mut self, stream: u32, writes: &[Access]) {
        for access in writes {
            self.machine.memory.block_mut(access.block).written =
                Some(Written { generation: access.generation, stream });
        }
    }
}
