//! The trace: every device event with its thread, stream, command buffer, blocks and time step.
//!
//! Invariant: two runs with equal seeds give equal traces. The trace records; nothing reads it to
//! decide what happens.

use serde::Serialize;
use serde_json::{Value, json};

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ActionKind {
    /// A simulated thread began.
    Start,
    /// A simulated thread ended.
    End,
    /// A block was allocated.
    Alloc,
    /// A block was freed.
    Free,
    /// A shader or a graph was looked up.
    Lookup,
    /// A command was encoded.
    Encode,
    /// A command buffer was committed.
    Commit,
    /// A command ran, as a part of a commit.
    Execute,
    /// A thread synchronised.
    Synchronise,
    /// A buffer was copied to the host.
    Read,
    /// Host bytes were copied to a buffer.
    Write,
    /// A thread began to wait.
    Wait,
    /// A command read a block that somebody else had overwritten since it was encoded (hazard H1).
    StaleRead,
    /// A command wrote to a block that belonged to somebody else by then (hazard H1).
    StaleWrite,
    /// The simulated process was aborted.
    Abort,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// The simulated time step: yield points up to now.
    pub step: u64,
    /// The thread that did it.
    pub thread: String,
    /// The kind.
    pub kind: ActionKind,
    /// The operation, or a few words.
    pub name: String,
    /// The stream, where there is one.
    pub stream: Option<u32>,
    /// The command buffer, where there is one.
    pub command_buffer: Option<u64>,
    /// Blocks read, by number.
    pub reads: Vec<u32>,
    /// Blocks written, allocated or freed, by number.
    pub writes: Vec<u32>,
    /// Size in bytes, where there is one.
    pub bytes: Option<usize>,
}

/// The events of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    events: Vec<Event>,
}

impl Trace {
    pub(crate) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The events in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The trace in Chrome's trace-event format, for a trace viewer (Perfetto, `chrome://tracing`).
    ///
    /// A row per simulated thread with what it did, and a row per stream with the commands that ran.
    /// A step is shown as a microsecond. Freed blocks that were overwritten before a stale command ran
    /// are joined to it by a flow arrow.
    pub fn to_chrome(&self) -> Value {
        const THREADS: u32 = 1;
        const STREAMS: u32 = 2;
        let mut rows: Vec<&str> = Vec::new();
        let mut out = vec![
            json!({"ph": "M", "pid": THREADS, "name": "process_name", "args": {"name": "threads (simulated)"}}),
            json!({"ph": "M", "pid": STREAMS, "name": "process_name", "args": {"name": "streams (simulated)"}}),
        ];
        let mut streams: Vec<u32> = Vec::new();
        // Several events can share a step: spread them within it, so that each has a width.
        let mut last = 0;
        for (at, event) in self.events.iter().enumerate() {
            let time = (event.step * 100).max(last + 1);
            last = time;
            let row = match rows.iter().position(|row| *row == event.thread) {
                Some(row) => row,
                None => {
                    rows.push(&event.thread);
                    let row = rows.len() - 1;
                    out.push(json!({"ph": "M", "pid": THREADS, "tid": row, "name": "thread_name",
                        "args": {"name": event.thread}}));
                    row
                }
            };
            let on_stream = matches!(
                event.kind,
                ActionKind::Execute | ActionKind::StaleRead | ActionKind::StaleWrite
            );
            let (pid, tid) = match event.stream {
                Some(stream) if on_stream => {
                    if !streams.contains(&stream) {
                        streams.push(stream);
                        out.push(json!({"ph": "M", "pid": STREAMS, "tid": stream,
                            "name": "thread_name", "args": {"name": format!("stream {stream}")}}));
                    }
                    (STREAMS, stream as usize)
                }
                _ => (THREADS, row),
            };
            let name = format!("{} {}", kind_name(event.kind), event.name);
            out.push(json!({
                "ph": "X", "pid": pid, "tid": tid, "ts": time, "dur": 1,
                "name": name.trim_end(), "cat": kind_name(event.kind),
                "args": {
                    "step": event.step, "thread": event.thread, "stream": event.stream,
                    "command_buffer": event.command_buffer, "reads": event.reads,
                    "writes": event.writes, "bytes": event.bytes,
                },
            }));
            if matches!(event.kind, ActionKind::StaleRead | ActionKind::StaleWrite) {
                self.flow(at, (pid, tid, time), &mut out);
            }
        }
        json!({"traceEvents": out, "displayTimeUnit": "ms",
            "otherData": {"device": "simulated MPS", "time": "100 units are one step"}})
    }

    /// An arrow from the last free of the stale command's block to the stale command.
    fn flow(&self, at: usize, (pid, tid, time): (u32, usize, u64), out: &mut Vec<Value>) {
        let stale = &self.events[at];
        let freed = self.events[..at].iter().rposition(|event| {
            event.kind == ActionKind::Free
                && event.thread == stale.thread
                && stale.reads.iter().chain(&stale.writes).any(|b| event.writes.contains(b))
        });
        if let Some(freed) = freed {
            let from = &self.events[freed];
            let row = self.events[..=freed]
                .iter()
                .map(|event| event.thread.as_str())
                .fold(Vec::new(), |mut rows, thread| {
                    if !rows.contains(&thread) {
                        rows.push(thread);
                    }
                    rows
                })
                .iter()
                .position(|thread| *thread == from.thread)
                .unwrap_or(0);
            out.push(json!({"ph": "s", "id": at, "pid": 1, "tid": row, "ts": from.step * 100,
                "name": "freed too early", "cat": "hazard"}));
            out.push(json!({"ph": "f", "bp": "e", "id": at, "pid": pid, "tid": tid, "ts": time,
                "name": "freed too early", "cat": "hazard"}));
        }
    }
}

fn kind_name(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::Start => "start",
        ActionKind::End => "end",
        ActionKind::Alloc => "alloc",
        ActionKind::Free => "free",
        ActionKind::Lookup => "lookup",
        ActionKind::Encode => "encode",
        ActionKind::Commit => "commit",
        ActionKind::Execute => "execute",
        ActionKind::Synchronise => "synchronise",
        ActionKind::Read => "read",
        ActionKind::Write => "write",
        ActionKind::Wait => "wait",
        ActionKind::StaleRead => "stale read",
        ActionKind::StaleWrite => "stale write",
        ActionKind::Abort => "abort",
    }
}
