//! The functions of onelane.h by name. They go through the table that is the process's.

#![allow(clippy::missing_safety_doc, reason = "the head of onelane.h says it for all of them")]

use std::ffi::{c_char, c_void};

use crate::api::{Api, ONELANE_API_VERSION};
use crate::copies::resolve;
use crate::engine::{EngineTable, QueueSettings, RequestSpec};
use crate::error::{ErrorSlot, failure, remember};
use crate::executor::{ClosureSpec, ExecutorSettings};
use crate::handles::{Executor, Queue, Ticket};
use crate::stats::{HealthReport, Statistics};
use crate::status::*;

fn table() -> Option<&'static Api> {
    resolve(ONELANE_API_VERSION)
}

fn no_table() -> Status {
    let text = "the onelane package in this Python process is of another version than libonelane";
    remember(failure(ONELANE_UNSUPPORTED_VERSION, text))
}

/// The table of all functions, which is the process's own: in a Python process that has loaded the
/// package onelane, that package's. NULL for a version that is not known. It is there for good.
#[unsafe(no_mangle)]
pub extern "C" fn onelane_get_api(version: u32) -> *const Api {
    if version != ONELANE_API_VERSION {
        return std::ptr::null();
    }
    table().map_or(std::ptr::null(), |table| &raw const *table)
}

/// The text of the last failure of a call on this thread; "" if there was none. It is there until this
/// thread's next failure.
#[unsafe(no_mangle)]
pub extern "C" fn onelane_last_error() -> *const c_char {
    table().map_or(c"".as_ptr(), |table| (table.last_error)())
}

/// The payload of the last failure, if it came from a callback that set one; else NULL. It is the
/// library's, until this thread's next failure.
#[unsafe(no_mangle)]
pub extern "C" fn onelane_last_payload() -> *mut c_void {
    table().map_or(std::ptr::null_mut(), |table| (table.last_payload)())
}

/// For `build` and `run`, before they return a status that is not ONELANE_OK: the text, which is
/// copied and may be NULL, and a payload, such as an exception, which is the library's from now on:
/// `drop_payload`, unless NULL, is called once, on any thread, when nobody needs it.
/// `error` is what the callback was given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_error_set(
    error: *mut ErrorSlot,
    message: *const c_char,
    payload: *mut c_void,
    drop_payload: Option<unsafe extern "C" fn(payload: *mut c_void)>,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.error_set)(error, message, payload, drop_payload) }
}

/// The process's executor for a device, made with these settings if it is not there: whatever language
/// asks, a device has one. "metal" and "metal:0" name the same device. `*executor` is a new handle, to be
/// released; the executor itself lives until it is shut down or the process ends.
///
/// Blocks while the device's former executor is just ending.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_shared(
    settings: *const ExecutorSettings,
    executor: *mut *mut Executor,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_shared)(settings, executor) }
}

/// An executor of one's own. Two executors on one device are two owners: use onelane_executor_shared
/// unless that is what is meant. `*executor` is a new handle, to be released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_new(
    settings: *const ExecutorSettings,
    executor: *mut *mut Executor,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_new)(settings, executor) }
}

/// Names the executor among those of the process: handles with one id are to one executor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_id(executor: *mut Executor, id: *mut u64) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_id)(executor, id) }
}

/// The number of worker threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_workers(
    executor: *mut Executor,
    workers: *mut usize,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_workers)(executor, workers) }
}

/// Whether the calling thread is a worker of this executor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_is_worker(
    executor: *mut Executor,
    is_worker: *mut bool,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_is_worker)(executor, is_worker) }
}

/// Runs a closure on the worker; inline, before this returns, when already there. With a ticket, wait
/// for it; with NULL, `done` alone hears of the end.
///
/// Blocks while as many closures wait as the executor's capacity says, for at most `timeout_ns`: 0 does
/// not block, ONELANE_FOREVER waits without end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_submit(
    executor: *mut Executor,
    closure: *const ClosureSpec,
    timeout_ns: u64,
    ticket: *mut *mut Ticket,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_submit)(executor, closure, timeout_ns, ticket) }
}

/// Refuses new work, runs what waits (ONELANE_DRAIN) or answers it with ONELANE_CLOSED
/// (ONELANE_ABORT), drops all engines on their workers and joins the threads. A shared executor can be had
/// anew afterwards.
///
/// Blocks for at most `timeout_ns`; then, with ONELANE_TIMEOUT, and on a worker, with
/// ONELANE_WOULD_DEADLOCK, it goes on by itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_shutdown(
    executor: *mut Executor,
    mode: i32,
    timeout_ns: u64,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_shutdown)(executor, mode, timeout_ns) }
}

