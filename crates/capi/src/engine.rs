//! What C says of an engine, its queue and its requests.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use onelane::{BatchConfig, Priority, Request, Shutdown};

use crate::error::{ErrorSlot, Failure, failure, text};
use crate::sized;
use crate::status::*;

/// An engine: what is called to build it, to run a batch, to drop it.
///
/// `build`, `run` and `drop_engine` are called on the worker alone, one at a time (with several
/// workers, on each for its own engine). `done` and `drop_context` may be called on any thread.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EngineTable {
    /// sizeof(onelane_engine).
    pub struct_size: usize,
    /// Passed to `build`, `done` and `drop_context`. From the call of onelane_queue_new on it is the
    /// library's, until `drop_context`.
    pub context: *mut c_void,
    /// Builds an engine and stores it in `*engine`. Called again when the engine was lost. NULL: the
    /// context is the engine.
    pub build: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            engine: *mut *mut c_void,
            error: *mut ErrorSlot,
        ) -> Status,
    >,
    /// Runs a batch: `count` items whose requests have one key. It reads its inputs from the items and
    /// leaves the outputs in them. A status other than ONELANE_OK is the batch's: a batch of several is
    /// run again in parts, if `idempotent`, until the requests at fault are alone. Must not be NULL.
    pub run: Option<
        unsafe extern "C" fn(
            engine: *mut c_void,
            items: *const *mut c_void,
            count: usize,
            error: *mut ErrorSlot,
        ) -> Status,
    >,
    /// Drops an engine. NULL: there is nothing to drop.
    pub drop_engine: Option<unsafe extern "C" fn(engine: *mut c_void)>,
    /// Gives an item back, exactly once for each that was accepted; nothing uses it any more. `message`
    /// and `payload` (NULL if there is none, as with ONELANE_OK) are there for the time of the call.
    /// NULL: every request is submitted with a ticket.
    pub done: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            item: *mut c_void,
            status: Status,
            message: *const c_char,
            payload: *mut c_void,
        ),
    >,
    /// Called once, when nothing needs the context any more, also if onelane_queue_new fails (unless
    /// it gives ONELANE_INVALID_ARGUMENT). NULL: nothing is called.
    pub drop_context: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Not 0: a failed batch may be run again in parts. 0 if `run` has effects that must not happen
    /// twice; then an error is the answer to all of its batch.
    pub idempotent: u32,
}

// SAFETY: `repr(C)`, the size comes first, and NULL and 0 are values of all fields.
unsafe impl sized::Sized for EngineTable {
    const FIRST: usize = size_of::<Self>();
    const NAME: &'static str = "onelane_engine";
}

/// Settings of a queue. Zero means the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct QueueSettings {
    /// sizeof(onelane_queue_config).
    pub struct_size: usize,
    /// The name in spans and errors; "queue".
    pub name: *const c_char,
    /// The most requests in a batch; 32.
    pub max_batch_size: usize,
    /// The most cost in a batch; without limit.
    pub max_batch_cost: usize,
    /// How long an idle worker may wait for a batch to fill; it never waits.
    pub max_wait_ns: u64,
    /// The most requests that may wait; 1024.
    pub capacity: usize,
    /// The most cost that may wait; without limit.
    pub capacity_cost: usize,
    /// A waiting request is lifted one priority for each such interval; 1 s. ONELANE_FOREVER: never.
    pub ageing_ns: u64,
    /// A batch that has run so long makes the queue ONELANE_STALLED; 30 s.
    pub stall_after_ns: u64,
    /// How long what running out of memory has taught lasts; 10 s. ONELANE_FOREVER: for good.
    pub ceiling_retry_ns: u64,
    /// This queue's share of the device among the queues that have work; 1.
    pub weight: u32,
    /// How many times in a row the engine may be lost before the queue gives up; 8.
    pub max_rebuilds: u32,
}

// SAFETY: as above.
unsafe impl sized::Sized for QueueSettings {
    const FIRST: usize = size_of::<Self>();
    const NAME: &'static str = "onelane_queue_config";
}

pub(crate) fn duration(nanoseconds: u64) -> Duration {
    match nanoseconds {
        ONELANE_FOREVER => Duration::MAX,
        some => Duration::from_nanos(some),
    }
}

