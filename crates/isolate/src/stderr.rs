//! What a child writes to stdout and stderr: read by a thread of the parent, handed on line by
//! line, and its last 8 KiB kept for the error.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, PipeReader, Read as _};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::config::LineCallback;
use crate::error::StderrTail;

/// The bytes that are kept, and the longest line that is handed on in one piece.
const KEPT: usize = 8 << 10;

#[derive(Default)]
struct Tail {
    last: VecDeque<u8>,
    ended: bool,
}

/// The reading side of one child's output.
pub(crate) struct Stderr {
    shared: Arc<(Mutex<Tail>, Condvar)>,
}

impl Stderr {
    /// Starts the thread, which ends when nobody holds the writing side any more.
    pub(crate) fn capture(
        pipe: PipeReader,
        pid: u32,
        on_line: Option<LineCallback>,
    ) -> io::Result<Self> {
        let shared = Arc::<(Mutex<Tail>, Condvar)>::default();
        let thread_shared = Arc::clone(&shared);
        std::thread::Builder::new().name("onelane-stderr".to_owned()).spawn(move || {
            read_lines(pipe, |line| {
                lock(&thread_shared.0).keep(line);
                hand_on(line, pid, on_line.as_ref());
            });
            lock(&thread_shared.0).ended = true;
            thread_shared.1.notify_all();
        })?;
        Ok(Self { shared })
    }

    /// The last that was written. Waits for at most `patience` for all of it to be read: a process
    /// that outlives the child may hold the pipe open.
    pub(crate) fn tail(&self, patience: Duration) -> StderrTail {
        let tail = lock(&self.shared.0);
        let (tail, _) = self
            .shared
            .1
            .wait_timeout_while(tail, patience, |tail| !tail.ended)
            .unwrap_or_else(PoisonError::into_inner);
        let (front, back) = tail.last.as_slices();
        StderrTail::new(&String::from_utf8_lossy(&[front, back].concat()))
    }
}

impl Tail {
    fn keep(&mut self, line: &[u8]) {
        self.last.extend(line);
        let excess = self.last.len().saturating_sub(KEPT);
        self.last.drain(..excess);
    }
}

fn read_lines(pipe: PipeReader, mut each: impl FnMut(&[u8])) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match pipe.by_ref().take(KEPT as u64).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => each(&line),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn hand_on(line: &[u8], pid: u32, on_line: Option<&LineCallback>) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    tracing::info!(target: "onelane_isolate::child", pid, "{text}");
    if let Some(on_line) = on_line {
        // A callback that panics must not end the reading: the child would block on a full pipe.
        let call = std::panic::AssertUnwindSafe(|| on_line(text));
        let _ = std::panic::catch_unwind(call);
    }
}

fn lock(tail: &Mutex<Tail>) -> std::sync::MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_last_of_it_is_kept_and_each_line_is_handed_on() {
        let (reader, mut writer) = io::pipe().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let on_line: LineCallback = Arc::new(move |line: &str| {
            seen.lock().unwrap().push(line.to_owned());
            assert!(line != "first", "a callback may panic");
        });
        let stderr = Stderr::capture(reader, 1, Some(on_line)).unwrap();
        writeln!(writer, "first").unwrap();
        for number in 0..3000 {
            writeln!(writer, "line {number}").unwrap();
        }
        write!(writer, "no newline").unwrap();
        drop(writer);
        let tail = stderr.tail(Duration::from_secs(10));
        assert_eq!(tail.as_str().len(), KEPT);
        assert!(tail.as_str().ends_with("line 2999\nno newline"));
        assert_eq!(tail.to_string(), "; it last wrote: no newline");
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 3002);
        assert_eq!(lines[1], "line 0");
    }
}
