//! Real threads as simulated threads: [`Attachment`] and [`Party`].
//!
//! What is deterministic:
//! - threads of a [`Party`], while none of them goes outside: everything, whatever the system does;
//! - one thread that uses the device at a time, attached or not (an executor with one worker):
//!   everything;
//! - several unattached threads, or threads that come back from outside: only each thread's own
//!   sequence. In which order they come in is the system's choice.
//!
//! An unattached thread ends, for the device, with its real thread: after it was joined that has been
//! seen. Dropping a [`Buffer`](crate::Buffer) is an action on the device like any other, and waits for
//! its turn; a caller with a global lock (Python's) must not hold it meanwhile, nor in any other call.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::device::SimDevice;
use crate::error::SimResult;
use crate::process::Process;
use crate::registration;
use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

/// The calling real thread runs as a simulated thread until this is dropped; the simulated thread then
/// ends (its cached blocks go back to the pools).
///
/// While it lasts, the thread keeps the baton between its calls on the device: nobody else runs then. A
/// thread that waits for something real must do it inside of [`Attachment::outside`], else everybody
/// waits for it.
#[derive(Debug)]
pub struct Attachment {
    process: Arc<Process>,
    thread: ThreadId,
    /// An attachment belongs to its real thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Attachment {
    fn begin(process: &Arc<Process>, thread: ThreadId) -> Self {
        registration::attach(process, thread);
        Self { process: Arc::clone(process), thread, _not_send: std::marker::PhantomData }
    }

    /// Runs `f` outside of the device: it may block on anything, the others go on.
    ///
    /// # Errors
    /// When the simulated process has failed.
    ///
    /// # Blocking
    /// As long as `f`, and then until it is this thread's turn.
    pub fn outside<R>(&self, f: impl FnOnce() -> R) -> SimResult<R> {
        self.leave();
        let result = f();
        self.enter()?;
        Ok(result)
    }

    /// Goes outside: the first half of [`Attachment::outside`], for callers that cannot pass a closure.
    pub fn leave(&self) {
        self.process.leave(self.thread);
    }

    /// Comes back from outside.
    ///
    /// # Errors
    /// When the simulated process has failed.
    ///
    /// # Blocking
    /// Until it is this thread's turn.
    pub fn enter(&self) -> SimResult<()> {
        if self.process.lock_running()?.baton.is_outside(self.thread) {
            drop(self.process.enter(self.thread)?);
        }
        Ok(())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.process.end(self.thread);
        registration::detach(&self.process, self.thread);
    }
}

/// Real threads that begin together: none runs before all have come, and then the schedule decides.
///
/// The simulated threads are numbered by the party, not by the order in which the real ones come.
#[derive(Debug)]
pub struct Party {
    process: Arc<Process>,
    threads: Vec<ThreadId>,
    arrived: Mutex<usize>,
    all_here: Condvar,
}

impl Party {
    /// The calling thread runs as the party's member `index`, once all members have come.
    ///
    /// # Errors
    /// When the simulated process has failed.
    ///
    /// # Panics
    /// When there is no such member.
    ///
    /// # Blocking
    /// Until all members have come, and then until it is this thread's turn.
    pub fn join(&self, index: usize) -> SimResult<Attachment> {
        let thread = self.threads[index];
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived += 1;
        if *arrived == self.threads.len() {
            // CORRECTNESS: all members enter in one step, so that the first choice is among all.
            self.process.enter_together(&self.threads)?;
            self.all_here.notify_all();
        } else {
            while *arrived < self.threads.len() {
                arrived = self.all_here.wait(arrived).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(arrived);
        let attachment = Attachment::begin(&self.process, thread);
        drop(self.process.wait_turn(self.process.lock(), thread)?);
        Ok(attachment)
    }
}

impl SimDevice {
    /// The calling real thread runs as a simulated thread named `name` until the attachment is dropped.
    ///
    /// # Errors
    /// When the simulated process has failed.
    ///
    /// # Blocking
    /// Until it is the thread's turn.
    pub fn attach(&self, name: &str) -> SimResult<Attachment> {
        let thread = self.add_thread(name);
        drop(self.process.enter(thread)?);
        Ok(Attachment::begin(&self.process, thread))
    }

    /// Real threads that begin together, one for each name.
    pub fn party<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Party {
        Party {
            process: Arc::clone(&self.process),
            threads: names.into_iter().map(|name| self.add_thread(name)).collect(),
            arrived: Mutex::new(0),
            all_here: Condvar::new(),
        }
    }

    /// A new simulated thread, outside of the device.
    pub(crate) fn add_thread(&self, name: &str) -> ThreadId {
        let mut state = self.process.lock();
        let thread = state.baton.add_outside(name);
        state.record(thread, ActionKind::Start, "");
        thread
    }
}
