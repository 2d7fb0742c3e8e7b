//! Time per request of onelane and of other queues, closed loop, by criterion.
//!
//!     cargo bench -p onelane-bench-peers --bench closed_loop [-- threads/64]
//!
//! Criterion measures one queue after the other, seconds apart; for a comparison on a machine that
//! is not quiet see the bench `ratios`.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use onelane_bench_peers::{BoxedClient, Client, Kind, Peer, PeerVisitor, Work};
use tokio::runtime::Builder;

/// Threads of the tasks' runtime.
const WORKERS: usize = 2;

/// A queue with client threads, or its time for a number of requests.
struct Threads(usize);

impl PeerVisitor for Threads {
    type Output = Vec<Box<dyn BoxedClient>>;

    fn visit<P: Peer>(self) -> Self::Output {
        let peer = P::start(Work::default(), self.0);
        (0..self.0).map(|_| Box::new(peer.client()) as Box<dyn BoxedClient>).collect()
    }
}

struct Tasks {
    clients: usize,
    requests: u64,
}

impl PeerVisitor for Tasks {
    type Output = Duration;

    fn visit<P: Peer>(self) -> Duration {
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_time().build();
        runtime.expect("threads can be had").block_on(async {
            let peer = P::start(Work::default(), self.clients);
            let started = Instant::now();
            let clients: Vec<_> = (0..self.clients)
                .map(|number| {
                    let mut client = peer.client();
                    let share = share(self.requests, self.clients, number);
                    tokio::spawn(async move {
                        for value in 0..share {
                            assert_eq!(client.infer(value).await, value);
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await.expect("answers are right");
            }
            started.elapsed()
        })
    }
}

/// What one of several clients asks, so that together they ask `requests`.
fn share(requests: u64, clients: usize, number: usize) -> u64 {
    let clients = clients as u64;
    requests / clients + u64::from((number as u64) < requests % clients)
}

/// The time that the clients take for `requests` together, without that of starting threads.
fn timed(clients: &mut [Box<dyn BoxedClient>], requests: u64) -> Duration {
    let count = clients.len();
    let (start, end) = (Barrier::new(count + 1), Barrier::new(count + 1));
    std::thread::scope(|scope| {
        for (number, client) in clients.iter_mut().enumerate() {
            let (start, end) = (&start, &end);
            scope.spawn(move || {
                start.wait();
                for value in 0..share(requests, count, number) {
                    assert_eq!(client.ask(value), value);
                }
                end.wait();
            });
        }
        start.wait();
        let started = Instant::now();
        end.wait();
        started.elapsed()
    })
}

fn closed_loop(criterion: &mut Criterion) {
    for count in [1, 8, 64, 256] {
        let mut group = criterion.benchmark_group(format!("threads/{count}"));
        group.throughput(Throughput::Elements(1));
        for kind in Kind::ALL {
            group.bench_function(BenchmarkId::from_parameter(kind.name()), |bencher| {
                let mut clients = kind.visit(Threads(count));
                bencher.iter_custom(|requests| timed(&mut clients, requests));
            });
        }
        group.finish();
    }
    for clients in [64, 256] {
        let mut group = criterion.benchmark_group(format!("tasks/{clients}"));
        group.throughput(Throughput::Elements(1));
        for kind in Kind::ALL {
            group.bench_function(BenchmarkId::from_parameter(kind.name()), |bencher| {
                bencher.iter_custom(|requests| kind.visit(Tasks { clients, requests }));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = closed_loop
}
criterion_main!(benches);
