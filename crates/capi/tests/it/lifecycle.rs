//! `done` exactly once, contexts and engines dropped, whatever the end of a request is.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;

use onelane_capi::*;

use crate::common::*;

#[test]
fn a_ticket_gives_the_answer_and_done_has_been_called() {
    let (executor, counts) = (executor(c"capi-ticket"), counts());
    let queue = queue(executor, counts);
    let item = item(21);
    let ticket = submit(queue, item);
    assert_eq!(unsafe { onelane_ticket_wait(ticket, HANG_NS) }, ONELANE_OK);
    assert_eq!((item.output.load(SeqCst), item.done.load(SeqCst)), (42, 1));
    assert_eq!(unsafe { onelane_ticket_wait(ticket, HANG_NS) }, ONELANE_INVALID_HANDLE);
    assert_eq!(unsafe { onelane_queue_shutdown(queue, ONELANE_DRAIN, HANG_NS) }, ONELANE_OK);
    assert_eq!(counts.dropped.load(SeqCst), 1);
    assert_eq!(counts.contexts_dropped.load(SeqCst), 0);
    assert_eq!(unsafe { onelane_queue_release(queue) }, ONELANE_OK);
    assert_eq!(unsafe { onelane_executor_shutdown(executor, ONELANE_DRAIN, HANG_NS) }, ONELANE_OK);
    assert_eq!(counts.contexts_dropped.load(SeqCst), 1);
    assert_eq!(unsafe { onelane_executor_release(executor) }, ONELANE_OK);
}

#[test]
fn a_bad_item_fails_alone_with_its_text() {
    let (executor, counts) = (executor(c"capi-bad"), counts());
    let queue = queue(executor, counts);
    let items: Vec<_> = [1, 13, 3, 4].map(item).into();
    let tickets: Vec<_> = items.iter().map(|item| submit(queue, item)).collect();
    for (item, ticket) in items.iter().zip(tickets) {
        let status = unsafe { onelane_ticket_wait(ticket, ONELANE_FOREVER) };
        if item.input == 13 {
            assert_eq!((status, last_error().as_str()), (ONELANE_ENGINE_FAILED, "thirteen"));
        } else {
            assert_eq!((status, item.output.load(SeqCst)), (ONELANE_OK, item.input * 2));
        }
        assert_eq!(item.done.load(SeqCst), 1);
    }
    unsafe { onelane_queue_release(queue) };
    unsafe { onelane_executor_release(executor) };
}

/// Holds the worker in a batch until the sender says, or goes.
fn hold(queue: *mut Queue, counts: &'static Counts) -> (std::sync::mpsc::Sender<()>, *mut Ticket) {
    let (running, is_running) = channel();
    let (go_on, may_go_on) = channel();
    *counts.gate.lock().unwrap() = Some((running, may_go_on));
    let ticket = submit(queue, item(-1));
    is_running.recv_timeout(HANG).unwrap();
    (go_on, ticket)
}

