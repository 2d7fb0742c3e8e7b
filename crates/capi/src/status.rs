//! Statuses: what every function returns.

/// What a function returns, and how a request ended: ONELANE_OK or one of the codes below. Codes are
/// never given another meaning; new ones may be added.
pub type Status = i32;

/// All is well.
pub const ONELANE_OK: Status = 0;
/// An argument is NULL that must not be, a struct_size is unknown, or a text is not UTF-8.
pub const ONELANE_INVALID_ARGUMENT: Status = 1;
/// The handle is NULL, was released or has ended, or never was one.
pub const ONELANE_INVALID_HANDLE: Status = 2;
/// A setting cannot be used; the text says which, and what it has to be.
pub const ONELANE_INVALID_CONFIG: Status = 3;
/// There was no room for as long as the call was ready to wait.
pub const ONELANE_FULL: Status = 4;
/// The queue or its executor has been shut down.
pub const ONELANE_CLOSED: Status = 5;
/// The request is more than the queue may ever take.
pub const ONELANE_TOO_LARGE: Status = 6;
/// The engine was lost too often; make a new queue.
pub const ONELANE_QUEUE_FAILED: Status = 7;
/// Waiting here, on a worker, would never end. The request, if there was one, is cancelled.
pub const ONELANE_WOULD_DEADLOCK: Status = 8;
/// The time is over. What was waited for goes on.
pub const ONELANE_TIMEOUT: Status = 9;
/// The engine said no. A callback returns this, or any other non-zero code, to fail.
pub const ONELANE_ENGINE_FAILED: Status = 10;
/// The device ran out of memory. Returned by `run`, it has a batch split.
pub const ONELANE_OUT_OF_MEMORY: Status = 11;
/// The engine is gone. Returned by `run`, it has the engine built again.
pub const ONELANE_ENGINE_LOST: Status = 12;
/// The engine was lost before and could not be built again for this request.
pub const ONELANE_REBUILD_FAILED: Status = 13;
/// The deadline passed before the request was started.
pub const ONELANE_DEADLINE_EXCEEDED: Status = 14;
/// The request was cancelled.
pub const ONELANE_CANCELLED: Status = 15;
/// The operating system gave no thread.
pub const ONELANE_NO_THREAD: Status = 16;
/// Another version of the library is in this process, or the version asked for is unknown.
pub const ONELANE_UNSUPPORTED_VERSION: Status = 17;
/// A bug in this library, contained; the text says where.
pub const ONELANE_INTERNAL: Status = 18;

/// As a timeout: wait without end.
pub const ONELANE_FOREVER: u64 = u64::MAX;

/// A request's priority: somebody is waiting at a screen.
pub const ONELANE_PRIORITY_INTERACTIVE: i32 = 1;
/// A request's priority: the default.
pub const ONELANE_PRIORITY_NORMAL: i32 = 0;
/// A request's priority: work that may wait.
pub const ONELANE_PRIORITY_BULK: i32 = -1;

/// A shutdown that runs everything that was accepted.
pub const ONELANE_DRAIN: i32 = 0;
/// A shutdown that answers what waits with ONELANE_CLOSED.
pub const ONELANE_ABORT: i32 = 1;

/// Health: it works, or waits for work.
pub const ONELANE_READY: i32 = 0;
/// Health: the engine was lost and is being built again.
pub const ONELANE_REBUILDING: i32 = 1;
/// Health: a batch has run for longer than `stall_after`.
pub const ONELANE_STALLED: i32 = 2;
/// Health: it has given up; every request is refused.
pub const ONELANE_FAILED: i32 = 3;
/// Health: it has been shut down.
pub const ONELANE_SHUT_DOWN: i32 = 4;
