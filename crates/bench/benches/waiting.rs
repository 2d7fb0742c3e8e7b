//! What a request costs while 1, 64, 1,024 or 10,000 requests wait.
//!
//!     cargo bench -p onelane-bench --bench waiting [-- ROUNDS]
//!
//! The engine itself submits one request for each that it answers, so that exactly so many wait all
//! the time, and everything (submit, batch, answer, handle) happens on one thread: no wake-up and
//! no other client is in the figure. Batches have the same size whatever waits: of 1, and of 32
//! where that many wait. The figure is the median of the ratios of neighbours in time. Exit 1 when
//! the cost grows by 20% or more.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use onelane::{
    BatchConfig, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig, ResponseHandle,
    Shutdown,
};
use onelane_bench::Paired;
use onelane_bench::peers::Value;

/// Requests measured at each depth and round, and as many before.
const REQUESTS: usize = 30_000;

/// Answers requests and submits as many new ones.
struct Refilling {
    queue: Arc<OnceLock<BatchQueue<Refilling>>>,
    /// Of the requests that wait and of the batch before this one.
    handles: VecDeque<ResponseHandle<u64>>,
    /// How many of them are of that batch.
    answered: usize,
    /// Requests still to be answered before and while the time is taken.
    warm: usize,
    timed: usize,
    started: Option<Instant>,
    done: mpsc::Sender<Duration>,
}

impl Engine for Refilling {
    type Item = Value;
    type Output = u64;

    fn infer(&mut self, batch: &[Value]) -> Result<Vec<u64>, EngineError> {
        // The first request is the one that fills the queue.
        let (Some(queue), Some(&Value(depth))) = (self.queue.get(), batch.first()) else {
            return Err(EngineError::failed("the queue is not there yet"));
        };
        // The handles of the batch before: it has been answered.
        self.handles.drain(..self.answered);
        let first = self.handles.is_empty();
        self.answered = if first { 0 } else { batch.len() };
        if self.warm > 0 {
            self.warm = self.warm.saturating_sub(batch.len());
        } else if self.timed > 0 {
            let started = *self.started.get_or_insert_with(Instant::now);
            self.timed = self.timed.saturating_sub(batch.len());
            if self.timed == 0 {
                // The receiver may have gone; then nobody wants to know.
                let _ = self.done.send(started.elapsed());
            }
        }
        if self.timed > 0 {
            for _ in 0..if first { depth as usize } else { batch.len() } {
                let handle = queue.try_submit(Value(depth));
                self.handles.push_back(handle.map_err(|e| EngineError::failed(e.to_string()))?);
            }
        }
        Ok(batch.iter().map(|value| value.0).collect())
    }
}

/// Requests per second when `depth` wait.
fn rate(depth: usize, batch: usize) -> f64 {
    let device = DeviceExecutor::new(ExecutorConfig::new("waiting")).expect("the name is valid");
    let place = Arc::new(OnceLock::new());
    let (done, time) = mpsc::channel();
    let config = BatchConfig::default().max_batch_size(batch).capacity(2 * depth + 2 * batch);
    let within = Arc::clone(&place);
    let queue = BatchQueue::new(&device, config, move || {
        Ok(Refilling {
            queue: Arc::clone(&within),
            handles: VecDeque::new(),
            answered: 0,
            warm: REQUESTS,
            timed: REQUESTS,
            started: None,
            done: done.clone(),
        })
    })
    .expect("the engine has nothing to fail at");
    assert!(place.set(queue.clone()).is_ok(), "it is set once");
    let first = queue.submit(Value(depth as u64)).expect("the queue is open");
    let took = time.recv().expect("the engine runs until it has measured");
    // Answered long ago; its handle was not among the engine's.
    first.wait().expect("it was answered");
    // The engine holds a handle to its own queue: nothing else would end this.
    device.shutdown(Shutdown::Abort, Duration::from_secs(60)).expect("no batch takes long");
    REQUESTS as f64 / took.as_secs_f64()
}

fn main() -> ExitCode {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(9);
    let mut holds = true;
    for (batch, depths) in [(1, &[1, 64, 1_024, 10_000][..]), (32, &[64, 1_024, 10_000])] {
        let mut paired = Paired::default();
        for _ in 0..rounds {
            paired.push(depths.iter().map(|&depth| rate(depth, batch)).collect());
        }
        for (at, depth) in depths.iter().enumerate() {
            let [growth, least, greatest] = paired.ratio(0, at);
            println!(
                "batches of {batch:>2}, {depth:>6} waiting: {:>6.0} ns a request, {growth:.3} times \
                 that with {} ({least:.3} to {greatest:.3})",
                1e9 / paired.rate(at),
                depths[0],
            );
            holds &= growth < 1.2;
        }
    }
    println!("{}", if holds { "grows by less than 20%" } else { "FAILED: grows by 20% or more" });
    ExitCode::from(u8::from(!holds))
}
