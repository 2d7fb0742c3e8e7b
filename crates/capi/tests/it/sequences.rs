//! Calls in any order, on handles that are live, ended, released twice or of a queue that was shut down:
//! each gives the status that a model foretells, and every accepted item is given back exactly once.

use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering::SeqCst;

use onelane_capi::*;
use proptest::prelude::*;

use crate::common::*;

/// A call; a number picks one of all handles that there ever were.
#[derive(Clone, Debug)]
enum Call {
    NewQueue,
    Submit { queue: usize, input: i64, size: usize, has_ticket: bool },
    Wait { ticket: usize, timeout_ns: u64 },
    Cancel(usize),
    Close(usize),
    ShutDown { queue: usize, mode: i32 },
    Release(usize),
    Ask { queue: usize, size: usize },
    ShutDownExecutor { mode: i32 },
    ReleaseExecutor,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let any = || 0_usize..64;
    let mode = || prop_oneof![Just(ONELANE_DRAIN), Just(ONELANE_ABORT), Just(7)];
    let size = |right: usize| prop_oneof![6 => Just(right), 1 => Just(0), 1 => Just(right - 1), 1 => Just(usize::MAX)];
    let call = prop_oneof![
        2 => Just(Call::NewQueue),
        12 => (any(), 10_i64..16, size(size_of::<RequestSpec>()), prop_oneof![Just(false), Just(true)]).prop_map(
            |(queue, input, size, has_ticket)| Call::Submit { queue, input, size, has_ticket }
        ),
        6 => (any(), prop_oneof![Just(0), Just(ONELANE_FOREVER), Just(HANG_NS)])
            .prop_map(|(ticket, timeout_ns)| Call::Wait { ticket, timeout_ns }),
        3 => any().prop_map(Call::Cancel),
        1 => any().prop_map(Call::Close),
        1 => (any(), mode()).prop_map(|(queue, mode)| Call::ShutDown { queue, mode }),
        2 => any().prop_map(Call::Release),
        2 => (any(), size(size_of::<Statistics>())).prop_map(|(queue, size)| Call::Ask { queue, size }),
        1 => mode().prop_map(|mode| Call::ShutDownExecutor { mode }),
        1 => Just(Call::ReleaseExecutor),
    ];
    proptest::collection::vec(call, 1..60)
}

struct KnownQueue {
    handle: *mut Queue,
    counts: &'static Counts,
    is_live: bool,
    is_open: bool,
}

struct KnownTicket {
    handle: *mut Ticket,
    item: &'static Item,
    is_live: bool,
}

/// What there is, and what each of it must say.
struct Model {
    executor: *mut Executor,
    is_live: bool,
    is_open: bool,
    /// A shutdown may have answered what waited.
    may_be_closed: bool,
    queues: Vec<KnownQueue>,
    tickets: Vec<KnownTicket>,
    accepted: Vec<&'static Item>,
    refused: Vec<&'static Item>,
}

