//! Time per request of onelane and of other queues, closed loop, by criterion.
//!
//!     cargo bench -p onelane-bench --bench closed_loop [-- threads/64]
//!
//! Criterion measures one queue after the other, seconds apart; for a comparison on a machine that
//! is not quiet see the bench `ratios`.

use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use onelane_bench::generator::Limit;
use onelane_bench::peers::{Kind, Peer, PeerVisitor, Work, tasks, threads_on};

/// Threads of the tasks' runtime.
const WORKERS: usize = 2;

/// Measures one queue with so many clients.
enum Measure<'a, 'b> {
    Threads(&'a mut BenchmarkGroup<'b, WallTime>, BenchmarkId, usize),
    Tasks(&'a mut BenchmarkGroup<'b, WallTime>, BenchmarkId, usize),
}

impl PeerVisitor for Measure<'_, '_> {
    type Output = ();

    fn visit<P: Peer>(self) {
        match self {
            Self::Threads(group, id, count) => {
                let peer = Arc::new(P::start(Work::default(), count));
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|requests| {
                        threads_on(&peer, count, Limit::Requests(requests)).took
                    });
                });
            }
            Self::Tasks(group, id, count) => {
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|requests| {
                        tasks::<P>(count, WORKERS, Limit::Requests(requests)).took
                    });
                });
            }
        }
    }
}

fn closed_loop(criterion: &mut Criterion) {
    for count in [1, 8, 64, 256] {
        let mut group = criterion.benchmark_group(format!("threads/{count}"));
        group.throughput(Throughput::Elements(1));
        for kind in Kind::ALL {
            let id = BenchmarkId::from_parameter(kind.name());
            kind.visit(Measure::Threads(&mut group, id, count));
        }
        group.finish();
    }
    for count in [64, 256] {
        let mut group = criterion.benchmark_group(format!("tasks/{count}"));
        group.throughput(Throughput::Elements(1));
        for kind in Kind::ALL {
            let id = BenchmarkId::from_parameter(kind.name());
            kind.visit(Measure::Tasks(&mut group, id, count));
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
