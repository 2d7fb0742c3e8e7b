//! The table of functions: what `onelane_get_api` and the Python package's capsule give.

use std::ffi::{c_char, c_void};

use crate::contain::contain;
use crate::engine::{EngineTable, QueueSettings, RequestSpec};
use crate::error::{ErrorSlot, failure, last_message, last_payload};
use crate::executor::{ClosureSpec, ExecutorSettings};
use crate::handles::{Executor, Queue, Ticket};
use crate::stats::{HealthReport, Statistics};
use crate::status::{ONELANE_INVALID_ARGUMENT, Status};
use crate::{executor, queue, ticket};

/// The version of the table. It is raised when an old program could not use a new table; functions that
/// are added at the end leave it as it is.
pub const ONELANE_API_VERSION: u32 = 1;

/// All functions, each as the one of the same name with onelane_ before it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Api {
    /// The size of this table; what lies beyond it is not there.
    pub struct_size: usize,
    /// ONELANE_API_VERSION of whom it is from.
    pub version: u32,
    /// See onelane_last_error.
    pub last_error: extern "C" fn() -> *const c_char,
    /// See onelane_last_payload.
    pub last_payload: extern "C" fn() -> *mut c_void,
    /// See onelane_error_set.
    pub error_set: unsafe extern "C" fn(
        error: *mut ErrorSlot,
        message: *const c_char,
        payload: *mut c_void,
        drop_payload: Option<unsafe extern "C" fn(payload: *mut c_void)>,
    ) -> Status,
    /// See onelane_executor_shared.
    pub executor_shared: unsafe extern "C" fn(
        settings: *const ExecutorSettings,
        executor: *mut *mut Executor,
    ) -> Status,
    /// See onelane_executor_new.
    pub executor_new: unsafe extern "C" fn(
        settings: *const ExecutorSettings,
        executor: *mut *mut Executor,
    ) -> Status,
    /// See onelane_executor_id.
    pub executor_id: unsafe extern "C" fn(executor: *mut Executor, id: *mut u64) -> Status,
    /// See onelane_executor_workers.
    pub executor_workers:
        unsafe extern "C" fn(executor: *mut Executor, workers: *mut usize) -> Status,
    /// See onelane_executor_is_worker.
    pub executor_is_worker:
        unsafe extern "C" fn(executor: *mut Executor, is_worker: *mut bool) -> Status,
    /// See onelane_executor_submit.
    pub executor_submit: unsafe extern "C" fn(
        executor: *mut Executor,
        closure: *const ClosureSpec,
        timeout_ns: u64,
        ticket: *mut *mut Ticket,
    ) -> Status,
    /// See onelane_executor_shutdown.
    pub executor_shutdown:
        unsafe extern "C" fn(executor: *mut Executor, mode: i32, timeout_ns: u64) -> Status,
    /// See onelane_executor_stats.
    pub executor_stats:
        unsafe extern "C" fn(executor: *mut Executor, stats: *mut Statistics) -> Status,
    /// See onelane_executor_health.
    pub executor_health:
        unsafe extern "C" fn(executor: *mut Executor, health: *mut HealthReport) -> Status,
    /// See onelane_executor_release.
    pub executor_release: unsafe extern "C" fn(executor: *mut Executor) -> Status,
    /// See onelane_queue_new.
    pub queue_new: unsafe extern "C" fn(
        executor: *mut Executor,
        config: *const QueueSettings,
        engine: *const EngineTable,
        queue: *mut *mut Queue,
    ) -> Status,
    /// See onelane_queue_submit.
    pub queue_submit: unsafe extern "C" fn(
        queue: *mut Queue,
        request: *const RequestSpec,
        timeout_ns: u64,
        ticket: *mut *mut Ticket,
    ) -> Status,
    /// See onelane_queue_is_worker.
    pub queue_is_worker: unsafe extern "C" fn(queue: *mut Queue, is_worker: *mut bool) -> Status,
    /// See onelane_queue_close.
    pub queue_close: unsafe extern "C" fn(queue: *mut Queue) -> Status,
    /// See onelane_queue_shutdown.
    pub queue_shutdown:
        unsafe extern "C" fn(queue: *mut Queue, mode: i32, timeout_ns: u64) -> Status,
    /// See onelane_queue_stats.
    pub queue_stats: unsafe extern "C" fn(queue: *mut Queue, stats: *mut Statistics) -> Status,
    /// See onelane_queue_health.
    pub queue_health: unsafe extern "C" fn(queue: *mut Queue, health: *mut HealthReport) -> Status,
    /// See onelane_queue_release.
    pub queue_release: unsafe extern "C" fn(queue: *mut Queue) -> Status,
    /// See onelane_ticket_wait.
    pub ticket_wait: unsafe extern "C" fn(ticket: *mut Ticket, timeout_ns: u64) -> Status,
    /// See onelane_ticket_cancel.
    pub ticket_cancel: unsafe extern "C" fn(ticket: *mut Ticket) -> Status,
}

extern "C" fn own_last_error() -> *const c_char {
    last_message()
}

extern "C" fn own_last_payload() -> *mut c_void {
    last_payload()
}

unsafe extern "C" fn own_error_set(
    error: *mut ErrorSlot,
    message: *const c_char,
    payload: *mut c_void,
    drop_payload: Option<unsafe extern "C" fn(payload: *mut c_void)>,
) -> Status {
    contain(|| {
        // SAFETY: the callback passes NULL or what it was given.
        let Some(error) = (unsafe { error.as_mut() }) else {
            return Err(failure(ONELANE_INVALID_ARGUMENT, "error is NULL"));
        };
        // SAFETY: the callback keeps to what onelane.h says.
        unsafe { error.set(message, payload, drop_payload) };
        Ok(())
    })
}

static OWN: Api = Api {
    struct_size: size_of::<Api>(),
    version: ONELANE_API_VERSION,
    last_error: own_last_error,
    last_payload: own_last_payload,
    error_set: own_error_set,
    executor_shared: executor::shared,
    executor_new: executor::new,
    executor_id: executor::id,
    executor_workers: executor::workers,
    executor_is_worker: executor::is_worker,
    executor_submit: executor::submit,
    executor_shutdown: executor::shutdown,
    executor_stats: executor::stats,
    executor_health: executor::health,
    executor_release: executor::release,
    queue_new: queue::new,
    queue_submit: queue::submit,
    queue_is_worker: queue::is_worker,
    queue_close: queue::close,
    queue_shutdown: queue::shutdown,
    queue_stats: queue::stats,
    queue_health: queue::health,
    queue_release: queue::release,
    ticket_wait: ticket::wait,
    ticket_cancel: ticket::cancel,
};

/// The table of this copy of the core.
pub fn own_api() -> &'static Api {
    &OWN
}
