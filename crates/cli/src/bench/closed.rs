//! Closed loop: each client asks, waits for the answer, and asks again.
//!
//! Every client asks once before time is taken, so that its engine, its thread and its place in the
//! queue are there. Requests that were asked before the end count towards latency even if they are
//! answered after it: else the slowest would be left out. Only what is answered before the end counts
//! towards throughput.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use futures_lite::future;
use onelane::{BatchItem, Engine};

use super::latency::Latencies;
use super::observed::Counts;
use super::strategy::{Answered, Stage, Strategy};
use super::trace::RequestSpan;
use super::workload::Workload;

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many requests.
    Requests(u64),
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Requests answered rightly before the end.
    pub answered: u64,
    /// How long that took.
    pub took: Duration,
    /// Of all requests that have been answered, those after the end too.
    pub latencies: Latencies,
    /// Answers that were not right.
    pub wrong: u64,
    /// Requests that had an error for an answer.
    pub failed: u64,
    /// The first of these errors.
    pub error: Option<String>,
    /// What the engines did meanwhile.
    pub counts: Counts,
    /// A span for each request, if the strategy's meter is tracing.
    pub spans: Vec<RequestSpan>,
}

impl Run {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Notes an answer to a request that was due, and whether it came before the end.
    pub fn note<W: Workload>(
        &mut self,
        asked: &Asked<'_, W>,
        answer: &Result<Answered<W>, String>,
        in_time: bool,
    ) {
        let now = Instant::now();
        match answer {
            Ok(answer) if asked.stage.is_right(asked.index, answer) => {
                self.answered += u64::from(in_time);
                self.latencies.record(asked.due, now);
                if let Some(client) = asked.traced {
                    let span =
                        RequestSpan { client, due: asked.due, answered: now, batch: answer.batch };
                    self.spans.push(span);
                }
            }
            Ok(_) => self.wrong += 1,
            Err(error) => {
                self.failed += 1;
                self.error.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// The same without the spans, which are many.
    pub fn without_spans(mut self) -> Self {
        self.spans = Vec::new();
        self
    }

    /// Adds what another client saw.
    pub fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.latencies.add(&other.latencies);
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.error = self.error.take().or(other.error);
        self.spans.extend(other.spans);
    }
}

/// A request on its way.
pub struct Asked<'a, W: Workload> {
    /// Where.
    pub stage: &'a Stage<W>,
    /// Which.
    pub index: usize,
    /// When it was, or was meant to be, sent.
    pub due: Instant,
    /// The client's number, if there is a trace.
    pub traced: Option<usize>,
}

/// What all clients of a run share.
struct Clients {
    over: AtomicBool,
    /// Requests left, where they are counted.
    left: AtomicI64,
    /// They meet here when all have asked once, and again to begin.
    meeting: Barrier,
}

/// A part of a run, and its first and last moment.
type Part = (Run, Instant, Instant);

impl Clients {
    fn new(parties: usize, limit: Limit) -> Self {
        let left = match limit {
            Limit::Time(_) => i64::MAX,
            Limit::Requests(count) => i64::try_from(count).unwrap_or(i64::MAX),
        };
        let meeting = Barrier::new(parties);
        Self { over: AtomicBool::new(false), left: AtomicI64::new(left), meeting }
    }

    /// Whether a client may ask once more.
    fn may_ask(&self) -> bool {
        !self.over.load(Relaxed) && self.left.fetch_sub(1, Relaxed) > 0
    }

    /// A client is ready, or has failed; returns when all may begin.
    fn meet(&self) -> Instant {
        self.meeting.wait();
        self.meeting.wait();
        Instant::now()
    }

