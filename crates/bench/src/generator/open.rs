//! Open load: requests arrive when they arrive, whatever has become of those before.
//!
//! A latency counts from the instant at which the request was meant to arrive. What submits without
//! waiting is given each request as it arrives, by one thread, and the answers are waited for as
//! futures. Where each request needs a thread while it is under way, so many threads take arrivals
//! in turn; what none of them has got to when the time is over is missed.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use futures_lite::future::block_on;

use super::arrivals::{Arrivals, sleep_until};
use super::crew::{Crew, runtime};
use super::latency::Latencies;
use super::observer::{Asked, Observer};
use super::start::{Start, start};
use super::target::{Client, Refused, Submit, Target};

/// What open load came to.
#[derive(Clone, Debug)]
pub struct Offered<O> {
    /// What was seen of the answers.
    pub observer: O,
    /// From the first arrival's beginning until the last answer, or the end of the time.
    pub took: Duration,
    /// For how long requests were sent.
    pub sent_for: Duration,
    /// What the sending threads saw.
    pub sent: Sent,
}

/// What became of requests before they were under way.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Requests that arrived.
    pub offered: u64,
    /// Of these, refused because it was full.
    pub refused: u64,
    /// Of these, not begun when the time was over.
    pub missed: u64,
    /// How late requests were sent.
    pub lateness: Latencies,
    /// How long a refusal took.
    pub refusals: Latencies,
}

impl Sent {
    /// Adds what other threads and runs saw.
    pub fn add(&mut self, other: &Self) {
        self.offered += other.offered;
        self.refused += other.refused;
        self.missed += other.missed;
        self.lateness.add(&other.lateness);
        self.refusals.add(&other.refusals);
    }
}

/// Offers requests to something that submits; what is full refuses them.
///
/// # Errors
/// When the target is gone, or no thread can be had.
///
/// # Blocking
/// Until everything that was taken has been answered.
pub fn open_to_queue<T: Submit, O: Observer<Reply = T::Reply>>(
    target: &T,
    arrivals: Arrivals,
    observer: O,
) -> anyhow::Result<Offered<O>> {
    // One thread waits for all answers.
    let waiting = runtime(1)?;
    let observer = Arc::new(Mutex::new(observer));
    let (under_way, none_left) = mpsc::channel::<()>();
    let mut sent = Sent::default();
    let started = Instant::now();
    for (number, due) in (0..).zip(arrivals.instants(started)) {
        sleep_until(due);
        let now = Instant::now();
        let asked = Asked { client: 0, number, due, sent: now };
        sent.lateness.record(due, now);
        sent.offered += 1;
        let pending = match target.try_submit(number) {
            Ok(pending) => pending,
            Err(Refused::Full) => {
                sent.refused += 1;
                sent.refusals.record(now, Instant::now());
                continue;
            }
            Err(Refused::Gone(error)) => bail!("{error}"),
        };
        let (observer, under_way) = (Arc::clone(&observer), under_way.clone());
        waiting.spawn(async move {
            let reply = pending.await;
            observer.lock().unwrap_or_else(PoisonError::into_inner).note(&asked, reply, true);
            // CORRECTNESS: whoever sees that nothing is under way finds the observer's one owner.
            drop(observer);
            drop(under_way);
        });
    }
    let sent_for = started.elapsed().max(arrivals.time);
    drop(under_way);
    // Nothing is ever sent; this ends with the last sender.
    while none_left.recv().is_ok() {}
    let took = started.elapsed().max(arrivals.time);
    let observer = Arc::into_inner(observer).context("whoever waits for the answers panicked")?;
    let observer = observer.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Offered { observer, took, sent_for, sent })
}

/// Requests that are still to arrive.
type Schedule = Mutex<Box<dyn Iterator<Item = (u64, Instant)> + Send>>;

/// Offers requests to `threads` clients that block.
///
/// # Errors
/// When a thread or a client cannot be had.
///
/// # Blocking
/// Until everything that was begun has been answered.
pub fn open_to_threads<T, O>(
    target: &Arc<T>,
    arrivals: Arrivals,
    threads: usize,
    observer: impl Fn() -> O,
) -> anyhow::Result<Offered<O>>
where
    T: Target<Client: Client<Reply = O::Reply>>,
    O: Observer,
{
    let (start, starter) = start();
    let schedule: Arc<Schedule> = Arc::new(Mutex::new(Box::new(std::iter::empty())));
    let mut crew = Crew::default();
    for number in 0..threads {
        let client = ThreadClient {
            number,
            time: arrivals.time,
            observer: observer(),
            start: start.clone(),
            schedule: Arc::clone(&schedule),
        };
        let target = Arc::clone(target);
        let spawned = crew.thread(move || client.run(target.client()));
        spawned.with_context(|| format!("cannot start client thread {}", number + 1))?;
    }
    drop(start);
    starter.all_ready();
    let started = Instant::now();
    *schedule.lock().unwrap_or_else(PoisonError::into_inner) =
        Box::new((0..).zip(arrivals.instants(started)));
    starter.begin();
    let mut whole: Option<(O, Sent)> = None;
    for part in crew.join()? {
        let (observer, sent) = part.map_err(|error| anyhow!("{error}"))?;
        match &mut whole {
            None => whole = Some((observer, sent)),
            Some((all, all_sent)) => {
                all.merge(observer);
                all_sent.add(&sent);
            }
        }
    }
    let took = started.elapsed().max(arrivals.time);
    let (observer, sent) = whole.context("there are no client threads")?;
    Ok(Offered { observer, took, sent_for: arrivals.time, sent })
}

/// One of the threads that take arrivals in turn.
struct ThreadClient<O> {
    number: usize,
    time: Duration,
    observer: O,
    start: Start,
    schedule: Arc<Schedule>,
}

impl<O: Observer> ThreadClient<O> {
    fn run<C: Client<Reply = O::Reply>>(
        self,
        client: Result<C, String>,
    ) -> Result<(O, Sent), String> {
        let Self { number: thread, time, mut observer, start, schedule } = self;
        let mut client = client?;
        let over = block_on(start.wait()).ok_or("the run was given up")? + time;
        let mut sent = Sent::default();
        loop {
            let next = schedule.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, due)) = next else { return Ok((observer, sent)) };
            sent.offered += 1;
            sleep_until(due);
            let now = Instant::now();
            sent.lateness.record(due, now);
            let asked = Asked { client: thread, number, due, sent: now };
            if now >= over {
                // It has waited this long, and would have waited longer.
                sent.missed += 1;
                observer.missed(&asked, over);
                continue;
            }
            observer.note(&asked, client.ask(number), true);
        }
    }
}
