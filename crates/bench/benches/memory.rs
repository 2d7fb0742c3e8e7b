//! Allocations per request, and memory per waiting request, of onelane and of other queues.
//!
//!     cargo bench -p onelane-bench --bench memory
//!
//! Every allocation of the process is counted, of all threads. Per request: client threads in a
//! closed loop, after a warm-up. Per waiting request: 10,000 that wait behind a closed gate; what
//! the heap has grown by, and the size of the future, which the caller keeps. `batched-fn` cannot
//! be gated and `tower-batch-control` bounds what waits: of these two only the first is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Waker};

use onelane_bench::generator::{AsyncClient, Limit};
use onelane_bench::peers::{Kind, Peer, PeerVisitor, Work, threads_on};

/// Requests whose allocations are counted.
const REQUESTS: usize = 32_000;
/// Requests before that.
const WARM_UP: usize = 3_200;
/// Requests that wait.
const WAITING: usize = 10_000;

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ASKED: AtomicU64 = AtomicU64::new(0);
static FREED: AtomicU64 = AtomicU64::new(0);

// SAFETY: it does what the system's allocator does, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        ASKED.fetch_add(layout.size() as u64, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        FREED.fetch_add(layout.size() as u64, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes in use, as they were asked for.
fn in_use() -> i64 {
    ASKED.load(Relaxed) as i64 - FREED.load(Relaxed) as i64
}

/// Counts allocations and bytes per request, with this many client threads.
struct PerRequest(usize);

impl PeerVisitor for PerRequest {
    type Output = [f64; 2];

    fn visit<P: Peer>(self) -> [f64; 2] {
        let peer = Arc::new(P::start(Work::default(), self.0));
        let counted = |requests: usize| {
            let before = [ALLOCATIONS.load(Relaxed), ASKED.load(Relaxed)];
            threads_on(&peer, self.0, Limit::Requests(requests as u64));
            let after = [ALLOCATIONS.load(Relaxed), ASKED.load(Relaxed)];
            [0, 1].map(|i| (after[i] - before[i]) as f64)
        };
        counted(WARM_UP);
        // What starting threads takes is in both, and falls out.
        let (few, many) = (counted(WARM_UP), counted(WARM_UP + REQUESTS));
        [0, 1].map(|i| (many[i] - few[i]) / REQUESTS as f64)
    }
}

/// Counts bytes of the heap, and of the future itself, per request that waits.
struct PerWaiting;

impl PeerVisitor for PerWaiting {
    type Output = [f64; 2];

    fn visit<P: Peer>(self) -> [f64; 2] {
        let work = Work::gated();
        let peer = P::start(work.clone(), WAITING);
        let client = || peer.client().expect("a client can be had");
        let mut clients: Vec<_> = (0..WAITING).map(|_| client()).collect();
        // The list itself is not the queue's.
        let mut futures = Vec::with_capacity(WAITING);
        let mut size = 0;
        let before = in_use();
        for client in &mut clients {
            let mut future = Box::pin(client.infer(1));
            size = size_of_val(&*future);
            let polled = Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending(), "the gate is closed");
            futures.push(future);
        }
        let grown = in_use() - before - (WAITING * size) as i64;
        work.open();
        for future in futures {
            assert_eq!(futures_executor::block_on(future), 1);
        }
        [grown as f64 / WAITING as f64, size as f64]
    }
}

fn main() {
    println!("queue,clients,allocations_per_request,bytes_per_request");
    for kind in Kind::ALL {
        for clients in [1, 64] {
            let [allocations, bytes] = kind.visit(PerRequest(clients));
            println!("{},{clients},{allocations:.2},{bytes:.0}", kind.name());
        }
    }
    println!("queue,heap_bytes_per_waiting_request,bytes_of_the_future");
    for kind in [Kind::Onelane, Kind::Crossbeam, Kind::Tokio, Kind::Amate] {
        let [heap, future] = kind.visit(PerWaiting);
        println!("{},{heap:.0},{future:.0}", kind.name());
    }
}
