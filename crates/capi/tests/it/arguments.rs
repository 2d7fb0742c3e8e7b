//! Whatever is passed for a handle, and whatever struct is of a wrong size, gives a status.

use std::ptr::{null, null_mut, without_provenance_mut};
use std::sync::atomic::Ordering::SeqCst;

use onelane_capi::*;
use proptest::prelude::*;

use crate::common::*;

/// Calls everything that takes a handle; each must say that this is none.
fn use_all(executor: *mut Executor, queue: *mut Queue, ticket: *mut Ticket) {
    let (mut id, mut workers, mut is) = (0, 0, false);
    let mut stats = Statistics { struct_size: size_of::<Statistics>(), ..Statistics::default() };
    let mut health = HealthReport {
        struct_size: size_of::<HealthReport>(),
        state: 0,
        running_for_ns: 0,
        text: [0; 240],
    };
    let (item, counts) = (item(1), counts());
    let (request, table) = (request(item), table(counts));
    let mut out = null_mut();
    let statuses = unsafe {
        [
            onelane_executor_id(executor, &mut id),
            onelane_executor_workers(executor, &mut workers),
            onelane_executor_is_worker(executor, &mut is),
            onelane_executor_shutdown(executor, ONELANE_ABORT, 0),
            onelane_executor_stats(executor, &mut stats),
            onelane_executor_health(executor, &mut health),
            onelane_executor_release(executor),
            onelane_queue_new(executor, null(), &table, &mut out),
            onelane_queue_submit(queue, &request, 0, null_mut()),
            onelane_queue_is_worker(queue, &mut is),
            onelane_queue_close(queue),
            onelane_queue_shutdown(queue, ONELANE_ABORT, 0),
            onelane_queue_stats(queue, &mut stats),
            onelane_queue_health(queue, &mut health),
            onelane_queue_release(queue),
            onelane_ticket_wait(ticket, 0),
            onelane_ticket_wait(ticket, ONELANE_FOREVER),
            onelane_ticket_cancel(ticket),
        ]
    };
    assert_eq!(statuses, [ONELANE_INVALID_HANDLE; 18]);
    assert_eq!(item.done.load(SeqCst), 0);
    assert_eq!(counts.contexts_dropped.load(SeqCst), 1, "queue_new has taken it");
    assert!(out.is_null());
}

#[test]
fn null_released_and_foreign_handles_are_told() {
    use_all(null_mut(), null_mut(), null_mut());
    let (executor, counts) = (executor(c"capi-released"), counts());
    let queue = queue(executor, counts);
    let ticket = submit(queue, item(1));
    assert_eq!(unsafe { onelane_ticket_wait(ticket, ONELANE_FOREVER) }, ONELANE_OK);
    // Each is a handle, but of another kind.
    use_all(queue.cast(), executor.cast(), queue.cast());
    use_all(ticket.cast(), ticket.cast(), executor.cast());
    assert_eq!(unsafe { onelane_queue_release(queue) }, ONELANE_OK);
    assert_eq!(unsafe { onelane_executor_release(executor) }, ONELANE_OK);
    use_all(executor, queue, ticket);
    // A new handle may have an old one's place, but not its name.
    let again = crate::common::executor(c"capi-released");
    assert_ne!(again, executor);
    use_all(executor, queue, ticket);
    unsafe { onelane_executor_release(again) };
}

