//! [`ClosedLoop`]: each client asks, waits for the answer, and asks again.
//!
//! A client may ask once before time is taken, so that its engine, its thread and its place in the
//! queue are there. Requests that were asked before the end are noted even if they are answered
//! after it: else the slowest would be left out. Only those answered before the end are in time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures_lite::future::block_on;
use tokio::runtime::Runtime;

use super::crew::Crew;
use super::observer::{Asked, Observer, Ran};
use super::start::{Start, Starter, start};
use super::target::{AsyncClient, Client, Target};

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many requests, of all clients together; their numbers are those from 0 on.
    Requests(u64),
}

/// Clients in a closed loop.
#[derive(Clone, Copy, Debug)]
pub struct ClosedLoop {
    /// How many.
    pub clients: usize,
    /// When they are to end.
    pub limit: Limit,
    /// Whether each asks once before, uncounted.
    pub warm_up: bool,
}

/// The numbers of two clients' requests differ, and those of neighbours begin at neighbours in any
/// list whose length is a power of two.
const NUMBERS_OF_A_CLIENT: u64 = (1 << 32) + 1;

/// What clients share.
struct Shared {
    limit: Limit,
    over: AtomicBool,
    /// Requests asked, where they are counted.
    asked: AtomicU64,
}

impl Shared {
    /// The number of a client's next request; none when it is to end.
    fn next(&self, client: usize, nth: u64) -> Option<u64> {
        let number = match self.limit {
            Limit::Time(_) => client as u64 * NUMBERS_OF_A_CLIENT + nth,
            Limit::Requests(count) => {
                Some(self.asked.fetch_add(1, Relaxed)).filter(|&number| number < count)?
            }
        };
        (!self.over.load(Relaxed)).then_some(number)
    }
}

/// What one client saw, and its first and last moment.
type Part<O> = (O, Instant, Instant);

/// Clients that end with what they saw, or with why they saw nothing.
type PartCrew<O> = Crew<Result<Part<O>, String>>;

/// Clients that have been started and stand ready.
pub struct Ready<O> {
    crew: PartCrew<O>,
    starter: Starter,
    shared: Arc<Shared>,
}

impl ClosedLoop {
    /// Starts client threads, and waits until they are ready.
    ///
    /// # Errors
    /// When a thread cannot be had. A client that cannot be made fails in [`Ready::run`].
    pub fn threads<T, O>(
        &self,
        target: &Arc<T>,
        observer: impl Fn() -> O,
    ) -> anyhow::Result<Ready<O>>
    where
        T: Target<Client: Client<Reply = O::Reply>>,
        O: Observer,
    {
        self.ready(observer, |crew, client: LoopClient<O>| {
            let (number, target) = (client.number, Arc::clone(target));
            let body = move || block_on(client.run(target.client().map(Blocking)));
            let spawned = crew.thread(body);
            spawned.with_context(|| format!("cannot start client thread {}", number + 1))
        })
    }

    /// Starts client tasks, and waits until they are ready.
    ///
    /// # Errors
    /// None now. A client that cannot be made fails in [`Ready::run`].
    pub fn tasks<T, O>(
        &self,
        on: &Runtime,
        target: &Arc<T>,
        observer: impl Fn() -> O,
    ) -> anyhow::Result<Ready<O>>
    where
        T: Target<Client: AsyncClient<Reply = O::Reply>>,
        O: Observer,
    {
        self.ready(observer, |crew, client: LoopClient<O>| {
            let target = Arc::clone(target);
            crew.task(on, async move { client.run(target.client().map(Waiting)).await });
            Ok(())
        })
    }

    fn ready<O: Observer>(
        &self,
        observer: impl Fn() -> O,
        mut spawn: impl FnMut(&mut PartCrew<O>, LoopClient<O>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Ready<O>> {
        let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { limit: self.limit, over, asked });
        let (start, starter) = start();
        let mut crew = Crew::default();
        for number in 0..self.clients {
            let client = LoopClient {
                number,
                warm_up: self.warm_up,
                observer: observer(),
                start: start.clone(),
                shared: Arc::clone(&shared),
            };
            spawn(&mut crew, client)?;
        }
        drop(start);
        starter.all_ready();
        Ok(Ready { crew, starter, shared })
    }
}

impl<O: Observer> Ready<O> {
    /// Lets them begin, and waits until they have ended. The time is from the first client's
    /// beginning, not from when the caller, who has to share the processor with all of them, looked
    /// at the clock.
    ///
    /// # Errors
    /// When a client panicked, could not be made, or failed at its first request.
    ///
    /// # Blocking
    /// Until the last answer is there.
    pub fn run(self) -> anyhow::Result<Ran<O>> {
        self.starter.begin();
        let timed = match self.shared.limit {
            Limit::Time(time) => {
                std::thread::sleep(time);
                true
            }
            Limit::Requests(_) => false,
        };
        let stopped = Instant::now();
        if timed {
            self.shared.over.store(true, Relaxed);
        }
        let mut whole: Option<Part<O>> = None;
        for part in self.crew.join()? {
            let (observer, begun, ended) = part.map_err(|error| anyhow!("{error}"))?;
            whole = Some(match whole.take() {
                None => (observer, begun, ended),
                Some((mut all, first, last)) => {
                    all.merge(observer);
                    (all, first.min(begun), last.max(ended))
                }
            });
        }
        let (observer, begun, ended) = whole.context("there are no clients")?;
        Ok(Ran { observer, took: if timed { stopped - begun } else { ended - begun } })
    }
}

/// A way of asking, so that the loop is written once.
trait Ask: Send {
    type Reply;

