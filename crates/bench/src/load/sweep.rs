//! The plain scenario: closed loops and open load, every strategy in turn, round by round.

use std::sync::Arc;
use std::time::Duration;

use onelane_bench::generator::{Arrivals, ClosedLoop, Limit, Process};
use onelane_bench::median_ratio;
use onelane_terminal::bar;

use super::offline::offline;
use super::report::{Closed, Figures, Loaded};
use super::run::{self, Open, Run};
use super::stage::Stage;
use super::strategy::Strategy;
use super::trace::Trace;
use super::workload::Workload;

/// Closed-loop clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Threads that block.
    Threads(usize),
    /// Async tasks.
    Tasks(usize),
}

impl Clients {
    /// How many.
    pub fn count(self) -> usize {
        match self {
            Self::Threads(count) | Self::Tasks(count) => count,
        }
    }

    /// What they are.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Threads(_) => "threads",
            Self::Tasks(_) => "tasks",
        }
    }
}

/// What is offered under open load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Offer {
    /// Requests per second.
    Rate(f64),
    /// A part of what the batch queue can do.
    Load(f64),
}

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which strategies.
    pub strategies: Vec<Strategy>,
    /// Which closed loops.
    pub clients: Vec<Clients>,
    /// Threads that async tasks share.
    pub task_threads: usize,
    /// Which open loads.
    pub offers: Vec<Offer>,
    /// Threads of the strategies without a queue under open load.
    pub open_threads: usize,
    /// How often everything is repeated.
    pub rounds: usize,
    /// How long a turn is.
    pub limit: Limit,
    /// Chooses arrivals.
    pub seed: u64,
}

/// Engines that do not fit: together more than this many bytes.
const MOST_ENGINE_BYTES: u64 = 4 << 30;

