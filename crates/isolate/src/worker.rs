//! One isolated worker, as its parent has it: a process, a socket and an arena.
//!
//! The conversation is strictly in turns, and it is in `frame.rs`. Whatever comes from the child is
//! checked before it is used; what cannot be understood loses the child, and nothing else.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::arena::{Arena, Reader};
use crate::child::{Answer, Child, Interruption, RunError};
use crate::children::{Children, RecycleCause};
use crate::error::{Activity, ChildLost, RemoteError, StderrTail, WireError};
use crate::footprint::Footprint;
use crate::frame::{FRAME_LEN, Frame, Kind};
use crate::oom;
use crate::process::Process;
use crate::socket::{self, Peeked};
use crate::sync::AtomicBool;
use crate::wire::Wire;

/// One child that has been started, and what is known of it.
pub(crate) struct Worker {
    /// `None` once it has been ended.
    process: Option<Process>,
    socket: UnixStream,
    arena: Arena,
    footprint: Footprint,
    children: Arc<Children>,
    activity: Activity,
    sequence: u64,
    idempotent: bool,
    started: Instant,
    batches: u64,
    /// The last batch was answered within [`socket::BRIEF`].
    is_brief: bool,
    /// Memory in bytes after the last batch; 0: unknown.
    memory: u64,
    /// The memory above which it is replaced.
    max_memory: Option<u64>,
    oom_kills: Option<u64>,
}

impl Worker {
    fn spawn(children: &Arc<Children>) -> io::Result<Self> {
        let config = &children.config;
        let (socket, theirs) = UnixStream::pair()?;
        socket::no_signal(&socket)?;
        socket.set_read_timeout(Some(config.slice()))?;
        socket.set_write_timeout(Some(config.slice()))?;
        let arena = Arena::create(config.max_payload)?;
        let started = Instant::now();
        let oom_kills = oom::kills();
        let process = Process::spawn((children.command)(), theirs, config.on_line.clone())?;
        children.spawned(process.id());
        Ok(Self {
            footprint: Footprint::of(process.id()),
            process: Some(process),
            socket,
            arena,
            children: Arc::clone(children),
            activity: Activity::Starting,
            sequence: 0,
            idempotent: true,
            started,
            batches: 0,
            is_brief: false,
            memory: 0,
            max_memory: config.max_memory,
            oom_kills,
        })
    }

    fn wait_until_ready(&mut self, cancel: &AtomicBool) -> Result<(), Interruption> {
        let mut writer = self.arena.writer();
        writer.bytes(&self.children.config.payload);
        let length = writer.finish().map_err(|error| Interruption::Garbage(error.to_string()))?;
        let cost = self.children.config.max_payload;
        let frame = Frame { length, cost, ..Frame::new(Kind::Start) };
        socket::send_with(&self.socket, &frame, self.arena.file())
            .map_err(|_| Interruption::Ended)?;
        let deadline = Deadline::new(self.started, self.children.config.start);
        loop {
            let frame = self.receive(deadline, Some(cancel))?;
            match frame.kind {
                Kind::Building => self.activity = Activity::Building,
                Kind::WarmingUp => self.activity = Activity::WarmingUp,
                Kind::Ready => {
                    self.activity = Activity::Idle;
                    self.idempotent = frame.idempotent;
                    self.measure(&frame);
                    self.bear_own_size();
                    return Ok(());
                }
                Kind::NotBuilt => return Err(Interruption::NotBuilt(self.remote_error(&frame)?)),
                kind => return Err(unexpected(kind)),
            }
            if deadline.has_passed() {
                return Err(Interruption::TimedOut(deadline.after));
            }
        }
    }

