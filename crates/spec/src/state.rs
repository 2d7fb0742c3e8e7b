//! A state of the model: everything that clients, workers and shutdowns agree on.

use crate::scenario::Mode;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// A response.
    Response,
    /// An error of the engine, or a panic on this request.
    Error,
    /// Cancelled before it started.
    Cancelled,
    /// Its deadline passed before it started.
    Expired,
    /// The executor was aborted, or its worker died.
    Closed,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Not submitted yet.
    Unborn,
    /// Not accepted.
    Refused,
    /// Accepted, in a list.
    Waiting,
    /// In a batch.
    Running,
    /// Answered.
    Resolved(End),
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Where it is.
    pub place: Place,
    /// How often it was answered.
    pub answers: u8,
    /// How often later requests of its queue were taken before it.
    pub bypassed: u8,
    /// Its deadline has passed.
    pub late: bool,
    /// Its handle has been dropped.
    pub dropped: bool,
    /// The life of the executor that accepted it.
    pub life: u8,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAt {
    /// About to submit.
    Ready,
    /// It has prepared its requests and seen that the executor is open.
    Checked,
    /// In line for room; `true` when it has been woken.
    InLine(bool),
}

/// One client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Which of its submissions is next.
    pub next: u8,
    /// What it does.
    pub at: ClientAt,
    /// The life of the executor that it has a handle to.
    pub life: u8,
}

/// What a worker does with a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Parts are left to be run.
    Compute,
    /// The engine waits inline for that request.
    WaitsFor(u8),
    /// Answers are handed over, from that place on.
    Deliver(u8),
}

/// A batch on a worker's stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Its queue.
    pub queue: u8,
    /// Its requests.
    pub batch: Vec<u8>,
    /// Ranges that are left to be run, the next one last.
    pub parts: Vec<(u8, u8)>,
    /// What is known.
    pub answers: Vec<Option<End>>,
    /// What is going on.
    pub stage: Stage,
    /// Inner requests that have been waited for already.
    pub asked: Vec<u8>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Its thread runs.
    pub alive: bool,
    /// It sleeps, and its waker lies where others find it.
    pub asleep: bool,
    /// Engines that it has been asked to build.
    pub errands: u8,
    /// It has been asked to drop its engines: nothing waits or runs, and nothing will.
    pub retires: bool,
    /// Batches, the innermost last.
    pub stack: Vec<Frame>,
    /// Whether its engine of each queue is there.
    pub engines: [bool; 2],
}

/// What the thread that shuts down does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stopper {
    /// It has not begun.
    Idle,
    /// It waits for the workers to end.
    Joins,
    /// `shutdown` has returned.
    Returned,
}

/// What the thread that makes a queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Maker {
    /// It has not begun, or there is none.
    Idle,
    /// The queue is there; its engines are still to be asked for.
    Inserted,
    /// It waits for that many errands.
    Waits(u8),
    /// Made, or refused.
    Done,
}

/// A promise that a step broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Broken {
    /// A later request of the same key and class started first.
    Fifo = 0,
    /// An answered request was computed.
    Computed = 1,
    /// Room was taken past those in line.
    Line = 2,
    /// A request was open, or was accepted, when `shutdown` had returned.
    Shutdown = 3,
    /// A part of a group was accepted.
    Group = 4,
    /// A good request failed for another's fault.
    Alone = 5,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// How often the executor was made anew.
    pub life: u8,
    /// New work is refused, and workers end when nothing is left.
    pub stopping: Option<Mode>,
    /// The requests.
    pub requests: Vec<Request>,
    /// What waits in each queue, in order of acceptance.
    pub lists: [Vec<u8>; 2],
    /// Clients in line for room in queue 0.
    pub line: Vec<u8>,
    /// The clients.
    pub clients: Vec<Client>,
    /// The workers.
    pub workers: Vec<Worker>,
    /// The thread that shuts down.
    pub stopper: Stopper,
    /// The thread that makes a queue.
    pub maker: Maker,
    /// The workers have been asked to drop their engines.
    pub drained: bool,
    /// A worker has died.
    pub died: bool,
    /// Promises that a step has broken, as bits.
    pub broken: u8,
}

impl State {
    /// Notes that a step broke a promise.
    pub fn breaks(&mut self, promise: Broken) {
        self.broken |= 1 << promise as u8;
    }

    /// Answers a request.
    pub fn resolve(&mut self, request: u8, end: End) {
        let request = &mut self.requests[request as usize];
        request.answers += 1;
        request.place = Place::Resolved(end);
    }

    /// Wakes the first in line for room.
    pub fn wake_line(&mut self) {
        if let Some(&client) = self.line.first() {
            self.clients[client as usize].at = ClientAt::InLine(true);
        }
    }

    /// Wakes everybody in line; they are to be refused.
    pub fn wake_whole_line(&mut self) {
        for client in std::mem::take(&mut self.line) {
            self.clients[client as usize].at = ClientAt::InLine(true);
        }
    }

    /// Wakes one sleeping worker.
    pub fn wake_worker(&mut self) {
        if let Some(worker) = self.workers.iter_mut().find(|w| w.alive && w.asleep) {
            worker.asleep = false;
        }
    }

    /// Wakes all workers.
    pub fn wake_workers(&mut self) {
        for worker in &mut self.workers {
            worker.asleep = false;
        }
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.lists.iter().all(Vec::is_empty) && self.workers.iter().all(|w| w.stack.is_empty())
    }

    /// Whether a request has been accepted and not answered.
    pub fn is_open(&self, request: &Request) -> bool {
        matches!(request.place, Place::Waiting | Place::Running)
    }
}
