//! The hazard table: what happens to each [`Row`] by each way to the device.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::cell::Cell;
use super::front::{Answers, Front};
use super::trial::Trial;
use super::workload::{Row, Workload};
use crate::models::Packing;
use crate::profile::{Profile, Reuse, StreamPolicy};

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

impl Trial {
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
}