    /// Runs a batch.
    ///
    /// # Blocking
    /// For at most `config.hang`, and one slice.
    pub(crate) fn run<I: Wire, R>(
        &mut self,
        batch: &[I],
        read: impl FnOnce(usize, &mut Reader<'_>) -> Result<R, WireError>,
    ) -> Result<Answer<R>, RunError> {
        self.idle()?;
        let mut writer = self.arena.writer();
        I::write_slice(batch, &mut writer);
        let length = writer.finish().map_err(RunError::NotWritten)?;
        self.sequence += 1;
        let frame = Frame {
            sequence: self.sequence,
            count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
            length,
            ..Frame::new(Kind::Batch)
        };
        self.activity = Activity::Batch { size: batch.len(), first: self.batches == 0 };
        let sent = Instant::now();
        let deadline = Deadline::new(sent, self.children.config.hang);
        // A write that failed gave the child nothing that it could have run.
        socket::send(&self.socket, &frame).map_err(|_| Interruption::EndedBefore)?;
        if self.is_brief {
            socket::spin(&self.socket);
        }
        let frame = self.receive_answer(deadline)?;
        self.is_brief = sent.elapsed() < socket::BRIEF;
        if frame.sequence != self.sequence {
            let (got, wanted) = (frame.sequence, self.sequence);
            let what = format!("it answered batch {got} where {wanted} was asked");
            return Err(Interruption::Garbage(what).into());
        }
        let answer = match frame.kind {
            Kind::Outputs => {
                let outputs = self.outputs(&frame, read).map_err(garbage)?;
                Answer::Outputs { outputs, cost: frame.cost }
            }
            kind @ (Kind::OutOfMemory | Kind::Failed | Kind::Panicked) => {
                Answer::Error(kind, self.remote_error(&frame)?)
            }
            Kind::Lost => return Err(Interruption::EngineLost(self.remote_error(&frame)?).into()),
            kind => return Err(unexpected(kind).into()),
        };
        self.activity = Activity::Idle;
        self.batches += 1;
        self.idempotent = frame.idempotent;
        self.measure(&frame);
        Ok(answer)
    }

    /// An engine that has panicked is built again before the answer, which may take as long as a
    /// start: once.
    fn receive_answer(&mut self, mut deadline: Deadline) -> Result<Frame, Interruption> {
        let mut is_building = false;
        loop {
            let frame = self.receive(deadline, None)?;
            self.activity = match frame.kind {
                Kind::Building if is_building => return Err(unexpected(frame.kind)),
                Kind::Building => {
                    is_building = true;
                    deadline = Deadline::new(Instant::now(), self.children.config.start);
                    Activity::Building
                }
                Kind::WarmingUp if is_building => Activity::WarmingUp,
                _ => return Ok(frame),
            };
            if deadline.has_passed() {
                return Err(Interruption::TimedOut(deadline.after));
            }
        }
    }

    fn outputs<R>(
        &mut self,
        frame: &Frame,
        read: impl FnOnce(usize, &mut Reader<'_>) -> Result<R, WireError>,
    ) -> Result<R, WireError> {
        let mut reader = self.arena.reader(frame.offset, frame.length)?;
        let outputs = read(frame.count as usize, &mut reader)?;
        match reader.remaining() {
            0 => Ok(outputs),
            left => Err(WireError::Invalid(format!("{left} bytes are left over"))),
        }
    }

    fn remote_error(&mut self, frame: &Frame) -> Result<RemoteError, Interruption> {
        let mut reader = self.arena.reader(frame.offset, frame.length).map_err(garbage)?;
        let (text, detail) = <(String, Vec<u8>)>::read(&mut reader).map_err(garbage)?;
        Ok(RemoteError { text, detail, panicked: frame.kind == Kind::Panicked })
    }

    fn measure(&mut self, frame: &Frame) {
        let limited = self.children.config.max_memory.is_some();
        let counted = if limited { self.footprint.bytes().unwrap_or(0) } else { 0 };
        self.memory = counted.max(frame.footprint);
    }

    /// A child that is too large from the start would be replaced after each batch, for nothing.
    fn bear_own_size(&mut self) {
        let least = self.memory + self.memory / 4;
        if let Some(limit) = self.max_memory.filter(|&limit| limit < least) {
            tracing::warn!(
                max_memory = limit,
                footprint = self.memory,
                "max_memory leaves a child no quarter of its own size to grow: {least} is used"
            );
            self.max_memory = Some(least);
        }
    }

    fn receive(
        &mut self,
        deadline: Deadline,
        cancel: Option<&AtomicBool>,
    ) -> Result<Frame, Interruption> {
        let mut bytes = [0; FRAME_LEN];
        let mut filled = 0;
        let mut ended = false;
        loop {
            match (&self.socket).read(&mut bytes[filled..]) {
                Ok(0) => return Err(Interruption::Ended),
                Ok(read) => {
                    filled += read;
                    if filled == FRAME_LEN {
                        return Frame::decode(&bytes).map_err(Interruption::Garbage);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {
                    // The end of the socket says that the child has ended. Only if something else
                    // holds its end, a fork of the child say, the process itself has to be asked;
                    // it may have written before it ended, so the socket is read once more.
                    if ended {
                        return Err(Interruption::Ended);
                    }
                    ended = self.process.as_ref().is_none_or(Process::has_ended);
                }
                // With bytes of ours that it has not read, its end is a reset.
                Err(_) => return Err(Interruption::Ended),
            }
            if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(Interruption::Cancelled);
            }
            if !ended && deadline.has_passed() {
                return Err(Interruption::TimedOut(deadline.after));
            }
        }
    }

    fn kill(&self, process: Process) -> (Option<std::process::ExitStatus>, StderrTail) {
        let pid = process.id();
        let (ended, stderr) = process.kill();
        (self.children.gone(pid, ended), stderr)
    }
}

impl Child for Worker {
    /// # Blocking
    /// For at most `config.start`, and some 10 s to end a child that cannot be used.
    fn start(children: &Arc<Children>, cancel: &AtomicBool) -> Result<Self, ChildLost> {
        let mut worker = Self::spawn(children).map_err(|error| ChildLost::Spawn(error.into()))?;
        match worker.wait_until_ready(cancel) {
            Ok(()) => Ok(worker),
            Err(interruption) => Err(worker.lose(interruption).0),
        }
    }

    fn idle(&self) -> Result<(), Interruption> {
        match socket::peek(&self.socket) {
            Peeked::Nothing => Ok(()),
            Peeked::Closed => Err(Interruption::EndedBefore),
            Peeked::Data => Err(Interruption::Garbage("it sent a frame unasked".to_owned())),
        }
    }

    fn lose(mut self, interruption: Interruption) -> (ChildLost, bool) {
        let activity = match interruption {
            Interruption::EndedBefore => Activity::Idle,
            _ => self.activity,
        };
        let process = self.process.take().expect("only this and `retire` end it, and both own it");
        let (ended, stderr) = match interruption {
            Interruption::Ended | Interruption::EndedBefore => {
                let pid = process.id();
                let (ended, stderr) = process.end();
                (self.children.gone(pid, ended), stderr)
            }
            _ => {
                let abort_grace = self.children.config.abort_grace;
                if matches!(interruption, Interruption::TimedOut(_)) && !abort_grace.is_zero() {
                    process.signal(Signal::ABORT);
                    process.wait_for_end(abort_grace);
                }
                self.kill(process)
            }
        };
        let lost = match interruption {
            Interruption::Ended | Interruption::EndedBefore => {
                ChildLost::Crashed { status: ended, activity, stderr }
            }
            Interruption::TimedOut(after) => ChildLost::Hung { after, activity, stderr },
            Interruption::Garbage(what) => ChildLost::Protocol { what, activity, stderr },
            Interruption::EngineLost(error) => ChildLost::EngineLost { error, activity, stderr },
            Interruption::NotBuilt(error) => ChildLost::NotBuilt { error, stderr },
            Interruption::Cancelled => ChildLost::Cancelled,
        };
        let killed = ended.and_then(|status| status.signal()) == Some(Signal::KILL.as_raw());
        let starved = killed && oom::has_killed_since(self.oom_kills);
        tracing::warn!(error = %lost, "an isolated worker was lost");
        (lost, starved)
    }

    /// # Blocking
    /// For at most `config.grace`, and some 10 s if it has to be killed.
    fn retire(mut self) {
        let _ = socket::send(&self.socket, &Frame::new(Kind::Exit));
        if let Some(process) = self.process.take() {
            process.wait_for_end(self.children.config.grace);
            self.kill(process);
        }
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }

    fn memory(&self) -> u64 {
        self.memory
    }

    fn recycle_cause(&self) -> Option<RecycleCause> {
        let config = &self.children.config;
        if self.max_memory.is_some_and(|limit| self.memory > limit) {
            Some(RecycleCause::Memory)
        } else if config.recycle_batches.is_some_and(|limit| self.batches >= limit) {
            Some(RecycleCause::Batches)
        } else if config.recycle_after.is_some_and(|limit| self.started.elapsed() >= limit) {
            Some(RecycleCause::Age)
        } else {
            None
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            self.kill(process);
        }
    }
}

#[derive(Clone, Copy)]
struct Deadline {
    at: Option<Instant>,
    after: Duration,
}

impl Deadline {
    /// `None` is farther away than the clock can tell.
    fn new(from: Instant, after: Duration) -> Self {
        Self { at: from.checked_add(after), after }
    }

    fn has_passed(self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn garbage(error: WireError) -> Interruption {
    Interruption::Garbage(error.to_string())
}

fn unexpected(kind: Kind) -> Interruption {
    Interruption::Garbage(format!("it sent {kind:?}, which is not an answer"))
}
