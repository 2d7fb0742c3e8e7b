//! [`Run`]: what one strategy came to under one load, in one round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use onelane_bench::generator::{
    Arrivals, ClosedLoop, Ran, Ready, Sent, open_to_queue, open_to_threads, runtime, saturate,
};

use super::judge::{Judge, Seen};
use super::observed::Counts;
use super::stage::Stage;
use super::strategy::Strategy;
use super::workload::Workload;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What the clients saw.
    pub seen: Seen,
    /// How long it took.
    pub took: Duration,
    /// What the engines did meanwhile.
    pub counts: Counts,
}

impl Run {
    fn of<W: Workload>(ran: Ran<Judge<W>>, counts: Counts) -> Self {
        Self { seen: ran.observer.seen, took: ran.took, counts }
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.seen.answered as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// The same without the spans, which are many.
    pub fn without_spans(mut self) -> Self {
        self.seen.spans = Vec::new();
        self
    }
}

/// What open load came to; latencies are from when requests were meant to arrive.
#[derive(Clone, Debug, Default)]
pub struct Open {
    /// Of what was answered.
    pub run: Run,
    /// Of everything that arrived.
    pub sent: Sent,
}

/// Client threads in a closed loop.
///
/// # Errors
/// When a thread cannot be had, or the first request of a client, which is not counted, fails.
pub fn threads<W: Workload>(
    stage: &Arc<Stage<W>>,
    strategy: Strategy,
    clients: ClosedLoop,
) -> anyhow::Result<Run> {
    let target = stage.target(strategy);
    closed(stage, strategy, clients.threads(&target, || Judge::new(stage, strategy))?)
}

/// Client tasks, on so many threads if there are as many tasks, in a closed loop on a batch queue.
///
/// # Errors
/// When a thread cannot be had, or the first request of a client, which is not counted, fails.
pub fn tasks<W: Workload>(
    stage: &Arc<Stage<W>>,
    strategy: Strategy,
    clients: ClosedLoop,
    threads: usize,
) -> anyhow::Result<Run> {
    let runtime = runtime(threads.min(clients.clients))?;
    let target = Arc::new(stage.queue_target(strategy));
    closed(stage, strategy, clients.tasks(&runtime, &target, || Judge::new(stage, strategy))?)
}

fn closed<W: Workload>(
    stage: &Stage<W>,
    strategy: Strategy,
    ready: Ready<Judge<W>>,
) -> anyhow::Result<Run> {
    let before = stage.counts(strategy);
    let ran = ready.run().map_err(|error| anyhow!("{strategy}: {error}"))?;
    Ok(Run::of(ran, stage.counts(strategy).since(before)))
}

/// Open load; a strategy without a queue has so many client threads.
///
/// # Errors
/// When an engine or a thread cannot be had, or a queue is gone.
pub fn open<W: Workload>(
    stage: &Arc<Stage<W>>,
    strategy: Strategy,
    arrivals: Arrivals,
    threads: usize,
) -> anyhow::Result<Open> {
    let judge = || Judge::new(stage, strategy);
    let before = stage.counts(strategy);
    let offered = if strategy.has_queue() {
        open_to_queue(&stage.queue_target(strategy), arrivals, judge())
    } else {
        open_to_threads(&stage.target(strategy), arrivals, threads, judge)
    };
    let offered = offered.map_err(|error| anyhow!("{strategy}: {error}"))?;
    let ran = Ran { observer: offered.observer, took: offered.took };
    Ok(Open { run: Run::of(ran, stage.counts(strategy).since(before)), sent: offered.sent })
}

/// Requests per second of the batch queue when it is never empty: one thread keeps several batches'
/// worth of requests under way.
///
/// # Errors
/// When the queue is gone or its engine fails.
pub fn capacity<W: Workload>(stage: &Arc<Stage<W>>, time: Duration) -> anyhow::Result<f64> {
    let target = stage.queue_target(Strategy::Queue);
    let (judge, started) = (Judge::new(stage, Strategy::Queue), Instant::now());
    let ran = saturate(&target, stage.depth(), judge, || started.elapsed() < time)?;
    let run = Run::of(ran, Counts::default());
    anyhow::ensure!(run.seen.failed == 0, "{}", run.seen.error.unwrap_or_default());
    Ok(run.rate())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread::ThreadId;

    use onelane::{EngineError, ExecutorConfig};
    use onelane_bench::generator::{Limit, Process};

    use super::*;
    use crate::load::workload::Null;

    fn stage<W: Workload>(workload: W) -> Arc<Stage<W>> {
        Stage::new(workload, ExecutorConfig::new("run-test"), 16, 1024).unwrap()
    }

    fn with_clients() -> impl Iterator<Item = Strategy> {
        Strategy::ALL.into_iter().filter(|&strategy| strategy != Strategy::Offline)
    }

    fn of_requests(clients: usize, requests: u64) -> ClosedLoop {
        ClosedLoop { clients, limit: Limit::Requests(requests), warm_up: true }
    }

    /// The numbers of requests that clients, runs and engines count are the same.
    #[test]
    fn counts_add_up_for_every_strategy() {
        within_a_minute(|| {
            let stage = stage(Null::new(Duration::ZERO));
            let check = |run: Run, strategy| {
                let seen = &run.seen;
                assert_eq!((seen.answered, seen.wrong, seen.failed), (500, 0, 0), "{strategy}");
                assert_eq!((seen.latencies.count(), run.counts.items), (500, 500), "{strategy}");
                let alone = strategy != Strategy::Queue;
                assert!(!alone || run.counts.batches == 500, "{strategy}");
            };
            for strategy in with_clients() {
                check(threads(&stage, strategy, of_requests(4, 500)).unwrap(), strategy);
            }
            for strategy in [Strategy::QueueOne, Strategy::Queue] {
                check(tasks(&stage, strategy, of_requests(40, 500), 3).unwrap(), strategy);
            }
        });
    }

    #[test]
    fn every_arrival_is_answered_refused_or_missed() {
        within_a_minute(|| {
            let stage = stage(Null::new(Duration::ZERO));
            let (time, process) = (Duration::from_millis(100), Process::Poisson { seed: 3 });
            let arrivals = Arrivals { rate: 2000.0, time, process };
            let expected = arrivals.instants(Instant::now()).count() as u64;
            for strategy in with_clients() {
                let Open { run, sent } = open(&stage, strategy, arrivals, 3).unwrap();
                let seen = &run.seen;
                assert_eq!(sent.offered, expected, "{strategy}");
                assert_eq!(seen.answered + sent.refused + sent.missed, expected, "{strategy}");
                assert_eq!(seen.latencies.count(), expected - sent.refused, "{strategy}");
                assert_eq!((seen.wrong, seen.failed), (0, 0), "{strategy}");
                assert_eq!(run.counts.items, seen.answered, "{strategy}");
            }
        });
    }

    /// Notes which threads make requests.
    struct Watched(Null, Mutex<HashSet<ThreadId>>);

    impl Workload for Watched {
        type Item = <Null as Workload>::Item;
        type Engine = <Null as Workload>::Engine;

        fn load(&self) -> Result<Self::Engine, EngineError> {
            self.0.load()
        }

        fn items(&self) -> &[Self::Item] {
            self.1.lock().unwrap().insert(std::thread::current().id());
            self.0.items()
        }

        fn same(&self, a: &u64, b: &u64) -> bool {
            self.0.same(a, b)
        }

        fn engine_bytes(&self) -> u64 {
            self.0.engine_bytes()
        }
    }

    #[test]
    fn tasks_run_on_no_more_threads_than_are_given() {
        within_a_minute(|| {
            let stage = stage(Watched(Null::new(Duration::ZERO), Mutex::default()));
            for (clients, threads) in [(40, 3), (2, 5), (40, 1)] {
                stage.workload.1.lock().unwrap().clear();
                tasks(&stage, Strategy::Queue, of_requests(clients, 2000), threads).unwrap();
                let used = stage.workload.1.lock().unwrap().len();
                assert!((1..=threads.min(clients)).contains(&used), "{used} of {threads}");
            }
        });
    }

    /// Runs it on a thread of its own; a hang is a failure.
    fn within_a_minute(body: impl FnOnce() + Send + 'static) {
        let (done, waiting) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            body();
            let _ = done.send(());
        });
        let ended = waiting.recv_timeout(Duration::from_secs(60));
        assert_ne!(ended, Err(std::sync::mpsc::RecvTimeoutError::Timeout), "it hangs");
        thread.join().unwrap();
    }
}