    /// Lets all begin; gives what the engines counted before, and when the time was over.
    fn lead(&self, limit: Limit, counts: impl Fn() -> Counts) -> (Counts, Instant) {
        self.meeting.wait();
        let before = counts();
        self.meeting.wait();
        if let Limit::Time(time) = limit {
            std::thread::sleep(time);
        }
        let stopped = Instant::now();
        if let Limit::Time(_) = limit {
            self.over.store(true, Relaxed);
        }
        (before, stopped)
    }
}

/// The whole of a run. It began with its first client, not when the leader, who has to share the
/// processor with all of them, got round to looking at the clock.
fn whole(
    parts: impl Iterator<Item = anyhow::Result<Part>>,
    limit: Limit,
    stopped: Instant,
) -> anyhow::Result<Run> {
    let (mut run, mut begun, mut ended) = (Run::default(), stopped, stopped);
    // All are waited for, whoever has failed.
    for part in parts.collect::<Vec<_>>() {
        let (part, first, last) = part?;
        run.add(part);
        begun = begun.min(first);
        ended = ended.max(last);
    }
    run.took = match limit {
        Limit::Time(_) => stopped - begun,
        Limit::Requests(_) => ended - begun,
    };
    Ok(run)
}

/// Runs client threads.
///
/// # Errors
/// When a thread cannot be had, or the first request of a client, which is not counted, fails.
pub fn threads<W: Workload>(
    stage: &Stage<W>,
    strategy: Strategy,
    count: usize,
    limit: Limit,
) -> anyhow::Result<Run> {
    let clients = Clients::new(count + 1, limit);
    let traced = stage.meter(strategy).is_tracing();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..count {
            let clients = &clients;
            let body = move || -> Result<Part, String> {
                let first = || -> Result<_, String> {
                    let mut asker = stage.asker(strategy).map_err(|error| error.to_string())?;
                    asker.ask(stage.item(number).1)?;
                    Ok(asker)
                };
                let asker = first();
                // CORRECTNESS: whoever has failed meets the others too: nobody waits for ever.
                let begun = clients.meet();
                let mut asker = asker?;
                let mut run = Run::default();
                let (mut at, mut end) = (number, begun);
                while clients.may_ask() {
                    at += 1;
                    let (index, item) = stage.item(at);
                    let traced = traced.then_some(number);
                    let asked = Asked { stage, index, due: Instant::now(), traced };
                    let answer = asker.ask(item);
                    run.note(&asked, &answer, !clients.over.load(Relaxed));
                    end = Instant::now();
                }
                Ok((run, begun, end))
            };
            let name = format!("client {number}");
            match std::thread::Builder::new().name(name).spawn_scoped(scope, body) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Those that wait for it are let go, and find that nothing may be asked.
                    clients.over.store(true, Relaxed);
                    for _ in number..count {
                        scope.spawn(|| clients.meet());
                    }
                    clients.lead(limit, Counts::default);
                    anyhow::bail!("cannot start client thread {}: {error}", number + 1);
                }
            }
        }
        let (before, stopped) = clients.lead(limit, || stage.counts(strategy));
        let parts = threads.into_iter().map(|thread| joined(thread, strategy));
        let mut run = whole(parts, limit, stopped)?;
        run.counts = stage.counts(strategy).since(before);
        Ok(run)
    })
}

fn joined(
    thread: ScopedJoinHandle<'_, Result<Part, String>>,
    strategy: Strategy,
) -> anyhow::Result<Part> {
    let part = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
    part.map_err(|error| anyhow::anyhow!("{strategy}: {error}"))
}

/// Async tasks, and the threads that they share.
#[derive(Clone, Copy, Debug)]
pub struct Tasks {
    /// How many clients.
    pub count: usize,
    /// On how many threads, if there are as many tasks.
    pub threads: usize,
}

/// Runs async tasks on a batch queue.
///
/// # Errors
/// When a thread panicked, or the first request of a client, which is not counted, fails.
pub fn tasks<W: Workload>(
    stage: &Stage<W>,
    strategy: Strategy,
    Tasks { count, threads }: Tasks,
    limit: Limit,
) -> anyhow::Result<Run> {
    let threads = threads.min(count);
    let clients = Clients::new(threads + 1, limit);
    let traced = stage.meter(strategy).is_tracing();
    let queue = stage.queue(strategy);
    std::thread::scope(|scope| {
        let mut parts = Vec::new();
        for thread in 0..threads {
            let clients = &clients;
            parts.push(scope.spawn(move || -> Result<Part, String> {
                let run = Rc::new(RefCell::new(Run::default()));
                let executor = async_executor::LocalExecutor::new();
                let numbers = || (thread..count).step_by(threads);
                let first = future::block_on(executor.run(async {
                    let firsts =
                        numbers().map(|number| executor.spawn(queue.infer(stage.item(number).1)));
                    for first in firsts.collect::<Vec<_>>() {
                        first.await.map_err(|error| error.to_string())?;
                    }
                    Ok::<(), String>(())
                }));
                // CORRECTNESS: whoever has failed meets the others too: nobody waits for ever.
                let begun = clients.meet();
                first?;
                let tasks: Vec<_> = numbers()
                    .map(|number| {
                        let run = Rc::clone(&run);
                        executor.spawn(async move {
                            let mut at = number;
                            while clients.may_ask() {
                                at += 1;
                                let (index, item) = stage.item(at);
                                let traced = traced.then_some(number);
                                let asked = Asked { stage, index, due: Instant::now(), traced };
                                let answer = queue.infer(item).await;
                                let answer = answer.map_err(|error| error.to_string());
                                let in_time = !clients.over.load(Relaxed);
                                run.borrow_mut().note(&asked, &answer, in_time);
                            }
                        })
                    })
                    .collect();
                future::block_on(executor.run(async {
                    for task in tasks {
                        task.await;
                    }
                }));
                let run = run.take();
                Ok((run, begun, Instant::now()))
            }));
        }
        let (before, stopped) = clients.lead(limit, || stage.counts(strategy));
        let parts = parts.into_iter().map(|thread| joined(thread, strategy));
        let mut run = whole(parts, limit, stopped)?;
        run.counts = stage.counts(strategy).since(before);
        Ok(run)
    })
}

