//! [`Cell`]: what a cell of the hazard table gave.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::SimError;
use crate::stats::SimStats;
use crate::trace::Trace;

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

    /// Counts one iteration by the greatest difference that a thread saw in it.
    pub(super) fn count(&mut self, iteration: usize, worst: f32, tolerance: f32) {
        self.worst = self.worst.max(worst);
        if worst <= tolerance {
            self.right.insert(iteration);
        }
    }

    /// Joins another run of the same row: an iteration passes when it passes in all runs.
    pub(super) fn join(&mut self, other: Cell) {
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
