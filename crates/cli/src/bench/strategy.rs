//! [`Strategy`]: the ways in which many clients may use one engine; [`Stage`] has them ready.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig};

use super::observed::{Answer, Counts, Meter, Observed};
use super::workload::{Output, Workload};

/// A way to use an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// Every client thread has an engine of its own.
    Direct,
    /// All share one engine, under a mutex.
    Lock,
    /// A batch queue that runs requests one by one.
    #[value(name = "queue-1")]
    QueueOne,
    /// A batch queue that runs together what waits.
    Queue,
    /// One thread, no clients, whole batches made before: the limit.
    Offline,
}

impl Strategy {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 5] =
        [Self::Direct, Self::Lock, Self::QueueOne, Self::Queue, Self::Offline];

    /// Its name, as it is given.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Lock => "lock",
            Self::QueueOne => "queue-1",
            Self::Queue => "queue",
            Self::Offline => "offline",
        }
    }

    /// Whether a client waits without blocking its thread.
    pub fn is_async(self) -> bool {
        matches!(self, Self::QueueOne | Self::Queue)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A queue of a workload's engine.
pub type Queue<W> = BatchQueue<Observed<<W as Workload>::Engine>>;

/// One engine for many threads.
type Locked<W> = Arc<Mutex<Observed<<W as Workload>::Engine>>>;

/// An answer of a workload's engine.
pub type Answered<W> = Answer<Output<W>>;

/// How many requests are compared with what the engine gives for each alone.
const CHECKED: usize = 64;

/// A workload with its engine and queues ready.
pub struct Stage<W: Workload> {
    /// The engine and the requests.
    pub workload: Arc<W>,
    /// The largest batch.
    pub max_batch: usize,
    /// What the first requests' answers are, each computed alone.
    pub expected: Arc<Vec<Output<W>>>,
    direct: Arc<Meter>,
    locked: (Locked<W>, Arc<Meter>),
    one: (Queue<W>, Arc<Meter>),
    queue: (Queue<W>, Arc<Meter>),
    offline: Arc<Meter>,
}

impl<W: Workload> Stage<W> {
    /// Makes one engine for the lock, one for the offline runs, and one for each queue.
    ///
    /// # Errors
    /// When an engine cannot be made or fails.
    pub fn new(
        workload: W,
        executor: ExecutorConfig,
        max_batch: usize,
        capacity: usize,
    ) -> anyhow::Result<Self> {
        let workload = Arc::new(workload);
        let device = executor.device.clone();
        let cannot = || format!("cannot start on {device}");
        let mut engine = workload.load().with_context(cannot)?;
        engine.warmup().with_context(cannot)?;
        let mut expected = Vec::new();
        for item in workload.items().iter().take(CHECKED) {
            let mut alone = engine.infer(std::slice::from_ref(item)).with_context(cannot)?;
            expected.push(alone.pop().context("the engine gave no output")?);
        }
        let executor = DeviceExecutor::new(executor)?;
        let queue = |name: &str, batch: usize| -> anyhow::Result<(Queue<W>, Arc<Meter>)> {
            let meter = Arc::new(Meter::default());
            let (workload, within) = (Arc::clone(&workload), Arc::clone(&meter));
            let config = BatchConfig::default().name(name).max_batch_size(batch).capacity(capacity);
            let factory = move || Ok(Observed::new(workload.load()?, &within));
            Ok((BatchQueue::new(&executor, config, factory).with_context(cannot)?, meter))
        };
        let meter = Arc::new(Meter::default());
        let locked = Arc::new(Mutex::new(Observed::new(engine, &meter)));
        Ok(Self {
            max_batch,
            expected: Arc::new(expected),
            direct: Arc::default(),
            locked: (locked, meter),
            one: queue("bench-1", 1)?,
            queue: queue("bench", max_batch)?,
            offline: Arc::default(),
            workload,
        })
    }

    /// What the engines of a strategy count into.
    pub fn meter(&self, strategy: Strategy) -> &Arc<Meter> {
        match strategy {
            Strategy::Direct => &self.direct,
            Strategy::Lock => &self.locked.1,
            Strategy::QueueOne => &self.one.1,
            Strategy::Queue => &self.queue.1,
            Strategy::Offline => &self.offline,
        }
    }

    /// What they counted so far.
    pub fn counts(&self, strategy: Strategy) -> Counts {
        self.meter(strategy).counts()
    }

    /// The batch queue: that of [`Strategy::QueueOne`], or the other.
    pub fn queue(&self, strategy: Strategy) -> &Queue<W> {
        if strategy == Strategy::QueueOne { &self.one.0 } else { &self.queue.0 }
    }

    /// An engine for a thread of its own.
    ///
    /// # Errors
    /// The engine's.
    pub fn engine(&self, strategy: Strategy) -> Result<Observed<W::Engine>, EngineError> {
        let mut engine = Observed::new(self.workload.load()?, self.meter(strategy));
        engine.warmup()?;
        Ok(engine)
    }

    /// What a client thread asks through; call it on that thread.
    ///
    /// # Errors
    /// When the thread's own engine cannot be made.
    pub fn asker(&self, strategy: Strategy) -> Result<Asker<W>, EngineError> {
        Ok(match strategy {
            Strategy::Direct | Strategy::Offline => Asker::Own(Box::new(self.engine(strategy)?)),
            Strategy::Lock => Asker::Locked(Arc::clone(&self.locked.0)),
            Strategy::QueueOne | Strategy::Queue => Asker::Queue(self.queue(strategy).clone()),
        })
    }

    /// The request that is number `at` of a client; clients begin at different ones.
    pub fn item(&self, at: usize) -> (usize, W::Item) {
        let items = self.workload.items();
        let index = at % items.len();
        (index, items[index].clone())
    }

    /// Whether an answer is right; requests beyond the first [`CHECKED`] are not compared.
    pub fn is_right(&self, index: usize, answer: &Answered<W>) -> bool {
        let expected = self.expected.get(index);
        expected.is_none_or(|expected| self.workload.same(expected, &answer.output))
    }
}

/// What one client thread asks through.
pub enum Asker<W: Workload> {
    /// Its own engine.
    Own(Box<Observed<W::Engine>>),
    /// One engine under a mutex.
    Locked(Locked<W>),
    /// A batch queue.
    Queue(Queue<W>),
}

impl<W: Workload> Asker<W> {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// What went wrong, in words.
    ///
    /// # Blocking
    /// Until the answer is there.
    pub fn ask(&mut self, item: W::Item) -> Result<Answered<W>, String> {
        let alone = |engine: &mut Observed<W::Engine>, item| {
            let mut answers = engine.infer(&[item]).map_err(|error| error.to_string())?;
            answers.pop().ok_or_else(|| "the engine gave no output".to_owned())
        };
        match self {
            Self::Own(engine) => alone(engine, item),
            Self::Locked(engine) => {
                // A panic in the engine ends the whole run; what it left behind is not looked at.
                alone(&mut engine.lock().unwrap_or_else(PoisonError::into_inner), item)
            }
            Self::Queue(queue) => {
                let handle = queue.submit(item).map_err(|error| error.to_string())?;
                handle.wait().map_err(|error| error.to_string())
            }
        }
    }
}
