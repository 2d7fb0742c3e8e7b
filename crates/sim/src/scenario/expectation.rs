//! What each cell of the hazard table must give under `fork-2.9.1`: where there are measurements, as
//! they say; else as the rules say.

use super::table::{Cell, Column};
use super::workload::Row;

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
        let racy = match row {
            Row::SingleOps | Row::Mlp | Row::RaceWithoutContiguous => false,
            Row::RaceWithContiguous | Row::Attention | Row::TransformerBlock => true,
        };
        match column {
            // Patch 035 repairs the attention, and is not in the code of the minimal race.
            Column::Patch035 if row == Row::Attention => Expectation::AllPass,
            Column::Threads | Column::Patch035 if racy => Expectation::SomeFail,
            Column::Threads | Column::Patch035 => Expectation::AllPass,
            Column::Queue { workers: 0 | 1 } => Expectation::AllPass,
            Column::Queue { .. } if racy => Expectation::SomeFail,
            Column::Queue { .. } => Expectation::Open,
            Column::OneLock
            | Column::PerStreamAllocator
            | Column::RetainAllocator
            | Column::SharedStream => Expectation::AllPass,
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
