//! [`Stage`]: a workload with its engine and queues ready, for every strategy.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig};
use onelane_bench::generator::{Client, QueueTarget, Target};

use super::observed::{Answer, Counts, Meter, Observed};
use super::strategy::Strategy;
use super::workload::{Output, Workload};

/// A queue of a workload's engine.
type Queue<W> = BatchQueue<Observed<<W as Workload>::Engine>>;

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
    expected: Vec<Output<W>>,
    direct: Arc<Meter>,
    locked: (Mutex<Observed<W::Engine>>, Arc<Meter>),
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
    ) -> anyhow::Result<Arc<Self>> {
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
        let locked = Mutex::new(Observed::new(engine, &meter));
        Ok(Arc::new(Self {
            max_batch,
            expected,
            direct: Arc::default(),
            locked: (locked, meter),
            one: queue("bench-1", 1)?,
            queue: queue("bench", max_batch)?,
            offline: Arc::default(),
            workload,
        }))
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

    /// How many requests are to be under way so that the batch queue is never empty.
    pub fn depth(&self) -> usize {
        (4 * self.max_batch).min(self.queue.0.config().capacity / 2)
    }

    /// The batch queue with the workload's requests.
    pub fn queue_target(&self, strategy: Strategy) -> QueueTarget<Observed<W::Engine>> {
        let workload = Arc::clone(&self.workload);
        QueueTarget::new(self.queue(strategy), move |number| item(&*workload, number).1.clone())
    }

    /// What client threads of a strategy ask.
    pub fn target(self: &Arc<Self>, strategy: Strategy) -> Arc<StrategyTarget<W>> {
        Arc::new(StrategyTarget { stage: Arc::clone(self), strategy })
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

    /// Whether an answer is right; requests beyond the first [`CHECKED`] are not compared.
    pub fn is_right(&self, number: u64, answer: &Answered<W>) -> bool {
        let expected = self.expected.get(item(&*self.workload, number).0);
        expected.is_none_or(|expected| self.workload.same(expected, &answer.output))
    }
}

/// The request of a number, and its place among the workload's.
fn item<W: Workload>(workload: &W, number: u64) -> (usize, &W::Item) {
    let items = workload.items();
    let index = (number % items.len() as u64) as usize;
    (index, &items[index])
}

/// A strategy with its engine or queue.
pub struct StrategyTarget<W: Workload> {
    stage: Arc<Stage<W>>,
    strategy: Strategy,
}

impl<W: Workload> Target for StrategyTarget<W> {
    type Client = StrategyClient<W>;

    fn client(&self) -> Result<StrategyClient<W>, String> {
        let stage = &self.stage;
        Ok(match self.strategy {
            strategy @ (Strategy::Direct | Strategy::Offline) => {
                let engine = stage.engine(strategy).map_err(|error| error.to_string())?;
                StrategyClient::Direct(Arc::clone(&stage.workload), Box::new(engine))
            }
            Strategy::Lock => StrategyClient::Lock(Arc::clone(stage)),
            strategy @ (Strategy::QueueOne | Strategy::Queue) => {
                StrategyClient::Queue(stage.queue_target(strategy))
            }
        })
    }
}

/// What one client thread asks through.
pub enum StrategyClient<W: Workload> {
    /// Its own engine.
    Direct(Arc<W>, Box<Observed<W::Engine>>),
    /// One engine under a mutex.
    Lock(Arc<Stage<W>>),
    /// A batch queue.
    Queue(QueueTarget<Observed<W::Engine>>),
}

impl<W: Workload> Client for StrategyClient<W> {
    type Reply = Result<Answered<W>, String>;

    fn ask(&mut self, number: u64) -> Self::Reply {
        let alone = |engine: &mut Observed<W::Engine>, workload: &W| {
            let item = item(workload, number).1.clone();
            let mut answers = engine.infer(&[item]).map_err(|error| error.to_string())?;
            answers.pop().ok_or_else(|| "the engine gave no output".to_owned())
        };
        match self {
            Self::Direct(workload, engine) => alone(engine, workload),
            Self::Lock(stage) => {
                // A panic in the engine ends the whole run; what it left behind is not looked at.
                let mut engine = stage.locked.0.lock().unwrap_or_else(PoisonError::into_inner);
                alone(&mut engine, &stage.workload)
            }
            Self::Queue(target) => target.ask(number),
        }
    }
}
