//! The process of one child: started, watched, ended and reaped.
//!
//! It leads a process group of its own, so that the terminal's Ctrl-C does not reach it and a kill
//! reaches what it has started itself. When its parent dies the group is orphaned, and the kernel
//! continues and hangs up those of it that are stopped. No code of ours runs between fork and exec:
//! the standard library can use `posix_spawn`, which copies nothing of a large parent.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::config::LineCallback;
use crate::error::StderrTail;
use crate::stderr::Stderr;

/// Tells a child that it is one: the value is its parent's process id.
pub(crate) const CHILD_VARIABLE: &str = "ONELANE_ISOLATED";

/// Where glibc's allocator ends up by itself once a block of 32 MiB has been freed. Before that it
/// gives the memory of each large batch back to the system, and takes it again, zeroed page by
/// page, for the next: of 1 MB there and back that was nine tenths of the time. Other allocators do
/// not look.
const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "67108864")];

/// How long a process that has been killed may take to end: one that is stuck in a driver may
/// never.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a process that has closed its socket may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A running child, or one that has ended and is not reaped yet.
pub(crate) struct Process {
    child: Child,
    pid: Pid,
    stderr: Stderr,
}

/// What is left of a process.
pub(crate) enum Ended {
    /// It is gone. The status is `None` if somebody else has taken it.
    Gone(Option<ExitStatus>),
    /// It was killed and does not die.
    Stuck(Process),
}

impl Process {
    /// Starts the command with `socket` as its stdin and its output captured.
    pub(crate) fn spawn(
        mut command: Command,
        socket: UnixStream,
        on_line: Option<LineCallback>,
    ) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        for (name, value) in ALLOCATOR {
            let is_set = command.get_envs().any(|(set, _)| set == name);
            if !is_set && std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        command
            .stdin(OwnedFd::from(socket))
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .env(CHILD_VARIABLE, std::process::id().to_string())
            .process_group(0);
        let child = command.spawn()?;
        // The command holds the child's ends of socket and pipe: with them open there is no EOF.
        drop(command);
        let pid = Pid::from_child(&child);
        let captured = Stderr::capture(reader, child.id(), on_line);
        match captured {
            Ok(stderr) => Ok(Self { child, pid, stderr }),
            Err(error) => {
                let mut child = child;
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended. It is not reaped by this: until then nobody else gets its number.
    pub(crate) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error is ECHILD: somebody else has reaped it.
        !matches!(rustix::process::waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    fn is_ours_to_signal(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(self.pid), options).is_ok()
    }

    /// Sends a signal to it and to what it has started, unless it was reaped by somebody else and
    /// its number may be another's.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_ours_to_signal() {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Waits until it has ended.
    fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut pause = Duration::from_micros(100);
        loop {
            if self.has_ended() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    /// Waits for it to end by itself, for at most `limit`.
    pub(crate) fn wait_for_end(&self, limit: Duration) -> bool {
        self.wait(limit)
    }

    /// It has closed its socket, so it has ended or is about to.
    pub(crate) fn end(self) -> (Ended, StderrTail) {
        if self.wait(END_LIMIT) {
            self.kill()
        } else {
            let (ended, tail) = self.kill();
            // The status is that of our own signal: it says nothing about why.
            let ended = match ended {
                Ended::Gone(_) => Ended::Gone(None),
                stuck @ Ended::Stuck(_) => stuck,
            };
            (ended, tail)
        }
    }

    /// Kills it and all that it has started, and reaps it. A status from before is kept.
    pub(crate) fn kill(mut self) -> (Ended, StderrTail) {
        self.signal(Signal::KILL);
        if !self.wait(KILL_LIMIT) {
            let tail = self.stderr.tail(Duration::ZERO);
            return (Ended::Stuck(self), tail);
        }
        // All writers have been killed; one that has left the group may still hold the pipe.
        let tail = self.stderr.tail(Duration::from_millis(250));
        (Ended::Gone(self.child.try_wait().ok().flatten()), tail)
    }

    /// Reaps it if it has ended at last.
    pub(crate) fn try_reap(&mut self) -> bool {
        self.has_ended() && {
            let _ = self.child.try_wait();
            true
        }
    }
}
