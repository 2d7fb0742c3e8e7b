//! A C engine for the tests: it doubles what is in its items, and counts what is called.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use onelane_capi::*;

/// A hang is a failure.
pub const HANG: Duration = Duration::from_secs(60);
pub const HANG_NS: u64 = 60_000_000_000;

/// One item. It is shared with the engine, so all of it is atomic.
#[derive(Default)]
pub struct Item {
    pub input: i64,
    pub output: AtomicI64,
    pub done: AtomicUsize,
    pub status: AtomicI32,
}

/// What the engine's callbacks see; leaked, so that late calls are seen and not undefined.
#[derive(Default)]
pub struct Counts {
    pub built: AtomicUsize,
    pub dropped: AtomicUsize,
    pub contexts_dropped: AtomicUsize,
    pub largest: AtomicUsize,
    /// `run` with a negative input says that it runs, and waits until it is let go on.
    pub gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

pub fn counts() -> &'static Counts {
    Box::leak(Box::default())
}

pub fn item(input: i64) -> &'static Item {
    Box::leak(Box::new(Item { input, ..Item::default() }))
}

unsafe extern "C" fn build(
    context: *mut c_void,
    engine: *mut *mut c_void,
    _: *mut ErrorSlot,
) -> Status {
    let counts = unsafe { &*context.cast::<Counts>() };
    counts.built.fetch_add(1, Ordering::SeqCst);
    unsafe { engine.write(context) };
    ONELANE_OK
}

unsafe extern "C" fn run(
    engine: *mut c_void,
    items: *const *mut c_void,
    count: usize,
    error: *mut ErrorSlot,
) -> Status {
    let counts = unsafe { &*engine.cast::<Counts>() };
    counts.largest.fetch_max(count, Ordering::SeqCst);
    let items = unsafe { std::slice::from_raw_parts(items, count) };
    for item in items {
        let item = unsafe { &*item.cast::<Item>() };
        if item.input == 13 {
            unsafe { onelane_error_set(error, c"thirteen".as_ptr(), null_mut(), None) };
            return ONELANE_ENGINE_FAILED;
        }
        if item.input < 0 {
            let gate = counts.gate.lock().unwrap();
            let (running, go_on) = gate.as_ref().unwrap();
            running.send(()).unwrap();
            go_on.recv_timeout(HANG).unwrap();
        }
        item.output.store(item.input * 2, Ordering::SeqCst);
    }
    ONELANE_OK
}

unsafe extern "C" fn drop_engine(engine: *mut c_void) {
    unsafe { &*engine.cast::<Counts>() }.dropped.fetch_add(1, Ordering::SeqCst);
}

unsafe extern "C" fn done(
    _: *mut c_void,
    item: *mut c_void,
    status: Status,
    message: *const c_char,
    _: *mut c_void,
) {
    let item = unsafe { &*item.cast::<Item>() };
    assert_eq!(message.is_null(), status == ONELANE_OK);
    item.status.store(status, Ordering::SeqCst);
    item.done.fetch_add(1, Ordering::SeqCst);
}

unsafe extern "C" fn drop_context(context: *mut c_void) {
    unsafe { &*context.cast::<Counts>() }.contexts_dropped.fetch_add(1, Ordering::SeqCst);
}

pub fn table(counts: &'static Counts) -> EngineTable {
    EngineTable {
        struct_size: size_of::<EngineTable>(),
        context: (&raw const *counts).cast_mut().cast(),
        build: Some(build),
        run: Some(run),
        drop_engine: Some(drop_engine),
        done: Some(done),
        drop_context: Some(drop_context),
        idempotent: 1,
    }
}

pub fn settings(device: &CStr) -> ExecutorSettings {
    ExecutorSettings {
        struct_size: size_of::<ExecutorSettings>(),
        device: device.as_ptr(),
        workers: 0,
        capacity: 0,
        stack_size: 0,
    }
}

pub fn executor(device: &CStr) -> *mut Executor {
    let mut executor = null_mut();
    let status = unsafe { onelane_executor_shared(&settings(device), &mut executor) };
    assert_eq!(status, ONELANE_OK, "{}", last_error());
    executor
}

pub fn queue(executor: *mut Executor, counts: &'static Counts) -> *mut Queue {
    let mut queue = null_mut();
    let status = unsafe { onelane_queue_new(executor, null(), &table(counts), &mut queue) };
    assert_eq!(status, ONELANE_OK, "{}", last_error());
    queue
}

pub fn request(item: &'static Item) -> RequestSpec {
    RequestSpec {
        struct_size: size_of::<RequestSpec>(),
        item: (&raw const *item).cast_mut().cast(),
        key: 0,
        cost: 0,
        deadline_ns: 0,
        priority: 0,
    }
}

pub fn submit(queue: *mut Queue, item: &'static Item) -> *mut Ticket {
    let mut ticket = null_mut();
    let status = unsafe { onelane_queue_submit(queue, &request(item), HANG_NS, &mut ticket) };
    assert_eq!(status, ONELANE_OK, "{}", last_error());
    ticket
}

pub fn last_error() -> String {
    unsafe { CStr::from_ptr(onelane_last_error()) }.to_str().unwrap().to_owned()
}