impl QueueSettings {
    /// # Safety
    /// The name is NULL or a C string.
    pub(crate) unsafe fn to_config(self) -> Result<BatchConfig, Failure> {
        fn set<T: PartialEq + Default>(to: &mut T, value: T) {
            if value != T::default() {
                *to = value;
            }
        }
        let mut config = BatchConfig::default();
        if !self.name.is_null() {
            // SAFETY: it is not NULL, so it is a C string.
            config.name = unsafe { text(self.name, "name") }?;
        }
        set(&mut config.max_batch_size, self.max_batch_size);
        set(&mut config.max_batch_cost, self.max_batch_cost);
        set(&mut config.max_wait, duration(self.max_wait_ns));
        set(&mut config.capacity, self.capacity);
        set(&mut config.capacity_cost, self.capacity_cost);
        set(&mut config.ageing, duration(self.ageing_ns));
        set(&mut config.stall_after, duration(self.stall_after_ns));
        set(&mut config.ceiling_retry, duration(self.ceiling_retry_ns));
        set(&mut config.weight, self.weight);
        set(&mut config.max_rebuilds, self.max_rebuilds);
        Ok(config)
    }
}

/// A request. Zero means the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RequestSpec {
    /// sizeof(onelane_request).
    pub struct_size: usize,
    /// What `run` is given. When the request was accepted it is the queue's, until `done`; when it was
    /// refused it stays the caller's.
    pub item: *mut c_void,
    /// Only requests with equal keys share a batch.
    pub key: u64,
    /// What it weighs, in the unit of `max_batch_cost`; 1.
    pub cost: usize,
    /// From now on, the time after which it must no longer start; none.
    pub deadline_ns: u64,
    /// ONELANE_PRIORITY_NORMAL, _INTERACTIVE or _BULK.
    pub priority: i32,
}

// SAFETY: as above.
unsafe impl sized::Sized for RequestSpec {
    const FIRST: usize = size_of::<Self>();
    const NAME: &'static str = "onelane_request";
}

/// A request of the core with C's priority and deadline.
pub(crate) fn request<I>(input: I, priority: i32, deadline_ns: u64) -> Result<Request<I>, Failure> {
    let request = Request::new(input).priority(match priority {
        ONELANE_PRIORITY_INTERACTIVE => Priority::Interactive,
        ONELANE_PRIORITY_NORMAL => Priority::Normal,
        ONELANE_PRIORITY_BULK => Priority::Bulk,
        other => {
            let text = format!("priority is {other}: use -1 (bulk), 0 (normal) or 1 (interactive)");
            return Err(failure(ONELANE_INVALID_ARGUMENT, text));
        }
    });
    Ok(match deadline_ns {
        0 => request,
        some => request.deadline_after(duration(some)),
    })
}

/// How a shutdown is to end.
pub(crate) fn shutdown_mode(mode: i32) -> Result<Shutdown, Failure> {
    match mode {
        ONELANE_DRAIN => Ok(Shutdown::Drain),
        ONELANE_ABORT => Ok(Shutdown::Abort),
        other => {
            let text = format!("mode is {other}: use ONELANE_DRAIN or ONELANE_ABORT");
            Err(failure(ONELANE_INVALID_ARGUMENT, text))
        }
    }
}

/// The table of an engine; when the last one lets go, the context is dropped.
pub(crate) struct EngineSpec {
    pub(crate) table: EngineTable,
}

// SAFETY: onelane.h asks for a context that the worker builds from, and for a `done` and a
// `drop_context` that any thread may call.
unsafe impl Send for EngineSpec {}
// SAFETY: as above.
unsafe impl Sync for EngineSpec {}

impl EngineSpec {
    pub(crate) fn new(table: EngineTable) -> Self {
        Self { table }
    }

    pub(crate) fn has_done(&self) -> bool {
        self.table.done.is_some()
    }

    pub(crate) fn done(
        &self,
        item: *mut c_void,
        status: Status,
        message: *const c_char,
        payload: *mut c_void,
    ) {
        if let Some(done) = self.table.done {
            // SAFETY: the context lives as long as this, the item was accepted, and this is its end.
            unsafe { done(self.table.context, item, status, message, payload) };
        }
    }
}

impl Drop for EngineSpec {
    fn drop(&mut self) {
        if let Some(drop_context) = self.table.drop_context {
            // SAFETY: nobody else has the context any more.
            unsafe { drop_context(self.table.context) };
        }
    }
}