/// Runs whole batches of `size` on one thread: as often as it takes, over all requests, sorted by
/// length, so that every pass is the same work. Latencies are those of batches.
///
/// # Errors
/// The engine's.
pub fn offline<W: Workload>(
    stage: &Stage<W>,
    engine: &mut super::observed::Observed<W::Engine>,
    size: usize,
    limit: Limit,
) -> anyhow::Result<Run> {
    let batches = sorted_batches(stage.workload.items(), size);
    let before = stage.counts(Strategy::Offline);
    let mut run = Run::default();
    let started = Instant::now();
    loop {
        for batch in &batches {
            let begun = Instant::now();
            std::hint::black_box(engine.infer(batch)?);
            run.latencies.record(begun, Instant::now());
            run.answered += batch.len() as u64;
        }
        run.took = started.elapsed();
        let over = match limit {
            Limit::Time(time) => run.took >= time,
            Limit::Requests(count) => run.answered >= count,
        };
        if over {
            break;
        }
    }
    run.counts = stage.counts(Strategy::Offline).since(before);
    Ok(run)
}

/// Batches of requests that may share one, of similar cost, as few and as full as can be.
pub fn sorted_batches<I: BatchItem + Clone>(items: &[I], size: usize) -> Vec<Vec<I>> {
    // A batch may be larger than the set of requests.
    let count = items.len().next_multiple_of(size);
    let mut items: Vec<I> = items.iter().cycle().take(count).cloned().collect();
    items.sort_by_key(BatchItem::cost);
    let mut groups: Vec<(I::Key, Vec<I>)> = Vec::new();
    for item in items {
        let key = item.key();
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups.iter().flat_map(|(_, group)| group.chunks(size)).map(<[I]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread::ThreadId;
    use std::time::Duration;

    use onelane::{EngineError, ExecutorConfig};

    use super::*;
    use crate::bench::workload::Null;

    #[derive(Clone, Debug, PartialEq)]
    struct Text(usize);

    impl BatchItem for Text {
        type Key = usize;
        fn key(&self) -> usize {
            self.0 / 10
        }
        fn cost(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn offline_batches_are_sorted_full_and_of_one_key() {
        let texts: Vec<_> = [31, 5, 33, 1, 9, 35, 2].map(Text).to_vec();
        let batches = sorted_batches(&texts, 3);
        let of_two_rounds: usize = batches.iter().map(Vec::len).sum();
        assert_eq!(of_two_rounds % 3, 0, "as many requests as fill batches");
        for batch in &batches {
            assert!(batch.iter().all(|text| text.key() == batch[0].key()));
            assert!(batch.is_sorted_by_key(BatchItem::cost), "{batch:?}");
        }
        // Fewer requests than a batch holds are taken more than once.
        let batches = sorted_batches(&texts[..1], 8);
        assert_eq!(batches, [vec![Text(31); 8]]);
    }

    fn stage() -> Stage<Null> {
        let executor = ExecutorConfig::new("bench-test");
        Stage::new(Null::new(Duration::ZERO), executor, 16, 1024).unwrap()
    }

    /// The numbers of requests that clients, runs and engines count are the same.
    #[test]
    fn counts_add_up_for_every_strategy() {
        onelane_timeout(|| {
            let stage = stage();
            for strategy in Strategy::ALL.into_iter().filter(|&s| s != Strategy::Offline) {
                let run = threads(&stage, strategy, 4, Limit::Requests(500)).unwrap();
                assert_eq!((run.answered, run.wrong, run.failed), (500, 0, 0), "{strategy}");
                assert_eq!((run.latencies.count(), run.counts.items), (500, 500), "{strategy}");
                let alone = strategy != Strategy::Queue;
                assert!(!alone || run.counts.batches == 500, "{strategy}");
            }
            for strategy in [Strategy::QueueOne, Strategy::Queue] {
                let forty = Tasks { count: 40, threads: 3 };
                let run = tasks(&stage, strategy, forty, Limit::Requests(500)).unwrap();
                assert_eq!(
                    (run.answered, run.latencies.count(), run.counts.items),
                    (500, 500, 500)
                );
            }
            let mut engine = stage.engine(Strategy::Offline).unwrap();
            let run = offline(&stage, &mut engine, 16, Limit::Requests(500)).unwrap();
            assert_eq!((run.answered, run.counts.items, run.counts.batches), (512, 512, 32));
        });
    }

    /// Notes which threads look for something to ask.
    struct Seen(Null, Mutex<HashSet<ThreadId>>);

    impl Workload for Seen {
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
    fn tasks_run_on_as_many_threads_as_are_given() {
        onelane_timeout(|| {
            let seen = Seen(Null::new(Duration::ZERO), Mutex::default());
            let stage = Stage::new(seen, ExecutorConfig::new("bench-test"), 16, 1024).unwrap();
            for (count, threads, used) in [(40, 3, 3), (2, 5, 2)] {
                stage.workload.1.lock().unwrap().clear();
                let clients = Tasks { count, threads };
                tasks(&stage, Strategy::Queue, clients, Limit::Requests(100)).unwrap();
                assert_eq!(stage.workload.1.lock().unwrap().len(), used, "{clients:?}");
            }
        });
    }

    /// Runs it on a thread of its own; a hang is a failure.
    fn onelane_timeout(body: impl FnOnce() + Send + 'static) {
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
