//! The baton: which simulated thread runs. Data and decisions; the waiting is in `process.rs`.
//!
//! Invariants:
//! - at most one simulated thread runs; `running` names it, and it is in `ready`;
//! - a thread that is outside of the device (blocked on something real) is not in `ready` and is not
//!   waited for;
//! - once `fatal` is set it stays, and nobody waits any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar};

use crate::error::{Hang, SimError, Waiting};
use crate::schedule::{Candidates, Chooser, Schedule};
use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

/// Something that simulated threads can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Resource {
    /// A thread's end.
    End(ThreadId),
    /// A stream's serial queue.
    SerialQueue(u32),
    /// A free command buffer of a command queue.
    CommandBuffer(u32),
    /// A lock, barrier or channel of [`crate::sync`], by number.
    Sync(u64),
}

/// What a blocked thread waits for, with the words for a hang report.
#[derive(Clone, Debug)]
pub(crate) struct Wait {
    pub(crate) resource: Resource,
    pub(crate) words: String,
}

#[derive(Debug)]
enum Status {
    Ready,
    Blocked(Wait),
    Outside,
    Ended,
}

#[derive(Debug)]
struct Slot {
    name: Arc<str>,
    status: Status,
    signal: Arc<Condvar>,
}

/// All simulated threads and who runs.
#[derive(Debug)]
pub(crate) struct Baton {
    slots: Vec<Slot>,
    /// Threads that can run, ascending.
    ready: Vec<ThreadId>,
    pub(crate) running: Option<ThreadId>,
    outside: usize,
    blocked: usize,
    chooser: Chooser,
    /// The youngest thread of each name.
    names: BTreeMap<Arc<str>, ThreadId>,
    /// Yield points up to now.
    pub(crate) step: u64,
    /// How often the baton changed hands.
    pub(crate) switches: u64,
    pub(crate) fatal: Option<SimError>,
    /// Whether the real process meets what the simulated one does.
    real_faults: bool,
}

impl Baton {
    pub(crate) fn new(schedule: &Schedule, seed: u64, real_faults: bool) -> Self {
        Self {
            slots: Vec::new(),
            ready: Vec::new(),
            running: None,
            outside: 0,
            blocked: 0,
            chooser: Chooser::new(schedule, seed),
            names: BTreeMap::new(),
            step: 0,
            switches: 0,
            fatal: None,
            real_faults,
        }
    }

    /// Makes a thread that is outside of the device.
    pub(crate) fn add_outside(&mut self, name: &str) -> ThreadId {
        let id = ThreadId(u32::try_from(self.slots.len()).expect("fewer than 2^32 threads"));
        let name: Arc<str> = Arc::from(name);
        self.names.insert(Arc::clone(&name), id);
        self.slots.push(Slot { name, status: Status::Outside, signal: Arc::new(Condvar::new()) });
        self.outside += 1;
        id
    }

    fn slot(&mut self, thread: ThreadId) -> &mut Slot {
        &mut self.slots[thread.0 as usize]
    }

    pub(crate) fn name(&self, thread: ThreadId) -> &Arc<str> {
        &self.slots[thread.0 as usize].name
    }

    pub(crate) fn signal(&self, thread: ThreadId) -> Arc<Condvar> {
        Arc::clone(&self.slots[thread.0 as usize].signal)
    }

    pub(crate) fn is_outside(&self, thread: ThreadId) -> bool {
        matches!(self.slots[thread.0 as usize].status, Status::Outside)
    }

    pub(crate) fn has_ended(&self, thread: ThreadId) -> bool {
        matches!(self.slots[thread.0 as usize].status, Status::Ended)
    }

    /// Whether blocked threads can only be woken by one that is outside.
    pub(crate) fn waits_for_outside(&self) -> bool {
        self.running.is_none() && self.ready.is_empty() && self.outside > 0
    }

    pub(crate) fn note(&mut self, kind: ActionKind) {
        self.chooser.note(kind);
    }

    /// An outside thread wants to run. It still has to wait for its turn.
    pub(crate) fn enter(&mut self, thread: ThreadId) {
        self.enter_together(&[thread]);
    }

    /// Outside threads want to run.
    pub(crate) fn enter_together(&mut self, threads: &[ThreadId]) {
        for thread in threads {
            self.slot(*thread).status = Status::Ready;
            self.outside -= 1;
            self.insert_ready(*thread);
        }
        if self.running.is_none() {
            self.hand_on();
        }
    }

