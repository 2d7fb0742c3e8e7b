//! The children of one supervisor: how one is started, which there are, and what became of them.

use std::collections::BTreeSet;
use std::process::{Command, ExitStatus};
use std::sync::PoisonError;
use std::time::Duration;

use crate::config::IsolationConfig;
use crate::error::ChildLost;
use crate::footprint::Footprint;
use crate::process::{Ended, Process};
use crate::stats::IsolationStats;
use crate::sync::{Mutex, MutexGuard};

type MakeCommand = Box<dyn Fn() -> Command + Send + Sync>;

/// What is the same for all children of a supervisor, and what is counted of them.
pub(crate) struct Children {
    pub(crate) command: MakeCommand,
    pub(crate) config: IsolationConfig,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    living: BTreeSet<u32>,
    stuck: Vec<Process>,
    stats: IsolationStats,
}

/// Why a child is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecycleCause {
    Memory,
    Batches,
    Age,
}

impl Children {
    pub(crate) fn new(command: MakeCommand, config: IsolationConfig) -> Self {
        Self { command, config, ledger: Mutex::new(Ledger::default()) }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot of the counters; what a supervisor knows of its spare is not in it.
    pub(crate) fn stats(&self) -> IsolationStats {
        let mut stats = {
            let mut ledger = self.lock();
            ledger.reap();
            let children = ledger.living.iter().copied().collect();
            IsolationStats { children, ..ledger.stats.clone() }
        };
        let bytes = |&child: &u32| Footprint::of(child).bytes();
        stats.footprint = stats.children.iter().filter_map(bytes).sum();
        stats
    }

    /// A start has ended, in one way or the other.
    pub(crate) fn started(&self, is_ready: bool, took: Duration) {
        let mut ledger = self.lock();
        ledger.reap();
        if is_ready {
            ledger.stats.last_start = took;
        } else {
            ledger.stats.failed_starts += 1;
        }
    }

    pub(crate) fn spawned(&self, pid: u32) {
        let mut ledger = self.lock();
        ledger.stats.starts += 1;
        ledger.living.insert(pid);
    }

    /// Notes how a process has ended; one that is stuck is kept, to be reaped when it dies at last.
    pub(crate) fn gone(&self, pid: u32, ended: Ended) -> Option<ExitStatus> {
        let mut ledger = self.lock();
        match ended {
            Ended::Gone(status) => {
                ledger.living.remove(&pid);
                status
            }
            Ended::Stuck(process) => {
                tracing::error!(pid, "an isolated worker was killed and does not die");
                ledger.stats.stuck += 1;
                ledger.stuck.push(process);
                None
            }
        }
    }

    pub(crate) fn lost(&self, lost: &ChildLost) {
        let stats = &mut self.lock().stats;
        match lost {
            ChildLost::Crashed { .. } => stats.crashes += 1,
            ChildLost::Hung { .. } => stats.hangs += 1,
            ChildLost::EngineLost { .. } => stats.engine_losses += 1,
            ChildLost::Protocol { .. } => stats.protocol_errors += 1,
            // They are of a start, and counted there.
            ChildLost::NotBuilt { .. } | ChildLost::Spawn(_) | ChildLost::Cancelled => {}
        }
    }

    pub(crate) fn retried(&self) {
        self.lock().stats.retries += 1;
    }

    pub(crate) fn recycled(&self, cause: RecycleCause) {
        let stats = &mut self.lock().stats;
        match cause {
            RecycleCause::Memory => stats.recycled_for_memory += 1,
            RecycleCause::Batches => stats.recycled_for_batches += 1,
            RecycleCause::Age => stats.recycled_for_age += 1,
        }
    }

    pub(crate) fn measured(&self, bytes: u64) {
        let stats = &mut self.lock().stats;
        stats.max_footprint = stats.max_footprint.max(bytes);
    }
}

impl Ledger {
    fn reap(&mut self) {
        let living = &mut self.living;
        self.stuck.retain_mut(|process| {
            let pid = process.id();
            let reaped = process.try_reap();
            if reaped {
                living.remove(&pid);
            }
            !reaped
        });
    }
}