    fn ask(&mut self, number: u64) -> impl Future<Output = Self::Reply> + Send;
}

/// Blocks its thread.
struct Blocking<C>(C);

impl<C: Client> Ask for Blocking<C> {
    type Reply = C::Reply;

    fn ask(&mut self, number: u64) -> impl Future<Output = C::Reply> + Send {
        std::future::ready(self.0.ask(number))
    }
}

/// Leaves its thread to others.
struct Waiting<C>(C);

impl<C: AsyncClient> Ask for Waiting<C> {
    type Reply = C::Reply;

    fn ask(&mut self, number: u64) -> impl Future<Output = C::Reply> + Send {
        self.0.infer(number)
    }
}

/// One client of a closed loop.
struct LoopClient<O> {
    number: usize,
    warm_up: bool,
    observer: O,
    start: Start,
    shared: Arc<Shared>,
}

impl<O: Observer> LoopClient<O> {
    async fn run<A: Ask<Reply = O::Reply>>(
        self,
        asking: Result<A, String>,
    ) -> Result<Part<O>, String> {
        let Self { number: client, warm_up, mut observer, start, shared } = self;
        let mut asking = asking?;
        let now = Instant::now();
        let mut asked = Asked { client, number: 0, due: now, sent: now };
        if warm_up {
            asked.number = client as u64 * NUMBERS_OF_A_CLIENT;
            observer.first(&asked, asking.ask(asked.number).await)?;
        }
        let begun = start.wait().await.ok_or("the run was given up")?;
        (asked.due, asked.sent) = (begun, begun);
        let mut nth = 1;
        while let Some(number) = shared.next(client, nth) {
            nth += 1;
            asked.number = number;
            if O::TIMED {
                let now = Instant::now();
                (asked.due, asked.sent) = (now, now);
            }
            let reply = asking.ask(number).await;
            observer.note(&asked, reply, !shared.over.load(Relaxed));
        }
        Ok((observer, begun, Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicUsize;

    use super::super::crew::runtime;
    use super::*;

    /// Gives numbers back; of its clients, so many cannot be made.
    #[derive(Default)]
    struct Echo {
        made: AtomicUsize,
        failing: usize,
    }

    struct EchoClient;

    impl Target for Echo {
        type Client = EchoClient;

        fn client(&self) -> Result<EchoClient, String> {
            match self.made.fetch_add(1, Relaxed) < self.failing {
                true => Err("there is no room".to_owned()),
                false => Ok(EchoClient),
            }
        }
    }

    impl Client for EchoClient {
        type Reply = u64;

        fn ask(&mut self, number: u64) -> u64 {
            number
        }
    }

    impl AsyncClient for EchoClient {
        async fn infer(&mut self, number: u64) -> u64 {
            tokio::task::yield_now().await;
            number
        }
    }

    /// Keeps all numbers.
    #[derive(Default)]
    struct Numbers {
        first: Vec<u64>,
        noted: Vec<u64>,
    }

    impl Observer for Numbers {
        type Reply = u64;

        fn first(&mut self, asked: &Asked, reply: u64) -> Result<(), String> {
            assert_eq!(asked.number, reply);
            self.first.push(reply);
            Ok(())
        }

        fn note(&mut self, asked: &Asked, reply: u64, _: bool) {
            assert_eq!(asked.number, reply);
            self.noted.push(reply);
        }

        fn merge(&mut self, other: Self) {
            self.first.extend(other.first);
            self.noted.extend(other.noted);
        }
    }

    #[test]
    fn so_many_requests_are_asked_once_each() {
        let (limit, target) = (Limit::Requests(1000), Arc::new(Echo::default()));
        let clients = ClosedLoop { clients: 7, limit, warm_up: true };
        let runtime = runtime(2).unwrap();
        for ready in [
            clients.threads(&target, Numbers::default).unwrap(),
            clients.tasks(&runtime, &target, Numbers::default).unwrap(),
        ] {
            let mut seen = ready.run().unwrap().observer;
            assert_eq!(seen.first.len(), 7);
            seen.noted.sort_unstable();
            assert!(seen.noted.into_iter().eq(0..1000));
        }
    }

    #[test]
    fn for_a_time_no_two_requests_have_the_same_number() {
        let limit = Limit::Time(Duration::from_millis(5));
        let clients = ClosedLoop { clients: 3, limit, warm_up: true };
        let target = Arc::new(Echo::default());
        let ran = clients.threads(&target, Numbers::default).unwrap().run().unwrap();
        let Numbers { first, noted } = ran.observer;
        let all: HashSet<u64> = first.iter().chain(&noted).copied().collect();
        assert_eq!(all.len(), first.len() + noted.len());
        assert!(ran.took >= Duration::from_millis(5));
    }

    #[test]
    fn a_client_that_cannot_be_made_fails_the_run_and_keeps_nobody() {
        let target = Arc::new(Echo { failing: 1, ..Echo::default() });
        for limit in [Limit::Requests(100), Limit::Time(Duration::from_millis(1))] {
            target.made.store(0, Relaxed);
            let clients = ClosedLoop { clients: 4, limit, warm_up: false };
            let error = clients.threads(&target, Numbers::default).unwrap().run().err();
            assert_eq!(error.unwrap().to_string(), "there is no room");
        }
    }
}