/// The counters of the executor's closures.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_stats(
    executor: *mut Executor,
    stats: *mut Statistics,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_stats)(executor, stats) }
}

/// How the device is: it stalls when a batch of any queue does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_health(
    executor: *mut Executor,
    health: *mut HealthReport,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_health)(executor, health) }
}

/// Releases a handle. The last one to an executor of one's own (queues hold one each) drains and joins
/// its workers, for as long as that takes; on a worker it does not wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_executor_release(executor: *mut Executor) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.executor_release)(executor) }
}

/// Makes a queue and builds its engine on the worker. The table is copied. `config` may be NULL.
/// `*queue` is a new handle, to be released; it keeps the executor.
///
/// From this call on the context is the library's: `drop_context` is called once, also if this fails,
/// unless it gives ONELANE_INVALID_ARGUMENT for `engine` or `queue` itself. When `build` fails its status,
/// text and payload are this call's.
///
/// Blocks until the engine is built; on the worker it builds inline.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_new(
    executor: *mut Executor,
    config: *const QueueSettings,
    engine: *const EngineTable,
    queue: *mut *mut Queue,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_new)(executor, config, engine, queue) }
}

/// Submits a request. When this gives ONELANE_OK the item is the queue's until `done`, which is called
/// exactly once, perhaps before this returns. Otherwise the item stays the caller's, and `done` is not
/// called. With a ticket, wait for it; with NULL, `done` alone hears of the end.
///
/// Blocks while the queue is full, for at most `timeout_ns`: 0 does not block, ONELANE_FOREVER waits
/// without end. On a worker it makes room by running requests inline.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_submit(
    queue: *mut Queue,
    request: *const RequestSpec,
    timeout_ns: u64,
    ticket: *mut *mut Ticket,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_submit)(queue, request, timeout_ns, ticket) }
}

/// Whether the calling thread is a worker of the queue's executor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_is_worker(
    queue: *mut Queue,
    is_worker: *mut bool,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_is_worker)(queue, is_worker) }
}

/// Refuses new requests; what was accepted is run. Does not wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_close(queue: *mut Queue) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_close)(queue) }
}

/// Refuses new requests, runs what waits (ONELANE_DRAIN) or answers it with ONELANE_CLOSED
/// (ONELANE_ABORT), and drops the engine on its worker. After ONELANE_OK every request has been answered and
/// the engine is gone.
///
/// Blocks for at most `timeout_ns`; then, with ONELANE_TIMEOUT, and on a worker, with
/// ONELANE_WOULD_DEADLOCK, it goes on by itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_shutdown(
    queue: *mut Queue,
    mode: i32,
    timeout_ns: u64,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_shutdown)(queue, mode, timeout_ns) }
}

/// The queue's counters; the last ones when it has been shut down.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_stats(queue: *mut Queue, stats: *mut Statistics) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_stats)(queue, stats) }
}

/// How the queue is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_health(
    queue: *mut Queue,
    health: *mut HealthReport,
) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_health)(queue, health) }
}

/// Releases the handle: the queue closes, what was accepted is run, then the engine is dropped on its
/// worker. Does not wait. Tickets stay good.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_queue_release(queue: *mut Queue) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.queue_release)(queue) }
}

/// Waits for the end of a request or closure, and gives its status: ONELANE_OK, or why there is no
/// response. That ends the ticket, and `done` has been called; the outputs are where `run` left them.
///
/// Blocks for at most `timeout_ns`. ONELANE_TIMEOUT says that it has not ended; the ticket stays good. On a
/// worker of the same executor it does not block: it runs what waits inline, or gives
/// ONELANE_WOULD_DEADLOCK: then the ticket has ended and the request is cancelled, but its item may be in
/// use further up the stack, until `done`. A ticket is for one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_ticket_wait(ticket: *mut Ticket, timeout_ns: u64) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.ticket_wait)(ticket, timeout_ns) }
}

/// Ends a ticket without waiting. A request that waits is not computed; one that runs is finished for
/// its batch-mates' sake. `done` says when the item is the caller's again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn onelane_ticket_cancel(ticket: *mut Ticket) -> Status {
    let Some(table) = table() else { return no_table() };
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { (table.ticket_cancel)(ticket) }
}
