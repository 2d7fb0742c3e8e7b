//! The hazard table: what happens to each [`Row`] by each way to the device.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::front::{Answers, Front, Run};
use super::samples::Samples;
use super::workload::{Row, Workload};
use crate::device::{SimConfig, SimDevice};
use crate::error::SimError;
use crate::memo::Memo;
use crate::models::Packing;
use crate::profile::{Profile, Reuse, StreamPolicy};
use crate::schedule::Schedule;
use crate::stats::SimStats;
use crate::trace::Trace;

/// A column of the hazard table: how the threads get to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Column {
    /// Every thread calls the device itself.
    Threads,
    /// The same, with patch 035 in PyTorch.
    Patch035,
    /// Through a batch queue with so many workers, which synchronise before they answer.
    Queue {
        /// The number of workers.
        workers: usize,
    },
    /// One lock around each forward pass and its synchronise.
    OneLock,
    /// Every thread calls the device itself; freed blocks go to their own stream only.
    PerStreamAllocator,
    /// Every thread calls the device itself; freed blocks are kept until their commands are committed.
    RetainAllocator,
    /// Every thread calls the device itself; all share one stream.
    SharedStream,
}

impl Column {
    /// All columns, in the order of the table.
    pub const ALL: [Column; 9] = [
        Column::Threads,
        Column::Patch035,
        Column::Queue { workers: 1 },
        Column::Queue { workers: 2 },
        Column::Queue { workers: 3 },
        Column::OneLock,
        Column::PerStreamAllocator,
        Column::RetainAllocator,
        Column::SharedStream,
    ];

    fn front(self) -> Front {
        match self {
            Column::Queue { workers } => Front::Queue { workers, answers: Answers::Host },
            Column::OneLock => Front::Lock,
            _ => Front::Threads,
        }
    }

    pub(super) fn profile(self, profile: Profile) -> Profile {
        match self {
            Column::PerStreamAllocator => profile.with_reuse(Reuse::PerStream),
            Column::RetainAllocator => profile.with_reuse(Reuse::Retain),
            Column::SharedStream => profile.with_streams(StreamPolicy::Shared),
            _ => profile,
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Threads => f.write_str("threads"),
            Column::Patch035 => f.write_str("patch 035"),
            Column::Queue { workers } => write!(f, "queue, {workers} worker")
                .and_then(|()| f.write_str(if *workers == 1 { "" } else { "s" })),
            Column::OneLock => f.write_str("one lock"),
            Column::PerStreamAllocator => f.write_str("allocator per_stream"),
            Column::RetainAllocator => f.write_str("allocator retain"),
            Column::SharedStream => f.write_str("one shared stream"),
        }
    }
}

/// A cell of the table with the seed of its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// The row.
    pub row: Row,
    /// The column.
    pub column: Column,
    /// The seed.
    pub seed: u64,
}

impl Job {
    /// Every cell of the table with every seed.
    pub fn all(seeds: std::ops::Range<u64>) -> Vec<Job> {
        let mut jobs = Vec::new();
        for row in Row::ALL {
            for column in Column::ALL {
                jobs.extend(seeds.clone().map(|seed| Job { row, column, seed }));
            }
        }
        jobs
    }
}

/// The conditions of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trial {
    /// The rules of the device.
    pub profile: Profile,
    /// The seed of the schedule.
    pub seed: u64,
    /// How the next thread is chosen.
    pub schedule: Schedule,
    /// Threads that run at once.
    pub threads: usize,
    /// Iterations; each starts its threads anew.
    pub iterations: usize,
    /// The largest absolute difference that passes.
    pub tolerance: f32,
    /// Whether a thread may begin before the others have been started.
    pub staggered: bool,
    /// Whether events are recorded.
    pub traced: bool,
    /// Results of pure commands, shared by runs.
    pub memo: Memo,
    /// Weights, inputs and expected results, shared by runs.
    pub samples: Samples,
}

/// Bytes of results that trials keep for each other: about what the whole table needs.
const MEMO_BYTES: usize = 768 << 20;

