//! Streams, command queues, command buffers and encoders, and their state machines (rules R4 and R8).
//!
//! Every step of the state machines is one function here, so that steps of two threads can come in any
//! order when a stream is touched off its serial queue. Invariant: a buffer has at most one active
//! encoder, and takes commands only until its commit; a step that would break this is the fault.

use std::collections::BTreeMap;

use crate::command::Command;
use crate::error::Fault;
use crate::thread_id::ThreadId;

/// A command buffer between its making and its commit.
#[derive(Debug)]
pub(crate) struct CommandBuffer {
    pub(crate) queue: u32,
    pub(crate) committed: bool,
    /// The active encoder.
    encoder: Option<u64>,
    pub(crate) commands: Vec<Command>,
}

/// A stream: an open command buffer on a command queue, behind a serial queue.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The command queue.
    pub(crate) queue: u32,
    /// The serial queue, by the number of the stream that made it.
    pub(crate) serial: u32,
    /// The thread that made it.
    pub(crate) maker: ThreadId,
    /// The open command buffer.
    pub(crate) buffer: Option<u64>,
    /// The encoder that kernels are encoded with until something ends it.
    pub(crate) encoder: Option<u64>,
}

/// All streams of a device.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) streams: Vec<Stream>,
    pub(crate) buffers: BTreeMap<u64, CommandBuffer>,
    /// The owner of each serial queue that is held.
    pub(crate) holders: BTreeMap<u32, ThreadId>,
    /// Command buffers in flight on each command queue.
    in_flight: BTreeMap<u32, usize>,
    pub(crate) most_in_flight: usize,
    made: u64,
}

impl Streams {
    pub(crate) fn stream(&self, id: u32) -> &Stream {
        &self.streams[id as usize]
    }

    pub(crate) fn stream_mut(&mut self, id: u32) -> &mut Stream {
        &mut self.streams[id as usize]
    }

    /// Whether the command queue has no command buffer left.
    pub(crate) fn is_exhausted(&self, queue: u32, cap: usize) -> bool {
        self.in_flight.get(&queue).copied().unwrap_or(0) >= cap
    }

    /// Makes a command buffer for a stream.
    pub(crate) fn make_buffer(&mut self, stream: u32) -> u64 {
        self.made += 1;
        let id = self.made;
        let queue = self.stream(stream).queue;
        let in_flight = self.in_flight.entry(queue).or_default();
        *in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(*in_flight);
        self.buffers.insert(
            id,
            CommandBuffer { queue, committed: false, encoder: None, commands: Vec::new() },
        );
        self.stream_mut(stream).buffer = Some(id);
        id
    }

    /// Begins an encoder on a buffer.
    pub(crate) fn begin_encoder(&mut self, stream: u32, buffer: u64) -> Result<u64, Fault> {
        self.made += 1;
        let encoder = self.made;
        let buffer = self.open(buffer)?;
        if buffer.encoder.is_some() {
            return Err(Fault::EncoderActive);
        }
        buffer.encoder = Some(encoder);
        self.stream_mut(stream).encoder = Some(encoder);
        Ok(encoder)
    }

    /// Encodes a command with an encoder that was begun on `buffer`.
    pub(crate) fn dispatch(
        &mut self,
        (buffer, encoder): (u64, u64),
        command: Command,
    ) -> Result<(), Fault> {
        let buffer = self.open(buffer)?;
        if buffer.encoder != Some(encoder) {
            return Err(Fault::EncoderEnded);
        }
        buffer.commands.push(command);
        Ok(())
    }

    /// Encodes a graph, which brings its own encoders.
    pub(crate) fn encode_graph(&mut self, buffer: u64, command: Command) -> Result<(), Fault> {
        let buffer = self.open(buffer)?;
        if buffer.encoder.is_some() {
            return Err(Fault::EncoderActive);
        }
        buffer.commands.push(command);
        Ok(())
    }

    /// Ends the stream's encoder, if it has one.
    pub(crate) fn end_encoder(&mut self, stream: u32) {
        let Some(encoder) = self.stream_mut(stream).encoder.take() else {
            return;
        };
        for buffer in self.buffers.values_mut() {
            if buffer.encoder == Some(encoder) {
                buffer.encoder = None;
            }
        }
    }

