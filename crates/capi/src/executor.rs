//! Device executors of the ABI, and closures on their workers.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use onelane::{DeviceExecutor, EngineError, ExecutorConfig};

use crate::contain::contain;
use crate::engine::{duration, request, shutdown_mode};
use crate::error::{ErrorSlot, Failure, failure, text};
use crate::handles::{Executor, Handles, Ticket};
use crate::sized;
use crate::stats::{HealthReport, Statistics, health_report, statistics};
use crate::status::*;
use crate::submitted::{AnyHandle, ClosureDone, Done, Submitted, refuse};
use crate::ticket;

/// Settings of an executor. Zero means the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ExecutorSettings {
    /// sizeof(onelane_executor_config).
    pub struct_size: usize,
    /// The device, for example "metal:0" or "cpu"; must not be NULL.
    pub device: *const c_char,
    /// How many worker threads own it; 1. More are for runtimes that are thread-safe.
    pub workers: usize,
    /// The most closures that may wait; 16,384.
    pub capacity: usize,
    /// The size of a worker's stack in bytes; 16 MiB.
    pub stack_size: usize,
}

// SAFETY: `repr(C)`, the size comes first, and NULL and 0 are values of all fields.
unsafe impl sized::Sized for ExecutorSettings {
    const FIRST: usize = size_of::<Self>();
    const NAME: &'static str = "onelane_executor_config";
}

/// A function to be run on the worker.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ClosureSpec {
    /// sizeof(onelane_closure).
    pub struct_size: usize,
    /// Passed to `run` and `done`. When the closure was accepted it is the executor's, until `done`.
    pub arg: *mut c_void,
    /// What is run on the worker; must not be NULL.
    pub run: Option<unsafe extern "C" fn(arg: *mut c_void, error: *mut ErrorSlot) -> Status>,
    /// Hears of the end, exactly once if it was accepted, on any thread. NULL: nobody does.
    pub done: Option<
        unsafe extern "C" fn(
            arg: *mut c_void,
            status: Status,
            message: *const c_char,
            payload: *mut c_void,
        ),
    >,
    /// From now on, the time after which it must no longer start; none.
    pub deadline_ns: u64,
    /// ONELANE_PRIORITY_NORMAL, _INTERACTIVE or _BULK.
    pub priority: i32,
}

// SAFETY: as above.
unsafe impl sized::Sized for ClosureSpec {
    const FIRST: usize = size_of::<Self>();
    const NAME: &'static str = "onelane_closure";
}

static EXECUTORS: Handles<DeviceExecutor, Executor> = Handles::new(1, "executor");

pub(crate) fn get(executor: *mut Executor) -> Result<DeviceExecutor, Failure> {
    EXECUTORS.with(executor, DeviceExecutor::clone)
}

type Make = fn(ExecutorConfig) -> Result<DeviceExecutor, onelane::BuildError>;

