//! What each cell of the hazard table must give: where there are measurements (`fork-2.9.1`), as they
//! say; else as the rules say.

use super::cell::Cell;
use super::table::Column;
use super::workload::Row;
use crate::profile::{Profile, StreamPolicy};

/// What a cell must give over all seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Expectation {
    /// Every iteration passes with every seed.
    AllPass,
    /// Some iteration fails with some seed.
    SomeFail,
    /// Nothing is said.
    Open,
}

impl Expectation {
    /// What a cell must give under `fork-2.9.1`.
    pub fn of(row: Row, column: Column) -> Self {
        Self::under(&Profile::fork_2_9_1(), row, column)
    }

    /// What a cell must give under a profile.
    pub fn under(profile: &Profile, row: Row, column: Column) -> Self {
        let profile = column.profile(profile.clone());
        let queued = matches!(column, Column::Queue { .. });
        // Workers build the models that they run; elsewhere the main thread does.
        if profile.thread_affine && !queued {
            return Expectation::SomeFail;
        }
        // An ended thread's command buffer stays open, and each iteration starts new threads: whether the
        // buffers last depends on how many iterations there are.
        if profile.streams == StreamPolicy::BufferPerThread && !queued {
            return Expectation::Open;
        }
        if matches!(column, Column::Queue { workers: 0 | 1 } | Column::OneLock) {
            return Expectation::AllPass;
        }
        if !profile.off_queue.is_empty() || !profile.caches_locked {
            return Expectation::SomeFail;
        }
        if !profile.gives_pending_blocks_away() {
            return Expectation::AllPass;
        }
        Self::of_early_reuse(row, column)
    }

    /// Where blocks are given away early and several threads are on the device at once.
    fn of_early_reuse(row: Row, column: Column) -> Self {
        let racy = match row {
            Row::SingleOps | Row::Mlp | Row::RaceWithoutContiguous => false,
            Row::RaceWithContiguous | Row::Attention | Row::TransformerBlock => true,
        };
        match column {
            // Patch 035 repairs the attention, and is not in the code of the minimal race.
            Column::Patch035 if row == Row::Attention => Expectation::AllPass,
            Column::Threads | Column::Patch035 if racy => Expectation::SomeFail,
            Column::Threads | Column::Patch035 => Expectation::AllPass,
            _ if racy => Expectation::SomeFail,
            _ => Expectation::Open,
        }
    }

    /// Whether the cells of several seeds are as expected.
    pub fn is_met<'c>(self, cells: impl IntoIterator<Item = &'c Cell>) -> bool {
        let mut cells = cells.into_iter();
        match self {
            Expectation::AllPass => cells.all(Cell::passes),
            Expectation::SomeFail => cells.any(|cell| !cell.passes()),
            Expectation::Open => true,
        }
    }
}
