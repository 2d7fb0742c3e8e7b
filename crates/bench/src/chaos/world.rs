//! One life of an executor with its queues and their treacherous engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use onelane::{
    BatchConfig, BatchItem, BatchQueue, Delivery, DeviceExecutor, Engine, EngineError,
    ExecutorConfig,
};

use super::args::Args;
use super::tally::Tally;

pub(super) const UNPOISONED: &str = "nothing panics under this lock";

/// What the engine makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    Good,
    /// Every batch that holds it fails.
    Poison,
    /// Every batch that holds it panics.
    Bomb,
}

/// A request; it knows its number.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: u64,
    pub(super) key: u64,
    pub(super) cost: usize,
    pub(super) nature: Nature,
}

impl BatchItem for Item {
    type Key = u64;
    fn key(&self) -> u64 {
        self.key
    }
    fn cost(&self) -> usize {
        self.cost
    }
}

/// The one right answer to a request.
pub(super) fn answer(id: u64) -> u64 {
    (id ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31)
}

/// Requests of one life; their numbers are bits in `computed`.
const IDS: u64 = 1 << 22;

/// One executor and what its clients share.
pub(super) struct World {
    pub(super) device: DeviceExecutor,
    /// The last one's engine asks the first one, on the worker.
    pub(super) queues: Vec<BatchQueue<Treacherous>>,
    /// It is shut down when every client has left; otherwise in the middle of everything.
    pub(super) quiet: bool,
    /// Clients go on to the next world.
    pub(super) ended: AtomicBool,
    /// Clients that are in this world, or still have handles of it.
    pub(super) inside: AtomicUsize,
    /// Requests that clients saw accepted by each queue.
    pub(super) accepted: Vec<AtomicU64>,
    ledger: Arc<Ledger>,
}

/// The numbers of a world's requests, and which of them were computed.
struct Ledger {
    next: AtomicU64,
    computed: Vec<AtomicU64>,
    /// Requests that the last queue's engine had accepted by the first queue.
    asked: AtomicU64,
    tally: Arc<Tally>,
}

impl Ledger {
    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that a request was computed with success: once at most.
    fn note(&self, id: u64) {
        let Some(word) = self.computed.get(id as usize / 64) else { return };
        let bit = 1 << (id % 64);
        if word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            self.tally.fault(|t| &t.duplicated, || format!("request {id} was computed twice"));
        }
    }
}

impl World {
    pub(super) fn new(args: &Args, life: u64, tally: &Arc<Tally>) -> anyhow::Result<Self> {
        let (workers, seed) = (args.workers, args.seed);
        let mut dice = fastrand::Rng::with_seed(seed ^ life);
        let quiet = dice.bool();
        let delivery = if dice.bool() { Delivery::Thread } else { Delivery::Worker };
        let config = ExecutorConfig::new("chaos").workers(workers).delivery(delivery);
        let device = DeviceExecutor::new(config)?;
        let ledger = Arc::new(Ledger {
            next: AtomicU64::new(0),
            computed: (0..IDS / 64).map(|_| AtomicU64::new(0)).collect(),
            asked: AtomicU64::new(0),
            tally: Arc::clone(tally),
        });
        let configs = [
            BatchConfig::default().name("roomy").max_rebuilds(u32::MAX),
            BatchConfig::default().name("tight").capacity(16).capacity_cost(64).max_batch_size(8),
            BatchConfig::default().name("filling").max_wait(Duration::from_micros(200)),
            BatchConfig::default().name("asking").capacity(64).max_rebuilds(u32::MAX),
        ];
        let mut queues: Vec<BatchQueue<Treacherous>> = Vec::new();
        for (number, config) in configs.into_iter().enumerate() {
            let config = config.max_batch_cost(256);
            let inner = if number == 3 { queues.first().cloned() } else { None };
            let (builds, ledger) = (AtomicU64::new(0), Arc::clone(&ledger));
            let queue = BatchQueue::new(&device, config, move || {
                let build = builds.fetch_add(1, Ordering::Relaxed);
                let mut dice =
                    fastrand::Rng::with_seed(seed ^ life << 20 ^ (number as u64) << 16 ^ build);
                if build >= workers as u64 && dice.u8(0..20) == 0 {
                    return Err(EngineError::failed("chaos: the rebuild failed"));
                }
                Ok(Treacherous { dice, inner: inner.clone(), ledger: Arc::clone(&ledger) })
            })?;
            queues.push(queue);
        }
        Ok(Self {
            device,
            accepted: queues.iter().map(|_| AtomicU64::new(0)).collect(),
            queues,
            quiet,
            ended: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            ledger,
        })
    }

