//! Open load: requests arrive when they arrive, whatever has become of those before.
//!
//! Arrivals are a Poisson process. A latency counts from the instant at which the request was meant
//! to arrive. A batch queue is given each request as it arrives, by one thread, and the answers are
//! waited for as futures. A lock or an engine of one's own needs a thread for each request that is
//! under way: so many threads take arrivals in turn; what none of them has got to when the time is
//! over is counted with its age then.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::future;
use onelane::{Priority, Request, SubmitError};

use super::closed::{Asked, Run};
use super::latency::Latencies;
use super::schedule::Poisson;
use super::strategy::{Stage, Strategy};
use super::workload::Workload;

/// What open load came to.
#[derive(Clone, Debug, Default)]
pub struct Open {
    /// As in a closed loop; latencies are from when requests were meant to arrive.
    pub run: Run,
    /// Requests that arrived.
    pub offered: u64,
    /// Of these, refused by a full queue.
    pub refused: u64,
    /// Of these, not begun when the time was over.
    pub late: u64,
    /// How late requests were sent.
    pub lateness: Latencies,
}

/// Arrivals for a time.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    /// Mean number per second.
    pub rate: f64,
    /// For how long.
    pub time: Duration,
    /// Chooses them.
    pub seed: u64,
    /// How urgent they are, where there is a queue.
    pub priority: Priority,
}

impl Arrivals {
    /// The instants, from `start`.
    pub fn instants(self, start: Instant) -> impl Iterator<Item = Instant> + Send + use<> {
        let offsets = Poisson::new(self.rate, self.seed);
        offsets.take_while(move |&at| at < self.time).map(move |at| start + at)
    }
}

/// Waits until an instant; returns at once if it is past.
pub fn sleep_until(instant: Instant) {
    let now = Instant::now();
    if instant > now {
        std::thread::sleep(instant - now);
    }
}

/// Offers requests; a strategy without a queue has `threads` client threads.
///
/// # Errors
/// When an engine or a thread cannot be had, or a queue is gone.
pub fn offer<W: Workload>(
    stage: &Stage<W>,
    strategy: Strategy,
    arrivals: Arrivals,
    threads: usize,
) -> anyhow::Result<Open> {
    let before = stage.counts(strategy);
    let mut open = if strategy.is_async() {
        to_queue(stage, strategy, arrivals)?
    } else {
        to_threads(stage, strategy, arrivals, threads)?
    };
    open.run.counts = stage.counts(strategy).since(before);
    Ok(open)
}

/// Requests that are under way, and the sender of them.
#[derive(Default)]
struct UnderWay {
    count: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl UnderWay {
    fn begin(&self) {
        self.count.fetch_add(1, SeqCst);
    }

    fn end(&self) {
        if self.count.fetch_sub(1, SeqCst) == 1
            && let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            waker.wake();
        }
    }

