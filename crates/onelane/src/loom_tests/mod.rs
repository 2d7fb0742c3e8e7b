//! Model checks of the real core: every interleaving of a few threads, up to a bound on preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p onelane --release --lib loom_tests`, or `make loom`. The
//! locks, parking and threads of `sync` are loom's here, so each model runs the code that ships.
//! Time is a virtual clock: each look moves it by a nanosecond, and a thread of the model moves it far, so
//! that a timeout is one more interleaving. A hang is found as a deadlock of the model.
//!
//! Each model names its promise (lib.rs, "What is promised") and prints how many interleavings were
//! run. `LOOM_MORE=1` raises each bound by one.

mod admission;
mod complete;
mod delivery;
mod failure;
mod shutdown;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::testing::{FakeEngine, FakeItem, VirtualClock};
use crate::{
    BatchConfig, BatchQueue, Delivery, DeviceExecutor, ExecutorConfig, Refusal, RequestError,
};

/// Long enough to be never: the clock of a model stands unless a thread moves it.
const NEVER: Duration = Duration::from_secs(3600);

/// Runs `body` in every interleaving with at most `preemptions` switches away from a thread that
/// could go on.
fn model(name: &str, preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    let more = std::env::var("LOOM_MORE").ok().and_then(|more| more.parse::<usize>().ok());
    let bound = preemptions + more.unwrap_or(0);
    builder.preemption_bound = Some(bound);
    builder.max_branches = 20_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let started = std::time::Instant::now();
    builder.check(move || {
        counted.fetch_add(1, SeqCst);
        body();
    });
    let (runs, took) = (runs.load(SeqCst), started.elapsed());
    println!("{name}: {runs} interleavings, preemption bound {bound}, {took:.1?}");
}

fn executor(workers: usize) -> (DeviceExecutor, VirtualClock) {
    executor_that(workers, Delivery::Worker)
}

fn executor_that(workers: usize, delivery: Delivery) -> (DeviceExecutor, VirtualClock) {
    let clock = VirtualClock::ticking();
    let config = ExecutorConfig::new("model").workers(workers).delivery(delivery);
    let device = DeviceExecutor::new(config.clock(clock.clone())).unwrap();
    (device, clock)
}

fn echo(device: &DeviceExecutor, config: BatchConfig) -> BatchQueue<FakeEngine> {
    BatchQueue::new(device, config, || Ok(FakeEngine::echo())).unwrap()
}

/// What one request came to; everything else is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Answered,
    Refused,
    Closed,
}

fn ask(queue: &BatchQueue<FakeEngine>, value: u64) -> End {
    match queue.submit(FakeItem::new(value)) {
        Ok(handle) => match handle.wait() {
            Ok(answer) => {
                assert_eq!(answer, value, "the answer of another request");
                End::Answered
            }
            Err(RequestError::Closed) => End::Closed,
            Err(other) => panic!("{other}"),
        },
        Err(error) if *error.reason() == Refusal::Closed => {
            assert_eq!(error.into_refused().into_input().value, value);
            End::Refused
        }
        Err(other) => panic!("{other}"),
    }
}