impl Trial {
    /// 8 threads, 30 iterations, tolerance 1e-3, random schedule of seed 0.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            seed: 0,
            schedule: Schedule::Random,
            threads: 8,
            iterations: 30,
            tolerance: 1e-3,
            staggered: false,
            traced: false,
            memo: Memo::new(MEMO_BYTES),
            samples: Samples::default(),
        }
    }

    /// The same with another seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with another schedule.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// The same with another number of iterations.
    #[must_use]
    pub fn iterations(mut self, iterations: usize) -> Self {
        self.iterations = iterations;
        self
    }

    /// The same with another number of threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// The same under another profile; memo and samples are shared.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// The same, where a thread may begin before the others have been started.
    #[must_use]
    pub fn staggered(mut self) -> Self {
        self.staggered = true;
        self
    }

    /// The same with events recorded.
    #[must_use]
    pub fn traced(mut self) -> Self {
        self.traced = true;
        self
    }

    /// Runs one cell of the table.
    pub fn cell(&self, row: Row, column: Column) -> Cell {
        let packing = match column {
            Column::Patch035 => Packing::Chunked,
            _ => Packing::Packed,
        };
        let workload = Workload::new(row).packing(packing);
        let trial = self.clone().profile(column.profile(self.profile.clone()));
        trial.run(workload, column.front())
    }

    /// Runs cells of the given seeds, as many at a time as the machine has cores; `done` hears of each
    /// as it ends. The results stand in the order of the jobs.
    pub fn cells(&self, jobs: &[Job], done: impl Fn(&Job, &Cell) + Sync) -> Vec<Cell> {
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Cell>>> = jobs.iter().map(|_| Mutex::default()).collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(jobs.len()) {
                scope.spawn(|| {
                    while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed))
                        && let Some(job) = jobs.get(at)
                    {
                        let cell = self.clone().seed(job.seed).cell(job.row, job.column);
                        done(job, &cell);
                        *results[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(cell);
                    }
                });
            }
        });
        let taken = results.into_iter().map(|cell| {
            let cell = cell.into_inner().unwrap_or_else(PoisonError::into_inner);
            cell.expect("every job ran before the scope ended")
        });
        taken.collect()
    }

    /// Runs a workload through a front.
    pub fn run(&self, workload: Workload, front: Front) -> Cell {
        let mut runs = workload.runs().into_iter();
        let first = runs.next().expect("every row has a run");
        let mut cell = self.run_one(first, front);
        for run in runs {
            cell.join(self.run_one(run, front));
        }
        cell
    }

    fn run_one(&self, workload: Workload, front: Front) -> Cell {
        let mut config = SimConfig::new(self.profile.clone())
            .seed(self.seed)
            .schedule(self.schedule.clone())
            .memo(self.memo.clone());
        config.traced = self.traced;
        let device = SimDevice::new(config);
        let run = Run {
            device: &device,
            trial: self,
            workload,
            weights: self.samples.weights(&workload),
        };
        let mut cell = Cell {
            right: BTreeSet::new(),
            iterations: self.iterations,
            worst: 0.0,
            ended_by: None,
            stats: SimStats::default(),
            trace: Trace::default(),
        };
        let ended = device.run(|main| run.iterate(main, front, &mut cell));
        cell.ended_by = match ended {
            Ok(result) => result.err(),
            Err(error) => Some(error),
        };
        cell.stats = device.stats();
        cell.trace = device.trace();
        cell
    }
}

/// What a cell of the table gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cell {
    /// The iterations in which every thread's result was right.
    pub right: BTreeSet<usize>,
    /// Iterations that were asked for.
    pub iterations: usize,
    /// The largest absolute difference to the serial result.
    pub worst: f32,
    /// What ended the simulated process before its time: an abort or a hang.
    pub ended_by: Option<SimError>,
    /// The device's counters; sums (or maxima), where a row has several runs.
    pub stats: SimStats,
    /// The events, when they are recorded; of the first run, where a row has several.
    pub trace: Trace,
}

impl Cell {
    /// Iterations in which every thread's result was right.
    pub fn passed(&self) -> usize {
        self.right.len()
    }

    /// Whether all iterations passed.
    pub fn passes(&self) -> bool {
        self.passed() == self.iterations && self.ended_by.is_none()
    }

    /// An iteration passes when it passes in all runs.
    fn join(&mut self, other: Cell) {
        self.right.retain(|iteration| other.right.contains(iteration));
        self.worst = self.worst.max(other.worst);
        self.ended_by = self.ended_by.take().or(other.ended_by);
        self.stats.add(&other.stats);
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.passed(), self.iterations)?;
        match &self.ended_by {
            Some(SimError::Aborted(_)) => f.write_str(" abort"),
            Some(SimError::Hang(_)) => f.write_str(" hang"),
            Some(_) => f.write_str(" error"),
            None => Ok(()),
        }
    }
}