    /// Waits until there is none.
    async fn none(&self) {
        poll_fn(|context| {
            let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
            *waker = Some(context.waker().clone());
            // CORRECTNESS: whoever ends last after this look finds the waker.
            if self.count.load(SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

fn to_queue<W: Workload>(
    stage: &Stage<W>,
    strategy: Strategy,
    arrivals: Arrivals,
) -> anyhow::Result<Open> {
    let queue = stage.queue(strategy);
    let traced = stage.meter(strategy).is_tracing().then_some(0);
    let run = Mutex::new(Run::default());
    let under_way = UnderWay::default();
    let executor = async_executor::Executor::new();
    let mut open = Open::default();
    // The sender is under way until it has sent everything.
    under_way.begin();
    let (took, sent) = std::thread::scope(|scope| {
        let (run, under_way, executor) = (&run, &under_way, &executor);
        let waiter = scope.spawn(|| future::block_on(executor.run(under_way.none())));
        let started = Instant::now();
        let mut sent = Ok(());
        for (at, due) in arrivals.instants(started).enumerate() {
            sleep_until(due);
            open.lateness.record(due, Instant::now());
            open.offered += 1;
            let (index, item) = stage.item(at);
            let request = Request::new(item).priority(arrivals.priority);
            let handle = match queue.try_submit(request) {
                Ok(handle) => handle,
                Err(SubmitError::Full(_)) => {
                    open.refused += 1;
                    continue;
                }
                Err(error) => {
                    sent = Err(anyhow::anyhow!("{strategy}: {error}"));
                    break;
                }
            };
            under_way.begin();
            let asked = Asked { stage, index, due, traced };
            let answered = async move {
                let answer = handle.await.map_err(|error| error.to_string());
                run.lock().unwrap_or_else(PoisonError::into_inner).note(&asked, &answer, true);
                under_way.end();
            };
            executor.spawn(answered).detach();
        }
        under_way.end();
        if waiter.join().is_err() {
            sent = Err(anyhow::anyhow!("whoever waits for the answers panicked"));
        }
        (started.elapsed().max(arrivals.time), sent)
    });
    sent?;
    drop(executor);
    open.run = run.into_inner().unwrap_or_else(PoisonError::into_inner);
    open.run.took = took;
    Ok(open)
}

fn to_threads<W: Workload>(
    stage: &Stage<W>,
    strategy: Strategy,
    arrivals: Arrivals,
    threads: usize,
) -> anyhow::Result<Open> {
    let traced = stage.meter(strategy).is_tracing();
    // The barrier's last waiter takes the time.
    let start = Barrier::new(threads + 1);
    let schedule = Mutex::new(None);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..threads)
            .map(|number| {
                let (start, schedule) = (&start, &schedule);
                scope.spawn(move || -> Result<Open, String> {
                    let asker = stage.asker(strategy);
                    // CORRECTNESS: whoever has failed meets the others too.
                    start.wait();
                    start.wait();
                    let mut asker = asker.map_err(|error| error.to_string())?;
                    let mut open = Open::default();
                    loop {
                        let next = {
                            let mut schedule =
                                schedule.lock().unwrap_or_else(PoisonError::into_inner);
                            let (arrivals, end): &mut (Numbered, Instant) =
                                schedule.as_mut().ok_or("the schedule is not there")?;
                            arrivals.next().map(|(at, due)| (at, due, *end))
                        };
                        let Some((at, due, end)) = next else { return Ok(open) };
                        open.offered += 1;
                        sleep_until(due);
                        let now = Instant::now();
                        open.lateness.record(due, now);
                        if now >= end {
                            // It has waited this long, and would have waited longer.
                            open.late += 1;
                            open.run.latencies.record(due, end);
                            continue;
                        }
                        let (index, item) = stage.item(at);
                        let asked = Asked { stage, index, due, traced: traced.then_some(number) };
                        let answer = asker.ask(item);
                        open.run.note(&asked, &answer, true);
                    }
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        let arrivals_from: Numbered = Box::new(arrivals.instants(started).enumerate());
        *schedule.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((arrivals_from, started + arrivals.time));
        start.wait();
        let mut open = Open::default();
        for client in clients {
            let client = client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?
                .map_err(|error| anyhow::anyhow!("{strategy}: {error}"))?;
            open.offered += client.offered;
            open.late += client.late;
            open.lateness.add(&client.lateness);
            open.run.add(client.run);
        }
        open.run.took = started.elapsed().max(arrivals.time);
        Ok(open)
    })
}

/// Arrivals with their numbers.
type Numbered = Box<dyn Iterator<Item = (usize, Instant)> + Send>;

/// Requests per second of the batch queue when it is never empty: one thread keeps several batches'
/// worth of requests under way.
///
/// # Errors
/// When the queue is gone or its engine fails.
pub fn capacity<W: Workload>(stage: &Stage<W>, time: Duration) -> anyhow::Result<f64> {
    let queue = stage.queue(Strategy::Queue);
    let depth = (4 * stage.max_batch).min(queue.config().capacity);
    let mut handles = VecDeque::with_capacity(depth);
    let (mut answered, started) = (0_u64, Instant::now());
    for at in 0.. {
        handles.push_back(queue.submit(stage.item(at).1)?);
        if handles.len() >= depth
            && let Some(oldest) = handles.pop_front()
        {
            oldest.wait()?;
            answered += 1;
            if started.elapsed() >= time {
                break;
            }
        }
    }
    Ok(answered as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use onelane::ExecutorConfig;

    use super::*;
    use crate::bench::workload::Null;

    #[test]
    fn every_arrival_is_answered_refused_or_late() {
        let executor = ExecutorConfig::new("open-test");
        let stage = Stage::new(Null::new(Duration::ZERO), executor, 16, 1024).unwrap();
        let time = Duration::from_millis(100);
        let arrivals = Arrivals { rate: 2000.0, time, seed: 3, priority: Priority::Normal };
        let expected = arrivals.instants(Instant::now()).count() as u64;
        for strategy in Strategy::ALL.into_iter().filter(|&s| s != Strategy::Offline) {
            let open = offer(&stage, strategy, arrivals, 3).unwrap();
            assert_eq!(open.offered, expected, "{strategy}");
            assert_eq!(open.run.answered + open.refused + open.late, expected, "{strategy}");
            assert_eq!(open.run.latencies.count(), expected - open.refused, "{strategy}");
            assert_eq!((open.run.wrong, open.run.failed), (0, 0), "{strategy}");
            assert_eq!(open.run.counts.items, open.run.answered, "{strategy}");
        }
    }
}