unsafe fn make(
    settings: *const ExecutorSettings,
    executor: *mut *mut Executor,
    make: Make,
) -> Status {
    contain(|| {
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        let settings = unsafe { sized::read(settings) }?;
        sized::check_out(executor, "executor")?;
        // SAFETY: the device is NULL or a C string.
        let mut config = ExecutorConfig::new(unsafe { text(settings.device, "device") }?);
        if settings.workers != 0 {
            config = config.workers(settings.workers);
        }
        if settings.capacity != 0 {
            config = config.capacity(settings.capacity);
        }
        if settings.stack_size != 0 {
            config = config.stack_size(settings.stack_size);
        }
        let handle = EXECUTORS.insert(make(config)?)?;
        // SAFETY: it was checked above.
        unsafe { executor.write(handle) };
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn shared(
    settings: *const ExecutorSettings,
    executor: *mut *mut Executor,
) -> Status {
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { make(settings, executor, DeviceExecutor::shared_with) }
}

pub(crate) unsafe extern "C" fn new(
    settings: *const ExecutorSettings,
    executor: *mut *mut Executor,
) -> Status {
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { make(settings, executor, DeviceExecutor::new) }
}

unsafe fn write<T>(
    to: *mut T,
    name: &'static str,
    value: impl FnOnce() -> Result<T, Failure>,
) -> Status {
    contain(|| {
        sized::check_out(to, name)?;
        let value = value()?;
        // SAFETY: it was checked above; the caller passes a place for it.
        unsafe { to.write(value) };
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn id(executor: *mut Executor, id: *mut u64) -> Status {
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { write(id, "id", || Ok(get(executor)?.id())) }
}

pub(crate) unsafe extern "C" fn workers(executor: *mut Executor, workers: *mut usize) -> Status {
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { write(workers, "workers", || Ok(get(executor)?.workers())) }
}

pub(crate) unsafe extern "C" fn is_worker(executor: *mut Executor, is_worker: *mut bool) -> Status {
    // SAFETY: the caller keeps to what onelane.h says.
    unsafe { write(is_worker, "is_worker", || Ok(get(executor)?.is_worker())) }
}

/// What a closure's function and argument are to the core.
struct Body {
    submitted: Arc<Submitted>,
    run: unsafe extern "C" fn(arg: *mut c_void, error: *mut ErrorSlot) -> Status,
}

impl Body {
    fn call(self) -> Result<(), EngineError> {
        let mut error = ErrorSlot::default();
        // SAFETY: they came together, and the closure was accepted and has not ended.
        let status = unsafe { (self.run)(self.submitted.item(), &raw mut error) };
        if status == ONELANE_OK { Ok(()) } else { Err(error.into_error(status)) }
    }
}

pub(crate) unsafe extern "C" fn submit(
    executor: *mut Executor,
    closure: *const ClosureSpec,
    timeout_ns: u64,
    ticket: *mut *mut Ticket,
) -> Status {
    contain(|| {
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        let ClosureSpec { arg, run, done, deadline_ns, priority, .. } =
            unsafe { sized::read(closure) }?;
        let Some(run) = run else {
            return Err(failure(ONELANE_INVALID_ARGUMENT, "onelane_closure.run is NULL"));
        };
        let device = get(executor)?;
        let done: ClosureDone = done;
        let submitted = Submitted::new(arg, Done::Closure(done));
        let body = Body { submitted: Arc::clone(&submitted), run };
        let request = match request(move || body.call(), priority, deadline_ns) {
            Ok(request) => request,
            Err(failure) => {
                submitted.refuse();
                return Err(failure);
            }
        };
        let patience =
            if timeout_ns == ONELANE_FOREVER { Duration::MAX } else { duration(timeout_ns) };
        match device.submit_timeout(request, patience) {
            Ok(handle) => ticket::hand_out(ticket, submitted, AnyHandle::Closure(handle)),
            Err(refused) => Err(refuse(&submitted, refused)),
        }
    })
}

pub(crate) unsafe extern "C" fn shutdown(
    executor: *mut Executor,
    mode: i32,
    timeout_ns: u64,
) -> Status {
    contain(|| Ok(get(executor)?.shutdown(shutdown_mode(mode)?, duration(timeout_ns))?))
}

pub(crate) unsafe extern "C" fn stats(executor: *mut Executor, stats: *mut Statistics) -> Status {
    contain(|| {
        let taken = statistics(&get(executor)?.stats());
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        unsafe { sized::write(stats, taken) }
    })
}

pub(crate) unsafe extern "C" fn health(
    executor: *mut Executor,
    health: *mut HealthReport,
) -> Status {
    contain(|| {
        let report = health_report(&get(executor)?.health());
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        unsafe { sized::write(health, report) }
    })
}

pub(crate) unsafe extern "C" fn release(executor: *mut Executor) -> Status {
    contain(|| {
        drop(EXECUTORS.take(executor)?);
        Ok(())
    })
}