    /// The next request's number; none when the world is used up.
    pub(super) fn next_id(&self) -> Option<u64> {
        Some(self.ledger.next()).filter(|&id| id < IDS - 4096)
    }

    /// Waits until all clients have left, and compares every count.
    pub(super) fn leave_quietly(&self, tally: &Tally) {
        self.ended.store(true, Ordering::SeqCst);
        while self.inside.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        for (number, queue) in self.queues.iter().enumerate() {
            // Handles that were dropped may still be computed.
            let stats = loop {
                let stats = queue.stats();
                if stats.waiting == 0 && stats.running == 0 {
                    break stats;
                }
                std::thread::sleep(Duration::from_micros(200));
            };
            let mut accepted = self.accepted[number].load(Ordering::SeqCst);
            if number == 0 {
                accepted += self.ledger.asked.load(Ordering::SeqCst);
            }
            let ends = stats.completed + stats.failed + stats.cancelled + stats.expired;
            if stats.submitted != ends + stats.closed || stats.submitted != accepted {
                let name = &queue.config().name;
                tally.fault(
                    |t| &t.unbalanced,
                    || format!("queue {name}: clients saw {accepted} accepted: {stats:?}"),
                );
            }
        }
    }
}

/// An engine that fails in every way there is. It leaves good requests their answers: whatever it
/// does without a poisoned one among them it does to batches of two and more only.
pub(super) struct Treacherous {
    dice: fastrand::Rng,
    inner: Option<BatchQueue<Treacherous>>,
    ledger: Arc<Ledger>,
}

impl Engine for Treacherous {
    type Item = Item;
    type Output = u64;

    fn infer(&mut self, batch: &[Item]) -> Result<Vec<u64>, EngineError> {
        let has = |nature| batch.iter().any(|item| item.nature == nature);
        let several = batch.len() > 1;
        match self.dice.u32(0..2000) {
            0 => std::thread::sleep(Duration::from_micros(self.dice.u64(0..2000))),
            1..4 if several => panic!("chaos: by chance"),
            4..10 if several => return Err(EngineError::failed("chaos: by chance")),
            10..14 if batch.len() > 4 => return Err(EngineError::out_of_memory("chaos: too many")),
            14 if several => return Ok(vec![0; batch.len() - 1]),
            _ => {}
        }
        assert!(!has(Nature::Bomb), "chaos: a bomb");
        if has(Nature::Poison) {
            return Err(EngineError::failed("chaos: poisoned"));
        }
        if let Some(inner) = &self.inner {
            self.ask(inner, batch)?;
        }
        let answers = batch.iter().map(|item| {
            self.ledger.note(item.id);
            answer(item.id)
        });
        Ok(answers.collect())
    }
}

impl Treacherous {
    /// Waits, in the middle of the batch, for another queue of the same device.
    fn ask(&self, inner: &BatchQueue<Self>, batch: &[Item]) -> Result<(), EngineError> {
        let id = self.ledger.next();
        let key = batch.first().map_or(0, |item| item.key);
        let item = Item { id, key, cost: 1, nature: Nature::Good };
        let handle = inner.submit(item).map_err(|e| EngineError::failed(e.to_string()))?;
        self.ledger.asked.fetch_add(1, Ordering::SeqCst);
        let given = handle.wait().map_err(EngineError::failed)?;
        if given != answer(id) {
            let text = || format!("the engine asked {id} and was given {given}");
            self.ledger.tally.fault(|t| &t.misrouted, text);
        }
        Ok(())
    }
}

/// The engines' own panics are part of the game; any other is still printed.
pub(super) fn silence_expected_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        if !text.is_some_and(|text| text.starts_with("chaos:")) {
            usual(info);
        }
    }));
}