    /// The running thread leaves the device for something real.
    pub(crate) fn leave(&mut self, thread: ThreadId) {
        self.slot(thread).status = Status::Outside;
        self.outside += 1;
        self.remove_ready(thread);
        self.hand_on();
    }

    /// The running thread waits for a resource.
    pub(crate) fn block(&mut self, thread: ThreadId, wait: Wait) {
        self.slot(thread).status = Status::Blocked(wait);
        self.blocked += 1;
        self.remove_ready(thread);
        self.hand_on();
    }

    /// All that wait for the resource may look at it again.
    pub(crate) fn wake(&mut self, resource: Resource) {
        if self.blocked == 0 {
            return;
        }
        for at in 0..self.slots.len() {
            if let Status::Blocked(wait) = &self.slots[at].status
                && wait.resource == resource
            {
                self.slots[at].status = Status::Ready;
                self.blocked -= 1;
                self.insert_ready(ThreadId(at as u32));
            }
        }
    }

    /// A thread has ended. It may have been outside.
    pub(crate) fn end(&mut self, thread: ThreadId) {
        if self.is_outside(thread) {
            self.outside -= 1;
        }
        self.slot(thread).status = Status::Ended;
        self.remove_ready(thread);
        self.wake(Resource::End(thread));
        if self.running == Some(thread) || self.running.is_none() {
            self.hand_on();
        }
    }

    /// The running thread is at a yield point: chooses who runs on.
    pub(crate) fn yield_point(&mut self) {
        self.step += 1;
        self.hand_on();
    }

    fn insert_ready(&mut self, thread: ThreadId) {
        if let Err(place) = self.ready.binary_search(&thread) {
            self.ready.insert(place, thread);
        }
    }

    fn remove_ready(&mut self, thread: ThreadId) {
        if let Ok(place) = self.ready.binary_search(&thread) {
            self.ready.remove(place);
        }
    }

    /// Chooses the next thread and signals it; notices when nobody can go on.
    fn hand_on(&mut self) {
        if self.fatal.is_some() {
            return;
        }
        let current = self.running.take();
        if self.ready.is_empty() {
            if self.outside == 0 && self.blocked > 0 {
                self.fail(SimError::Hang(self.hang()));
            }
            return;
        }
        let slots = &self.slots;
        let names = &self.names;
        let named = |name: &str| {
            names.get(name).map(|id| {
                let ended = matches!(slots[id.0 as usize].status, Status::Ended);
                (*id, ended)
            })
        };
        let chosen =
            self.chooser.choose(&Candidates { ready: &self.ready, current, named: &named });
        match chosen {
            Ok(next) => {
                self.running = Some(next);
                if current != Some(next) {
                    self.switches += 1;
                    self.slot(next).signal.notify_all();
                }
            }
            Err(problem) => self.fail(SimError::Script(problem)),
        }
    }

    /// The report on the threads that are blocked now.
    pub(crate) fn hang(&self) -> Hang {
        let waiting = self
            .slots
            .iter()
            .filter_map(|slot| match &slot.status {
                Status::Blocked(wait) => {
                    Some(Waiting { thread: slot.name.to_string(), waits_for: wait.words.clone() })
                }
                _ => None,
            })
            .collect();
        Hang { waiting, step: self.step }
    }

    /// Ends the simulated process: every waiting thread wakes with this error. With real faults it
    /// does not return.
    pub(crate) fn fail(&mut self, error: SimError) {
        if self.real_faults {
            meet(&error);
        }
        if self.fatal.is_none() {
            self.fatal = Some(error);
        }
        for slot in &self.slots {
            slot.signal.notify_all();
        }
    }
}

/// Has the real process meet a fault.
///
/// CORRECTNESS: it is called under the lock of the simulated process, so that a hang keeps every
/// thread that uses the device, as a driver does that waits for a command buffer.
fn meet(error: &SimError) {
    match error {
        SimError::Aborted(abort) => {
            // As Metal writes it before it aborts.
            eprintln!("{abort}");
            std::process::abort();
        }
        SimError::Hang(hang) => {
            eprintln!("{hang}");
            loop {
                std::thread::park();
            }
        }
        // Others are no faults of a process.
        _ => {}
    }
}
