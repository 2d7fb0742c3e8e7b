//! The child's half of the conversation, whatever runs the batches: [`serve`](crate::serve) for an
//! engine in Rust, or a program that brings another.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use crate::arena::{Arena, Reader, Writer};
use crate::error::{RemoteError, WireError};
use crate::frame::{FRAME_LEN, Frame, Kind};
use crate::process::CHILD_VARIABLE;
use crate::socket;
use crate::wire::Wire;

/// Whether this process has asked if it is a child.
static ASKED: AtomicBool = AtomicBool::new(false);

/// A child's connection to its parent.
pub struct Channel {
    socket: UnixStream,
    arena: Arena,
    payload: Vec<u8>,
    sequence: u64,
    idempotent: bool,
}

/// A batch that the parent has sent. Answer it with one of the channel's methods.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ChildBatch {
    /// The number of requests in it.
    pub count: usize,
    offset: u64,
    length: u64,
}

impl Channel {
    /// The connection to the parent, if this process was started as a child; call it before
    /// anything else. It takes stdin over (which then reads nothing), lets SIGINT and SIGTERM pass
    /// (the parent ends its children), and starts a thread that ends this process, and what it has
    /// started in its process group, as soon as the parent is gone.
    ///
    /// # Errors
    /// The parent is gone already, or is not one.
    pub fn from_parent() -> Option<io::Result<Self>> {
        ASKED.store(true, Ordering::Relaxed);
        let parent = std::env::var(CHILD_VARIABLE).ok()?;
        has_socket_as_stdin().then(|| Self::open(&parent))
    }

    fn open(parent: &str) -> io::Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let socket = UnixStream::from(socket);
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        socket::no_signal(&socket)?;
        watch_parent(socket.try_clone()?, parent.parse().ok())?;
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        let (frame, file) = socket::receive_with(&socket)?;
        if frame.kind != Kind::Start {
            return Err(io::Error::other(format!("the parent began with {:?}", frame.kind)));
        }
        let mut arena = Arena::open(file, frame.cost)?;
        let length = usize::try_from(frame.length).map_err(io::Error::other)?;
        let payload =
            arena.reader(frame.offset, frame.length).and_then(|mut reader| reader.numbers(length));
        let payload = payload.map_err(io::Error::other)?;
        Ok(Self { socket, arena, payload, sequence: 0, idempotent: true })
    }

    /// The bytes of [`IsolationConfig::payload`](crate::IsolationConfig::payload).
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Says that the engine is being built.
    ///
    /// # Errors
    /// The parent is gone; so it is for the other methods.
    pub fn building(&mut self) -> io::Result<()> {
        self.say(Kind::Building)
    }

    /// Says that the engine is being warmed up.
    ///
    /// # Errors
    /// As [`building`](Self::building).
    pub fn warming_up(&mut self) -> io::Result<()> {
        self.say(Kind::WarmingUp)
    }

    /// Says that the engine is ready, and whether it is idempotent.
    ///
    /// # Errors
    /// As [`building`](Self::building).
    pub fn ready(&mut self, idempotent: bool) -> io::Result<()> {
        self.idempotent = idempotent;
        self.say(Kind::Ready)
    }

    /// Says that the engine could not be built.
    ///
    /// # Errors
    /// As [`building`](Self::building).
    pub fn not_built(&mut self, error: &RemoteError) -> io::Result<()> {
        self.error(Kind::NotBuilt, error)
    }

    fn say(&mut self, kind: Kind) -> io::Result<()> {
        let frame = Frame { idempotent: self.idempotent, ..Frame::new(kind) };
        socket::send(&self.socket, &frame)
    }

    /// Waits for a batch; `None` when the parent wants this child to end.
    ///
    /// # Errors
    /// The parent sent what cannot be understood.
    ///
    /// # Blocking
    /// Until there is one.
    pub fn receive(&mut self) -> io::Result<Option<ChildBatch>> {
        let mut bytes = [0; FRAME_LEN];
        socket::spin(&self.socket);
        if let Err(error) = (&self.socket).read_exact(&mut bytes) {
            // The parent is gone; the thread that watches it may not have seen it yet.
            return if error.kind() == io::ErrorKind::UnexpectedEof {
                Ok(None)
            } else {
                Err(error)
            };
        }
        let frame = Frame::decode(&bytes).map_err(io::Error::other)?;
        match frame.kind {
            Kind::Exit => Ok(None),
            Kind::Batch => {
                self.sequence = frame.sequence;
                let Frame { offset, length, .. } = frame;
                Ok(Some(ChildBatch { count: frame.count as usize, offset, length }))
            }
            kind => Err(io::Error::other(format!("the parent sent {kind:?}"))),
        }
    }

    /// Reads the requests of a batch.
    ///
    /// # Errors
    /// They are not where the frame says.
    pub fn requests(&mut self, batch: &ChildBatch) -> Result<Reader<'_>, WireError> {
        self.arena.reader(batch.offset, batch.length)
    }

    /// Answers a batch with `count` outputs, which `write` writes over its requests, and with the
    /// cost of the batch as computed.
    ///
    /// # Errors
    /// The outputs are too large (the batch is not answered then), or the parent is gone.
    pub fn outputs(
        &mut self,
        count: usize,
        cost: u64,
        write: impl FnOnce(&mut Writer<'_>),
    ) -> Result<(), OutputsError> {
        let mut writer = self.arena.writer();
        write(&mut writer);
        let length = writer.finish()?;
        let frame = Frame {
            sequence: self.sequence,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            idempotent: self.idempotent,
            length,
            cost,
            ..Frame::new(Kind::Outputs)
        };
        Ok(socket::send(&self.socket, &frame)?)
    }

    /// Answers a batch with an error: [`Kind::OutOfMemory`], [`Kind::Failed`], [`Kind::Panicked`],
    /// or [`Kind::Lost`], after which this process must end.
    ///
    /// # Errors
    /// As [`building`](Self::building).
    pub fn error(&mut self, kind: Kind, error: &RemoteError) -> io::Result<()> {
        let mut writer = self.arena.writer();
        error.text.write(&mut writer);
        error.detail.write(&mut writer);
        let length = writer.finish().map_err(io::Error::other)?;
        let frame = Frame {
            sequence: self.sequence,
            idempotent: self.idempotent,
            length,
            ..Frame::new(kind)
        };
        socket::send(&self.socket, &frame)
    }
}