    /// Commits a buffer; its commands are to be run now.
    pub(crate) fn commit(&mut self, buffer: u64) -> Result<Vec<Command>, Fault> {
        let Some(buffer) = self.buffers.get_mut(&buffer) else {
            return Err(Fault::CommitTwice);
        };
        if buffer.committed {
            return Err(Fault::CommitTwice);
        }
        if buffer.encoder.is_some() {
            return Err(Fault::CommitWithEncoder);
        }
        buffer.committed = true;
        Ok(std::mem::take(&mut buffer.commands))
    }

    /// A committed buffer has completed; its place on the queue is free.
    pub(crate) fn complete(&mut self, buffer: u64) {
        if let Some(buffer) = self.buffers.remove(&buffer) {
            debug_assert!(buffer.committed && buffer.commands.is_empty());
            if let Some(in_flight) = self.in_flight.get_mut(&buffer.queue) {
                *in_flight -= 1;
            }
        }
    }

    /// Adds a completion handler to a buffer.
    pub(crate) fn add_handler(&mut self, buffer: u64) -> Result<(), Fault> {
        match self.buffers.get(&buffer) {
            Some(buffer) if !buffer.committed => Ok(()),
            _ => Err(Fault::HandlerAfterCommit),
        }
    }

    fn open(&mut self, buffer: u64) -> Result<&mut CommandBuffer, Fault> {
        match self.buffers.get_mut(&buffer) {
            Some(buffer) if !buffer.committed => Ok(buffer),
            _ => Err(Fault::EncodeAfterCommit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Op;

    fn one_stream() -> Streams {
        let mut streams = Streams::default();
        streams.streams.push(Stream {
            queue: 0,
            serial: 0,
            maker: ThreadId(0),
            buffer: None,
            encoder: None,
        });
        streams
    }

    fn command() -> Command {
        Command {
            op: Op::kernel("test"),
            thread: ThreadId(0),
            reads: Vec::new(),
            writes: Vec::new(),
            work: Box::new(|_, _| ()),
        }
    }

    #[test]
    fn second_encoder_on_a_buffer_is_apples_assertion() {
        let mut streams = one_stream();
        let buffer = streams.make_buffer(0);
        streams.begin_encoder(0, buffer).unwrap();
        let fault = streams.begin_encoder(0, buffer).unwrap_err();
        assert_eq!(fault.text(), "A command encoder is already encoding to this command buffer");
        streams.end_encoder(0);
        // The stream had forgotten the first encoder, but here it was the only one.
        assert!(streams.begin_encoder(0, buffer).is_ok());
    }

    #[test]
    fn committed_buffers_take_nothing_more() {
        let mut streams = one_stream();
        let buffer = streams.make_buffer(0);
        let encoder = streams.begin_encoder(0, buffer).unwrap();
        assert_eq!(streams.commit(buffer).unwrap_err(), Fault::CommitWithEncoder);
        streams.dispatch((buffer, encoder), command()).unwrap();
        streams.end_encoder(0);
        assert_eq!(
            streams.dispatch((buffer, encoder), command()).unwrap_err(),
            Fault::EncoderEnded
        );
        assert_eq!(streams.commit(buffer).unwrap().len(), 1);
        assert_eq!(streams.begin_encoder(0, buffer).unwrap_err(), Fault::EncodeAfterCommit);
        assert_eq!(streams.encode_graph(buffer, command()).unwrap_err(), Fault::EncodeAfterCommit);
        assert_eq!(
            streams.commit(buffer).unwrap_err().text(),
            "commit an already committed command buffer"
        );
        assert_eq!(
            streams.add_handler(buffer).unwrap_err().text(),
            "Completed handler provided after commit call"
        );
    }

    #[test]
    fn a_queue_has_so_many_buffers_and_a_completed_one_comes_back() {
        let mut streams = one_stream();
        let first = streams.make_buffer(0);
        assert!(!streams.is_exhausted(0, 2));
        streams.make_buffer(0);
        assert!(streams.is_exhausted(0, 2));
        streams.commit(first).unwrap();
        streams.complete(first);
        assert!(!streams.is_exhausted(0, 2));
        assert_eq!(streams.most_in_flight, 2);
    }
}