/// What came of it.
#[derive(Default)]
pub struct Measured {
    /// Closed loops.
    pub closed: Vec<Closed>,
    /// Open load.
    pub open: Vec<Loaded>,
    /// Requests per second of a queue that is never empty.
    pub capacity: Option<f64>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// One strategy with one kind of clients.
struct ClosedCell {
    clients: Clients,
    strategy: Strategy,
    rounds: Vec<Run>,
    /// Offline rates at the mean batch of each round.
    at_mean: Vec<f64>,
}

struct OpenCell {
    offer: Offer,
    rate: f64,
    strategy: Strategy,
    rounds: Vec<Open>,
}

/// Measures.
///
/// # Errors
/// When an engine cannot be made, or a thread.
pub fn measure<W: Workload>(
    stage: &Arc<Stage<W>>,
    plan: &Plan,
    mut trace: Option<&mut Trace>,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let mut closed = closed_cells(stage, plan, &mut measured.notes);
    if plan.offers.iter().any(|offer| matches!(offer, Offer::Load(_))) {
        measured.capacity = Some(run::capacity(stage, plan.time())?);
    }
    let mut open = open_cells(stage, plan, measured.capacity.unwrap_or(0.0), &mut measured.notes);
    let bar = bar((plan.rounds * (closed.len() + open.len())) as u64);
    let mut engine = match plan.strategies.contains(&Strategy::Offline) {
        true => Some(stage.engine(Strategy::Offline)?),
        false => None,
    };
    for round in 0..plan.rounds {
        // The first round is traced: the others are for the figures alone.
        let mut trace = trace.take();
        for cell in &mut closed {
            let what =
                format!("{}, {} {}", cell.strategy, cell.clients.count(), cell.clients.noun());
            bar.set_message(what.clone());
            let traced = begin_trace(stage, cell.strategy, trace.is_some());
            let clients = cell.clients.count();
            let closed = ClosedLoop { clients, limit: plan.limit, warm_up: true };
            let run = match (cell.strategy, cell.clients, &mut engine) {
                (Strategy::Offline, _, Some(engine)) => {
                    offline(stage, engine, clients.min(stage.max_batch), plan.limit)?
                }
                (strategy, Clients::Threads(_), _) => run::threads(stage, strategy, closed)?,
                (strategy, Clients::Tasks(_), _) => {
                    run::tasks(stage, strategy, closed, plan.task_threads)?
                }
            };
            if traced {
                end_trace(stage, cell.strategy, &what, &run, &mut trace);
            }
            if let (Strategy::Queue, Some(engine)) = (cell.strategy, &mut engine) {
                let size = (run.counts.mean_batch().round() as usize).clamp(1, stage.max_batch);
                cell.at_mean.push(offline(stage, engine, size, plan.limit)?.rate());
            }
            cell.rounds.push(run.without_spans());
            bar.inc(1);
        }
        for cell in &mut open {
            let what = format!("{}, {:.0} requests/s offered", cell.strategy, cell.rate);
            bar.set_message(what.clone());
            let traced = begin_trace(stage, cell.strategy, trace.is_some());
            let seed = plan.seed.wrapping_add(round as u64);
            let process = Process::Poisson { seed };
            let arrivals = Arrivals { rate: cell.rate, time: plan.time(), process };
            let mut open = run::open(stage, cell.strategy, arrivals, plan.open_threads)?;
            if traced {
                end_trace(stage, cell.strategy, &what, &open.run, &mut trace);
            }
            open.run = open.run.without_spans();
            cell.rounds.push(open);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    measured.closed = closed.iter().map(|cell| cell.result(&closed)).collect();
    measured.open = open.iter().map(OpenCell::result).collect();
    Ok(measured)
}

impl Plan {
    /// How long a turn of open load is.
    fn time(&self) -> Duration {
        match self.limit {
            Limit::Time(time) => time,
            Limit::Requests(_) => Duration::from_millis(500),
        }
    }
}

fn begin_trace<W: Workload>(stage: &Stage<W>, strategy: Strategy, traced: bool) -> bool {
    if traced {
        stage.meter(strategy).start_trace();
    }
    traced
}

fn end_trace<W: Workload>(
    stage: &Stage<W>,
    strategy: Strategy,
    what: &str,
    run: &Run,
    trace: &mut Option<&mut Trace>,
) {
    let batches = stage.meter(strategy).end_trace();
    if let Some(trace) = trace {
        trace.add(what, &batches, &run.seen.spans);
    }
}

fn closed_cells<W: Workload>(
    stage: &Stage<W>,
    plan: &Plan,
    notes: &mut Vec<String>,
) -> Vec<ClosedCell> {
    let mut cells = Vec::new();
    for &clients in &plan.clients {
        for &strategy in &plan.strategies {
            if matches!(clients, Clients::Tasks(_))
                && matches!(strategy, Strategy::Direct | Strategy::Lock)
            {
                notes.push(format!(
                    "{strategy} with {} tasks left out: it would block the tasks' threads",
                    clients.count()
                ));
            } else if strategy != Strategy::Direct || fits(stage, clients.count(), notes) {
                cells.push(ClosedCell { clients, strategy, rounds: vec![], at_mean: vec![] });
            }
        }
    }
    cells
}

fn open_cells<W: Workload>(
    stage: &Stage<W>,
    plan: &Plan,
    capacity: f64,
    notes: &mut Vec<String>,
) -> Vec<OpenCell> {
    let mut cells = Vec::new();
    for &offer in &plan.offers {
        let rate = match offer {
            Offer::Rate(rate) => rate,
            Offer::Load(load) => load * capacity,
        };
        for &strategy in plan.strategies.iter().filter(|&&s| s != Strategy::Offline) {
            if strategy != Strategy::Direct || fits(stage, plan.open_threads, notes) {
                cells.push(OpenCell { offer, rate, strategy, rounds: vec![] });
            }
        }
    }
    cells
}

/// Whether so many engines fit into memory.
fn fits<W: Workload>(stage: &Stage<W>, engines: usize, notes: &mut Vec<String>) -> bool {
    let bytes = stage.workload.engine_bytes().saturating_mul(engines as u64);
    let fits = bytes <= MOST_ENGINE_BYTES;
    if !fits {
        notes.push(format!(
            "direct with {engines} threads left out: as many engines take {:.1} GiB",
            bytes as f64 / f64::from(1 << 30)
        ));
    }
    fits
}

impl ClosedCell {
    fn rates(&self) -> Vec<f64> {
        self.rounds.iter().map(Run::rate).collect()
    }

    fn result(&self, all: &[Self]) -> Closed {
        let offline = all
            .iter()
            .find(|cell| cell.strategy == Strategy::Offline && cell.clients == self.clients);
        let rates = self.rates();
        Closed {
            clients_are: self.clients.noun(),
            clients: self.clients.count(),
            strategy: self.strategy.name(),
            figures: Figures::of(&self.rounds),
            ratio_to_offline: offline.and_then(|cell| median_ratio(&rates, &cell.rates())),
            ratio_to_offline_at_mean_batch: median_ratio(&rates, &self.at_mean),
        }
    }
}

impl OpenCell {
    fn result(&self) -> Loaded {
        let load = match self.offer {
            Offer::Load(load) => Some(load),
            Offer::Rate(_) => None,
        };
        Loaded::of(load, self.rate, self.strategy.name(), &self.rounds)
    }
}
