//! Closed-loop clients: each asks, waits for the answer, checks it, and asks again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;

use crate::{Client, Peer, Work, cpu_seconds};

/// What a closed loop came to.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// Requests per second.
    pub rate: f64,
    /// Processor time of the whole process for each request, in nanoseconds.
    pub cpu_ns: f64,
}

/// Requests that this client asks; no two of any clients are equal.
fn values(client: usize) -> impl Iterator<Item = u64> {
    let first = (client as u64) << 32;
    first..
}

/// Client threads on a new queue, for `window`.
pub fn threads<P: Peer>(count: usize, window: Duration) -> Closed {
    let peer = P::start(Work::default(), count);
    let over = Arc::new(AtomicBool::new(false));
    let start = Arc::new(Barrier::new(count + 1));
    let clients: Vec<_> = (0..count)
        .map(|number| {
            let (mut client, over, start) = (peer.client(), over.clone(), start.clone());
            std::thread::spawn(move || {
                let mut values = values(number);
                let mut ask = || {
                    let value = values.next().expect("there are enough numbers");
                    assert_eq!(Client::ask(&mut client, value), value);
                };
                ask();
                start.wait();
                let begun = Instant::now();
                let mut answered = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    ask();
                    answered += u64::from(!over.load(Ordering::Relaxed));
                }
                (answered, begun)
            })
        })
        .collect();
    let cpu = cpu_seconds();
    start.wait();
    std::thread::sleep(window);
    let stopped = Instant::now();
    over.store(true, Ordering::Relaxed);
    // It began with the first client: this thread may have been late to look at the clock.
    let (mut answered, mut begun) = (0, stopped);
    for client in clients {
        let (part, first) = client.join().expect("answers are right");
        answered += part;
        begun = begun.min(first);
    }
    closed(answered, stopped - begun, cpu)
}

/// Client tasks on a new queue, on a tokio runtime with `workers` threads, for `window`.
pub fn tasks<P: Peer>(count: usize, workers: usize, window: Duration) -> Closed {
    let runtime = Builder::new_multi_thread().worker_threads(workers).enable_time().build();
    let runtime = runtime.expect("threads can be had");
    runtime.block_on(async {
        let peer = P::start(Work::default(), count);
        let over = Arc::new(AtomicBool::new(false));
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let clients: Vec<_> = (0..count)
            .map(|number| {
                let (mut client, over) = (peer.client(), over.clone());
                tokio::spawn(async move {
                    let mut answered = 0_u64;
                    for value in values(number) {
                        assert_eq!(client.infer(value).await, value);
                        answered += 1;
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    answered
                })
            })
            .collect();
        // Not a timer of the runtime: its threads are busy.
        let timer = over.clone();
        std::thread::spawn(move || {
            std::thread::sleep(window);
            timer.store(true, Ordering::Relaxed);
        });
        let mut answered = 0;
        for client in clients {
            answered += client.await.expect("answers are right");
        }
        closed(answered, started.elapsed(), cpu)
    })
}

fn closed(answered: u64, took: Duration, cpu_before: f64) -> Closed {
    let cpu = cpu_seconds() - cpu_before;
    Closed { rate: answered as f64 / took.as_secs_f64(), cpu_ns: cpu / answered as f64 * 1e9 }
}