/// Why outputs could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputsError {
    /// They could not be written; the batch waits for another answer.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The parent is gone.
    #[error(transparent)]
    Gone(#[from] io::Error),
}

/// Whether stdin is what a parent makes it. What a child starts inherits the variable, but not
/// this.
fn has_socket_as_stdin() -> bool {
    rustix::net::sockopt::socket_type(rustix::stdio::stdin()).is_ok()
}

/// A child that does not ask whether it is one would run the parent's program, and start a child
/// that does not ask, and so on.
pub(crate) fn check_not_forgotten() -> Result<(), String> {
    let asked = ASKED.load(Ordering::Relaxed);
    if !asked && std::env::var_os(CHILD_VARIABLE).is_some() && has_socket_as_stdin() {
        return Err("this process was started as an isolated worker, but did not call \
             onelane_isolate::serve: call it first in main"
            .to_owned());
    }
    Ok(())
}

/// Starts a thread that ends this process when its parent has gone, whatever the process does.
///
/// The signal that Linux offers for this (`PR_SET_PDEATHSIG`) comes when the *thread* that started
/// the child ends, which may be long before its process does.
fn watch_parent(socket: UnixStream, parent: Option<i32>) -> io::Result<()> {
    std::thread::Builder::new().name("onelane-watch".to_owned()).spawn(move || {
        wait_for_end(&socket, parent);
        let _ = rustix::process::kill_current_process_group(Signal::KILL);
        std::process::abort();
    })?;
    Ok(())
}

/// Returns when the parent has gone. The end of the socket says so, unless a fork of the parent
/// holds it open; so the parent itself is watched as well.
fn wait_for_end(socket: &UnixStream, parent: Option<i32>) {
    let parent = parent.and_then(rustix::process::Pid::from_raw);
    #[cfg(target_os = "linux")]
    let parent_end = parent.and_then(|parent| {
        rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty()).ok()
    });
    #[cfg(target_os = "linux")]
    let (handle, pause) = (parent_end.as_ref().map(|end| end.as_fd()), None);
    #[cfg(not(target_os = "linux"))]
    let (handle, pause): (Option<BorrowedFd<'_>>, _) = (None, Some(Duration::from_millis(500)));
    // A child that was started through another program is not its parent's child.
    let was_ours = parent.is_some() && rustix::process::getppid() == parent;
    let pause = pause.and_then(|pause: Duration| Timespec::try_from(pause).ok());
    loop {
        if is_over(socket, handle, pause.as_ref())
            || (was_ours && rustix::process::getppid() != parent)
        {
            return;
        }
    }
}

fn is_over(socket: &UnixStream, parent: Option<BorrowedFd<'_>>, pause: Option<&Timespec>) -> bool {
    // No events are asked for: the end of the other side is always told, and data is not.
    let socket = PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty());
    let parent = parent.map(|parent| PollFd::from_borrowed_fd(parent, PollFlags::IN));
    let mut watched: Vec<_> = [Some(socket), parent].into_iter().flatten().collect();
    match rustix::event::poll(&mut watched, pause) {
        Ok(_) => watched.iter().any(|watched| !watched.revents().is_empty()),
        Err(_) => false,
    }
}