#[test]
fn what_waits_is_cancelled_expired_or_closed_and_done_says_which() {
    let (executor, counts) = (executor(c"capi-ends"), counts());
    let queue = queue(executor, counts);
    let (go_on, held) = hold(queue, counts);
    assert_eq!(unsafe { onelane_ticket_wait(held, 0) }, ONELANE_TIMEOUT);

    let cancelled = item(1);
    let ticket = submit(queue, cancelled);
    assert_eq!(unsafe { onelane_ticket_cancel(ticket) }, ONELANE_OK);
    assert_eq!(cancelled.done.load(SeqCst), 1, "it waited, so it is given back at once");
    assert_eq!(cancelled.status.load(SeqCst), ONELANE_CANCELLED);
    assert_eq!(unsafe { onelane_ticket_cancel(ticket) }, ONELANE_INVALID_HANDLE);

    let expired = item(2);
    let request = RequestSpec { deadline_ns: 1, ..request(expired) };
    let mut ticket = null_mut();
    assert_eq!(unsafe { onelane_queue_submit(queue, &request, 0, &mut ticket) }, ONELANE_OK);
    assert_eq!(unsafe { onelane_ticket_wait(ticket, HANG_NS) }, ONELANE_DEADLINE_EXCEEDED);
    assert_eq!((expired.done.load(SeqCst), expired.output.load(SeqCst)), (1, 0));

    // Nobody waits for this one.
    let closed = item(3);
    let request = crate::common::request(closed);
    assert_eq!(unsafe { onelane_queue_submit(queue, &request, 0, null_mut()) }, ONELANE_OK);
    let late = unsafe { onelane_queue_shutdown(queue, ONELANE_ABORT, 0) };
    assert_eq!(late, ONELANE_TIMEOUT, "a batch runs");
    assert_eq!((closed.done.load(SeqCst), closed.status.load(SeqCst)), (1, ONELANE_CLOSED));

    go_on.send(()).unwrap();
    assert_eq!(unsafe { onelane_ticket_wait(held, HANG_NS) }, ONELANE_OK);
    let refused = item(4);
    let request = crate::common::request(refused);
    assert_eq!(unsafe { onelane_queue_submit(queue, &request, 0, null_mut()) }, ONELANE_CLOSED);
    assert_eq!(refused.done.load(SeqCst), 0, "a refused item stays the caller's");
    unsafe { onelane_queue_release(queue) };
    unsafe { onelane_executor_release(executor) };
}

#[test]
fn a_running_item_whose_ticket_is_dropped_is_given_back_when_it_has_run() {
    let (executor, counts) = (executor(c"capi-drop"), counts());
    let queue = queue(executor, counts);
    let (go_on, _) = (counts, ());
    let (running, is_running) = channel();
    let (release, may_go_on) = channel();
    *go_on.gate.lock().unwrap() = Some((running, may_go_on));
    let held = item(-1);
    let ticket = submit(queue, held);
    is_running.recv_timeout(HANG).unwrap();
    assert_eq!(unsafe { onelane_ticket_cancel(ticket) }, ONELANE_OK);
    assert_eq!(held.done.load(SeqCst), 0, "the engine has it");
    release.send(()).unwrap();
    assert_eq!(unsafe { onelane_queue_shutdown(queue, ONELANE_DRAIN, HANG_NS) }, ONELANE_OK);
    assert_eq!((held.done.load(SeqCst), held.status.load(SeqCst)), (1, ONELANE_CANCELLED));
    unsafe { onelane_queue_release(queue) };
    unsafe { onelane_executor_release(executor) };
}

#[test]
fn a_closure_runs_on_the_worker_and_rust_sees_the_same_one() {
    unsafe extern "C" fn run(arg: *mut c_void, _: *mut ErrorSlot) -> Status {
        let at = unsafe { &*arg.cast::<std::sync::Mutex<Option<std::thread::ThreadId>>>() };
        *at.lock().unwrap() = Some(std::thread::current().id());
        ONELANE_OK
    }
    let executor = executor(c"capi-closure");
    let seen = std::sync::Mutex::new(None);
    let closure = ClosureSpec {
        struct_size: size_of::<ClosureSpec>(),
        arg: (&raw const seen).cast_mut().cast(),
        run: Some(run),
        done: None,
        deadline_ns: 0,
        priority: ONELANE_PRIORITY_INTERACTIVE,
    };
    let mut ticket = null_mut();
    let status = unsafe { onelane_executor_submit(executor, &closure, HANG_NS, &mut ticket) };
    assert_eq!(status, ONELANE_OK);
    assert_eq!(unsafe { onelane_ticket_wait(ticket, HANG_NS) }, ONELANE_OK);
    let rust = onelane::DeviceExecutor::shared("capi-closure").unwrap();
    let worker = rust.call(|| std::thread::current().id()).unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(worker));
    let mut id = 0;
    assert_eq!(unsafe { onelane_executor_id(executor, &mut id) }, ONELANE_OK);
    assert_eq!(id, rust.id());
    unsafe { onelane_executor_release(executor) };
}