impl Model {
    fn new() -> Self {
        let mut executor = null_mut();
        let status = unsafe { onelane_executor_new(&settings(c"capi-sequences"), &mut executor) };
        assert_eq!(status, ONELANE_OK, "{}", last_error());
        Self {
            executor,
            is_live: true,
            is_open: true,
            may_be_closed: false,
            queues: Vec::new(),
            tickets: Vec::new(),
            accepted: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn new_queue(&mut self) {
        let (counts, mut handle) = (counts(), null_mut());
        let status =
            unsafe { onelane_queue_new(self.executor, null(), &table(counts), &mut handle) };
        if self.is_live && self.is_open {
            assert_eq!(status, ONELANE_OK, "{}", last_error());
            self.queues.push(KnownQueue { handle, counts, is_live: true, is_open: true });
        } else {
            assert_eq!(status, if self.is_live { ONELANE_CLOSED } else { ONELANE_INVALID_HANDLE });
            assert_eq!((counts.built.load(SeqCst), counts.contexts_dropped.load(SeqCst)), (0, 1));
        }
    }

    fn submit(&mut self, queue: usize, input: i64, size: usize, has_ticket: bool) {
        let (item, mut ticket) = (item(input), null_mut());
        let request = RequestSpec { struct_size: size, ..request(item) };
        let (handle, is_live, is_open) = match self.pick(queue) {
            Some(queue) => (queue.handle, queue.is_live, queue.is_open),
            None => (null_mut(), false, false),
        };
        let place = if has_ticket { &raw mut ticket } else { null_mut() };
        let status = unsafe { onelane_queue_submit(handle, &request, HANG_NS, place) };
        let wanted = match (size == size_of::<RequestSpec>(), is_live, is_open && self.is_open) {
            (false, ..) => ONELANE_INVALID_ARGUMENT,
            (true, false, _) => ONELANE_INVALID_HANDLE,
            (true, true, false) => ONELANE_CLOSED,
            (true, true, true) => ONELANE_OK,
        };
        assert_eq!(status, wanted, "{}", last_error());
        assert_eq!(ticket.is_null(), !(has_ticket && status == ONELANE_OK));
        if status != ONELANE_OK {
            return self.refused.push(item);
        }
        self.accepted.push(item);
        if has_ticket {
            self.tickets.push(KnownTicket { handle: ticket, item, is_live: true });
        }
    }

    fn wait(&mut self, ticket: usize, timeout_ns: u64) {
        let may_be_closed = self.may_be_closed;
        let count = self.tickets.len().max(1);
        let Some(ticket) = self.tickets.get_mut(ticket % count) else { return };
        let status = unsafe { onelane_ticket_wait(ticket.handle, timeout_ns) };
        if !ticket.is_live {
            return assert_eq!(status, ONELANE_INVALID_HANDLE);
        }
        if status == ONELANE_TIMEOUT {
            return assert_eq!(timeout_ns, 0);
        }
        ticket.is_live = false;
        let (item, answer) =
            (ticket.item, if ticket.item.input == 13 { ONELANE_ENGINE_FAILED } else { ONELANE_OK });
        assert!(status == answer || (status == ONELANE_CLOSED && may_be_closed), "{status}");
        assert_eq!((item.done.load(SeqCst), item.status.load(SeqCst)), (1, status));
        assert!(status != ONELANE_OK || item.output.load(SeqCst) == item.input * 2);
    }

    fn pick(&mut self, queue: usize) -> Option<&mut KnownQueue> {
        let count = self.queues.len().max(1);
        self.queues.get_mut(queue % count)
    }

    /// A call on a queue that gives `wanted` if its handle is live.
    fn on_queue(
        &mut self,
        queue: usize,
        wanted: Status,
        call: impl FnOnce(*mut Queue) -> Status,
    ) -> Option<&mut KnownQueue> {
        let queue = self.pick(queue)?;
        let status = call(queue.handle);
        let wanted = if queue.is_live { wanted } else { ONELANE_INVALID_HANDLE };
        assert_eq!(status, wanted, "{}", last_error());
        (status == ONELANE_OK).then_some(queue)
    }

    fn on_executor(&mut self, wanted: Status, status: Status) -> bool {
        let wanted = if self.is_live { wanted } else { ONELANE_INVALID_HANDLE };
        assert_eq!(status, wanted, "{}", last_error());
        status == ONELANE_OK
    }

    fn call(&mut self, call: Call) {
        let of_mode = |mode| if mode == 7 { ONELANE_INVALID_ARGUMENT } else { ONELANE_OK };
        match call {
            Call::NewQueue => self.new_queue(),
            Call::Submit { queue, input, size, has_ticket } => {
                self.submit(queue, input, size, has_ticket);
            }
            Call::Wait { ticket, timeout_ns } => self.wait(ticket, timeout_ns),
            Call::Cancel(ticket) => {
                let count = self.tickets.len().max(1);
                if let Some(ticket) = self.tickets.get_mut(ticket % count) {
                    let wanted = if ticket.is_live { ONELANE_OK } else { ONELANE_INVALID_HANDLE };
                    assert_eq!(unsafe { onelane_ticket_cancel(ticket.handle) }, wanted);
                    ticket.is_live = false;
                }
            }
            Call::Close(queue) => {
                let close = |queue| unsafe { onelane_queue_close(queue) };
                if let Some(queue) = self.on_queue(queue, ONELANE_OK, close) {
                    queue.is_open = false;
                }
            }
            Call::ShutDown { queue, mode } => {
                let shut_down = |queue| unsafe { onelane_queue_shutdown(queue, mode, HANG_NS) };
                if let Some(queue) = self.on_queue(queue, of_mode(mode), shut_down) {
                    queue.is_open = false;
                    self.may_be_closed |= mode == ONELANE_ABORT;
                }
            }
            Call::Release(queue) => {
                let release = |queue| unsafe { onelane_queue_release(queue) };
                if let Some(queue) = self.on_queue(queue, ONELANE_OK, release) {
                    queue.is_live = false;
                }
            }
            Call::Ask { queue, size } => {
                let mut stats = Statistics { struct_size: size, ..Statistics::default() };
                let wrong = size != size_of::<Statistics>();
                let wanted = if wrong { ONELANE_INVALID_ARGUMENT } else { ONELANE_OK };
                self.on_queue(queue, wanted, |queue| unsafe {
                    onelane_queue_stats(queue, &mut stats)
                });
            }
            Call::ShutDownExecutor { mode } => {
                let status = unsafe { onelane_executor_shutdown(self.executor, mode, HANG_NS) };
                if self.on_executor(of_mode(mode), status) {
                    self.is_open = false;
                    self.may_be_closed |= mode == ONELANE_ABORT;
                }
            }
            Call::ReleaseExecutor => {
                let status = unsafe { onelane_executor_release(self.executor) };
                if self.on_executor(ONELANE_OK, status) {
                    self.is_live = false;
                }
            }
        }
    }

    /// Releases what is left. The last handle joins the worker, so that everything has ended then.
    fn end(mut self) {
        for ticket in 0..self.tickets.len() {
            self.call(Call::Cancel(ticket));
        }
        for queue in 0..self.queues.len() {
            self.call(Call::Release(queue));
            self.call(Call::Release(queue));
        }
        self.call(Call::ReleaseExecutor);
        self.call(Call::ReleaseExecutor);
        for item in &self.accepted {
            assert_eq!(item.done.load(SeqCst), 1, "an accepted item is given back once");
        }
        for item in &self.refused {
            assert_eq!(item.done.load(SeqCst), 0, "a refused item stays the caller's");
        }
        for KnownQueue { counts, .. } in &self.queues {
            assert_eq!(counts.contexts_dropped.load(SeqCst), 1);
            assert_eq!(counts.built.load(SeqCst), counts.dropped.load(SeqCst));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_calls_gives_the_statuses_that_are_foretold(calls in calls()) {
        let mut model = Model::new();
        for call in calls {
            model.call(call);
        }
        model.end();
    }
}