#[test]
fn null_arguments_and_wrong_sizes_are_told() {
    let (executor, counts) = (executor(c"capi-null"), counts());
    let queue = queue(executor, counts);
    let (mut out, mut queue_out, mut ticket) = (null_mut(), null_mut(), null_mut());
    let request = request(item(1));
    let table = table(crate::common::counts());
    let sized = |size| RequestSpec { struct_size: size, ..request };
    let bad = |status: Status| assert_eq!(status, ONELANE_INVALID_ARGUMENT, "{}", last_error());
    unsafe {
        bad(onelane_executor_shared(null(), &mut out));
        bad(onelane_executor_shared(&settings(c"x"), null_mut()));
        let no_name = ExecutorSettings { device: null(), ..settings(c"x") };
        bad(onelane_executor_shared(&no_name, &mut out));
        bad(onelane_executor_shared(&settings(c"\xff"), &mut out));
        bad(onelane_executor_id(executor, null_mut()));
        bad(onelane_executor_submit(executor, null(), 0, null_mut()));
        bad(onelane_executor_shutdown(executor, 7, 0));
        bad(onelane_executor_stats(executor, null_mut()));
        bad(onelane_queue_new(executor, null(), null(), &mut queue_out));
        bad(onelane_queue_new(executor, null(), &table, null_mut()));
        let no_run = EngineTable { run: None, ..table };
        bad(onelane_queue_new(executor, null(), &no_run, &mut queue_out));
        bad(onelane_queue_submit(queue, null(), 0, null_mut()));
        for size in [0, 1, size_of::<RequestSpec>() - 1, 4097, usize::MAX] {
            bad(onelane_queue_submit(queue, &sized(size), 0, null_mut()));
        }
        let odd = RequestSpec { priority: 5, ..request };
        bad(onelane_queue_submit(queue, &odd, 0, null_mut()));
        bad(onelane_queue_stats(queue, null_mut()));
        bad(onelane_queue_health(queue, null_mut()));
        bad(onelane_error_set(null_mut(), null(), null_mut(), None));
        let config = ExecutorSettings { workers: 65, ..settings(c"capi-null-65") };
        assert_eq!(onelane_executor_new(&config, &mut out), ONELANE_INVALID_CONFIG);
        assert!(last_error().contains("workers = 65"), "{}", last_error());
        assert_eq!(onelane_queue_submit(queue, &request, HANG_NS, &mut ticket), ONELANE_OK);
        assert_eq!(onelane_ticket_wait(ticket, HANG_NS), ONELANE_OK);
        onelane_queue_release(queue);
        onelane_executor_release(executor);
    }
    assert!(onelane_get_api(0).is_null() && onelane_get_api(99).is_null());
    let api = unsafe { &*onelane_get_api(ONELANE_API_VERSION) };
    assert_eq!((api.version, api.struct_size), (ONELANE_API_VERSION, size_of::<Api>()));
}

/// A program of a newer header, whose struct has a field more.
#[repr(C)]
struct Newer {
    request: RequestSpec,
    more: u64,
}

#[test]
fn a_newer_struct_is_taken_unless_it_asks_for_what_is_not_known() {
    let (executor, counts) = (executor(c"capi-newer"), counts());
    let queue = queue(executor, counts);
    for (more, wanted) in [(0, ONELANE_OK), (1, ONELANE_INVALID_ARGUMENT)] {
        let mut newer = Newer { request: request(item(1)), more };
        newer.request.struct_size = size_of::<Newer>();
        let mut ticket = null_mut();
        let at = (&raw const newer).cast::<RequestSpec>();
        let status = unsafe { onelane_queue_submit(queue, at, HANG_NS, &mut ticket) };
        assert_eq!(status, wanted);
        assert_eq!(ticket.is_null(), more == 1);
        if !ticket.is_null() {
            assert_eq!(unsafe { onelane_ticket_wait(ticket, HANG_NS) }, ONELANE_OK);
        }
    }
    unsafe { onelane_queue_release(queue) };
    unsafe { onelane_executor_release(executor) };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No number crashes. A kind in the high bits has some of them pass for handles.
    #[test]
    fn made_up_handles_are_told(name in any::<usize>(), kind in 0_usize..8) {
        let names = [name, (name & 0xffff) | kind << 61, name & 0x3f | kind << 61];
        // Other tests of this process have live handles: a made-up name must not hit theirs, so these
        // bits of the generation are set, which no slot has reached.
        for name in names.map(|name| name | 0xff << 52) {
            use_all(
                without_provenance_mut(name),
                without_provenance_mut(name),
                without_provenance_mut(name),
            );
        }
    }
}
